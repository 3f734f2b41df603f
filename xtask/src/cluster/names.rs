//! What a cluster's things are called, so that two clusters never meet and leftovers are found by name alone.
//!
//! As with the lab's names, a dash in a cluster's name becomes an underscore where names are prefixes of others.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::lab::names::is_label;

/// Where every cluster keeps its files. On a disk: images are unpacked there.
const RUN_ROOT: &str = "/var/lib/weft-cluster";

/// The names of one cluster.
#[derive(Clone, Debug)]
pub struct Names {
    cluster: String,
    token: String,
}

impl Names {
    /// The names of the cluster called `cluster`.
    ///
    /// # Errors
    /// When `cluster` is not a DNS label of at most 32 characters.
    pub fn new(cluster: &str) -> Result<Self> {
        ensure!(
            is_label(cluster) && cluster.len() <= 32,
            "`{cluster}` cannot name a cluster: use up to 32 lower-case letters, digits and dashes (not at the ends)"
        );
        Ok(Self { cluster: cluster.to_owned(), token: cluster.replace('-', "_") })
    }

    /// The name as the user gave it.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// ` --name NAME`, or nothing for the default name.
    pub fn option(&self) -> String {
        if self.cluster == super::DEFAULT_NAME { String::new() } else { format!(" --name {}", self.cluster) }
    }

    /// The directory of all the cluster's files.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from(RUN_ROOT).join(&self.cluster)
    }

    /// The prefix of its network namespaces. No lab's prefix begins so: those begin with `weft-`.
    pub fn netns_prefix(&self) -> String {
        format!("weftcluster-{}-", self.token)
    }

    /// The namespace of the control plane, which joins the nodes.
    pub fn control_netns(&self) -> String {
        format!("{}control", self.netns_prefix())
    }

    /// A node's namespace.
    pub fn node_netns(&self, number: u8) -> String {
        format!("{}{}", self.netns_prefix(), node_name(number))
    }

    /// The cluster's directory below the root of every control group hierarchy.
    pub fn cgroup(&self) -> PathBuf {
        PathBuf::from("weft-cluster").join(&self.cluster)
    }

    /// A node's directory below the root of every control group hierarchy.
    pub fn node_cgroup(&self, number: u8) -> PathBuf {
        self.cgroup().join(node_name(number))
    }
}

/// What Kubernetes calls a node.
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// The control plane's address on the network of the nodes; the API server and the name server are there.
pub const CONTROL_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Addresses of Services.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";

/// The address of the API server's own Service: the first of [`SERVICE_RANGE`].
pub const API_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The address of the name server's Service.
pub const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Addresses of pods.
pub const POD_RANGE: &str = "10.244.0.0/16";

/// A node's address on the network of the nodes.
pub fn node_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + number)
}

/// The addresses of a node's pods.
pub fn pod_range(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_and_labs_share_no_prefix() {
        let (short, long) = (Names::new("a").unwrap(), Names::new("a-b").unwrap());
        assert!(!long.netns_prefix().starts_with(&short.netns_prefix()));
        let lab = crate::lab::names::Names::new("cluster").unwrap();
        assert!(!Names::new("x").unwrap().netns_prefix().starts_with(&lab.netns_prefix()));
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", "..", "a/b", "a_b", "-a", &"x".repeat(33)] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }
}
