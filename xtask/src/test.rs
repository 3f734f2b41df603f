//! The checks: everything that must hold before a change is taken.
//!
//! Three tiers: all tests on this machine; those that talk to an API server once more, with a real one; and, where it is asked
//! for, those of a real cluster. tests/README.md says what each is for.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::cluster::{self, cache::Extent, kubernetes};
use crate::{clock, ebpf, image, setup, shell};

/// What to run.
#[derive(Args)]
pub struct Options {
    /// Only the tests of a real cluster of two nodes, which is made for them.
    #[arg(long)]
    cluster: bool,
    /// Leave the cluster (named `test`) running afterwards.
    #[arg(long, requires = "cluster")]
    keep: bool,
    /// Passed on to `cargo nextest run`, for example a filter.
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// What the tests do that needs root.
const WHY_ROOT: &str = "the tests load kernel programs and make network namespaces";

/// Which tests talk to an API server, and hold for a real one too. Others order faults, which only the small one has.
const API_TESTS: &str = "package(mesh-tests) & (binary(api_server) | binary(api_reads) | binary(api_notices) \
    | test(a_token_that_the_api_server_made_for_an_agents_pod_stands_for_its_node))";

/// The tests of a cluster in their order: the last ones take the mesh down.
const CLUSTER_TESTS: [&str; 3] = ["cluster_mesh", "cluster_faults", "cluster_removal"];

/// Where tests look for a real API server.
const KUBECONFIG_VARIABLE: &str = "WEFT_TEST_KUBECONFIG";

/// Where tests look for a cluster.
const CLUSTER_VARIABLE: &str = "WEFT_TEST_CLUSTER";

/// The cluster's name.
const CLUSTER_NAME: &str = "test";

/// The tests that also run with agents fed by the Kubernetes API: one or two of each kind of object. All could, but those
/// about broken files.
const FED_BY_THE_API: [&str; 5] =
    ["node_policy", "node_balance", "node_identity", "http_routes", "http_policy_change"];

/// Sets up, builds and tests.
pub fn run(options: &Options) -> Result<()> {
    shell::require_root(WHY_ROOT)?;
    setup::run()?;
    ebpf::run()?;
    if options.cluster {
        return with_cluster(options);
    }
    // Builds the agent too: apart from the tests it would be compiled twice, since their dependencies ask for other features.
    shell::say("building and running all tests");
    shell::run(nextest(&["--workspace"]).args(&options.nextest))?;
    // Whoever narrows the tests does not wait for these.
    if !options.nextest.is_empty() {
        return Ok(());
    }
    fed_by_the_api()?;
    with_api_server()
}

/// Some of the labs once more, with agents that are fed by the Kubernetes API.
fn fed_by_the_api() -> Result<()> {
    shell::say("running labs that are fed by the Kubernetes API");
    let files: Vec<String> = FED_BY_THE_API.iter().map(|file| format!("binary(={file})")).collect();
    // The whole workspace, so that nothing is built for other features.
    let mut tests = nextest(&["--workspace", "-E", &files.join(" | ")]);
    shell::run(tests.env("WEFT_LAB_SOURCE", "kubernetes"))
}

/// The tests, and formatting and lints before them.
pub fn ci(options: &Options) -> Result<()> {
    shell::require_root(WHY_ROOT)?;
    shell::say("checking the formatting");
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    shell::say("checking the lints");
    let lints =
        ["clippy", "--workspace", "--all-targets", "--all-features", "--release", "--", "-D", "warnings"];
    shell::run(shell::cargo().args(lints))?;
    run(options)
}

/// What the API tests say of a real API server, so that the small one stays honest.
fn with_api_server() -> Result<()> {
    let name = format!("api-{}", std::process::id());
    kubernetes::build(Extent::ApiServer)?;
    shell::say("running the tests of the API with a real API server");
    let running = cluster::Running::api_server(&name)?;
    let mut tests = nextest(&["--workspace", "-E", API_TESTS]);
    tests.env(KUBECONFIG_VARIABLE, running.kubeconfig());
    let tested = shell::run(&mut tests).context("with a real API server");
    running.down().and(tested)
}

/// The tests of a cluster.
fn with_cluster(options: &Options) -> Result<()> {
    let started = clock::now();
    kubernetes::build(Extent::Cluster)?;
    shell::say("building what the tests of the cluster run");
    // One build for all, in the same form as that of the other tests.
    shell::run(&mut nextest(&["--workspace", "--no-run", "--features", "mesh-tests/cluster"]))?;
    let archive = image::write_built()?;
    let running = cluster::Running::nodes(CLUSTER_NAME)?;
    let tested = running.load_image(&archive).and_then(|()| {
        shell::say(format!("the cluster is up after {} s; running its tests", started.elapsed().as_secs()));
        CLUSTER_TESTS.iter().try_for_each(|binary| {
            let mut tests = nextest(&["--workspace", "--features", "mesh-tests/cluster", "--no-fail-fast"]);
            tests.args(["--test-threads", "1", "-E", &format!("package(mesh-tests) & binary({binary})")]);
            tests.args(&options.nextest).arg("--no-tests=pass").env(CLUSTER_VARIABLE, CLUSTER_NAME);
            shell::run(&mut tests)
        })
    });
    if options.keep {
        shell::say(format!("`cargo xtask cluster down --name {CLUSTER_NAME}` ends the cluster"));
        return tested;
    }
    running.down().and(tested)
}

fn nextest(words: &[&str]) -> Command {
    let mut command = shell::cargo();
    command.args(["nextest", "run", "--release"]).args(words);
    command
}
