//! The small API server as a process, for labs and for tries by hand, and the client that brings a directory into one.
//!
//! `weft-apiserver --listen 127.0.0.1:8001 --kubeconfig-out /tmp/kubeconfig` serves until it is ended; `kubectl
//! --kubeconfig /tmp/kubeconfig get pods -A` then shows what is there. Its own pages are told in `tests/src/api/orders.rs`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use mesh_tests::ApiServer;
use mesh_tests::api::review::Token;
use mesh_tests::api::sync;

/// A small Kubernetes API server for tests.
#[derive(Parser)]
#[command(name = "weft-apiserver", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a directory of objects into an API server, this one or another; says in JSON which revision each kind has now.
    Sync(Sync),
}

/// Serve until ended.
#[derive(Args)]
struct Serve {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: String,
    /// Write a kubeconfig of the administrator here, when connections are taken.
    #[arg(long, value_name = "FILE")]
    kubeconfig_out: Option<PathBuf>,
    /// Put the objects of this directory in first.
    #[arg(long, value_name = "DIR")]
    load: Option<PathBuf>,
    /// Serve the kinds of the Gateway API and of the mesh without their definitions.
    #[arg(long)]
    mesh_kinds: bool,
    /// New objects keep the UID and the time that they name.
    #[arg(long)]
    keep_as_given: bool,
    /// A user's token, as `TOKEN=USERNAME`; may be given several times.
    #[arg(long = "token", value_name = "TOKEN=USERNAME")]
    tokens: Vec<String>,
    /// Refuse requests without a token.
    #[arg(long)]
    need_token: bool,
}

#[derive(Args)]
struct Sync {
    /// The server.
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// The objects as they shall be.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Remember here what was brought in: next time only the difference is written, and what is gone is deleted.
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Sync(options)) => bring(&options),
        None => serve(&cli.serve),
    }
}

fn serve(options: &Serve) -> Result<()> {
    let server =
        ApiServer::listen(&options.listen).with_context(|| format!("cannot listen on {}", options.listen))?;
    if options.mesh_kinds {
        server.serve_mesh_kinds();
    }
    if options.keep_as_given {
        server.keep_as_given();
    }
    for token in &options.tokens {
        let (token, user) = token.split_once('=').context("a token is given as TOKEN=USERNAME")?;
        server.add_token(token, Token::user(user, &["system:authenticated"]));
    }
    if options.need_token {
        server.need_token();
    }
    if let Some(dir) = &options.load {
        for object in sync::identify(sync::read(dir)?)?.into_values() {
            server.put(object);
        }
    }
    if let Some(file) = &options.kubeconfig_out {
        // Renamed, so that who waits for the file finds all of it.
        let temporary = file.with_extension("new");
        let token = options.tokens.first().and_then(|token| token.split_once('='));
        fs::write(&temporary, server.kubeconfig(token.map(|(token, _)| token)))
            .and_then(|()| fs::rename(&temporary, file))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{}", server.url());
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn bring(options: &Sync) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(&options.kubeconfig)
            .with_context(|| format!("cannot read {}", options.kubeconfig.display()))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let known = options.known.as_deref().map(sync::read_known).transpose()?.unwrap_or_default();
        let wanted = sync::identify(sync::read(&options.dir)?)?;
        let written = sync::sync(&client, &known, &wanted).await?;
        println!("{}", serde_json::to_string(&written)?);
        options.known.as_deref().map_or(Ok(()), |file| sync::write_known(file, &wanted))
    })
}
