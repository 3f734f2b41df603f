//! Gathers the facts of one connection and hands them to telemetry, once, at its end.
//!
//! Station 13 of the walk, begun at station 3. It decides nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::relay::Bytes;
use crate::lifecycle::clock;
use crate::model::{ClientAddr, Ending, EndpointAddr, OriginalDst, Path, ServiceName, SpiffeId, Workload};
use crate::telemetry::{
    AccessRecord, ConnectionLabels, ConnectionMetrics, DestinationRecord, Reporter, SourceRecord, Telemetry,
    TlsRecord,
};

/// What is known of a connection so far. Fill in facts as they come; [`Report::close`] or [`Report::deny`] ends it.
#[derive(Debug)]
pub struct Report {
    telemetry: Telemetry,
    metrics: Option<Arc<ConnectionMetrics>>,
    started: Instant,
    time: SystemTime,
    reporter: Reporter,
    /// The client's address.
    pub client: SocketAddr,
    /// The way the bytes took.
    pub path: Path,
    /// The client, where the mesh knows it.
    pub source: Option<Arc<Workload>>,
    /// The client's verified identity.
    pub source_identity: Option<SpiffeId>,
    /// The server, where the mesh knows it.
    pub destination: Option<Arc<Workload>>,
    /// The server's verified identity.
    pub destination_identity: Option<SpiffeId>,
    /// The service that was dialled.
    pub service: Option<ServiceName>,
    /// What was dialled.
    pub dialled: Option<OriginalDst>,
    /// Where it went.
    pub endpoint: Option<EndpointAddr>,
    /// How the last endpoint that was tried answered.
    pub ending_of_last_try: Option<Ending>,
    /// Payload.
    pub bytes: Bytes,
    /// The policy that decided, or a stable label of the cause.
    pub reason: Option<Arc<str>>,
    /// Key exchange group, when a tunnel was used.
    pub key_exchange: Option<&'static str>,
}

impl Report {
    /// Begins the story of a connection.
    pub fn new(telemetry: &Telemetry, reporter: Reporter, client: ClientAddr) -> Self {
        Self {
            telemetry: telemetry.clone(),
            metrics: None,
            started: clock::now(),
            time: clock::wall(),
            reporter,
            client: client.addr(),
            path: Path::Plain,
            source: None,
            source_identity: None,
            destination: None,
            destination_identity: None,
            service: None,
            dialled: None,
            endpoint: None,
            ending_of_last_try: None,
            bytes: Bytes::default(),
            reason: None,
            key_exchange: None,
        }
    }

    /// Counts it as open, under what is known now; a second call changes nothing.
    pub fn opened(&mut self) {
        if self.metrics.is_none() {
            let metrics = self.resolve_metrics();
            metrics.opened();
            self.metrics = Some(metrics);
        }
    }

    /// It ended, having been admitted.
    pub fn close(mut self, ending: Ending) {
        self.opened();
        let (sent, received) = self.sent_and_received();
        let duration = clock::now().duration_since(self.started);
        if let Some(metrics) = &self.metrics {
            metrics.closed(ending, sent, received, duration);
        }
        self.record(ending);
    }

    /// Policy refused it; `reason` is its name, or the stable label of a default.
    pub fn deny(mut self, reason: Arc<str>) {
        self.resolve_metrics().denied(&reason);
        tracing::info!(
            client = %self.client,
            identity = self.source_identity.as_ref().map(SpiffeId::as_str),
            endpoint = self.endpoint.map(tracing::field::display),
            reason = %reason,
            "connection refused by policy"
        );
        self.reason = Some(reason);
        self.record(Ending::PolicyDenied);
    }

    fn resolve_metrics(&self) -> Arc<ConnectionMetrics> {
        self.telemetry.connection_metrics(&ConnectionLabels::new(
            self.reporter,
            self.path,
            self.source.as_deref(),
            self.destination.as_deref(),
            self.service.as_ref(),
        ))
    }

    /// The application is the client at the source's agent and the server at the destination's.
    fn sent_and_received(&self) -> (u64, u64) {
        match self.reporter {
            Reporter::Source => (self.bytes.from_app, self.bytes.to_app),
            Reporter::Destination => (self.bytes.to_app, self.bytes.from_app),
        }
    }

    fn record(self, ending: Ending) {
        if !self.telemetry.records_connections() {
            return;
        }
        let (bytes_sent, bytes_received) = self.sent_and_received();
        let name = |workload: &Option<Arc<Workload>>| {
            workload.as_ref().map(|it| (it.owner.clone(), it.name.namespace.clone(), it.name.name.clone()))
        };
        let (source, destination) = (name(&self.source), name(&self.destination));
        self.telemetry.record(AccessRecord {
            time: self.time,
            duration: clock::now().duration_since(self.started),
            reporter: self.reporter,
            path: self.path,
            source: SourceRecord {
                workload: source.as_ref().map(|names| names.0.clone()),
                namespace: source.as_ref().map(|names| names.1.clone()),
                pod: source.map(|names| names.2),
                address: self.client,
                identity: self.source_identity,
            },
            destination: DestinationRecord {
                workload: destination.as_ref().map(|names| names.0.clone()),
                namespace: destination.as_ref().map(|names| names.1.clone()),
                pod: destination.map(|names| names.2),
                service: self.service,
                dialled: self.dialled,
                endpoint: self.endpoint,
                identity: self.destination_identity,
            },
            bytes_sent,
            bytes_received,
            ending,
            reason: self.reason,
            tls: self.key_exchange.map(|key_exchange| TlsRecord { version: "TLSv1.3", key_exchange }),
        });
    }
}
