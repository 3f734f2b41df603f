//! Every metric there is: name, help, labels. What is not registered here does not exist.
//!
//! Registration goes through [`Catalogue`], which also remembers what docs/metrics.md prints, so page and code cannot
//! part. Connection and request families are bounded (see [`super::bounded`]); the others have labels from closed sets of this
//! program's own constants, or one series per identity of this node.

use std::fmt::Debug;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

use super::connection::Connections;
use super::control::Control;
use super::labels::{CONNECTION_LABEL_NAMES, REQUEST_LABEL_NAMES};
use super::process::{self, Process};
use super::request::Requests;

mod feeds;

use feeds::Feeds;

/// Prefix of every metric.
pub(super) const PREFIX: &str = "weft";

/// One line of docs/metrics.md.
#[derive(Debug)]
pub(super) struct Description {
    /// Name as scraped, with prefix, unit and `_total`.
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) labels: Vec<&'static str>,
    pub(super) help: &'static str,
}

/// A registry that remembers what was registered.
pub(super) struct Catalogue {
    registry: Registry,
    descriptions: Vec<Description>,
}

impl Catalogue {
    /// Registers `metric` and returns it. `name` is without prefix, unit and `_total`; `help` is a sentence without its
    /// full stop.
    pub(super) fn add<M>(
        &mut self,
        name: &'static str,
        unit: Option<Unit>,
        labels: &[&'static str],
        help: &'static str,
        metric: M,
    ) -> M
    where
        M: TypedMetric + EncodeMetric + Clone + Debug + Send + Sync + 'static,
    {
        self.describe(name, unit.as_ref(), labels, help, M::TYPE);
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, metric.clone()),
            None => self.registry.register(name, help, metric.clone()),
        }
        metric
    }

    fn describe(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        labels: &[&'static str],
        help: &'static str,
        kind: MetricType,
    ) {
        let unit = unit.map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
        let (kind, suffix) = match kind {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Gauge => ("gauge", ""),
            MetricType::Histogram => ("histogram", ""),
            MetricType::Info => ("info", "_info"),
            MetricType::Unknown => ("unknown", ""),
        };
        let name = format!("{PREFIX}_{name}{unit}{suffix}");
        self.descriptions.push(Description { name, kind, labels: labels.to_vec(), help });
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpiffeLabels {
    spiffe_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabels {
    pub(super) result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    probe: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    role: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// All families, and the registry that encodes them.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) registry: Registry,
    pub(super) descriptions: Vec<Description>,
    pub(super) connections: Connections,
    pub(super) requests: Requests,
    pub(super) control: Control,
    pub(super) access_records_dropped: Counter,
    pub(super) tunnels_open: Gauge,
    pub(super) splice_enabled: Gauge,
    pub(super) enrolled_pods: Gauge,
    pub(super) discovery_version: Gauge,
    pub(super) discovery_problems: Gauge,
    pub(super) feeds: Feeds,
    certificate_expiry: Family<SpiffeLabels, Gauge>,
    certificate_renewals: Family<ResultLabels, Counter>,
    probe_result: Family<ProbeLabels, Gauge>,
    kernel_events: Family<KindLabels, Counter>,
    kernel_verdicts: Family<VerdictLabels, Counter>,
    tunnel_handshakes: Family<HandshakeLabels, Counter>,
    http_refused: Family<ReasonLabels, Counter>,
    http_retries: Family<ReasonLabels, Counter>,
    http_mirrored: Family<ResultLabels, Counter>,
}

impl Families {
    /// Registers everything.
    pub(super) fn new(label_sets_max: usize) -> Self {
        let mut catalogue = Catalogue { registry: Registry::with_prefix(PREFIX), descriptions: Vec::new() };
        let all = &mut catalogue;
        let folds = all.add(
            "metrics_folded",
            None,
            &[],
            "Times that labels were folded into \"other\" because a family was full",
            Counter::default(),
        );
        let connections = register_connections(all, label_sets_max, folds.clone());
        let requests = register_requests(all, label_sets_max, folds);
        let http_refused = all.add(
            "http_refused",
            None,
            &["reason"],
            "Requests refused before they were routed: malformed framing, a head too large and the like",
            Family::default(),
        );
        let http_retries = all.add(
            "http_upstream_retries",
            None,
            &["reason"],
            "Times that a request was sent to another endpoint, by what the one before did",
            Family::default(),
        );
        let http_mirrored = all.add(
            "http_mirrored",
            None,
            &["result"],
            "Copies of requests for RequestMirror: answered, failed, or dropped because the mirror could not keep up",
            Family::default(),
        );
        let access_records_dropped = all.add(
            "access_records_dropped",
            None,
            &[],
            "Access records lost because their writer could not keep up or could not write",
            Counter::default(),
        );
        let tunnels_open =
            all.add("tunnels_open", None, &[], "Tunnels to other agents, in use or pooled", Gauge::default());
        let tunnel_handshakes = all.add(
            "tunnel_handshakes",
            None,
            &["role", "result"],
            "Tunnel handshakes by this agent's role (client, server) and result (success, or how it failed)",
            Family::default(),
        );
        let certificate_expiry = all.add(
            "certificate_expiry_timestamp",
            Some(Unit::Seconds),
            &["spiffe_id"],
            "When the certificate in use for an identity expires, in seconds since 1970",
            Family::default(),
        );
        let certificate_renewals = all.add(
            "certificate_renewals",
            None,
            &["result"],
            "Attempts to get a certificate, by result (success, ca_unavailable, ca_refused, invalid)",
            Family::default(),
        );
        let splice_enabled = all.add(
            "splice_enabled",
            None,
            &[],
            "1 while the same-node fast path may be used, 0 while it is off",
            Gauge::default(),
        );
        let probe_result = all.add(
            "probe_result",
            None,
            &["probe"],
            "What a boot-time probe of the kernel found: 1 passed, 0 failed",
            Family::default(),
        );
        let enrolled_pods = all.add(
            "enrolled_pods",
            None,
            &[],
            "Pods of this node that the mesh has caught",
            Gauge::default(),
        );
        let kernel_events = all.add(
            "kernel_events",
            None,
            &["kind"],
            "Events received from the kernel programs",
            Family::default(),
        );
        let kernel_verdicts = all.add(
            "kernel_verdicts",
            None,
            &["verdict", "reason"],
            "Verdicts of the kernel programs on new sockets, counted by the kernel",
            Family::default(),
        );
        let discovery_version = all.add(
            "discovery_version",
            None,
            &[],
            "Version of the mesh's state that this agent uses; counts up with every change",
            Gauge::default(),
        );
        let discovery_problems = all.add(
            "discovery_problems",
            None,
            &[],
            "Objects that were refused or could not be read when the state was last built",
            Gauge::default(),
        );
        let control = Control::register(all);
        let feeds = Feeds::register(all);
        let version = BuildLabels { version: env!("CARGO_PKG_VERSION") };
        all.registry.register("build", BUILD_HELP, Info::new(version));
        all.describe("build", None, &["version"], BUILD_HELP, MetricType::Info);
        for row in process::ROWS {
            all.describe(row.name, row.unit.as_ref(), &[], row.help, row.kind);
        }
        all.registry.register_collector(Box::new(Process));
        Self {
            registry: catalogue.registry,
            descriptions: catalogue.descriptions,
            connections,
            requests,
            control,
            access_records_dropped,
            tunnels_open,
            splice_enabled,
            enrolled_pods,
            discovery_version,
            discovery_problems,
            feeds,
            certificate_expiry,
            certificate_renewals,
            probe_result,
            kernel_events,
            kernel_verdicts,
            tunnel_handshakes,
            http_refused,
            http_retries,
            http_mirrored,
        }
    }

    pub(super) fn certificate_expiry(&self, spiffe_id: &str) -> Gauge {
        self.certificate_expiry.get_or_create_owned(&SpiffeLabels { spiffe_id: spiffe_id.to_owned() })
    }

    pub(super) fn forget_certificate(&self, spiffe_id: &str) {
        self.certificate_expiry.remove(&SpiffeLabels { spiffe_id: spiffe_id.to_owned() });
    }

    pub(super) fn certificate_renewals(&self, result: &'static str) -> Counter {
        self.certificate_renewals.get_or_create_owned(&ResultLabels { result })
    }

    pub(super) fn probe_result(&self, probe: &'static str) -> Gauge {
        self.probe_result.get_or_create_owned(&ProbeLabels { probe })
    }

    pub(super) fn kernel_events(&self, kind: &'static str) -> Counter {
        self.kernel_events.get_or_create_owned(&KindLabels { kind })
    }

    pub(super) fn kernel_verdicts(&self, verdict: &'static str, reason: &'static str) -> Counter {
        self.kernel_verdicts.get_or_create_owned(&VerdictLabels { verdict, reason })
    }

    pub(super) fn tunnel_handshakes(&self, role: &'static str, result: &'static str) -> Counter {
        self.tunnel_handshakes.get_or_create_owned(&HandshakeLabels { role, result })
    }

    pub(super) fn http_refused(&self, reason: &'static str) -> Counter {
        self.http_refused.get_or_create_owned(&ReasonLabels { reason })
    }

    pub(super) fn http_retries(&self, reason: &'static str) -> Counter {
        self.http_retries.get_or_create_owned(&ReasonLabels { reason })
    }

    pub(super) fn http_mirrored(&self, result: &'static str) -> Counter {
        self.http_mirrored.get_or_create_owned(&ResultLabels { result })
    }
}

const BUILD_HELP: &str = "Always 1; the labels say which build runs";

fn register_connections(all: &mut Catalogue, label_sets_max: usize, folds: Counter) -> Connections {
    let names = CONNECTION_LABEL_NAMES;
    let with = |extra: &'static str| [&names[..], &[extra]].concat();
    let closed = all.add(
        "connections_closed",
        None,
        &with("ending"),
        "Connections that ended, by how they ended",
        Family::default(),
    );
    let denied = all.add(
        "connections_denied",
        None,
        &with("reason"),
        "Connections refused before any byte reached the application, by policy or reason",
        Family::default(),
    );
    let connections = Connections::new(closed, denied, label_sets_max, folds);
    all.add("connections_opened", None, &names, "Connections admitted", connections.opened.clone());
    all.add("connections_open", None, &names, "Connections open now", connections.open.clone());
    all.add(
        "bytes",
        None,
        &with("direction"),
        "Payload bytes: sent from client to server, received back, whichever side reports",
        connections.bytes.clone(),
    );
    all.add(
        "connection_duration",
        Some(Unit::Seconds),
        &names,
        "How long connections were open",
        connections.duration.clone(),
    );
    connections
}

fn register_requests(all: &mut Catalogue, label_sets_max: usize, folds: Counter) -> Requests {
    let names = REQUEST_LABEL_NAMES;
    let with = |extra: &[&'static str]| [&names[..], extra].concat();
    let answered = all.add(
        "http_requests",
        None,
        &with(&["method", "code", "grpc_status"]),
        "Requests that are over, by how they were answered",
        Family::default(),
    );
    let denied = all.add(
        "http_requests_denied",
        None,
        &with(&["policy"]),
        "Requests refused by a policy; each is among the requests as well",
        Family::default(),
    );
    let cut_short = all.add(
        "http_requests_cut_short",
        None,
        &with(&["by"]),
        "Requests broken off before their response was out whole, by whom (client, server, agent); each is among the \
         requests as well",
        Family::default(),
    );
    let requests = Requests::new(answered, denied, cut_short, label_sets_max, folds);
    all.add("http_requests_in_flight", None, &names, "Requests not over yet", requests.in_flight.clone());
    all.add("http_request_bytes", None, &names, "Body bytes of requests", requests.request_bytes.clone());
    all.add("http_response_bytes", None, &names, "Body bytes of responses", requests.response_bytes.clone());
    all.add(
        "http_request_duration",
        Some(Unit::Seconds),
        &names,
        "From a request's head to its response's last byte, for responses that went out whole",
        requests.duration.clone(),
    );
    requests
}
