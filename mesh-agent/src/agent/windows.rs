//! What a process shows of the mesh: registry, policies and discovery behind their windows.

use std::sync::{Arc, OnceLock};

use serde_json::json;

use crate::admin::{Windows, explain, views};
use crate::discovery::{Discovery, Problem};
use crate::lifecycle::Shutdown;
use crate::model::WorkloadUid;
use crate::policy::Policies;
use crate::registry::Registry;
use crate::telemetry::Telemetry;

/// Discovery, once it has started: the windows are open before.
pub type LateDiscovery = Arc<OnceLock<Discovery>>;

/// Waits for a state of the mesh; false when the process is to stop before there is one.
pub async fn first_state(discovery: &Discovery, shutdown: &Shutdown) -> bool {
    tokio::select! {
        biased;
        () = shutdown.requested() => false,
        () = discovery.first_state() => true,
    }
}

/// Adds `/workloads`, `/services`, `/policies`, `/routes`, `/problems`, `/discovery` and `/policy/explain`; `captured` says which
/// pods this process has caught.
pub fn add_mesh(
    windows: Windows,
    registry: &Registry,
    policies: &Policies,
    discovery: &LateDiscovery,
    captured: impl Fn(&WorkloadUid) -> bool + Send + Sync + 'static,
) -> Windows {
    let (pods, services, asked) = (registry.clone(), registry.clone(), registry.clone());
    let (rules, judges) = (policies.clone(), policies.clone());
    let (problems, routes, source) = (discovery.clone(), discovery.clone(), discovery.clone());
    windows
        .view("/workloads", move || views::workloads(&pods.snapshot(), &captured))
        .view("/services", move || views::services(&services.snapshot()))
        .view("/policies", move || views::policies(&rules.current()))
        .view("/routes", move || json!(routes.get().map(Discovery::routes).unwrap_or_default()))
        .view("/problems", move || {
            let all = problems.get().map(Discovery::problems).unwrap_or_default();
            json!(all.into_iter().map(problem).collect::<Vec<_>>())
        })
        .view("/discovery", move || json!(source.get().map(Discovery::source)))
        .ask("/policy/explain", move |query| explain::window(&asked.snapshot(), &judges.current(), query))
}

/// Tells metrics about discovery at each scrape.
pub fn report_discovery(telemetry: &Telemetry, registry: &Registry, discovery: &LateDiscovery) {
    let (registry, discovery) = (registry.clone(), discovery.clone());
    telemetry.before_scrape(move |telemetry| {
        let problems = discovery.get().map_or(0, Discovery::problem_count);
        telemetry.discovery(registry.snapshot().version, problems);
    });
}

fn problem(problem: Problem) -> views::Problem {
    let place = [problem.line, problem.column].into_iter().flatten().map(|number| format!(":{number}"));
    let file = problem.file.map(|file| file.display().to_string()).unwrap_or_default();
    let message = match problem.field {
        Some(field) => format!("{field}: {}", problem.message),
        None => problem.message,
    };
    views::Problem { location: file + &place.collect::<String>(), object: problem.object, message }
}
