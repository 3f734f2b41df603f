//! What a request is refused with: a `Status` object, with the words and numbers that clients go by.

use serde_json::{Value, json};
use thiserror::Error;

use super::resource::Kept;

/// A refused request.
#[derive(Clone, Debug, Error)]
#[error("{code} {reason}: {message}")]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// Reason, for programs.
    pub reason: &'static str,
    /// Message, for people.
    pub message: String,
    /// Details; null for none.
    pub details: Value,
    /// Seconds to wait, for the header `Retry-After`.
    pub retry_after: Option<u32>,
}

impl Refusal {
    /// A refusal with a code's usual reason.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            409 => "Conflict",
            410 => "Expired",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "",
        };
        Self { code, reason, message: message.into(), details: Value::Null, retry_after: None }
    }

    /// There is no such object.
    pub fn not_found(kept: &Kept, name: &str) -> Self {
        Self::new(404, format!("{} \"{name}\" not found", kept.qualified())).about(kept, name)
    }

    /// The path leads nowhere.
    pub fn no_such_path() -> Self {
        Self::new(404, "the server could not find the requested resource")
    }

    /// There is one already.
    pub fn already_exists(kept: &Kept, name: &str) -> Self {
        let refusal = Self::new(409, format!("{} \"{name}\" already exists", kept.qualified()));
        Self { reason: "AlreadyExists", ..refusal.about(kept, name) }
    }

    /// The object is not what the writer thinks.
    pub fn conflict(kept: &Kept, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kept.qualified());
        Self::new(409, message).about(kept, name)
    }

    /// Somebody wrote in between.
    pub fn modified(kept: &Kept, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kept, name, why)
    }

    /// A field is not as it must be.
    pub fn invalid(kept: &Kept, kind: &str, name: &str, field: &str, why: &str) -> Self {
        let qualified = Kept::new(&kept.group, kind).qualified();
        let mut refusal = Self::new(422, format!("{qualified} \"{name}\" is invalid: {field}: {why}"));
        refusal.details = json!({
            "name": name, "group": kept.group.as_ref(), "kind": kind,
            "causes": [{ "reason": "FieldValueInvalid", "message": why, "field": field }],
        });
        refusal
    }

    /// What was asked for lies too far back.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, message)
    }

    /// What was asked for has not happened yet.
    pub fn too_large(asked: u64, current: u64) -> Self {
        let mut refusal =
            Self::new(504, format!("Timeout: Too large resource version: {asked}, current: {current}"));
        refusal.details = json!({
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
            "retryAfterSeconds": 1,
        });
        refusal.retry_after = Some(1);
        refusal
    }

    /// The user may not do this.
    pub fn forbidden(user: &str, verb: &str, kept: &Kept, namespace: Option<&str>) -> Self {
        let scope = namespace.map_or_else(
            || "at the cluster scope".to_owned(),
            |namespace| format!("in the namespace \"{namespace}\""),
        );
        let message = format!(
            "{} is forbidden: User \"{user}\" cannot {verb} resource \"{}\" in API group \"{}\" {scope}",
            kept.qualified(),
            kept.plural,
            kept.group
        );
        let mut refusal = Self::new(403, message);
        refusal.details = json!({ "kind": kept.plural.as_ref() });
        if !kept.group.is_empty() {
            refusal.details["group"] = json!(kept.group.as_ref());
        }
        refusal
    }

    fn about(mut self, kept: &Kept, name: &str) -> Self {
        self.details = json!({ "name": name, "kind": kept.plural.as_ref() });
        if !kept.group.is_empty() {
            self.details["group"] = json!(kept.group.as_ref());
        }
        self
    }

    /// The object that says so.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}
