//! Routes as YAML, and the world in which the tests of routes live.
//!
//! It has the shape that the Gateway API's own tests of meshes use (v1.6.1): two versions of a program with a service for
//! each and one for both, and a second namespace with a client. Clients stand on both nodes, so that each version is
//! reached on the same node and across nodes.

use std::fmt::Write as _;

use crate::world::World;

/// The file that tests change.
pub const FILE: &str = "routes.yaml";

/// The pods that send requests.
pub const CLIENTS: [&str; 2] = ["echo/client-1", "echo/client-2"];

/// The pods that answer.
pub const SERVERS: [&str; 2] = ["echo/echo-v1", "echo/echo-v2"];

/// Where those listen.
pub const PORTS: [u16; 2] = [8080, 7070];

/// The ports of each service.
const SERVICE_PORTS: &str = "  ports:
  - {name: http, port: 80, targetPort: 8080, appProtocol: http}
  - {name: http-alt, port: 8080, targetPort: 8080}
  - {name: tcp, port: 9090, targetPort: 9090}
  - {name: plain, port: 7070, targetPort: 7070}
  - {name: origin, port: 9191, targetPort: 9191}
";

/// Namespaces `echo` and `consumer`, without routes.
pub fn world() -> World {
    let mut world = World::new().meshed("echo").meshed("consumer");
    for (client, node) in [(CLIENTS[0], "node-1"), (CLIENTS[1], "node-2"), ("consumer/client", "node-1")] {
        world = world.pod(client, node);
    }
    for (server, node) in [("echo-v1", "node-1"), ("echo-v2", "node-2")] {
        world = world.object(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {server}, namespace: echo}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata:\n  name: {server}\n  namespace: echo\n  \
             labels: {{app: echo, version: {server}}}\nspec:\n  nodeName: {node}\n  serviceAccountName: {server}\n"
        ));
    }
    let services = [("echo", "app: echo"), ("echo-v1", "version: echo-v1"), ("echo-v2", "version: echo-v2")];
    for (service, selector) in services {
        world = world.object(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: echo}}\nspec:\n  \
             selector: {{{selector}}}\n{SERVICE_PORTS}"
        ));
    }
    world.file(FILE, "")
}

/// A route `NAMESPACE/NAME` of a kind, attached to services (`SERVICE`, `SERVICE:PORT`, or with `NAMESPACE/` before);
/// `rules` are the items of `spec.rules` as YAML, unindented.
pub fn route(kind: &str, namespaced: &str, parents: &[&str], rules: &str) -> String {
    route_with(kind, namespaced, parents, "", rules)
}

/// [`route`] with more lines below `spec`.
pub fn route_with(kind: &str, namespaced: &str, parents: &[&str], spec: &str, rules: &str) -> String {
    let (namespace, name) = namespaced.split_once('/').expect("a route is NAMESPACE/NAME");
    let mut yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         generation: 1\nspec:\n  parentRefs:\n"
    );
    for parent in parents {
        let (namespace, service) = parent.split_once('/').unwrap_or((namespace, parent));
        let (service, port) = service.split_once(':').unwrap_or((service, ""));
        let port = if port.is_empty() { String::new() } else { format!(", port: {port}") };
        let _ = writeln!(
            yaml,
            "  - {{group: \"\", kind: Service, name: {service}, namespace: {namespace}{port}}}"
        );
    }
    for line in spec.lines() {
        let _ = writeln!(yaml, "  {line}");
    }
    yaml.push_str("  rules:\n");
    for line in rules.lines().filter(|line| !line.trim().is_empty()) {
        let _ = writeln!(yaml, "  {line}");
    }
    yaml
}

/// Several objects in one file.
pub fn all(objects: &[String]) -> String {
    objects.join("---\n")
}

/// An HTTPRoute of the service `echo` that sends everything to one backend, `SERVICE:PORT`.
pub fn everything_to(name: &str, parent: &str, backend: &str) -> String {
    let (service, port) = backend.split_once(':').expect("a backend is SERVICE:PORT");
    let rule = format!("- backendRefs: [{{name: {service}, port: {port}}}]");
    route("HTTPRoute", &format!("echo/{name}"), &[parent], &rule)
}
