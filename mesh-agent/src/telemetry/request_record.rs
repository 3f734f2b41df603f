//! One request as one line of JSON, beside the connections' in the same log. Field names are documented in
//! docs/telemetry.md and stable; a line with `http` is a request.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, StatusCode, Version};
use serde::{Serialize, Serializer};

use super::Reporter;
use super::outcome::CutBy;
use super::printable::Printable;
use super::record::{self, DestinationRecord, SourceRecord, TlsRecord};
use super::trace::TraceContext;
use crate::model::{Path, RouteName, RouteRule};

/// What is told about a request once it is over or was refused.
#[derive(Clone, Debug, Serialize)]
pub struct RequestRecord {
    /// When its head arrived.
    #[serde(serialize_with = "record::rfc3339")]
    pub time: SystemTime,
    /// From its head to the last byte of the response.
    #[serde(rename = "duration_ms", serialize_with = "record::milliseconds")]
    pub duration: Duration,
    /// Which end tells.
    #[serde(serialize_with = "record::reporter")]
    pub reporter: Reporter,
    /// The way its bytes took.
    #[serde(serialize_with = "record::path")]
    pub path: Path,
    /// The client.
    pub source: SourceRecord,
    /// The server.
    pub destination: DestinationRecord,
    /// The request itself and its response.
    pub http: HttpRecord,
    /// The policy (`namespace/name`) that decided, or a stable label with the cause when this agent answered instead of the
    /// server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
    /// What the handshake agreed on, when the bytes went through a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsRecord>,
    /// The trace that the server saw, as `trace_id` and `span_id`.
    #[serde(flatten)]
    pub trace: Option<TraceContext>,
}

/// The HTTP part of a [`RequestRecord`].
#[derive(Clone, Debug, Serialize)]
pub struct HttpRecord {
    /// Version of the request as it came, for example `HTTP/1.1`.
    pub version: &'static str,
    /// Method.
    pub method: Printable,
    /// Host as the client wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Printable>,
    /// Path as the client wrote it, without the query.
    pub path: Printable,
    /// What the client calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<Printable>,
    /// The route that matched.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "record::text")]
    pub route: Option<RouteName>,
    /// Its rule: the name, or the number in the order written, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// Status of the response whose head went to the client; absent when none went.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "status")]
    pub status: Option<StatusCode>,
    /// gRPC status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Body of the request, in bytes.
    pub request_bytes: u64,
    /// Body of the response, in bytes.
    pub response_bytes: u64,
    /// Endpoints that were tried; 0 when this agent answered itself.
    pub upstream_attempts: u32,
    /// Who broke it off; absent when the response went out whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<CutBy>,
}

impl HttpRecord {
    /// What the head of a request says. Its fate is still to be filled in.
    pub fn new(
        version: Version,
        method: &Method,
        host: Option<&str>,
        path: &str,
        headers: &HeaderMap,
    ) -> Self {
        Self {
            version: version_text(version),
            method: Printable::method(method),
            host: host.map(Printable::host),
            path: Printable::path(path),
            user_agent: Printable::user_agent(headers),
            route: None,
            rule: None,
            status: None,
            grpc_status: None,
            request_bytes: 0,
            response_bytes: 0,
            upstream_attempts: 0,
            cut_short: None,
        }
    }

    /// This rule of this route matched.
    pub fn matched(&mut self, route: &RouteName, rule: &RouteRule) {
        self.route = Some(route.clone());
        self.rule = Some(rule.name.clone().unwrap_or_else(|| rule.index.to_string().into()));
    }
}

impl RequestRecord {
    /// Appends the record as one line.
    pub(super) fn write_line(&self, out: &mut Vec<u8>) {
        record::write_line(self, out);
    }
}

fn version_text(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/3",
    }
}

fn status<S: Serializer>(status: &Option<StatusCode>, out: S) -> Result<S::Ok, S::Error> {
    status.map(|status| status.as_u16()).serialize(out)
}
