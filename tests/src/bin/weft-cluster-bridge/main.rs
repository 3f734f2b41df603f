//! What the tests' Kubernetes 1.20 lacks: names for Services, and EndpointSlices of version v1.
//!
//! Files: [`follow`] (objects of a kind, kept current), [`slices`] (Endpoints become EndpointSlices), [`names`] (questions of
//! pods' resolvers). It stands in for a name server and for a controller of newer versions; it knows nothing of the mesh.

#![expect(unreachable_pub, reason = "a program has no outside: `pub` marks what a file offers to the others")]

mod follow;

mod slices;

mod names;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use follow::{Follower, core};

/// Fills in for what the tests' Kubernetes lacks.
#[derive(Parser)]
struct Options {
    /// How to reach the API server.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Where to answer questions for names (UDP).
    #[arg(long)]
    dns: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let read = Kubeconfig::read_from(&options.kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let services = Follower::new(client.clone(), core("Service", "services"));
    let endpoints = Follower::new(client.clone(), core("Endpoints", "endpoints"));
    let server = names::Server::bind(options.dns, services.objects(), endpoints.objects())
        .await
        .with_context(|| format!("cannot answer at {}", options.dns))?;
    let mut slices = slices::Slices::new(client);
    tokio::try_join!(
        services.run(async |_| Ok(())),
        endpoints.run(async |change| slices.mirror(change).await),
        server.run(),
    )?;
    Ok(())
}
