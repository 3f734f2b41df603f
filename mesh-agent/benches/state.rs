//! What does a change cost in a large mesh, from an object to what has to be written into the kernel's tables?
//!
//! `cargo bench -p mesh-agent --bench state` builds 1,000 nodes, 10,000 services, 100,000 endpoints and 50,000 pods in
//! memory, changes them one by one and prints how long a change takes and how much memory all of it needs. A number behind `--`
//! divides the sizes. It needs no root and touches no kernel.

use std::fmt::Write as _;
use std::time::Duration;

use mesh_agent::capture::compile::{Caught, Inputs, Plan};
use mesh_agent::capture::habit::Habits;
use mesh_agent::capture::numbers::Numbers;
use mesh_agent::discovery::compile::{Compiler, compile};
use mesh_agent::discovery::objects::{Key, Kind, Object, Objects, cluster, pod, service, slice};
use mesh_agent::lifecycle::clock;
use mesh_agent::model::WorkloadUid;
use mesh_agent::{policy, registry, route};
use serde_json::{Value, json};

const NODES: usize = 1_000;
const PODS: usize = 50_000;
const SERVICES: usize = 10_000;
const ENDPOINTS_OF_SERVICE: usize = 10;
const NAMESPACES: usize = 100;
/// Enough that the 99th percentile is no single event.
const CHANGES: usize = 3_000;

/// Sizes of the mesh, and how often each pod was replaced.
struct Cluster {
    nodes: usize,
    pods: usize,
    services: usize,
    lives: Vec<usize>,
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("a Kubernetes object")
}

impl Cluster {
    fn namespace(pod: usize) -> String {
        format!("team-{}", pod % NAMESPACES)
    }

    /// Pods with numbers that are alike modulo the number of namespaces share one.
    fn pod_of(&self, service: usize, endpoint: usize) -> usize {
        (service + endpoint * NAMESPACES * 37) % self.pods
    }

    fn name(&self, pod: usize) -> String {
        format!("backend-{}-6d5f7c9b8d-{:05}", pod / 10, pod * 31 + self.lives[pod])
    }

    fn address(&self, pod: usize) -> String {
        let n = pod + self.pods * (self.lives[pod] % 2);
        format!("10.{}.{}.{}", 1 + n / 65_536, n / 256 % 256, n % 256)
    }

    fn node(&self, pod: usize) -> String {
        format!("node-{:04}", pod % self.nodes)
    }

    fn pod(&self, pod: usize, is_ready: bool) -> (Key, Object) {
        let app = format!("backend-{}", pod / 10);
        let written: pod::Raw = read(json!({
            "metadata": {
                "name": self.name(pod), "namespace": Self::namespace(pod),
                "uid": format!("8b1f0c3e-5d7a-4c66-{:04x}-{pod:012x}", self.lives[pod]),
                "labels": {
                    "app.kubernetes.io/name": app, "app.kubernetes.io/instance": app, "app.kubernetes.io/part-of": "shop",
                    "app.kubernetes.io/version": "1.27.3", "pod-template-hash": "6d5f7c9b8d",
                },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-6d5f7c9b8d"), "uid": "x", "controller": true,
                }],
            },
            "spec": {
                "nodeName": self.node(pod),
                "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }],
            },
            "status": {
                "phase": "Running", "podIP": self.address(pod), "podIPs": [{ "ip": self.address(pod) }],
                "conditions": [{ "type": "Ready", "status": if is_ready { "True" } else { "False" } }],
            },
        }));
        let key = key(Kind::Pod, &Self::namespace(pod), &self.name(pod));
        (key, Object::Pod(Box::new(pod::accept(&written).expect("a pod"))))
    }

    fn service(&self, service: usize) -> (Key, Object) {
        let written: service::Raw = read(json!({
            "spec": {
                "clusterIP": format!("172.{}.{}.{}", 16 + service / 65_536, service / 256 % 256, service % 256),
                "selector": { "app.kubernetes.io/name": "x" },
                "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
            },
        }));
        let key = key(Kind::Service, &Self::namespace(service), &format!("service-{service}"));
        (key, Object::Service(service::accept(&written).expect("a service")))
    }

    /// One of its endpoints may be not ready.
    fn slice(&self, service: usize, not_ready: Option<usize>) -> (Key, Object) {
        let endpoints = (0..ENDPOINTS_OF_SERVICE).map(|endpoint| {
            let pod = self.pod_of(service, endpoint);
            json!({
                "addresses": [self.address(pod)],
                "conditions": { "ready": not_ready != Some(endpoint) },
                "nodeName": self.node(pod), "zone": format!("zone-{}", pod % self.nodes % 3),
                "targetRef": { "kind": "Pod", "name": self.name(pod) },
            })
        });
        let written: slice::Raw = read(json!({
            "metadata": { "labels": { "kubernetes.io/service-name": format!("service-{service}") } },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints.collect::<Vec<_>>(),
        }));
        let key = key(Kind::EndpointSlice, &Self::namespace(service), &format!("service-{service}-x7k2p"));
        (key, Object::EndpointSlice(slice::accept(&written).expect("a slice")))
    }

    fn services_of(&self, pod: usize) -> Vec<usize> {
        let names = |service: &usize| (0..ENDPOINTS_OF_SERVICE).any(|e| self.pod_of(*service, e) == pod);
        (pod % NAMESPACES..self.services).step_by(NAMESPACES).filter(names).collect()
    }

    fn build(&self, objects: &mut Objects) {
        let mut insert = |(key, object): (Key, Object)| objects.insert(key, 0, object.into());
        for n in 0..NAMESPACES {
            let namespace = cluster::Namespace { mesh: Some(true), ..cluster::Namespace::default() };
            insert((key(Kind::Namespace, "", &Self::namespace(n)), Object::Namespace(namespace)));
        }
        for n in 0..self.nodes {
            let node = cluster::Node { zone: Some(format!("zone-{}", n % 3).into()) };
            insert((key(Kind::Node, "", &format!("node-{n:04}")), Object::Node(node)));
        }
        (0..self.pods).for_each(|pod| insert(self.pod(pod, true)));
        (0..self.services).for_each(|service| insert(self.service(service)));
        (0..self.services).for_each(|service| insert(self.slice(service, None)));
    }
}

fn key(kind: Kind, namespace: &str, name: &str) -> Key {
    Key { kind, namespace: namespace.into(), name: name.into() }
}

/// Everything from objects to tables.
struct Node {
    objects: Objects,
    compiler: Compiler,
    writer: registry::Writer,
    registry: registry::Registry,
    policies: policy::Policies,
    routes: route::Routes,
    caught: Vec<Caught>,
    plan: Plan,
}

/// What one change took.
#[derive(Clone, Copy, Default)]
struct Cost {
    state: Duration,
    tables: Duration,
    writes: usize,
}

impl Node {
    fn new() -> Self {
        let (writer, registry) = registry::new();
        Self {
            objects: Objects::default(),
            compiler: Compiler::default(),
            writer,
            registry,
            policies: policy::new().1,
            routes: route::new().1,
            caught: Vec::new(),
            plan: Plan::new(Numbers::new(1)),
        }
    }

    fn follow(&mut self) -> Cost {
        let start = clock::now();
        let changed = self.objects.take_changed();
        let step = self.compiler.follow(&self.objects, &changed);
        match step.changed {
            None => self.writer.publish(step.snapshot),
            Some(changed) => self.writer.publish_change(step.snapshot, changed),
        };
        let published = clock::now();
        let snapshot = self.registry.snapshot();
        let inputs = Inputs {
            snapshot: &snapshot,
            policies: &self.policies.current(),
            routes: &self.routes.current(),
            caught: &self.caught,
            waiting: &[],
            habits: &Habits::default(),
            node: "node-0000",
            splice_by_default: true,
            all_services: false,
        };
        self.plan.follow(&inputs);
        let writes = self.write();
        let end = clock::now();
        Cost { state: published - start, tables: end - published, writes }
    }

    /// Does what is done when tables are written, without writing.
    fn write(&mut self) -> usize {
        let tables = self.plan.tables();
        let mut writes = 0;
        macro_rules! drain {
            ($($table:ident),*) => {$(
                for (key, _) in tables.$table.to_put() {
                    tables.$table.written(&key);
                    writes += 1;
                }
                for key in tables.$table.to_remove() {
                    tables.$table.written(&key);
                    writes += 1;
                }
            )*};
        }
        drain!(verdicts, skip_ports, open, backends, frontends, addresses, held, workloads);
        writes
    }

    fn catch_pods(&mut self) {
        let pods: Vec<WorkloadUid> =
            self.registry.snapshot().workloads_on("node-0000").map(|pod| pod.uid.clone()).collect();
        let catch = |(n, uid): (u32, WorkloadUid)| Caught {
            uid,
            netns_cookie: u64::from(n) + 1,
            slot: n * 8,
            outbound_ports: vec![15_001, 15_002],
            cgroup_id: Some(u64::from(n) + 1),
        };
        self.caught = (0..).zip(pods).map(catch).collect();
    }
}

/// Resident memory of this process, in MB, as the kernel counts it.
fn memory_mb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kb = line.trim().trim_end_matches("kB").trim();
    kb.parse::<usize>().expect("a number") / 1024
}

fn percentiles(name: &str, mut costs: Vec<Cost>) -> String {
    let mut line = format!("{name:<34}");
    let at = |costs: &[Cost], of: &dyn Fn(&Cost) -> Duration, share: usize| {
        let mut all: Vec<_> = costs.iter().map(of).collect();
        all.sort();
        all[(all.len() - 1) * share / 100].as_secs_f64() * 1e3
    };
    let parts: [&dyn Fn(&Cost) -> Duration; 3] =
        [&|c: &Cost| c.state, &|c: &Cost| c.tables, &|c: &Cost| c.state + c.tables];
    for of in parts {
        let _ = write!(line, " {:8.3} {:8.3}", at(&costs, of, 50), at(&costs, of, 99));
    }
    costs.sort_by_key(|cost| cost.writes);
    let _ = write!(line, " {:8}", costs[costs.len() / 2].writes);
    line
}

fn main() {
    let divisor: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1);
    let (nodes, pods, services) = (NODES / divisor, PODS / divisor, SERVICES / divisor);
    let mut cluster = Cluster { nodes, pods, services, lives: vec![0; pods] };
    let mut node = Node::new();
    let empty = memory_mb();
    cluster.build(&mut node.objects);
    println!(
        "{nodes} nodes, {pods} pods, {services} services, {} endpoints: {} objects in {} MB",
        services * ENDPOINTS_OF_SERVICE,
        node.objects.len(),
        memory_mb() - empty,
    );
    let first = node.follow();
    node.catch_pods();
    let caught = node.follow();
    println!(
        "first state {:.0} ms, first tables {:.0} ms ({} writes), {} pods caught {:.1} ms; {} MB in all",
        first.state.as_secs_f64() * 1e3,
        first.tables.as_secs_f64() * 1e3,
        first.writes,
        node.caught.len(),
        caught.tables.as_secs_f64() * 1e3,
        memory_mb(),
    );
    println!(
        "{:<34} {:>17} {:>17} {:>17} {:>8}",
        "ms (p50, p99)", "object to state", "state to tables", "both", "writes"
    );

    let mut costs = Vec::new();
    for n in 0..CHANGES {
        let (key, object) = cluster.slice(n * 7 % services, (n % 2 == 0).then_some(n % ENDPOINTS_OF_SERVICE));
        node.objects.insert(key, 0, object.into());
        costs.push(node.follow());
    }
    println!("{}", percentiles("an endpoint's readiness", costs));

    let mut costs = Vec::new();
    for n in 0..CHANGES {
        let (key, object) = cluster.pod(n * 11 % pods, n % 2 == 0);
        node.objects.insert(key, 0, object.into());
        costs.push(node.follow());
    }
    println!("{}", percentiles("a pod's readiness", costs));

    let mut costs = Vec::new();
    for n in 0..CHANGES / 5 {
        let pod = n * 13 % pods;
        node.objects.remove(&cluster.pod(pod, true).0);
        costs.push(node.follow());
        cluster.lives[pod] += 1;
        let (key, object) = cluster.pod(pod, true);
        node.objects.insert(key, 0, object.into());
        costs.push(node.follow());
        for service in cluster.services_of(pod) {
            let (key, object) = cluster.slice(service, None);
            node.objects.insert(key, 0, object.into());
            costs.push(node.follow());
        }
    }
    println!("{}", percentiles("a pod replaced, step by step", costs));
    println!("{} MB after {} changes", memory_mb(), 2 * CHANGES + CHANGES / 5 * 4);

    let start = clock::now();
    let anew = compile(&node.objects);
    println!(
        "for comparison, everything compiled from nothing: {:.0} ms, {} services",
        (clock::now() - start).as_secs_f64() * 1e3,
        anew.snapshot.services().count()
    );
}
