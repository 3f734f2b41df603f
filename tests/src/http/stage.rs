//! A lab in which the same thing can be done on every path: same node and across nodes, with routes and without.
//!
//! Port 80 of `echo-v1` and `echo-v2` has a route that changes nothing but one header of the answers, by which it is known
//! to be at work; port 8080 has none and is plain TCP to the mesh.

use std::net::SocketAddr;

use super::routes::{self, route};
use super::{Answer, Backend, Web};
use crate::lab::{Lab, Options};
use crate::wait::eventually;

/// The header that the routes set in answers.
pub const ROUTED: &str = "x-routed";

/// The lab, with a client on node-1.
#[derive(Debug)]
pub struct Stage {
    /// `echo/client-1`.
    pub web: Web,
    /// `echo/echo-v1` on node-1, the client's node.
    pub near: Backend,
    /// `echo/echo-v2` on node-2.
    pub far: Backend,
    /// The lab; it ends last.
    pub lab: Lab,
}

/// A way from the client to a server.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// For messages.
    pub name: &'static str,
    /// Where to dial.
    pub to: SocketAddr,
    /// The server's pod.
    pub server: &'static str,
    /// Whether a route is attached, so that the agent reads requests.
    pub is_routed: bool,
}

impl Stage {
    /// Makes it.
    #[track_caller]
    pub fn up() -> Self {
        Self::up_with(&Options::default())
    }

    /// Makes it, with options for the lab.
    #[track_caller]
    pub fn up_with(options: &Options) -> Self {
        let routes = ["echo-v1", "echo-v2"].map(|service| {
            let rule = format!(
                "- filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: {ROUTED}, value: \"yes\"}}]}}}}]\n  \
                 backendRefs: [{{name: {service}, port: 80}}]"
            );
            route("HTTPRoute", &format!("echo/pass-{service}"), &[&format!("{service}:80")], &rule)
        });
        let world = routes::world().file("pass.yaml", &routes::all(&routes));
        let lab = Lab::up_with(&world, options);
        let [near, far] = routes::SERVERS.map(|pod| Backend::start(&lab, pod, &routes::PORTS));
        let web = Web::start(&lab, routes::CLIENTS[0]);
        let stage = Self { web, near, far, lab };
        for path in stage.paths() {
            stage.await_way(&path);
        }
        for backend in [&stage.near, &stage.far] {
            backend.forget();
        }
        stage
    }

    /// Waits until requests go this way.
    #[track_caller]
    fn await_way(&self, path: &Path) {
        eventually(&format!("{} works", path.name), || {
            let answer = self.web.try_ask(path.to, super::Ask::get("/first")).ok()?;
            let is_routed = answer.header(ROUTED).is_some();
            (is_routed == path.is_routed && answer.status == 200).then_some(())
        });
    }

    /// All ways.
    pub fn paths(&self) -> [Path; 4] {
        let path = |name, service, port, server, is_routed| {
            let to = self.lab.vip(service, port);
            Path { name, to, server, is_routed }
        };
        [
            path("same node, no route", "echo/echo-v1", 8080, "echo-v1", false),
            path("across nodes, no route", "echo/echo-v2", 8080, "echo-v2", false),
            path("same node, routed", "echo/echo-v1", 80, "echo-v1", true),
            path("across nodes, routed", "echo/echo-v2", 80, "echo-v2", true),
        ]
    }

    /// The ways on which the agent reads requests.
    pub fn routed(&self) -> [Path; 2] {
        let [_, _, same, across] = self.paths();
        [same, across]
    }

    /// The server at the end of a way.
    pub fn server(&self, path: &Path) -> &Backend {
        if path.server == "echo-v1" { &self.near } else { &self.far }
    }

    /// Asserts that an answer came from the path's server, by the path's way.
    #[track_caller]
    pub fn assert_way(&self, path: &Path, answer: &Answer) {
        assert_eq!(answer.pod(), path.server, "{}: {answer:?}", path.name);
        assert_eq!(answer.header(ROUTED).is_some(), path.is_routed, "{}: {:?}", path.name, answer.headers);
    }
}
