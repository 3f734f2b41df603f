//! What counting costs on the data path.

use std::time::Duration;

use mesh_agent::lifecycle::clock;
use mesh_agent::model::{Ending, Path};
use mesh_agent::telemetry::{ConnectionLabels, Reporter, Telemetry};

#[test]
fn counting_a_connection_costs_little() {
    // The promise is well under a microsecond in a release build. This may be a debug build on a busy machine, so the
    // bound is wide: it catches a lock convoy, an allocation or a system call per connection.
    let telemetry = Telemetry::without_access_log();
    let labels = ConnectionLabels::new(Reporter::Source, Path::Tunnel, None, None, None);
    let metrics = telemetry.connection_metrics(&labels);
    let began = clock::now();
    for _ in 0..100_000 {
        metrics.opened();
        metrics.closed(Ending::Closed, 10, 10, Duration::from_micros(300));
    }
    let each = (clock::now() - began) / 100_000;
    assert!(each < Duration::from_micros(20), "{each:?}");
}
