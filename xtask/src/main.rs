//! Everything a developer runs: `cargo xtask <command>`. This file holds the command line only.
//!
//! Reading order: [`setup`] (what must be installed), [`ebpf`] and [`build`] (what is built), [`lab`] (nodes and pods on
//! one machine), [`app`] (the traffic programs that run in its pods), [`demo`] (what is promised, shown), [`cluster`] (a real
//! Kubernetes), [`bench`] (how fast it is), [`image`] (what a cluster runs), [`test`] and [`fuzz`] (the checks), [`shell`] (how
//! commands are run), [`clock`].

#![expect(unreachable_pub, reason = "a program has no outside: `pub` marks what a file offers to the others")]

mod setup;

mod ebpf;

mod build;

mod lab;

mod app;

mod demo;

mod cluster;

mod bench;

mod image;

mod test;

mod fuzz;

mod shell;

mod clock;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Weft's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need, or name the exact thing to install.
    Setup(setup::Options),
    /// Compile the kernel programs (mesh-ebpf/) to target/release/weft.bpf.o.
    BuildEbpf,
    /// Compile the kernel programs, mesh-agent and meshctl (release).
    Build,
    /// Nodes and pods as network namespaces on this machine, with one real agent per node.
    #[command(subcommand)]
    Lab(lab::Command),
    /// A real Kubernetes of two nodes on this machine, or its API server alone.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Small servers and clients that run in the lab's pods.
    #[command(subcommand)]
    App(app::Command),
    /// Set up, build, and show what Weft promises on a small shop of two nodes (needs root).
    Demo(demo::Options),
    /// How fast the mesh is, beside the same without it, with the marks it must reach (needs root, and a quiet machine).
    Bench(bench::Options),
    /// Write deploy/crds/ anew from the types of our kinds.
    Crds,
    /// Build, and write Weft as an OCI archive that `ctr images import` takes (needs no Docker).
    Image(image::Options),
    /// Set up, build, and run every test with the kernel programs loaded (needs root).
    Test(test::Options),
    /// What the CI runs: `test`, plus formatting and lints.
    Ci(test::Options),
    /// Feed the parsers and deciders random input for a long time (cargo-fuzz, nightly Rust).
    Fuzz(fuzz::Options),
    /// The programs that the demo runs in pods.
    #[command(hide = true, subcommand)]
    DemoPart(demo::Part),
    /// Be a node of a cluster. Started by the cluster only.
    #[command(hide = true)]
    ClusterNode(cluster::node::init::Options),
    /// Enter a lab's node or pod, then become the given command. Started by the lab only.
    #[command(hide = true)]
    LabInit(lab::exec::InitOptions),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup(options) => setup::install(&options).map(|()| ExitCode::SUCCESS),
        Command::BuildEbpf => ebpf::run().map(|_| ExitCode::SUCCESS),
        Command::Build => build::run().map(|()| ExitCode::SUCCESS),
        Command::Lab(command) => lab::run(command),
        Command::Cluster(command) => cluster::run(command),
        Command::App(command) => app::run(command),
        Command::Demo(options) => demo::run(&options),
        Command::DemoPart(part) => demo::run_part(&part),
        Command::Bench(options) => bench::run(&options),
        Command::Crds => build::definitions().map(|()| ExitCode::SUCCESS),
        Command::Image(options) => image::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Test(options) => test::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Ci(options) => test::ci(&options).map(|()| ExitCode::SUCCESS),
        Command::Fuzz(options) => fuzz::run(&options).map(|()| ExitCode::SUCCESS),
        Command::ClusterNode(options) => cluster::node::init::run(&options),
        Command::LabInit(options) => Ok(lab::exec::init(&options)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
