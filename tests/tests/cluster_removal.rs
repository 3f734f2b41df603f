//! The ends of an installation: what `meshctl check` says about a whole one, and that `meshctl uninstall` leaves nothing.

use std::net::SocketAddr;

use mesh_tests::cluster::manifest::{PORT, Pod, documents};
use mesh_tests::cluster::{Cluster, Namespace, PATIENCE, mesh};
use mesh_tests::wait;
use mesh_tests::wire::Serve;

#[test]
fn check_finds_nothing_wrong_and_uninstall_leaves_pods_as_they_were() {
    let cluster = Cluster::running();
    mesh::install(&cluster);
    let namespace = Namespace::meshed(&cluster, "removal");
    let name = &namespace.name;
    let pod = |pod: &str, node| Pod::new(name, pod).on(node).yaml();
    cluster.apply(&documents(&[pod("web", "node-1"), pod("orders", "node-2")]));
    cluster.wait_ready(name);
    mesh::wait_enrolled(&cluster, name);
    let (web, orders) = (cluster.probe(name, "web"), cluster.probe(name, "orders"));
    orders.serve(PORT, Serve::Greet);
    let to = SocketAddr::new(cluster.pod_ip(name, "orders"), PORT);
    wait::within(PATIENCE, "the server is reached through the mesh", || web.call(to).ok().map(drop));

    let check = cluster.meshctl(&["check", "--cluster"]);
    let said =
        format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    assert!(check.status.success(), "{said}");
    println!("{said}");

    let removed = cluster.meshctl(&["uninstall"]);
    let said = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert!(removed.status.success(), "{said}");
    wait::within(PATIENCE, "Weft's namespace is gone", || {
        let asked = cluster.kubectl(&["get", "namespace", mesh::SYSTEM]).output().ok()?;
        String::from_utf8_lossy(&asked.stderr).contains("NotFound").then_some(())
    });
    for node in cluster.nodes() {
        let left = cluster.on_node(&node, &["sh", "-c", "ls /sys/fs/bpf/weft 2>/dev/null || true"]);
        assert_eq!(left.trim(), "", "{node} still has the mesh's programs");
    }
    wait::within(PATIENCE, "calls go on without the mesh", || web.call(to).ok().map(drop));
}
