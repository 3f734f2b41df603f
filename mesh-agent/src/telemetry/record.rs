//! One connection as one line of JSON: the access record. Field names are documented in docs/telemetry.md and stable.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::Reporter;
use crate::model::{ClientAddr, Ending, EndpointAddr, OriginalDst, Path, ServiceName, SpiffeId, Workload};

/// What is told about a connection once it is over or was refused.
#[derive(Clone, Debug, Serialize)]
pub struct AccessRecord {
    /// When it was opened.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// How long it was open.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// Which end tells.
    #[serde(serialize_with = "reporter")]
    pub reporter: Reporter,
    /// The way the bytes took.
    #[serde(serialize_with = "path")]
    pub path: Path,
    /// The client.
    pub source: SourceRecord,
    /// The server.
    pub destination: DestinationRecord,
    /// Payload from client to server, in bytes.
    pub bytes_sent: u64,
    /// Payload from server to client, in bytes.
    pub bytes_received: u64,
    /// How it ended.
    #[serde(serialize_with = "ending")]
    pub ending: Ending,
    /// The policy (`namespace/name`) that decided, or a stable label with the cause behind `ending` (which TLS
    /// verification failed, say).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
    /// What the handshake agreed on, when the bytes went through a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsRecord>,
}

/// The client's side of an [`AccessRecord`].
#[derive(Clone, Debug, Serialize)]
pub struct SourceRecord {
    /// Owner, for example the Deployment; absent outside the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// Pod name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
    /// Address and port that the client dialled from.
    #[serde(serialize_with = "address")]
    pub address: SocketAddr,
    /// The identity that was *verified*, not the one expected; absent on plaintext.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub identity: Option<SpiffeId>,
}

/// The server's side of an [`AccessRecord`].
#[derive(Clone, Debug, Serialize)]
pub struct DestinationRecord {
    /// Owner, for example the Deployment; absent outside the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// Pod name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
    /// `namespace/name` of the service that was dialled.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub service: Option<ServiceName>,
    /// What the application dialled; absent when it is not known.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub dialled: Option<OriginalDst>,
    /// The endpoint that was chosen; absent when none was.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub endpoint: Option<EndpointAddr>,
    /// The identity that was verified; absent on plaintext.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub identity: Option<SpiffeId>,
}

/// What a TLS handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TlsRecord {
    /// Protocol version, for example `TLSv1.3`.
    pub version: &'static str,
    /// Key exchange group, for example `X25519MLKEM768`.
    pub key_exchange: &'static str,
}

impl SourceRecord {
    /// A client at `client`; `workload` is `None` outside the mesh.
    pub fn new(workload: Option<&Workload>, client: ClientAddr, identity: Option<SpiffeId>) -> Self {
        Self {
            workload: workload.map(|workload| workload.owner.clone()),
            namespace: workload.map(|workload| workload.name.namespace.clone()),
            pod: workload.map(|workload| workload.name.name.clone()),
            address: client.addr(),
            identity,
        }
    }
}

impl DestinationRecord {
    /// A server; `workload` is `None` outside the mesh or when no endpoint was chosen.
    pub fn new(
        workload: Option<&Workload>,
        service: Option<&ServiceName>,
        dialled: Option<OriginalDst>,
        endpoint: Option<EndpointAddr>,
        identity: Option<SpiffeId>,
    ) -> Self {
        Self {
            workload: workload.map(|workload| workload.owner.clone()),
            namespace: workload.map(|workload| workload.name.namespace.clone()),
            pod: workload.map(|workload| workload.name.name.clone()),
            service: service.cloned(),
            dialled,
            endpoint,
            identity,
        }
    }
}

impl AccessRecord {
    /// Appends the record as one line.
    pub(super) fn write_line(&self, out: &mut Vec<u8>) {
        write_line(self, out);
    }
}

/// Appends a record as one line of JSON.
pub(super) fn write_line(record: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, record)
        .expect("strings and numbers serialize, and a Vec takes all bytes");
    out.push(b'\n');
}

pub(super) fn rfc3339<S: Serializer>(time: &SystemTime, out: S) -> Result<S::Ok, S::Error> {
    match jiff::Timestamp::try_from(*time) {
        Ok(time) => out.collect_str(&format_args!("{time:.6}")),
        // A clock outside years -9999 to 9999 is no reason to lose the record.
        Err(_) => out.serialize_none(),
    }
}

/// Milliseconds with microseconds behind the point.
pub(super) fn milliseconds<S: Serializer>(duration: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_f64(duration.as_micros() as f64 / 1000.0)
}

pub(super) fn reporter<S: Serializer>(reporter: &Reporter, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(reporter.label())
}

pub(super) fn path<S: Serializer>(path: &Path, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(path.label())
}

fn ending<S: Serializer>(ending: &Ending, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(ending.label())
}

fn address<S: Serializer>(address: &SocketAddr, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(address)
}

pub(super) fn text<T: std::fmt::Display, S: Serializer>(
    value: &Option<T>,
    out: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => out.collect_str(value),
        None => out.serialize_none(),
    }
}
