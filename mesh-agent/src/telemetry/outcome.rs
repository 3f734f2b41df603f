//! What a request came to: its method, its answer and its size, as the closed sets that metrics can carry.
//!
//! Methods, status codes and gRPC statuses come from clients and servers, so each is mapped to a short list here; whatever
//! is not on the list is counted as its class or as `other`, never under its own name.

use std::fmt;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode, Version};
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use serde::{Serialize, Serializer};

/// What is spoken on the connection, as far as metrics tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, 1.0 and 0.9.
    Http1,
    /// HTTP/2 that is not gRPC.
    Http2,
    /// gRPC, by its content type.
    Grpc,
}

impl Protocol {
    /// Of a request with this version and these headers. gRPC is HTTP/2 with [its content type](is_grpc_content).
    pub fn of(version: Version, headers: &HeaderMap) -> Self {
        match version {
            Version::HTTP_2 if is_grpc_content(headers) => Self::Grpc,
            Version::HTTP_2 => Self::Http2,
            _ => Self::Http1,
        }
    }

    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Grpc => "grpc",
        }
    }
}

impl EncodeLabelValue for Protocol {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&self.label(), encoder)
    }
}

/// The methods of RFC 9110 section 9 and RFC 5789; extensions are [`MethodClass::Other`], since a client can invent any
/// number of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the variants are the methods of the standard")]
pub enum MethodClass {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
    Options,
    Connect,
    Trace,
    /// Anything else.
    Other,
}

impl MethodClass {
    /// The class of a method.
    pub fn of(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::DELETE => Self::Delete,
            Method::PATCH => Self::Patch,
            Method::OPTIONS => Self::Options,
            Method::CONNECT => Self::Connect,
            Method::TRACE => Self::Trace,
            _ => Self::Other,
        }
    }

    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Options => "OPTIONS",
            Self::Connect => "CONNECT",
            Self::Trace => "TRACE",
            Self::Other => "other",
        }
    }
}

impl EncodeLabelValue for MethodClass {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&self.label(), encoder)
    }
}

/// Who broke a request off after it had begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CutBy {
    /// The client went away, or reset the stream.
    Client,
    /// The server broke off in the middle of its response.
    Server,
    /// This agent: it stopped, a time limit passed, or a policy turned against it.
    Agent,
}

impl CutBy {
    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }
}

impl Serialize for CutBy {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.label())
    }
}

/// What is counted when a request is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestOutcome {
    /// Its method.
    pub method: MethodClass,
    /// Status of the response whose head went to the client; `None` when none went (told as `0`).
    pub status: Option<StatusCode>,
    /// gRPC status of the response, see [`grpc_status`]; `None` when it is not gRPC or said none.
    pub grpc_status: Option<u16>,
    /// Bytes of the request's body that were not given to `transferred` yet.
    pub sent_bytes: u64,
    /// Bytes of the response's body that were not given to `transferred` yet.
    pub received_bytes: u64,
    /// From the request's head to the response's last byte.
    pub duration: Duration,
}

/// Whether the content type is `application/grpc`, alone or followed by `+` or `;` (gRPC over HTTP2, "Requests");
/// `application/grpc-web` is a different protocol.
pub fn is_grpc_content(headers: &HeaderMap) -> bool {
    let rest = headers.get(CONTENT_TYPE).and_then(|it| it.as_bytes().strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+' | b';', ..]))
}

/// The `grpc-status` of trailers, or of the head of a response that has no more than a head. A value that is no number is
/// told as `u16::MAX`, which metrics show as `other`.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    let value = headers.get("grpc-status")?;
    Some(value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(u16::MAX))
}

/// The label `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Code {
    /// No response.
    None,
    /// One of the codes that [`is_registered`] knows.
    Exact(u16),
    /// Any other, by its first digit.
    Class(u16),
}

impl Code {
    pub(super) fn of(status: Option<StatusCode>) -> Self {
        match status.map(|status| status.as_u16()) {
            None => Self::None,
            Some(code) if is_registered(code) => Self::Exact(code),
            Some(code) => Self::Class(code / 100),
        }
    }

    /// Only the class, for series that stand for many.
    pub(super) fn folded(self) -> Self {
        match self {
            Self::Exact(code) => Self::Class(code / 100),
            Self::None | Self::Class(_) => self,
        }
    }
}

/// The IANA registry of HTTP status codes, without the unused ones.
fn is_registered(code: u16) -> bool {
    matches!(
        code,
        100..=104 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=417 | 421..=426 | 428 | 429 | 431 | 451
            | 500..=508 | 510 | 511
    )
}

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        use fmt::Write as _;
        match self {
            Self::None => encoder.write_str("0"),
            Self::Exact(code) => write!(encoder, "{code}"),
            Self::Class(class) => write!(encoder, "{class}xx"),
        }
    }
}

/// The label `grpc_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum GrpcCode {
    /// Not gRPC, or no status was said.
    None,
    /// 0 to 16, the statuses that gRPC defines.
    Exact(u16),
    /// Beyond.
    Other,
}

impl GrpcCode {
    pub(super) fn of(status: Option<u16>) -> Self {
        match status {
            None => Self::None,
            Some(status @ 0..=16) => Self::Exact(status),
            Some(_) => Self::Other,
        }
    }
}

impl EncodeLabelValue for GrpcCode {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        use fmt::Write as _;
        match self {
            Self::None => Ok(()),
            Self::Exact(status) => write!(encoder, "{status}"),
            Self::Other => encoder.write_str("other"),
        }
    }
}
