//! The journey of one request, in both directions.
//!
//! Stations 5 to 12 for requests. [`serve`] answers; [`Exchange::journey`] is the table of contents: read the head, find
//! the rule, carry out filters, choose a backend, try its endpoints, hand the response back. Policy is asked for each try
//! that ends at an application of this node; what goes to another node is judged there.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout_at;

use super::admission::{self, Refused};
use super::answer::Answer;
use super::body::{RequestBody, ResponseBody, Source, Streaming, Watch};
use super::connection::{Connection, Side, speaks_h2};
use super::downstream::{InFlight, Seen};
use super::head::{Head, Unreadable};
use super::report::Report;
use super::upstream::{Key, Unanswered, Upstream, Way};
use super::{deadline, headers, mirror, upgrade};
use crate::balance::Open as Counted;
use crate::capture::Origin;
use crate::model::{AppProtocol, BackendTarget, Ending, Filter, Path, RouteBackend, Workload};
use crate::proxy::endpoint::{self, Target};
use crate::proxy::inbound::reason_of;
use crate::proxy::open::{CloseSignal, Registered};
use crate::registry::{Destination, Snapshot};
use crate::route::filters::{self, RedirectFrom};
use crate::route::{self, Matched, PortRoutes};
use crate::telemetry::{CutBy, Sampling, TraceContext};

/// Answers a request: with a server's response, or with our own words.
///
/// Not an `async fn`: from this call on, and not only from the first poll on, the request counts as being answered.
pub fn serve(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    if let Some(seen) = connection.seen.as_ref().filter(|_| request.version() == Version::HTTP_11) {
        seen.interim.open();
    }
    let mut exchange = Box::new(Exchange::new(connection, &request));
    async move {
        let mut response = match Box::pin(exchange.journey(request)).await {
            Ok(response) => response,
            Err(answer) => exchange.say(&answer),
        };
        if exchange.connection.close.is_draining() && !exchange.client_speaks_h2 {
            headers::announce_end(response.headers_mut());
        }
        if let Some(seen) = &exchange.connection.seen {
            seen.interim.close();
            seen.answer_protocol(is_switched(response.status(), &exchange.method));
        }
        Ok(response)
    }
}

/// One request and what becomes of it.
struct Exchange {
    connection: Rc<Connection>,
    /// Gone when a response follows it to the end.
    report: Option<Report>,
    client_speaks_h2: bool,
    is_grpc: bool,
    method: Method,
    in_flight: Option<InFlight>,
    deadlines: deadline::Deadlines,
}

/// Where a request goes, by its rule or for want of one.
struct Backend {
    destination: Destination,
    /// What the kernel drew, where no rule says otherwise.
    origin: Origin,
    filters: Vec<Filter>,
}

/// A response and what it came on.
struct Answered {
    response: Response<Incoming>,
    upstream: Upstream,
    key: Key,
    counted: Counted,
    /// Where policy was asked: the request is judged again while it is under way.
    entry: Option<Registered>,
}

impl Exchange {
    fn new(connection: Rc<Connection>, request: &Request<Incoming>) -> Self {
        Self {
            report: Some(Report::new(&connection, request)),
            client_speaks_h2: request.version() == Version::HTTP_2,
            is_grpc: headers::is_grpc(request.method(), request.headers()),
            method: request.method().clone(),
            in_flight: connection.seen.as_ref().map(InFlight::new),
            deadlines: deadline::Deadlines::default(),
            connection,
        }
    }

    async fn journey(&mut self, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, Answer> {
        let mut head = Head::of(&mut request).map_err(Answer::Unreadable)?;
        let mesh = self.connection.local.handles.registry.snapshot();
        let matched = self.find_rule(&mesh, &head)?;
        let rule_filters = matched.as_ref().map_or(&[][..], |matched| &matched.rule.filters);
        let prefix = matched.as_ref().and_then(|matched| matched.prefix.clone());
        self.answer_by_filter(rule_filters, &head, prefix.as_deref())?;
        let backend = self.choose_backend(&mesh, matched.as_ref())?;
        let asked = has_cors(rule_filters).then(|| head.headers.clone());
        self.trace(&mesh, &mut head);
        self.deadlines = deadline::Deadlines::new(
            self.report().started(),
            matched.as_ref().map(|matched| matched.rule.timeouts),
            self.is_grpc.then_some(&mut head.headers),
        );

        if let Some(violation) = self.connection.violation() {
            return Err(Answer::BadFraming(violation));
        }
        let from_client = wants_upgrade(&head).then(|| hyper::upgrade::on(&mut request));
        let source = Source::new(request.into_body());
        let mirrored = mirror::drawn(rule_filters, &backend.filters, &self.connection.local);
        head.edit(rule_filters, prefix.as_deref());
        head.edit(&backend.filters, prefix.as_deref());
        for target in mirrored {
            mirror::send(&self.connection, &mesh, target, &head, source.as_ref(), self.client_speaks_h2);
        }
        let answered = self.try_endpoints(&mesh, &backend, &mut head, source.as_ref()).await?;
        Ok(self.hand_back(answered, source, from_client, rule_filters, &backend.filters, asked.as_ref()))
    }

    fn report(&mut self) -> &mut Report {
        self.report
            .as_mut()
            .expect("the report leaves with the response, after everything that writes into it")
    }

    /// The rule that the request takes; `None`: no routes hold for this client, and it goes where it was sent.
    fn find_rule(&mut self, mesh: &Snapshot, head: &Head) -> Result<Option<Matched>, Answer> {
        let connection = self.connection.clone();
        let Side::Outbound { destination: Destination::Service(service, index), .. } = &connection.side
        else {
            return Ok(None);
        };
        let Some(source) = &connection.source else { return Ok(None) };
        // The service as it is now: a connection may be older than its routes and ports.
        let current = mesh.service(&service.name);
        let port = current.unwrap_or(service).ports.get(*index).or_else(|| service.ports.get(*index));
        let Some(port) = port else { return Ok(None) };
        let table = connection.local.handles.routes.current();
        match table.for_client(&service.name, port.port, &source.name.namespace).map(|routes| &**routes) {
            Some(PortRoutes::Requests(router)) => {
                let matched = router.find(&head.ask()).cloned().ok_or(Answer::NoRoute)?;
                self.report().matched = Some(matched.clone());
                Ok(Some(matched))
            }
            // Routes of another kind replaced those for which this connection began; it ends soon, its requests still go
            // where it was sent.
            Some(PortRoutes::Tls(_) | PortRoutes::Tcp(_)) | None => Ok(None),
        }
    }

    /// Filters that answer in a server's place.
    fn answer_by_filter(&self, filters: &[Filter], head: &Head, prefix: Option<&str>) -> Result<(), Answer> {
        for filter in filters {
            match filter {
                Filter::Cors(cors) => {
                    if let Some(answer) = filters::preflight(cors, &head.method, &head.headers) {
                        return Err(Answer::Preflight(answer));
                    }
                }
                Filter::Redirect(redirect) => {
                    let service = self.connection.service();
                    let from = RedirectFrom {
                        scheme: "http",
                        host: head
                            .host()
                            .or_else(|| service.as_ref().map(|name| &*name.name))
                            .unwrap_or_default(),
                        port: self.connection.dialled().port(),
                        prefix,
                        path_and_query: head.path_and_query(),
                    };
                    let (status, location) = filters::redirect(redirect, from);
                    return Err(Answer::Redirect(status, location));
                }
                Filter::RequestHeaders(_)
                | Filter::ResponseHeaders(_)
                | Filter::Rewrite(_)
                | Filter::Mirror(_) => {}
            }
        }
        Ok(())
    }

    fn choose_backend(&mut self, mesh: &Snapshot, matched: Option<&Matched>) -> Result<Backend, Answer> {
        let Some(matched) = matched else { return Ok(self.as_dialled(mesh)) };
        let rng = &self.connection.local.rng;
        let drawn = route::draw(&matched.rule.backends, &mut rng.borrow_mut()).cloned();
        let RouteBackend { target, filters, .. } = drawn.ok_or(Answer::NoBackend)?;
        match destination_of(mesh, &target) {
            Ok(destination) => {
                if let Destination::Service(service, _) = &destination {
                    self.report().service = Some(service.name.clone());
                }
                let origin = Origin { dialled: self.connection.dialled(), drawn: None };
                Ok(Backend { destination, origin, filters })
            }
            Err(reason) => {
                tracing::debug!(route = %matched.route, reason, "a request fell to an invalid backend");
                Err(Answer::NoBackend)
            }
        }
    }

    /// Without a rule a request goes to what its connection was dialled for.
    fn as_dialled(&self, mesh: &Snapshot) -> Backend {
        match &self.connection.side {
            Side::Outbound { origin, .. } => {
                Backend { destination: mesh.resolve(origin.dialled), origin: *origin, filters: Vec::new() }
            }
            Side::Inbound { dialled, .. } => Backend {
                destination: Destination::External,
                origin: Origin { dialled: *dialled, drawn: None },
                filters: Vec::new(),
            },
        }
    }

    /// A trace begins where the mesh does: at the client's agent, or where a client from outside comes in.
    fn trace(&mut self, mesh: &Snapshot, head: &mut Head) {
        let came_by_mesh = matches!(&self.connection.side, Side::Inbound { path: Path::Tunnel, .. });
        let sampling = if came_by_mesh { Sampling::NEVER } else { Sampling::of(&mesh.config) };
        let rng = &self.connection.local.rng;
        let trace = TraceContext::carry(&mut head.headers, sampling, &mut rng.borrow_mut());
        self.report().trace = trace;
    }

    /// Tries endpoints until one answers, as long as it is certain that none has seen the request.
    async fn try_endpoints(
        &mut self,
        mesh: &Arc<Snapshot>,
        backend: &Backend,
        head: &mut Head,
        source: Option<&Rc<RefCell<Source>>>,
    ) -> Result<Answered, Answer> {
        let mut tried = Vec::new();
        let mut last = Ending::NoEndpoint;
        let hint = backend.destination.service_port().and_then(crate::model::ServicePort::protocol);
        loop {
            let Some(target) = self.pick(mesh, backend, &tried) else { return Err(Answer::Failed(last)) };
            let address = target.address.addr();
            let counted = self.connection.local.connections.begin(address);
            let report = self.report();
            report.attempts += 1;
            report.endpoint = Some(target.address);
            report.destination = target.workload.clone();
            let way = self.way(&target, head)?;
            self.report().opened();
            let limit = self.deadlines.of_try();
            let close = way.close();
            let seen = self.connection.seen.clone();
            let trying = self.try_once(&way, address, hint, head, source);
            match within(limit, unless_closed(close, seen, trying)).await?? {
                Ok((response, upstream, key)) => {
                    let entry = way.into_entry();
                    return Ok(Answered { response, upstream, key, counted, entry });
                }
                Err(unanswered) => {
                    if let Some(violation) = self.connection.violation() {
                        return Err(Answer::BadFraming(violation));
                    }
                    if source.is_some_and(|source| source.borrow().is_broken()) {
                        return Err(Answer::BodyBroken);
                    }
                    let may_repeat = source.is_none_or(|source| source.borrow().may_be_sent_again());
                    let again = unanswered.is_unprocessed
                        && may_repeat
                        && tried.len() + 1 < self.connection.local.settings.endpoints_max;
                    if !again {
                        return Err(Answer::Failed(unanswered.ending));
                    }
                    tracing::debug!(endpoint = %address, ending = %unanswered.ending, "trying another endpoint");
                    self.connection.local.handles.telemetry.http_retried(unanswered.ending.label());
                    last = unanswered.ending;
                    tried.push(address);
                }
            }
        }
    }

    fn pick(&self, mesh: &Snapshot, backend: &Backend, tried: &[SocketAddr]) -> Option<Target> {
        let local = &self.connection.local;
        match &self.connection.side {
            Side::Inbound { address, .. } => {
                let workload = Some(self.connection.served.pod.workload());
                Some(Target { address: *address, workload }).filter(|_| tried.is_empty())
            }
            Side::Outbound { .. } => {
                let source = self.connection.source.as_deref()?;
                let mut rng = local.rng.borrow_mut();
                endpoint::pick(
                    mesh,
                    &backend.destination,
                    backend.origin,
                    source,
                    tried,
                    &local.connections,
                    &mut rng,
                )
            }
        }
    }

    /// How the endpoint is reached; where that is its application, policy is asked first.
    fn way(&mut self, target: &Target, head: &mut Head) -> Result<Way, Answer> {
        let connection = self.connection.clone();
        match admission::way(&connection, target, head) {
            Ok(way) => {
                if let Way::Application { pod, permit, .. } = &way {
                    self.report().reason = permit.reason();
                    forward_client(&connection, &pod.pod.workload(), head);
                }
                Ok(way)
            }
            Err(Refused::Path(fault)) => Err(Answer::Unreadable(Unreadable::Path(fault))),
            Err(Refused::Policy(refusal)) => {
                tracing::info!(%refusal, client = %connection.client, "policy refused a request");
                self.report().reason = Some(reason_of(&refusal));
                Err(Answer::Denied)
            }
        }
    }

    /// One endpoint. A connection that was closed while it waited for a request is replaced.
    async fn try_once(
        &mut self,
        way: &Way,
        endpoint: SocketAddr,
        hint: Option<AppProtocol>,
        head: &mut Head,
        source: Option<&Rc<RefCell<Source>>>,
    ) -> Result<(Response<Incoming>, Upstream, Key), Unanswered> {
        let connection = self.connection.clone();
        let is_h2 = speaks_h2(hint, self.client_speaks_h2) && head.upgrade.is_none();
        let shared = matches!(connection.side, Side::Outbound { .. });
        let own = connection.served.pod.workload();
        let key = Key { source: shared.then(|| own.uid.clone()), endpoint, is_h2 };
        let caller = connection.caller(&own);
        loop {
            let mut upstream = caller.connection(&key, way).await.map_err(|unreached| {
                let is_unprocessed = unreached.ending.retry() == crate::model::ending::Retry::Safe;
                Unanswered { ending: unreached.ending, request: None, is_unprocessed }
            })?;
            self.report().upstream = Some(upstream.facts.clone());
            let kept = (upstream.is_fresh && !head.headers.is_empty()).then(|| head.headers.clone());
            let request = self.request(head, source, is_h2);
            match upstream.send(request).await {
                Ok(response) => return Ok((response, upstream, key)),
                Err(mut unanswered) => {
                    match (unanswered.request.take(), kept) {
                        (Some(request), _) => head.recover(*request),
                        (None, Some(kept)) => head.headers = kept,
                        (None, None) => return Err(unanswered),
                    }
                    if upstream.is_fresh || !unanswered.is_unprocessed {
                        return Err(unanswered);
                    }
                }
            }
        }
    }

    fn request(
        &self,
        head: &mut Head,
        source: Option<&Rc<RefCell<Source>>>,
        is_h2: bool,
    ) -> Request<RequestBody> {
        let expects = !is_h2 && source.is_some() && head.headers.contains_key(http::header::EXPECT);
        let body = RequestBody::of(source.cloned());
        let mut request = head.request(body, is_h2);
        if !is_h2 {
            deadline::listen(&mut request, self.connection.seen.as_ref(), expects);
        }
        request
    }

    /// The server's response, on its way to the client.
    fn hand_back(
        &mut self,
        answered: Answered,
        source: Option<Rc<RefCell<Source>>>,
        from_client: Option<OnUpgrade>,
        rule_filters: &[Filter],
        backend_filters: &[Filter],
        asked: Option<&http::HeaderMap>,
    ) -> Response<ResponseBody> {
        let Answered { mut response, upstream, key, counted, entry } = answered;
        if let Some(source) = &source {
            source.borrow_mut().stop_keeping();
        }
        let mut report = self.report.take().expect("a request is handed back once");
        let switched = is_switched(response.status(), &self.method);
        let protocol = headers::upgrade(response.headers());
        headers::strip_hop_by_hop(response.headers_mut());
        for filter in rule_filters.iter().chain(backend_filters) {
            match filter {
                Filter::ResponseHeaders(edit) => filters::edit_headers(edit, response.headers_mut()),
                Filter::Cors(cors) => {
                    if let Some(asked) = asked {
                        filters::actual(cors, asked, response.headers_mut());
                    }
                }
                Filter::RequestHeaders(_) | Filter::Redirect(_) | Filter::Rewrite(_) | Filter::Mirror(_) => {}
            }
        }
        report.answered(response.status(), response.headers());
        *response.version_mut() = Version::HTTP_11;
        if let (true, Some(from_client)) = (switched, from_client) {
            if let Some(protocol) = protocol {
                headers::set_upgrade(response.headers_mut(), protocol);
            }
            let to_server = hyper::upgrade::on(&mut response);
            let entry = entry.unwrap_or_else(|| self.connection.enter());
            upgrade::begin(from_client, to_server, report, entry, (upstream, counted));
            return response.map(|_body| ResponseBody::empty());
        }
        let rest = Rest {
            _in_flight: self.in_flight.take(),
            report,
            source,
            connection: self.connection.clone(),
            key,
            upstream: Some(upstream),
            entry,
            _counted: counted,
        };
        stream(response, rest, self.deadlines.of_body(), self.is_grpc)
    }

    /// Our own words.
    fn say(&mut self, answer: &Answer) -> Response<ResponseBody> {
        let response = answer.response(self.is_grpc, self.client_speaks_h2);
        if let Some(mut report) = self.report.take() {
            report.answered(response.status(), response.headers());
            if let Answer::Denied = answer {
                let reason = report.reason.take().unwrap_or_else(|| answer.reason().into());
                report.deny(reason);
            } else {
                if let Answer::Unreadable(_) | Answer::BodyBroken = answer {
                    self.connection.local.handles.telemetry.http_refused(answer.reason());
                }
                report.reason = Some(answer.reason().into());
                report.close(0, None);
            }
        }
        response
    }
}

/// What must stay until a response has gone out whole.
#[derive(Debug)]
struct Rest {
    report: Report,
    source: Option<Rc<RefCell<Source>>>,
    connection: Rc<Connection>,
    key: Key,
    upstream: Option<Upstream>,
    entry: Option<Registered>,
    _counted: Counted,
    _in_flight: Option<InFlight>,
}

impl Rest {
    fn note_request(&mut self) {
        self.report.request_bytes = self.source.as_ref().map_or(0, |source| source.borrow().bytes());
    }
}

impl Watch for Rest {
    fn ended(mut self: Box<Self>, bytes: u64, grpc_status: Option<u16>) {
        self.note_request();
        self.report.close(bytes, grpc_status);
        if let Some(upstream) = self.upstream.take() {
            let per_key_max = self.connection.local.settings.http.idle_upstreams_max;
            self.connection.upstreams.give_back(self.key.clone(), upstream, per_key_max);
        }
    }

    fn broke(mut self: Box<Self>, bytes: u64, ending: Ending) {
        self.note_request();
        let by = if ending == Ending::ServerReset { CutBy::Server } else { CutBy::Agent };
        self.report.break_off(bytes, by, ending);
    }
}

fn stream(
    response: Response<Incoming>,
    rest: Rest,
    deadline: Option<Instant>,
    is_grpc: bool,
) -> Response<ResponseBody> {
    let (head, incoming) = response.into_parts();
    let close = rest.entry.as_ref().map(|entry| entry.close.clone());
    let watch: Box<dyn Watch> = Box::new(rest);
    if http_body::Body::is_end_stream(&incoming) {
        watch.ended(0, None);
        return Response::from_parts(head, ResponseBody::empty());
    }
    let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
    let streaming =
        Streaming { incoming, watch: Some(watch), deadline, close, bytes: 0, is_grpc, is_over: false };
    Response::from_parts(head, ResponseBody::Upstream(Box::new(streaming)))
}

/// The service port behind a backend reference.
pub fn destination_of(mesh: &Snapshot, target: &BackendTarget) -> Result<Destination, String> {
    match target {
        BackendTarget::Invalid { reason } => Err(reason.to_string()),
        BackendTarget::Service { name, port } => {
            let service = mesh.service(name).ok_or_else(|| format!("there is no service {name}"))?;
            let index = service.ports.iter().position(|one| one.port == *port && !one.udp);
            let index = index.ok_or_else(|| format!("service {name} has no port {port}"))?;
            Ok(Destination::Service(service.clone(), index))
        }
    }
}

fn wants_upgrade(head: &Head) -> bool {
    head.upgrade.is_some() || head.method == Method::CONNECT
}

fn has_cors(filters: &[Filter]) -> bool {
    filters.iter().any(|filter| matches!(filter, Filter::Cors(_)))
}

/// Whether the connection is something else from here on (RFC 9110 sections 7.8 and 9.3.6).
fn is_switched(status: StatusCode, method: &Method) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || *method == Method::CONNECT && status.is_success()
}

/// Tells an application that asked for it who its client is, in Envoy's words.
fn forward_client(connection: &Connection, destination: &Workload, head: &mut Head) {
    let Some(client) = connection.proven.as_ref().filter(|_| destination.forward_client_cert) else { return };
    let text = format!("By={};URI={client}", destination.identity);
    if let Ok(value) = HeaderValue::from_str(&text) {
        head.headers.insert(headers::FORWARDED_CLIENT_CERT, value);
    }
}

/// Runs one try until policy turns against the request. Whoever sends interim responses wakes this task.
async fn unless_closed<T>(
    close: Option<Rc<CloseSignal>>,
    seen: Option<Arc<Seen>>,
    work: impl Future<Output = T>,
) -> Result<T, Answer> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        if let Some(seen) = &seen {
            seen.interim.register(context);
        }
        match close.as_ref().and_then(|close| close.poll(context)) {
            Some(ending) => Poll::Ready(Err(Answer::Failed(ending))),
            None => work.as_mut().poll(context).map(Ok),
        }
    })
    .await
}

/// Runs one try within its time.
async fn within<T>(limit: Option<Instant>, work: impl Future<Output = T>) -> Result<T, Answer> {
    match limit {
        None => Ok(work.await),
        Some(at) => timeout_at(at.into(), work).await.map_err(|_elapsed| Answer::Timeout),
    }
}
