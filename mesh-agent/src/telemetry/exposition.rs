//! What `/metrics` says: OpenMetrics 1.0, or the older Prometheus text format 0.0.4 for those who ask for it.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// A text format for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text format 0.0.4.
    Prometheus,
}

impl Format {
    /// Value of the `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The format to answer with: the older one only when the client asks for plain text and not for OpenMetrics, so
    /// that a browser sees plain text and Prometheus, which offers both, gets OpenMetrics.
    pub fn for_accept(accept: Option<&str>) -> Self {
        let accept = accept.unwrap_or_default();
        if accept.contains("text/plain") || accept.contains("text/html") {
            if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
        } else {
            Self::OpenMetrics
        }
    }
}

/// The registry as text.
pub(super) fn encode(registry: &Registry, format: Format) -> String {
    let mut openmetrics = String::with_capacity(64 * 1024);
    text::encode(&mut openmetrics, registry).expect("writing to a String does not fail");
    match format {
        Format::OpenMetrics => openmetrics,
        Format::Prometheus => to_prometheus(&openmetrics),
    }
}

/// OpenMetrics names a counter's family without `_total` and knows types and comments that 0.0.4 does not.
fn to_prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take() {
                out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}
