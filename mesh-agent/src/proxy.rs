//! The journey of one connection through this agent, in both directions.
//!
//! Layer 5, stations 3 to 13 of the walk. Connections arrive on in-pod listeners; [`outbound`] takes those that a pod
//! dials, [`inbound`] those that reach a pod. Both read from top to bottom, one call per station. The room never decides
//! who may talk (policy does), where a name leads (registry), which endpoint (balance), or who somebody is (identity);
//! it carries their answers out and reports how it ended.
//!
//! Workers share nothing: each is one thread with its own runtime, pools, tables and buffers, and a connection stays on
//! one worker from accept to close. There are no locks on the data path.
//!
//! Reading order: [`worker`] (threads, listeners, changes), [`outbound`], `protocol` (bytes or requests), [`endpoint`], [`dial`], [`pool`],
//! [`reach`], [`inbound`],
//! [`open`] (who is connected, and how to end it), [`http`] (connections whose requests are read), [`relay`], [`carrier`] (one tunnel), [`tunnel`] (the protocol),
//! [`tls`], [`report`].
#![forbid(unsafe_code)]

pub mod carrier;
pub mod dial;
pub mod endpoint;
pub mod http;
pub mod inbound;
pub mod open;
pub mod outbound;
pub mod pool;
mod protocol;
pub mod reach;
pub mod relay;
pub mod report;
pub mod tls;
pub mod tunnel;
pub mod worker;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};

use crate::capture::{Callers, OriginTable};
use crate::identity::Identities;
use crate::lifecycle::Shutdown;
use crate::model::SpiffeId;
use crate::policy::Policies;
use crate::registry::Registry;
use crate::route::Routes;
use crate::telemetry::Telemetry;

pub use worker::{Error, Workers, start_workers};

/// What the wiring decides about the data path.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a TCP connection to an endpoint may take to open. One second, as Linkerd has it: long enough for two SYN
    /// losses at data centre distances, short enough that another endpoint can still be tried.
    pub connect_timeout: Duration,
    /// How long a TLS handshake may take, waiting for a turn included. Too short breaks bursts after a restart.
    pub handshake_timeout: Duration,
    /// Handshakes that one worker has under way at once, each way. A handshake is about 0.5 ms of CPU per side; the rest
    /// wait in a queue so that a burst delays itself and not the connections that are established.
    pub handshakes_max: usize,
    /// Endpoints that are tried for one connection before it fails, the first included.
    pub endpoints_max: usize,
    /// Idle tunnels that a worker keeps per pair of pods. Each costs about 3 KiB here and as much at the peer.
    pub idle_tunnels_per_pair_max: usize,
    /// How long a tunnel is kept idle.
    pub idle_tunnel_max: Duration,
    /// How long a tunnel may take, after its connection ended, to come clean for reuse; then it is closed.
    pub settle_timeout: Duration,
    /// How long open connections are given to end once the agent stops.
    pub shutdown_grace: Duration,
    /// How long listeners are served on once another agent has the pods: what reached them before is in their queues.
    pub last_arrivals: Duration,
    /// HTTP.
    pub http: http::Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 64,
            endpoints_max: 3,
            idle_tunnels_per_pair_max: 64,
            idle_tunnel_max: Duration::from_secs(60),
            settle_timeout: Duration::from_secs(1),
            shutdown_grace: Duration::from_secs(1),
            last_arrivals: Duration::from_millis(500),
            http: http::Limits::default(),
        }
    }
}

/// How workers are asked to stop.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Another agent has the pods: nothing new comes, and what is open may go on until it ends by itself.
    pub draining: Shutdown,
    /// What is open ends.
    pub stopping: Shutdown,
}

/// With which configuration to speak as a workload.
pub trait Credentials: std::fmt::Debug + Send + Sync {
    /// For dialling as `id`. `None`: there is no valid certificate.
    fn client_config(&self, id: &SpiffeId) -> Option<Arc<ClientConfig>>;
    /// For accepting as `id`. `None`: there is no valid certificate.
    fn server_config(&self, id: &SpiffeId) -> Option<Arc<ServerConfig>>;
}

impl Credentials for Identities {
    fn client_config(&self, id: &SpiffeId) -> Option<Arc<ClientConfig>> {
        Self::client_config(self, id)
    }
    fn server_config(&self, id: &SpiffeId) -> Option<Arc<ServerConfig>> {
        Self::server_config(self, id)
    }
}

/// What the data path asks others. Cheap to clone; every worker has its own.
#[derive(Clone, Debug)]
pub struct Handles {
    /// What an address stands for.
    pub registry: Registry,
    /// Who may talk.
    pub policies: Policies,
    /// Where requests go.
    pub routes: Routes,
    /// Who we are.
    pub credentials: Arc<dyn Credentials>,
    /// Where a caught socket wanted to go.
    pub origins: Arc<dyn OriginTable>,
    /// Who on this node dialled a pod.
    pub callers: Arc<dyn Callers>,
    /// Who is told.
    pub telemetry: Telemetry,
}
