//! The lab's network: a fabric that joins the nodes, and a bridge with pods on every node.
//!
//! All of it lives in network namespaces of the lab; the host's own namespace sees nothing. Links keep the kernel's default
//! offloads and an MTU of 1500, and IPv6 addresses are usable at once (no duplicate address detection).

use std::fmt::Write;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

use super::names::{NETNS_ROOT, Names};
use super::world::plan::{fabric_ips, node_ips, pod_ips};
use crate::shell;

/// Settings of every namespace, below /proc/sys/net.
const EVERYWHERE: [(&str, &str); 5] = [
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
];

/// Settings of a node: it passes packets on, and takes them from wherever they come.
pub const NODE: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

/// Where a network namespace is bound.
pub fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS_ROOT).join(name)
}

/// A pod's place in the network.
pub struct PodLink<'a> {
    /// Its namespace's name.
    pub netns: &'a str,
    /// The number of its node, from 1.
    pub node_number: usize,
    /// Its node's namespace.
    pub node_netns: &'a str,
    /// Its addresses.
    pub ips: &'a [IpAddr],
}

/// Makes the fabric and the nodes.
pub fn create_nodes(names: &Names, nodes: &[String]) -> Result<()> {
    let fabric = names.fabric_netns();
    let mut all = vec![fabric.clone()];
    all.extend(nodes.iter().map(|node| names.node_netns(node)));
    add_namespaces(&all)?;
    for (index, netns) in all.iter().enumerate() {
        settings(netns, if index == 0 { &[] } else { &NODE })?;
    }
    batch(&fabric, &fabric_script(names, nodes))?;
    for (index, node) in nodes.iter().enumerate() {
        batch(&names.node_netns(node), &node_script(index + 1, nodes.len()))?;
    }
    Ok(())
}

/// Makes pods and joins them to their nodes.
pub fn create_pods(pods: &[PodLink<'_>]) -> Result<()> {
    let all: Vec<String> = pods.iter().map(|pod| pod.netns.to_owned()).collect();
    add_namespaces(&all)?;
    let mut nodes: Vec<&str> = pods.iter().map(|pod| pod.node_netns).collect();
    nodes.sort_unstable();
    nodes.dedup();
    for pod in pods {
        settings(pod.netns, &[])?;
    }
    for node in nodes {
        let here: String = pods.iter().filter(|pod| pod.node_netns == node).map(join_script).collect();
        batch(node, &here)?;
    }
    for pod in pods {
        batch(pod.netns, &pod_script(pod))?;
    }
    Ok(())
}

/// Removes a pod from its node. The link goes first: a namespace's own end of it lives on until the kernel gets to it, and
/// the next pod at that address needs the name.
pub fn remove_pod(pod: &PodLink<'_>) -> Result<()> {
    batch(pod.node_netns, &format!("link del {}\n", port(pod)))?;
    remove_namespaces([pod.netns])
}

/// Removes network namespaces; absent is fine. Their links go with them.
pub fn remove_namespaces<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    for name in names {
        let path = netns_path(name);
        // Not mounted is what a half-made namespace looks like: the file alone remains to be removed.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The names of the namespaces that begin with `prefix`.
pub fn namespaces(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_ROOT) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Makes network namespaces.
pub fn add_namespaces(names: &[String]) -> Result<()> {
    let script: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
    shell::feed(Command::new("ip").args(["-batch", "-"]), &script).context("cannot make network namespaces")
}

/// Runs an `ip` script in a namespace.
pub fn batch(netns: &str, script: &str) -> Result<()> {
    shell::feed(Command::new("ip").args(["-n", netns, "-batch", "-"]), script)
        .with_context(|| format!("cannot set up the network of {netns}"))
}

/// Writes the kernel's settings of a namespace. A thread enters it, for /proc/sys/net shows the reader's own.
pub fn settings(netns: &str, more: &[(&str, &str)]) -> Result<()> {
    let path = netns_path(netns);
    let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let write = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {netns}"))?;
        for (key, value) in EVERYWHERE.iter().chain(more) {
            let file = format!("/proc/sys/net/{key}");
            fs::write(&file, value).with_context(|| format!("{netns}: cannot write {value} to {file}"))?;
        }
        Ok(())
    };
    let written = std::thread::scope(|scope| scope.spawn(write).join());
    written.map_err(|_panic| anyhow!("the thread that sets up {netns} panicked"))?
}

fn fabric_script(names: &Names, nodes: &[String]) -> String {
    let [v4, v6] = fabric_ips();
    let mut script = format!(
        "link set lo up\nlink add fabric type bridge mcast_snooping 0\nlink set fabric up\n\
         addr add {v4}/16 dev fabric\naddr add {v6}/64 dev fabric nodad\n"
    );
    for (index, node) in nodes.iter().enumerate() {
        let (port, netns) = (format!("port{}", index + 1), names.node_netns(node));
        let _ = write!(
            script,
            "link add {port} type veth peer name uplink netns {netns}\nlink set {port} master fabric up\n"
        );
        script.push_str(&pod_routes(index + 1));
    }
    script
}

/// A node's links, addresses and routes. The bridge's MAC is set: by itself it would change as pods come and go.
fn node_script(number: usize, node_count: usize) -> String {
    let ([v4, v6], [bridge_v4, bridge_v6], [via_v4, via_v6]) =
        (node_ips(number), pod_ips(number, 1), fabric_ips());
    let mut script = format!(
        "link set lo up\nlink set uplink up\naddr add {v4}/16 dev uplink\naddr add {v6}/64 dev uplink nodad\n\
         link add pods address 02:00:0a:f4:{number:02x}:01 type bridge mcast_snooping 0\nlink set pods up\n\
         addr add {bridge_v4}/24 dev pods\naddr add {bridge_v6}/64 dev pods nodad\n\
         route add default via {via_v4}\nroute add ::/0 via {via_v6}\n"
    );
    for other in (1..=node_count).filter(|other| *other != number) {
        script.push_str(&pod_routes(other));
    }
    script
}

/// Routes to the pods of a node.
fn pod_routes(number: usize) -> String {
    let ([via_v4, via_v6], [net_v4, net_v6]) = (node_ips(number), pod_ips(number, 0));
    format!("route add {net_v4}/24 via {via_v4}\nroute add {net_v6}/64 via {via_v6}\n")
}

fn join_script(pod: &PodLink<'_>) -> String {
    let port = port(pod);
    format!("link add {port} type veth peer name eth0 netns {}\nlink set {port} master pods up\n", pod.netns)
}

/// The node's end of a pod's link, named after the last byte of its address.
fn port(pod: &PodLink<'_>) -> String {
    match pod.ips.first() {
        Some(IpAddr::V4(ip)) => format!("pod{}", ip.octets()[3]),
        _ => "pod".to_owned(),
    }
}

fn pod_script(pod: &PodLink<'_>) -> String {
    let [via_v4, via_v6] = pod_ips(pod.node_number, 1);
    let mut script = "link set lo up\nlink set eth0 up\n".to_owned();
    for ip in pod.ips {
        let rest = if ip.is_ipv4() { "/24 dev eth0" } else { "/64 dev eth0 nodad" };
        let _ = writeln!(script, "addr add {ip}{rest}");
    }
    script + &format!("route add default via {via_v4}\nroute add ::/0 via {via_v6}\n")
}
