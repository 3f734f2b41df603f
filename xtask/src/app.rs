//! The programs that run in pods: small servers that say what they see, and clients whose exit code tells how it went.
//!
//! Files: [`server`], [`client`]; [`bench`] (the traffic of the benches). They use sockets exactly as any program would, and know nothing of the mesh.

pub mod server;

pub mod client;

pub mod bench;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

/// The programs.
#[derive(Subcommand)]
pub enum Command {
    /// HTTP/1.1 server that answers with its pod's name and the client address it saw, as JSON.
    Http(HttpOptions),
    /// TCP server that sends back what it receives.
    Echo(PortOption),
    /// TCP server that reads until the client has finished, then answers with the number of bytes.
    Sink(PortOption),
    /// GET a URL; exit code 0 on a status of 200 to 299.
    Get(client::GetOptions),
    /// Connect, send a text, print the answer; on failure print the error's name (ECONNREFUSED, ...) and exit with 1.
    Call(client::CallOptions),
    /// Measure against a `bench-server`; one line of JSON.
    BenchClient(bench::client::Options),
    /// Answer a `bench-client` until standard input ends.
    BenchServer(bench::server::Options),
}

/// `app http`.
#[derive(Args)]
pub struct HttpOptions {
    #[command(flatten)]
    listen: PortOption,
    /// Answer with this text instead.
    #[arg(long)]
    body: Option<String>,
}

/// Where a server listens.
#[derive(Args)]
pub struct PortOption {
    /// Port, on all IPv4 and IPv6 addresses.
    #[arg(long)]
    port: u16,
}

/// Runs a program.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Http(options) => server::run(options.listen.port, server::Service::http(options.body)),
        Command::Echo(options) => server::run(options.port, server::Service::Echo),
        Command::Sink(options) => server::run(options.port, server::Service::Sink),
        Command::Get(options) => client::get(&options),
        Command::Call(options) => Ok(client::call(&options)),
        Command::BenchClient(options) => bench::client::run(&options),
        Command::BenchServer(options) => bench::server::run(&options),
    }
}
