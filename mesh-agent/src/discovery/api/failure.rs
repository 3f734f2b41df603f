//! How asking goes wrong, told apart by what has to be done about it.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

/// What went wrong, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// No connection, or none that TLS accepts.
    Unreachable,
    /// The answer ended in the middle.
    Cut,
    /// The answer stopped coming.
    Stalled,
    /// The version or the place in a list is too old (410): list anew.
    Expired,
    /// There is no such kind (404).
    NotServed,
    /// The API does not know us (401).
    Unauthorized,
    /// We may not (403).
    Forbidden,
    /// The API has too much to do (429, 503).
    Throttled,
    /// The API's own fault (5xx).
    ServerError,
    /// Any other status.
    Refused,
    /// The answer makes no sense.
    Unreadable,
}

impl Reason {
    /// Stable metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Cut => "cut",
            Self::Stalled => "stalled",
            Self::Expired => "expired",
            Self::NotServed => "not_served",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Throttled => "throttled",
            Self::ServerError => "server_error",
            Self::Refused => "refused",
            Self::Unreadable => "unreadable",
        }
    }

    /// Whether a watch can go on where it was. Where it is the place itself that may be at fault, it cannot.
    pub(super) fn keeps_place(self) -> bool {
        matches!(
            self,
            Self::Unreachable
                | Self::Cut
                | Self::Stalled
                | Self::Unauthorized
                | Self::Forbidden
                | Self::Throttled
                | Self::ServerError
        )
    }
}

/// One failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) message: String,
    /// How long the API asks us to stay away.
    pub(super) retry_after: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What the API says beside an error's status, in the body or in a watch's `ERROR` event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    code: u16,
    reason: String,
    message: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    retry_after_seconds: Option<u64>,
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

impl Status {
    /// False for what only happened to have none of its fields.
    pub(super) fn is_failure(&self) -> bool {
        self.code >= 400
    }
}

impl Failure {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }

    /// From a status line, the `Retry-After` header and a body that may hold a [`Status`].
    pub(super) fn of_answer(code: StatusCode, retry_after: Option<u64>, body: &[u8]) -> Self {
        let mut status: Status = serde_json::from_slice(body).unwrap_or_default();
        status.code = code.as_u16();
        let mut failure = Self::of_status(&status);
        failure.retry_after = retry_after.map(Duration::from_secs).or(failure.retry_after);
        failure
    }

    /// From what the API says.
    pub(super) fn of_status(status: &Status) -> Self {
        let details = status.details.as_ref();
        let reason = match status.code {
            // A version from the future: the API's storage went back in time, and nothing will ever come after it.
            _ if details.is_some_and(Details::says_too_new) => Reason::Expired,
            401 => Reason::Unauthorized,
            403 => Reason::Forbidden,
            404 => Reason::NotServed,
            410 => Reason::Expired,
            429 | 503 => Reason::Throttled,
            500.. => Reason::ServerError,
            _ => Reason::Refused,
        };
        let said = [&status.message, &status.reason].into_iter().find(|text| !text.is_empty());
        let said = said.map(|text| format!(": {text}")).unwrap_or_default();
        let message = match reason {
            Reason::Unauthorized => {
                format!("the API does not accept this process's credentials (401){said}")
            }
            Reason::Forbidden => format!("the API forbids it (403): a role is missing{said}"),
            _ => format!("the API answered {}{said}", status.code),
        };
        let seconds = details.and_then(|details| details.retry_after_seconds);
        Self { reason, message, retry_after: seconds.filter(|s| *s > 0).map(Duration::from_secs) }
    }

    /// From the client's error before an answer.
    pub(super) fn before_answer(error: &kube::Error) -> Self {
        Self::new(Reason::Unreachable, format!("the API cannot be reached: {}", causes(error)))
    }

    /// From the client's error within an answer.
    pub(super) fn within_answer(error: &kube::Error) -> Self {
        Self::new(Reason::Cut, format!("the API's answer broke off: {}", causes(error)))
    }
}

impl Details {
    fn says_too_new(&self) -> bool {
        self.causes.iter().any(|cause| {
            cause.reason == "ResourceVersionTooLarge" || cause.message == "Too large resource version"
        })
    }
}

/// The innermost cause alone says what happened (`Connection refused`); what stands around it names libraries.
fn causes(error: &kube::Error) -> String {
    let mut innermost: &dyn StdError = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
