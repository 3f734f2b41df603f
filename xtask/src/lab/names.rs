//! What the lab's things are called, so that two labs never meet and leftovers are found by name alone.
//!
//! A dash in a lab's name becomes an underscore, which no Kubernetes name contains: `weft-LAB-` is then a prefix that
//! belongs to one lab only.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// Where every lab keeps its files.
const RUN_ROOT: &str = "/run/weft-lab";

/// Where `ip netns` keeps network namespaces.
pub const NETNS_ROOT: &str = "/run/netns";

/// Where agents pin their kernel objects.
pub const PIN_ROOT: &str = "/sys/fs/bpf/weft";

/// The names of one lab.
#[derive(Clone, Debug)]
pub struct Names {
    lab: String,
    token: String,
}

impl Names {
    /// The names of the lab called `lab`.
    ///
    /// # Errors
    /// When `lab` is not a DNS label of at most 32 characters.
    pub fn new(lab: &str) -> Result<Self> {
        ensure!(
            is_label(lab) && lab.len() <= 32,
            "`{lab}` cannot name a lab: use up to 32 lower-case letters, digits and dashes (not at the ends)"
        );
        Ok(Self { lab: lab.to_owned(), token: lab.replace('-', "_") })
    }

    /// The name as the user gave it.
    pub fn lab(&self) -> &str {
        &self.lab
    }

    /// The directory of all the lab's files.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from(RUN_ROOT).join(&self.lab)
    }

    /// The prefix of all its network namespaces.
    pub fn netns_prefix(&self) -> String {
        format!("weft-{}-", self.token)
    }

    /// The namespace that joins the nodes.
    pub fn fabric_netns(&self) -> String {
        format!("{}fabric", self.netns_prefix())
    }

    /// A node's namespace.
    pub fn node_netns(&self, node: &str) -> String {
        format!("{}{node}", self.netns_prefix())
    }

    /// A pod's namespace.
    pub fn pod_netns(&self, namespace: &str, pod: &str) -> String {
        format!("{}{namespace}-{pod}", self.netns_prefix())
    }

    /// The lab's directory below the root of cgroup2.
    pub fn cgroup(&self) -> PathBuf {
        PathBuf::from("weft-lab").join(&self.lab)
    }

    /// The prefix of its pin directories' names.
    pub fn pin_prefix(&self) -> String {
        format!("{}-", self.token)
    }

    /// Where a node's agent pins.
    pub fn pin_dir(&self, node: &str) -> PathBuf {
        PathBuf::from(PIN_ROOT).join(format!("{}{node}", self.pin_prefix()))
    }
}

/// The names of all labs that have a run directory.
pub fn existing_labs() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(RUN_ROOT) else { return Vec::new() };
    let mut labs: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    labs.retain(|lab| Names::new(lab).is_ok());
    labs.sort();
    labs
}

/// Whether `text` is a DNS label (RFC 1123 section 2.1), the form of node and namespace names.
pub fn is_label(text: &str) -> bool {
    let inner = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    inner && !text.is_empty() && text.len() <= 63 && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether `text` is a DNS subdomain (RFC 1123 section 2.1), the form of pod and service names.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_whose_names_are_prefixes_of_each_other_share_no_prefix() {
        let (short, long) = (Names::new("a").unwrap(), Names::new("a-b").unwrap());
        assert!(!long.netns_prefix().starts_with(&short.netns_prefix()));
        assert!(!long.pin_prefix().starts_with(&short.pin_prefix()));
        assert_ne!(short.node_netns("b-c"), long.node_netns("c"));
        assert_ne!(short.pin_dir("b-c"), long.pin_dir("c"));
    }

    #[test]
    fn the_default_lab_has_the_documented_names() {
        let names = Names::new("weft").unwrap();
        assert_eq!(names.node_netns("node-1"), "weft-weft-node-1");
        assert_eq!(names.pod_netns("shop", "web"), "weft-weft-shop-web");
        assert_eq!(names.pin_dir("node-1").to_str(), Some("/sys/fs/bpf/weft/weft-node-1"));
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "a_b", "-a", "a-", "A", "a.b", &"x".repeat(33)] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }
}
