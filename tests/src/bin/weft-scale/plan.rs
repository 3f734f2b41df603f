//! Which object has which number, name and address. Pure: everything follows from the sizes.
//!
//! Pods stand in groups of as many as a service has endpoints; a group is one workload with a service account of its own,
//! and pod `p` belongs to workload `p / endpoints per service`. Services take the workloads in turn, so with more
//! services than workloads a pod is behind several. Addresses keep clear of those that labs give (10.96/16, 10.244/16).

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

/// First address of pods as they are at the start: 10.128.0.0.
const PODS_FROM: u32 = 0x0A80_0000;

/// First address of pods that took the place of others: 10.192.0.0.
const NEW_PODS_FROM: u32 = 0x0AC0_0000;

/// How many addresses each of the two has (a /10).
const PODS_SPAN: u32 = 1 << 22;

/// First address of services: 172.20.0.0.
const SERVICES_FROM: u32 = 0xAC14_0000;

/// How many services fit below 172.32.0.0.
const SERVICES_SPAN: u32 = 12 << 16;

/// First address of nodes: 172.16.0.0.
const NODES_FROM: u32 = 0xAC10_0000;

/// How many nodes fit below the services.
const NODES_SPAN: u32 = 4 << 16;

/// The port on which every pod listens.
pub const POD_PORT: u16 = 8080;

/// The port of every service.
pub const SERVICE_PORT: u16 = 80;

/// Zones, which nodes take in turn.
const ZONES: u32 = 3;

/// The letters of generated names, without vowels as Kubernetes has them, so that no words come out.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Nodes, the agent's own among them: one less is computed.
    pub nodes: u32,
    /// Namespaces.
    pub namespaces: u32,
    /// Pods.
    pub pods: u32,
    /// Services, each with one slice.
    pub services: u32,
    /// Endpoints of all slices together.
    pub endpoints: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { nodes: 1000, namespaces: 100, pods: 50_000, services: 10_000, endpoints: 100_000 }
    }
}

impl Sizes {
    /// Whether a cluster can be made of them.
    pub fn check(&self) -> Result<()> {
        ensure!(self.nodes >= 2 && self.nodes < NODES_SPAN, "--nodes must be at least 2");
        ensure!(self.namespaces >= 1 && self.services >= 1 && self.pods >= 1, "nothing may be 0");
        ensure!(self.pods < PODS_SPAN && self.services < SERVICES_SPAN, "more than there are addresses for");
        let even = self.endpoints >= self.services && self.endpoints.is_multiple_of(self.services);
        ensure!(even, "--endpoints must be a multiple of --services");
        let each = self.endpoints / self.services;
        ensure!(
            self.pods.is_multiple_of(each),
            "--pods must be a multiple of the endpoints of a service ({each})"
        );
        Ok(())
    }
}

/// The plan.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Sizes.
    pub sizes: Sizes,
}

impl Plan {
    /// Endpoints of a service, and pods of a workload.
    pub fn group(&self) -> u32 {
        self.sizes.endpoints / self.sizes.services
    }

    /// Workloads, and service accounts.
    pub fn workloads(&self) -> u32 {
        self.sizes.pods / self.group()
    }

    /// Nodes that are computed.
    pub fn nodes(&self) -> u32 {
        self.sizes.nodes - 1
    }

    /// The pods behind a service.
    pub fn members(&self, service: u32) -> std::ops::Range<u32> {
        let first = self.workload_of_service(service) * self.group();
        first..first + self.group()
    }

    /// The services in front of a pod.
    pub fn services_of(&self, pod: u32) -> impl Iterator<Item = u32> + use<> {
        (self.workload_of_pod(pod)..self.sizes.services).step_by(self.workloads() as usize)
    }

    /// A pod's workload.
    pub fn workload_of_pod(&self, pod: u32) -> u32 {
        pod / self.group()
    }

    /// The workload behind a service.
    pub fn workload_of_service(&self, service: u32) -> u32 {
        service % self.workloads()
    }

    /// A workload's name, which is also its service account's and its `app` label.
    pub fn app(&self, workload: u32) -> String {
        format!("app-{workload:05}")
    }

    /// A workload's namespace.
    pub fn namespace_of(&self, workload: u32) -> String {
        namespace(workload % self.sizes.namespaces)
    }

    /// A service's name: its workload's, with a number from the second on.
    pub fn service(&self, service: u32) -> String {
        let app = self.app(self.workload_of_service(service));
        match service / self.workloads() {
            0 => app,
            more => format!("{app}-{more}"),
        }
    }

    /// A service's address.
    pub fn cluster_ip(&self, service: u32) -> Ipv4Addr {
        Ipv4Addr::from(SERVICES_FROM + 1 + service)
    }

    /// The name of a pod that is the `generation`th at its place.
    pub fn pod(&self, pod: u32, generation: u32) -> String {
        let app = self.app(self.workload_of_pod(pod));
        let number = u64::from(generation) * u64::from(self.sizes.pods) + u64::from(pod);
        format!("{app}-7c9d6b5f4c-{}", suffix(number))
    }

    /// The node of a pod.
    pub fn node_of(&self, pod: u32) -> u32 {
        pod % self.nodes()
    }
}

/// A namespace's name.
pub fn namespace(number: u32) -> String {
    format!("team-{number:03}")
}

/// A computed node's name.
pub fn node(number: u32) -> String {
    format!("simulated-{number:04}")
}

/// A node's address.
pub fn node_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(NODES_FROM + 1 + number)
}

/// A node's zone.
pub fn zone(node: u32) -> String {
    format!("zone-{}", node % ZONES)
}

/// The address of a pod at the start.
pub fn first_ip(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(PODS_FROM + 1 + pod)
}

/// The address of the `number`th pod that took another's place. After four million of them addresses come again.
pub fn new_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(NEW_PODS_FROM + number % PODS_SPAN)
}

/// A UID in the form of RFC 9562, of a kind's letter, a number and a generation.
pub fn uid(kind: u8, number: u32, generation: u32) -> String {
    format!("{number:08x}-{kind:04x}-4000-8000-{generation:012x}")
}

/// Five letters for a number.
fn suffix(mut number: u64) -> String {
    let letter = |_| {
        let letter = LETTERS[usize::try_from(number % 27).unwrap_or_default()];
        number /= 27;
        char::from(letter)
    };
    (0..5).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_stated_sizes_give_each_pod_two_services_and_each_service_ten_pods() {
        let plan = Plan { sizes: Sizes::default() };
        assert_eq!((plan.group(), plan.workloads(), plan.nodes()), (10, 5000, 999));
        for pod in [0, 9, 10, 49_999] {
            let services: Vec<u32> = plan.services_of(pod).collect();
            assert_eq!(services.len(), 2, "{pod}");
            assert!(services.iter().all(|service| plan.members(*service).contains(&pod)), "{pod}");
        }
    }

    #[test]
    fn no_two_pods_have_a_name_or_an_address_in_common() {
        let plan = Plan { sizes: Sizes::default() };
        let names: HashSet<String> = (0..50_000).flat_map(|p| [plan.pod(p, 0), plan.pod(p, 1)]).collect();
        assert_eq!(names.len(), 100_000);
        let ips: HashSet<Ipv4Addr> = (0..50_000).flat_map(|p| [first_ip(p), new_ip(p)]).collect();
        assert_eq!(ips.len(), 100_000);
    }

    #[test]
    fn sizes_that_do_not_fit_each_other_are_refused() {
        let good = Sizes::default();
        for bad in [
            Sizes { nodes: 1, ..good },
            Sizes { endpoints: 99_999, ..good },
            Sizes { pods: 50_001, ..good },
            Sizes { services: 0, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(good.check().is_ok());
    }
}
