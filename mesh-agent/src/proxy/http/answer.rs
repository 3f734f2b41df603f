//! What the agent itself says to a client, instead of a server.
//!
//! Beside station 6. Short, without names of policies, routes or pods: those stand in the access record. A gRPC call gets a
//! head with `grpc-status` and no body (trailers-only), as its client library expects.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::ResponseBody;
use super::guard::Violation;
use super::head::Unreadable;
use crate::model::Ending;

/// gRPC status codes (grpc/grpc, doc/statuscodes.md).
mod grpc {
    pub(super) const DEADLINE_EXCEEDED: u16 = 4;
    pub(super) const PERMISSION_DENIED: u16 = 7;
    pub(super) const UNIMPLEMENTED: u16 = 12;
    pub(super) const INTERNAL: u16 = 13;
    pub(super) const UNAVAILABLE: u16 = 14;
}

/// An answer of our own.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Path or host cannot be read.
    Unreadable(Unreadable),
    /// The guard refused the body.
    BadFraming(Violation),
    /// The client broke its own body off.
    BodyBroken,
    /// Routes are attached and none matches.
    NoRoute,
    /// The rule has no backend that can be resolved.
    NoBackend,
    /// Policy refused.
    Denied,
    /// No server could be reached, or the one that was did not answer.
    Failed(Ending),
    /// The time is over.
    Timeout,
    /// A redirect filter.
    Redirect(StatusCode, HeaderValue),
    /// A CORS preflight.
    Preflight(HeaderMap),
}

impl Answer {
    /// Stable label for records; empty when the answer is what the route asks for.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(fault) => fault.label(),
            Self::BadFraming(violation) => violation.label(),
            Self::BodyBroken => "request_body_broken",
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::Denied => "policy_denied",
            Self::Failed(ending) => ending.label(),
            Self::Timeout => "request_timeout",
            Self::Redirect(..) => "redirect",
            Self::Preflight(_) => "cors_preflight",
        }
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unreadable(_) | Self::BadFraming(_) | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Denied | Self::Failed(Ending::PolicyDenied | Ending::PolicyRevoked) => {
                StatusCode::FORBIDDEN
            }
            // It was reached and broke off, so what came of the request is not known.
            Self::Failed(Ending::ServerReset | Ending::TunnelFailed) => StatusCode::BAD_GATEWAY,
            Self::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Redirect(status, _) => *status,
            Self::Preflight(_) => StatusCode::NO_CONTENT,
        }
    }

    /// gRPC status.
    pub fn grpc_status(&self) -> u16 {
        match self {
            Self::Denied | Self::Failed(Ending::PolicyDenied | Ending::PolicyRevoked) => {
                grpc::PERMISSION_DENIED
            }
            Self::NoRoute => grpc::UNIMPLEMENTED,
            Self::Timeout => grpc::DEADLINE_EXCEEDED,
            Self::NoBackend | Self::Failed(_) | Self::Redirect(..) => grpc::UNAVAILABLE,
            Self::Unreadable(_) | Self::BadFraming(_) | Self::BodyBroken | Self::Preflight(_) => {
                grpc::INTERNAL
            }
        }
    }

    /// The response. `is_h2`: a connection must not be closed by a header.
    pub fn response(&self, is_grpc: bool, is_h2: bool) -> Response<ResponseBody> {
        if is_grpc {
            return self.grpc_response();
        }
        let text = self.text();
        let mut response = Response::new(match text {
            "" => ResponseBody::empty(),
            text => ResponseBody::Own(Some(Bytes::from_static(text.as_bytes()))),
        });
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        match self {
            Self::Redirect(_, location) => drop(headers.insert(LOCATION, location.clone())),
            Self::Preflight(answer) => headers.extend(answer.clone()),
            Self::Unreadable(_) | Self::BadFraming(_) | Self::BodyBroken if !is_h2 => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        if !text.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        if self.status() != StatusCode::NO_CONTENT {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        }
        response
    }

    fn grpc_response(&self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(self.grpc_status()));
        headers.insert("grpc-message", HeaderValue::from_static(self.text().trim_ascii_end()));
        response
    }

    fn text(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "path or host cannot be read\n",
            Self::BadFraming(_) | Self::BodyBroken => "the request cannot be read\n",
            Self::NoRoute => "no route matches\n",
            Self::NoBackend => "the route has no valid backend\n",
            Self::Denied | Self::Failed(Ending::PolicyDenied | Ending::PolicyRevoked) => "access denied\n",
            Self::Failed(Ending::NoEndpoint) => "no endpoint is ready\n",
            Self::Failed(Ending::ServerReset | Ending::TunnelFailed) => {
                "the server broke the connection off\n"
            }
            Self::Failed(_) => "the server cannot be reached\n",
            Self::Timeout => "the server did not answer in time\n",
            Self::Redirect(..) | Self::Preflight(_) => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_403_and_permission_denied_and_names_nobody() {
        let plain = Answer::Denied.response(false, false);
        assert_eq!(plain.status(), StatusCode::FORBIDDEN);
        let call = Answer::Denied.response(true, true);
        assert_eq!((call.status(), &call.headers()["grpc-status"]), (StatusCode::OK, &HeaderValue::from(7)));
        assert_eq!(call.headers()["grpc-message"], "access denied");
    }

    #[test]
    fn statuses_tell_unreached_from_broken_off() {
        let status = |ending| Answer::Failed(ending).status().as_u16();
        assert_eq!(status(Ending::NoEndpoint), 503);
        assert_eq!(status(Ending::ConnectRefused), 503);
        assert_eq!(status(Ending::ServerReset), 502);
        assert_eq!(status(Ending::PolicyDenied), 403);
        assert_eq!(Answer::Timeout.status().as_u16(), 504);
    }

    #[test]
    fn what_leaves_the_framing_in_doubt_closes_the_connection() {
        let bad = Answer::BadFraming(Violation::Chunk);
        assert_eq!(bad.response(false, false).headers()[CONNECTION], "close");
        assert!(!bad.response(false, true).headers().contains_key(CONNECTION));
    }
}
