//! An answer, and what the server said in it about the request that it received.

use bytes::Bytes;
use http::{HeaderMap, Version};
use serde_json::Value;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Version of its head.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers, if any came.
    pub trailers: Option<HeaderMap>,
    /// Status codes of the 1xx answers before it.
    pub early: Vec<u16>,
}

impl Answer {
    /// What the server received, in its own words; null when no server of ours answered.
    pub fn seen(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The server's pod; empty when no server of ours answered.
    pub fn pod(&self) -> String {
        self.seen()["pod"].as_str().unwrap_or_default().to_owned()
    }

    /// A header of the answer; several values joined as RFC 9110 section 5.3 has it.
    pub fn header(&self, name: &str) -> Option<String> {
        joined(&self.headers, name)
    }

    /// A header of the request as the server received it.
    pub fn seen_header(&self, name: &str) -> Option<String> {
        let seen = self.seen();
        let values = seen["headers"].get(name)?.as_array()?;
        Some(values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","))
    }
}

/// All values of a header, joined by `,`.
pub fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<_> =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!values.is_empty()).then(|| values.join(","))
}
