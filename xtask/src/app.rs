//! The programs that run in pods: small servers that say what they see, and clients whose exit code tells how it went.
//!
//! Files: [`server`], [`client`]; [`bench`] (the traffic of the benches); [`h2`] (frames for both ends of it). They use sockets exactly as any program would, and know nothing of the mesh.

pub mod server;

pub mod client;

pub mod bench;

pub mod h2;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Subcommand};

/// The programs.
#[derive(Subcommand)]
pub enum Command {
    /// HTTP/1.1 server that answers with its pod's name, the client address and the request it saw, as JSON.
    ///
    /// A request can ask for more in its query: `status=NNN`, `delay_ms=N`, `close` (the connection ends after the answer),
    /// `abort` (it ends without one).
    Http(HttpOptions),
    /// TCP server that sends back what it receives.
    Echo(PortOption),
    /// TCP server that reads until the client has finished, then answers with the number of bytes.
    Sink(PortOption),
    /// Request a URL; exit code 0 on a status of 200 to 299.
    Get(client::get::GetOptions),
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
    /// Answer with this many bytes instead.
    #[arg(long, conflicts_with = "body", value_name = "N")]
    body_bytes: Option<usize>,
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
        Command::Http(options) => {
            let fixed =
                options.body.map(String::into_bytes).or_else(|| options.body_bytes.map(bench::payload));
            let answers = server::answer::Answers::of_this_pod(fixed);
            server::run(options.listen.port, server::Service::Http(Arc::new(answers)))
        }
        Command::Echo(options) => server::run(options.port, server::Service::Echo),
        Command::Sink(options) => server::run(options.port, server::Service::Sink),
        Command::Get(options) => client::get::get(&options),
        Command::Call(options) => Ok(client::call(&options)),
        Command::BenchClient(options) => bench::client::run(&options),
        Command::BenchServer(options) => bench::server::run(&options),
    }
}
