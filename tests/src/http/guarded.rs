//! The lab in which request-level policies are tried: every client with every server, on the same node, across nodes, and
//! from outside the mesh.

use std::net::SocketAddr;

use super::{Backend, Web};
use crate::lab::Lab;
use crate::world::{World, policy};

/// Who asks: two accounts of the mesh and a pod outside it, all on node-1.
pub const CLIENTS: [&str; 3] = ["shop/web", "shop/guest", "outside/plain"];
/// Who answers: on node-1, and on node-2.
pub const SERVERS: [&str; 2] = ["shop/near", "shop/far"];
/// The file that tests change.
pub const FILE: &str = "policy.yaml";

/// Two accounts of the mesh and a pod outside it as clients; a server on their node and one on the other.
pub fn world() -> World {
    World::new()
        .object("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {weft.dev/mesh: enabled, weft.dev/splice: enabled}\n")
        .unmeshed("outside")
        .pod("shop/web", "node-1")
        .pod("shop/guest", "node-1")
        .pod("outside/plain", "node-1")
        .pod_like("shop/near", "node-1", "server", "")
        .pod_like("shop/far", "node-2", "server", "")
        .pod_like("shop/told", "node-2", "told", "annotations: {weft.dev/forward-client-cert: enabled}")
        .pod_like("shop/told-here", "node-1", "told", "annotations: {weft.dev/forward-client-cert: enabled}")
        .service("shop/server", "server", 80, 8080, "")
        .file(FILE, "")
}

/// A policy `shop/case` for the servers, about requests.
pub fn about_requests(action: &str, rules: &[&str]) -> String {
    policy("shop/case", "server", action, rules)
        .replace("  action:", "  enforcementLevel: Application\n  action:")
}

/// A client by name, and a server by name and address.
pub type Pair<'a> = (&'static str, &'a Web, &'static str, SocketAddr);

/// A lab whose servers policies are about.
#[derive(Debug)]
pub struct Guarded {
    /// As [`CLIENTS`].
    pub clients: Vec<Web>,
    /// As [`SERVERS`].
    pub servers: Vec<Backend>,
    /// The lab; it ends last.
    pub lab: Lab,
}

impl Guarded {
    /// Makes it, without policies.
    #[track_caller]
    pub fn up() -> Self {
        let lab = Lab::up(&world());
        let servers = SERVERS.iter().map(|pod| Backend::start(&lab, pod, &[8080])).collect();
        let clients = CLIENTS.iter().map(|pod| Web::start(&lab, pod)).collect();
        Self { clients, servers, lab }
    }

    /// Port 8080 of a pod.
    pub fn to(&self, server: &str) -> SocketAddr {
        self.lab.v4(server, 8080)
    }

    /// Each client with each server.
    pub fn pairs(&self) -> Vec<Pair<'_>> {
        let clients = CLIENTS.into_iter().zip(&self.clients);
        let of_client = |(name, web)| SERVERS.map(|server| (name, web, server, self.to(server)));
        clients.flat_map(of_client).collect()
    }
}
