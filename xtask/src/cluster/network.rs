//! The network of a cluster: a bridge in the control plane's namespace, with the nodes around it.
//!
//! There is no way out. A default route stands on every node all the same, since addresses of Services need one to be looked
//! up before kube-proxy turns them into those of pods.

use std::fmt::Write;

use anyhow::Result;

use super::names::{CONTROL_IP, Names, node_ip, pod_range};
use crate::lab::network::{NODE, add_namespaces, batch, settings};

/// Makes the namespaces and joins them.
pub fn create(names: &Names, nodes: u8) -> Result<()> {
    let mut all = vec![names.control_netns()];
    all.extend((1..=nodes).map(|number| names.node_netns(number)));
    add_namespaces(&all)?;
    for netns in &all {
        settings(netns, &NODE)?;
    }
    batch(&names.control_netns(), &control_script(names, nodes))?;
    (1..=nodes).try_for_each(|number| batch(&names.node_netns(number), &node_script(number, nodes)))
}

fn control_script(names: &Names, nodes: u8) -> String {
    let mut script = format!(
        "link set lo up\nlink add lan type bridge mcast_snooping 0\nlink set lan up\naddr add {CONTROL_IP}/24 dev lan\n"
    );
    for number in 1..=nodes {
        let (port, netns) = (format!("port{number}"), names.node_netns(number));
        let _ = write!(
            script,
            "link add {port} type veth peer name eth0 netns {netns}\nlink set {port} master lan up\n{}",
            pod_route(number)
        );
    }
    script
}

fn node_script(number: u8, nodes: u8) -> String {
    let mut script = format!(
        "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\nroute add default via {CONTROL_IP}\n",
        node_ip(number)
    );
    for other in (1..=nodes).filter(|other| *other != number) {
        script.push_str(&pod_route(other));
    }
    script
}

fn pod_route(number: u8) -> String {
    format!("route add {} via {}\n", pod_range(number), node_ip(number))
}
