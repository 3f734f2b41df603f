//! Gathers the facts of one request and hands them to telemetry, once, at its end.
//!
//! Station 13 for requests, begun at station 5. It decides nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, Method, Request, StatusCode, Uri, Version};

use super::connection::{Connection, Side};
use super::upstream::Facts;
use crate::lifecycle::clock;
use crate::model::{Ending, EndpointAddr, Path, ServiceName, Workload};
use crate::route::Matched;
use crate::telemetry::{
    CutBy, DestinationRecord, HttpRecord, MethodClass, Protocol, Reporter, RequestLabels, RequestMetrics,
    RequestOutcome, RequestRecord, SourceRecord, TlsRecord, TraceContext, grpc_status,
};

/// What is known of a request so far.
#[derive(Debug)]
pub struct Report {
    connection: Rc<Connection>,
    metrics: Option<Arc<RequestMetrics>>,
    started: Instant,
    time: SystemTime,
    method: Method,
    uri: Uri,
    version: Version,
    /// For the record only, and only if there is one.
    headers: HeaderMap,
    protocol: Protocol,
    /// The server, where the mesh knows it.
    pub destination: Option<Arc<Workload>>,
    /// The service that the request went to.
    pub service: Option<ServiceName>,
    /// The rule that matched.
    pub matched: Option<Matched>,
    /// Where it went.
    pub endpoint: Option<EndpointAddr>,
    /// About the connection that it went on.
    pub upstream: Option<Rc<Facts>>,
    /// Endpoints tried.
    pub attempts: u32,
    /// The policy that decided, or a stable label of the cause.
    pub reason: Option<Arc<str>>,
    /// The trace that the server sees.
    pub trace: Option<TraceContext>,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    status: Option<StatusCode>,
    grpc_status: Option<u16>,
    is_over: bool,
}

impl Report {
    /// Begins the story of a request.
    pub fn new<B>(connection: &Rc<Connection>, request: &Request<B>) -> Self {
        let is_recorded = connection.local.handles.telemetry.records_connections();
        let mut headers = HeaderMap::new();
        if is_recorded {
            for name in [http::header::HOST, http::header::USER_AGENT] {
                let value = request.headers().get(&name).cloned();
                headers.extend(value.map(|value| (Option::<HeaderName>::Some(name), value)));
            }
        }
        Self {
            connection: connection.clone(),
            metrics: None,
            started: clock::now(),
            time: clock::wall(),
            method: request.method().clone(),
            uri: if is_recorded { request.uri().clone() } else { Uri::default() },
            version: request.version(),
            headers,
            protocol: Protocol::of(request.version(), request.headers()),
            destination: None,
            service: connection.service(),
            matched: None,
            endpoint: None,
            upstream: None,
            attempts: 0,
            reason: None,
            trace: None,
            request_bytes: 0,
            status: None,
            grpc_status: None,
            is_over: false,
        }
    }

    /// When its head arrived.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Counts it as under way, under what is known now; a second call changes nothing.
    pub fn opened(&mut self) {
        if self.metrics.is_none() {
            let metrics = self.resolve_metrics();
            metrics.opened();
            self.metrics = Some(metrics);
        }
    }

    /// The head of a response goes to the client.
    pub fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        self.grpc_status = grpc_status(headers);
    }

    /// The response went out whole.
    pub fn close(&mut self, response_bytes: u64, grpc_status: Option<u16>) {
        self.grpc_status = grpc_status.or(self.grpc_status);
        self.finish(response_bytes, None);
    }

    /// It broke off.
    pub fn break_off(&mut self, response_bytes: u64, by: CutBy, ending: Ending) {
        self.reason.get_or_insert_with(|| ending.label().into());
        self.finish(response_bytes, Some(by));
    }

    /// Policy refused it; `reason` is its name, or the stable label of a default.
    pub fn deny(&mut self, reason: Arc<str>) {
        if self.metrics.is_some() {
            // An endpoint before was tried, so that the request is under way already.
            self.reason = Some(reason);
            return self.finish(0, None);
        }
        self.is_over = true;
        let outcome = self.outcome(0);
        self.resolve_metrics().denied(&outcome, &reason);
        self.reason = Some(reason);
        self.record(0, None);
    }

    fn finish(&mut self, response_bytes: u64, cut: Option<CutBy>) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        self.opened();
        let outcome = self.outcome(response_bytes);
        if let Some(metrics) = &self.metrics {
            match cut {
                None => metrics.done(&outcome),
                Some(by) => metrics.cut_short(&outcome, by),
            }
        }
        self.record(response_bytes, cut);
    }

    fn outcome(&self, received_bytes: u64) -> RequestOutcome {
        RequestOutcome {
            method: MethodClass::of(&self.method),
            status: self.status,
            grpc_status: self.grpc_status.filter(|_| self.protocol == Protocol::Grpc),
            sent_bytes: self.request_bytes,
            received_bytes,
            duration: clock::now().duration_since(self.started),
        }
    }

    fn resolve_metrics(&self) -> Arc<RequestMetrics> {
        let labels = RequestLabels::new(
            self.connection.reporter(),
            self.connection.source.as_deref(),
            self.destination.as_deref(),
            self.service.as_ref(),
            self.matched.as_ref().map(|matched| &matched.route),
            self.protocol,
        );
        self.connection
            .local
            .request_metrics
            .borrow_mut()
            .resolve(labels, &self.connection.local.handles.telemetry)
    }

    fn record(&self, response_bytes: u64, cut_short: Option<CutBy>) {
        let connection = &self.connection;
        let telemetry = &connection.local.handles.telemetry;
        if !telemetry.records_connections() {
            return;
        }
        let host = self.uri.authority().map(http::uri::Authority::as_str);
        let host = host.or_else(|| self.headers.get(http::header::HOST)?.to_str().ok());
        let mut http = HttpRecord::new(self.version, &self.method, host, self.uri.path(), &self.headers);
        if let Some(matched) = &self.matched {
            http.matched(&matched.route, &matched.rule);
        }
        (http.status, http.grpc_status) = (self.status, self.grpc_status);
        (http.request_bytes, http.response_bytes) = (self.request_bytes, response_bytes);
        (http.upstream_attempts, http.cut_short) = (self.attempts, cut_short);
        let upstream = self.upstream.as_deref();
        let identity = match connection.reporter() {
            Reporter::Source => upstream.and_then(|facts| facts.identity.clone()),
            Reporter::Destination => self.destination.as_ref().map(|pod| pod.identity.clone()),
        };
        telemetry.record_request(RequestRecord {
            time: self.time,
            duration: clock::now().duration_since(self.started),
            reporter: connection.reporter(),
            path: self.path(),
            source: SourceRecord::new(
                connection.source.as_deref(),
                connection.client,
                connection.proven.clone(),
            ),
            destination: DestinationRecord::new(
                self.destination.as_deref(),
                self.service.as_ref(),
                Some(connection.dialled()),
                self.endpoint,
                identity,
            ),
            http,
            reason: self.reason.clone(),
            tls: self.key_exchange().map(|key_exchange| TlsRecord { version: "TLSv1.3", key_exchange }),
            trace: self.trace,
        });
    }

    /// The way between the two agents, or the one that there is.
    fn path(&self) -> Path {
        match &self.connection.side {
            Side::Inbound { path, .. } => *path,
            Side::Outbound { .. } => self.upstream.as_ref().map_or(Path::Http, |facts| facts.path),
        }
    }

    fn key_exchange(&self) -> Option<&'static str> {
        match &self.connection.side {
            Side::Inbound { key_exchange, .. } => *key_exchange,
            Side::Outbound { .. } => self.upstream.as_ref().and_then(|facts| facts.key_exchange),
        }
    }
}

impl Drop for Report {
    /// Whoever asked went away before there was an answer.
    fn drop(&mut self) {
        if !self.is_over {
            self.break_off(0, CutBy::Client, Ending::ClientReset);
        }
    }
}

/// Counters that this worker has looked up before. Looking one up in telemetry costs a lock.
#[derive(Debug, Default)]
pub struct KnownMetrics {
    known: std::collections::HashMap<RequestLabels, Arc<RequestMetrics>>,
}

/// Label sets that a worker remembers; a mesh-wide change of routes or workloads leaves dead ones behind, so at the bound
/// all are forgotten and looked up anew.
const KNOWN_MAX: usize = 4096;

impl KnownMetrics {
    fn resolve(
        &mut self,
        labels: RequestLabels,
        telemetry: &crate::telemetry::Telemetry,
    ) -> Arc<RequestMetrics> {
        if let Some(known) = self.known.get(&labels) {
            return known.clone();
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        let metrics = telemetry.request_metrics(&labels);
        self.known.insert(labels, metrics.clone());
        metrics
    }
}
