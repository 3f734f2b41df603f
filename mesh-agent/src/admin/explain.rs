//! `/policy/explain`: would this connection, or this request, pass, and which rule says so?
//!
//! The same function answers for an agent and, in `meshctl`, for a directory of objects without any agent.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Serialize;

use super::{Query, Refused};
use crate::model::{PathFault, RequestPath, Service, ServiceName, Workload, WorkloadName, canonical_ip};
use crate::policy::{Deciding, Explanation, Facts, PolicySet, Request};
use crate::registry::Snapshot;

/// Who asks to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod.
    Pod(WorkloadName),
    /// An address outside the mesh: a client without an identity.
    Address(IpAddr),
}

/// Whom it dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    kind: Option<Kind>,
    namespace: String,
    name: String,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Service,
}

/// Why a question cannot be understood or answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a client.
    #[error("{0:?} is not a client: write NAMESPACE/POD, or an IP address for a client outside the mesh")]
    Client(String),
    /// Not a target.
    #[error(
        "{0:?} is not a target: write NAMESPACE/POD:PORT or NAMESPACE/SERVICE:PORT, with pod/ or svc/ in front where both exist"
    )]
    Target(String),
    /// Not a method.
    #[error("{0:?} is not a method: write for example GET")]
    Method(String),
    /// Not a header.
    #[error("{0:?} is not a header: write NAME: VALUE")]
    Header(String),
    /// The client is not known.
    #[error("no pod {0} is known")]
    NoClient(WorkloadName),
    /// The target is not known.
    #[error("no pod or service {0} is known")]
    NoTarget(String),
    /// The service has no such port.
    #[error("service {service} has no TCP port {port}; it has: {ports}")]
    NoPort {
        /// `namespace/name`.
        service: String,
        /// As asked.
        port: u16,
        /// Those it has.
        ports: String,
    },
    /// Nobody would take the connection.
    #[error("service {0} has no endpoint that the mesh knows as a pod")]
    NoEndpoint(String),
}

/// Who dials whom, and sends what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who asks to connect.
    pub from: Client,
    /// Whom it dials.
    pub to: Target,
    /// The request; `None`: a connection that is not HTTP.
    pub request: Option<Asked>,
}

/// A request to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    method: Method,
    /// As a client would write it.
    target: String,
    headers: HeaderMap,
    host: Option<String>,
}

impl Asked {
    /// Reads the parts of a request, `None` when none is given. What is left out is `GET`, `/`, no header and no host;
    /// a header is written `NAME: VALUE`.
    ///
    /// # Errors
    /// A part is malformed. The path is not among them: what is wrong with it is part of the answer.
    pub fn read(
        method: Option<&str>,
        path: Option<&str>,
        headers: &[&str],
        host: Option<&str>,
    ) -> Result<Option<Self>, Error> {
        if method.is_none() && path.is_none() && headers.is_empty() && host.is_none() {
            return Ok(None);
        }
        let method = method.unwrap_or("GET");
        Ok(Some(Self {
            method: method.parse().map_err(|_unreadable| Error::Method(method.to_owned()))?,
            target: path.unwrap_or("/").to_owned(),
            headers: headers.iter().map(|line| header(line)).collect::<Result<_, Error>>()?,
            host: host.map(str::to_owned),
        }))
    }
}

fn header(line: &str) -> Result<(HeaderName, HeaderValue), Error> {
    let refused = || Error::Header(line.to_owned());
    let (name, value) = line.split_once(':').ok_or_else(refused)?;
    let name = name.trim().parse().map_err(|_unreadable| refused())?;
    Ok((name, HeaderValue::from_str(value.trim()).map_err(|_unreadable| refused())?))
}

/// What policy says about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The client as asked.
    pub from: String,
    /// The target as asked.
    pub to: String,
    /// True when every endpoint admits the connection.
    pub admitted: bool,
    /// `allowed`, or the label of the refusal that decided.
    pub label: &'static str,
    /// The answer in one sentence, naming what decided.
    pub reason: String,
    /// The policy and rule that decided; absent when the mesh-wide default did.
    pub deciding: Option<Deciding>,
    /// What a reader must know besides: an end that is not part of the mesh, for example.
    pub notes: Vec<String>,
    /// One per pod that may be reached: the pod itself, or each endpoint of the service.
    pub explanations: Vec<Explanation>,
}

impl FromStr for Client {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Address(canonical_ip(ip)));
        }
        let (namespace, name) =
            pair(text.strip_prefix("pod/").unwrap_or(text)).ok_or_else(|| Error::Client(text.to_owned()))?;
        Ok(Self::Pod(WorkloadName { namespace: namespace.into(), name: name.into() }))
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Address(ip) => ip.fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || Error::Target(text.to_owned());
        let (whom, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refused)?;
        let (kind, whom) = match (whom.strip_prefix("pod/"), whom.strip_prefix("svc/")) {
            (Some(pod), _) => (Some(Kind::Pod), pod),
            (None, Some(service)) => (Some(Kind::Service), service),
            (None, None) => (None, whom),
        };
        let (namespace, name) = pair(whom).ok_or_else(refused)?;
        Ok(Self { kind, namespace: namespace.to_owned(), name: name.to_owned(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

fn pair(text: &str) -> Option<(&str, &str)> {
    let (namespace, name) = text.split_once('/')?;
    let valid = |part: &str| !part.is_empty() && !part.contains(['/', ':']);
    (valid(namespace) && valid(name)).then_some((namespace, name))
}

impl Question {
    /// Reads `from`, `to` and `port` (or `to` with the port behind a colon), and for a request `method`, `path`, `host`
    /// and `header` (several of them on lines of their own).
    ///
    /// # Errors
    /// A part is missing or malformed.
    pub fn from_query(query: &Query) -> Result<Self, Refused> {
        let malformed = |error: Error| Refused::Malformed(error.to_string());
        let from = query.required("from")?.parse().map_err(malformed)?;
        let to = query.required("to")?;
        let to = match query.value("port") {
            Some(port) => format!("{to}:{port}").parse(),
            None => to.parse(),
        };
        let headers: Vec<&str> = query.value("header").into_iter().flat_map(str::lines).collect();
        let request = Asked::read(query.value("method"), query.value("path"), &headers, query.value("host"));
        Ok(Self { from, to: to.map_err(malformed)?, request: request.map_err(malformed)? })
    }
}

/// The window: answers a query out of one state of the mesh.
///
/// # Errors
/// The query is malformed, or names what is not known.
pub fn window(
    snapshot: &Snapshot,
    policies: &PolicySet,
    query: &Query,
) -> Result<serde_json::Value, Refused> {
    let question = Question::from_query(query)?;
    let verdict =
        answer(snapshot, policies, &question).map_err(|error| Refused::NotFound(error.to_string()))?;
    Ok(serde_json::json!(verdict))
}

/// Says what policy would do.
///
/// # Errors
/// The question names what is not known.
pub fn answer(snapshot: &Snapshot, policies: &PolicySet, question: &Question) -> Result<Verdict, Error> {
    let client = match &question.from {
        Client::Pod(name) => {
            let pod = snapshot.workload_by_name(name).ok_or_else(|| Error::NoClient(name.clone()))?;
            Some(pod)
        }
        Client::Address(ip) => snapshot.workload_by_ip(*ip),
    };
    let targets = targets(snapshot, &question.to)?;
    let path = match question.request.as_ref().map(|asked| RequestPath::parse(&asked.target)).transpose() {
        Ok(path) => path,
        Err(fault) => return Ok(without_normal_form(question, fault)),
    };
    let request = question.request.as_ref().zip(path.as_ref()).map(|(asked, path)| Request {
        method: &asked.method,
        path,
        headers: &asked.headers,
        host: asked.host.as_deref(),
    });
    let mut notes = Vec::new();
    if let Some(pod) = client.filter(|pod| !pod.enrolled) {
        notes.push(format!("{} is not part of the mesh: it dials without an identity", pod.name));
    }
    let mut explanations = Vec::new();
    for (pod, port) in targets {
        if !pod.enrolled {
            notes.push(format!("{} is not part of the mesh: no policy is enforced there", pod.name));
            continue;
        }
        if request.is_none() && policies.needs_requests(&pod, port) {
            notes.push(format!(
                "{} port {port} has rules about requests, and this is the answer for a connection that is not HTTP: \
                 ask with a path, a method or a header about a request",
                pod.name
            ));
        }
        if pod.probe_ports.contains(&port) {
            notes.push(format!(
                "kubelet's own probes of {} port {port} pass, whatever policies say",
                pod.name
            ));
        }
        explanations.push(policies.explain(&Facts {
            identity: client.filter(|client| client.enrolled).map(|client| &client.identity),
            client: client_address(&question.from, client, &pod),
            destination: &pod,
            port,
            node_probe: false,
            request,
        }));
    }
    // One refusal is enough to fail a client now and then, so it decides over the endpoints that admit.
    let decisive = explanations.iter().find(|one| !one.admitted).or_else(|| explanations.first());
    Ok(Verdict {
        from: question.from.to_string(),
        to: question.to.to_string(),
        admitted: decisive.is_none_or(|one| one.admitted),
        label: decisive.map_or("allowed", |one| one.label),
        reason: decisive.map_or_else(|| NOT_MESHED.to_owned(), |one| one.reason.clone()),
        deciding: decisive.and_then(|one| one.deciding.clone()),
        notes,
        explanations,
    })
}

/// The answer before any policy is asked.
fn without_normal_form(question: &Question, fault: PathFault) -> Verdict {
    Verdict {
        from: question.from.to_string(),
        to: question.to.to_string(),
        admitted: false,
        label: fault.label(),
        reason: format!("refused with 400 before policy is asked, because {fault}"),
        deciding: None,
        notes: Vec::new(),
        explanations: Vec::new(),
    }
}

const NOT_MESHED: &str = "allowed: the server is not part of the mesh";

/// The address that the server would see: of the server's own family, where the client has one.
fn client_address(from: &Client, client: Option<&Arc<Workload>>, server: &Workload) -> IpAddr {
    if let Client::Address(ip) = from {
        return *ip;
    }
    let addresses = client.map(|client| client.addresses.as_slice()).unwrap_or_default();
    let like_server = |ip: &&IpAddr| server.addresses.iter().any(|other| other.is_ipv4() == ip.is_ipv4());
    let unspecified = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    addresses.iter().find(like_server).or_else(|| addresses.first()).copied().unwrap_or(unspecified)
}

/// The pods and ports that may be reached.
fn targets(snapshot: &Snapshot, to: &Target) -> Result<Vec<(Arc<Workload>, u16)>, Error> {
    let name = WorkloadName { namespace: to.namespace.as_str().into(), name: to.name.as_str().into() };
    let pod = snapshot.workload_by_name(&name).filter(|_| to.kind != Some(Kind::Service));
    let service = ServiceName { namespace: name.namespace.clone(), name: name.name.clone() };
    let service = snapshot.service(&service).filter(|_| to.kind != Some(Kind::Pod));
    match (pod, service) {
        (None, None) => Err(Error::NoTarget(name.to_string())),
        (Some(pod), None) => Ok(vec![(pod.clone(), to.port)]),
        (None, Some(service)) => endpoints(snapshot, service, to.port),
        // Both have the name: the port tells which is meant, and the pod wins where it cannot tell.
        (Some(pod), Some(service)) => {
            let declared = pod.ports.iter().any(|port| port.port == to.port);
            let offered = service.ports.iter().any(|port| !port.udp && port.port == to.port);
            if offered && !declared {
                endpoints(snapshot, service, to.port)
            } else {
                Ok(vec![(pod.clone(), to.port)])
            }
        }
    }
}

fn endpoints(snapshot: &Snapshot, service: &Service, port: u16) -> Result<Vec<(Arc<Workload>, u16)>, Error> {
    let Some(found) = service.ports.iter().find(|candidate| !candidate.udp && candidate.port == port) else {
        let ports: Vec<String> =
            service.ports.iter().filter(|port| !port.udp).map(|port| port.port.to_string()).collect();
        return Err(Error::NoPort { service: service.name.to_string(), port, ports: ports.join(", ") });
    };
    let pods: Vec<_> = found
        .endpoints
        .iter()
        .filter_map(|endpoint| {
            let pod = match &endpoint.workload {
                Some(uid) => snapshot.workload(uid),
                None => snapshot.workload_by_ip(endpoint.address.ip()),
            };
            pod.map(|pod| (pod.clone(), endpoint.address.port()))
        })
        .collect();
    if pods.is_empty() { Err(Error::NoEndpoint(service.name.to_string())) } else { Ok(pods) }
}
