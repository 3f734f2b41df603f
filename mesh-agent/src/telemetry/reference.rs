//! docs/metrics.md, generated from what is registered. A test compares the page with this text.

use std::fmt::Write as _;

use super::families::Families;
use super::{LABEL_SETS_MAX, Telemetry};

/// The page as it must stand in docs/metrics.md.
pub fn metrics_page() -> String {
    let telemetry = Telemetry::without_access_log();
    let families: &Families = &telemetry.0.families;
    let mut page = String::from(HEAD);
    let _ =
        writeln!(page, "\nA family of connections or requests holds at most {LABEL_SETS_MAX} series{BOUND}");
    for row in &families.descriptions {
        let _ = write!(page, "\n## `{}`\n\n{}. A {}", row.name, row.help, row.kind);
        if row.labels.is_empty() {
            page.push_str(" without labels.\n");
        } else {
            let labels: Vec<String> = row.labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(page, " by {}.", labels.join(", "));
        }
    }
    page
}

const HEAD: &str = "\
<!-- Generated: do not edit. `WEFT_REGENERATE=1 cargo test -p mesh-agent metrics_page` writes it anew. -->

# Metrics

Every agent serves these at `/metrics` of its admin address, as OpenMetrics or, when asked with
`Accept: text/plain`, in the Prometheus text format 0.0.4.

The labels of a connection name *workloads* (the owner, for example a Deployment), never pods, so the number of series
follows what is deployed. `reporter` says which end tells: a connection between two pods of the mesh is told by both, so
sum over one reporter only. A peer outside the mesh is `unknown`; `destination_service` is empty when no service was
dialled. `path` is `splice`, `direct`, `tunnel`, `plain`, or `http` for a client's connection whose requests each take a way
of their own.

Requests (`weft_http_...`) carry the same names, and in place of `path` the `route` that matched (`HTTPRoute/shop/orders`,
empty without one) and the `protocol` (`http/1.1`, `http/2`, `grpc`). `method` is one of the nine standard ones or `other`.
`code` is the status that the client got, a class such as `4xx` for codes that are not registered, and `0` when the client
got none. `grpc_status` is 0 to 16 or `other`; it is empty when a request is not gRPC, or ended without one.
";

const BOUND: &str = "; what comes beyond is counted with `other` in place of
the names and a class in place of the code, and `weft_metrics_folded_total` counts how often that happened.";
