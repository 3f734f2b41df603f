//! The cluster: objects by kind and number, and what the changes have made of them.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::drawing::{Drawings, Form, PodState, in_form};
use super::log::{Event, Log};
use super::plan::{self, Plan, Sizes};
use super::waiting::Effect;

/// Revision of the cluster before anything changes; objects have revisions below it.
const FIRST_REVISION: u64 = 1_000_000;

/// A kind that is served.
#[derive(Debug)]
pub struct Kind {
    /// Group; empty for the core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Name in objects.
    pub kind: &'static str,
    /// Lies in namespaces.
    pub namespaced: bool,
    /// Which computed objects are of it.
    pub computed: Option<Computed>,
}

impl Kind {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Kinds whose objects are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Computed {
    /// Namespaces.
    Namespaces,
    /// Nodes.
    Nodes,
    /// Service accounts.
    Accounts,
    /// Services.
    Services,
    /// Slices.
    Slices,
    /// Pods.
    Pods,
}

const fn core(
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    computed: Option<Computed>,
) -> Kind {
    Kind { group: "", version: "v1", plural, kind, namespaced, computed }
}

const fn empty(group: &'static str, version: &'static str, plural: &'static str, kind: &'static str) -> Kind {
    Kind { group, version, plural, kind, namespaced: true, computed: None }
}

const GATEWAY: &str = "gateway.networking.k8s.io";

/// Every kind that is served. Those that nothing is computed for hold what was given, or nothing.
pub const KINDS: &[Kind] = &[
    core("namespaces", "Namespace", false, Some(Computed::Namespaces)),
    core("nodes", "Node", false, Some(Computed::Nodes)),
    core("serviceaccounts", "ServiceAccount", true, Some(Computed::Accounts)),
    core("services", "Service", true, Some(Computed::Services)),
    core("pods", "Pod", true, Some(Computed::Pods)),
    Kind {
        group: "discovery.k8s.io",
        version: "v1",
        plural: "endpointslices",
        kind: "EndpointSlice",
        namespaced: true,
        computed: Some(Computed::Slices),
    },
    core("configmaps", "ConfigMap", true, None),
    empty(GATEWAY, "v1", "httproutes", "HTTPRoute"),
    empty(GATEWAY, "v1", "grpcroutes", "GRPCRoute"),
    empty(GATEWAY, "v1beta1", "referencegrants", "ReferenceGrant"),
    empty(GATEWAY, "v1", "tcproutes", "TCPRoute"),
    empty(GATEWAY, "v1", "tlsroutes", "TLSRoute"),
    empty("weft.dev", "v1alpha1", "authorizationpolicies", "AuthorizationPolicy"),
    Kind {
        group: "weft.dev",
        version: "v1alpha1",
        plural: "meshconfigs",
        kind: "MeshConfig",
        namespaced: false,
        computed: None,
    },
];

/// Where an object is: enough to select it without drawing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Namespace, empty where the kind has none.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The pod's node.
    pub node: String,
}

struct Given {
    kind: usize,
    place: Place,
    object: Value,
}

/// What the changes have changed.
#[derive(Default)]
struct Changed {
    pods: HashMap<u32, PodState>,
    slices: HashMap<u32, u64>,
    new_pods: u32,
}

/// The cluster.
pub struct Cluster {
    plan: Plan,
    drawings: Drawings,
    given: Vec<Given>,
    changed: Mutex<Changed>,
    /// What happened.
    pub log: Log,
}

impl Cluster {
    /// A cluster of these sizes, with `given` objects beside the computed ones.
    pub fn new(sizes: Sizes, given: Vec<Value>) -> Result<Self> {
        let plan = Plan { sizes };
        Ok(Self {
            plan,
            drawings: Drawings::new(plan)?,
            given: given.into_iter().map(read_given).collect::<Result<_>>()?,
            changed: Mutex::default(),
            log: Log::new(FIRST_REVISION),
        })
    }

    /// Its plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A pod as it is now.
    pub fn pod(&self, pod: u32) -> PodState {
        pod_state(&self.changed.lock(), pod)
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: usize) -> u32 {
        self.given_of(kind).count() as u32 + self.computed_count(kind)
    }

    fn computed_count(&self, kind: usize) -> u32 {
        match KINDS[kind].computed {
            None => 0,
            Some(Computed::Namespaces) => self.plan.sizes.namespaces,
            Some(Computed::Nodes) => self.plan.nodes(),
            Some(Computed::Accounts) => self.plan.workloads(),
            Some(Computed::Services | Computed::Slices) => self.plan.sizes.services,
            Some(Computed::Pods) => self.plan.sizes.pods,
        }
    }

    fn given_of(&self, kind: usize) -> impl Iterator<Item = &Given> {
        self.given.iter().filter(move |given| given.kind == kind)
    }

    /// Where the object with this number is. Given ones come after the computed ones.
    pub fn place(&self, kind: usize, number: u32) -> Option<Place> {
        let computed = self.computed_count(kind);
        if number >= computed {
            return self.given_of(kind).nth((number - computed) as usize).map(|given| given.place.clone());
        }
        let plan = &self.plan;
        let of = |workload, name, node| Place { namespace: plan.namespace_of(workload), name, node };
        let cluster_wide = |name| Place { name, ..Place::default() };
        Some(match KINDS[kind].computed? {
            Computed::Namespaces => cluster_wide(plan::namespace(number)),
            Computed::Nodes => cluster_wide(plan::node(number)),
            Computed::Accounts => of(number, plan.app(number), String::new()),
            Computed::Services => of(plan.workload_of_service(number), plan.service(number), String::new()),
            Computed::Slices => {
                of(plan.workload_of_service(number), format!("{}-x7k2p", plan.service(number)), String::new())
            }
            Computed::Pods => {
                let name = plan.pod(number, self.pod(number).generation);
                of(plan.workload_of_pod(number), name, plan::node(plan.node_of(number)))
            }
        })
    }

    /// Appends the object with this number.
    pub fn draw(&self, kind: usize, number: u32, form: Form, out: &mut Vec<u8>) {
        let computed = self.computed_count(kind);
        let Some(what) = KINDS[kind].computed.filter(|_| number < computed) else {
            if let Some(given) = self.given_of(kind).nth((number - computed) as usize) {
                out.extend_from_slice(in_form(&given.object, form).to_string().as_bytes());
            }
            return;
        };
        let revision = first_revision(number);
        match what {
            Computed::Namespaces => self.drawings.namespace(number, revision, form, out),
            Computed::Nodes => self.drawings.node(number, revision, form, out),
            Computed::Accounts => self.drawings.account(number, revision, form, out),
            Computed::Services => self.drawings.service(number, revision, form, out),
            Computed::Slices => self.draw_slice(&self.changed.lock(), number, form, out),
            Computed::Pods => self.drawings.pod(number, &self.pod(number), form, out),
        }
    }

    fn draw_slice(&self, changed: &Changed, service: u32, form: Form, out: &mut Vec<u8>) {
        let revision = changed.slices.get(&service).copied().unwrap_or_else(|| first_revision(service));
        self.drawings.slice(service, revision, |pod| pod_state(changed, pod), form, out);
    }

    /// A pod passes its readiness checks, or fails them: the pod and its slices change. Returns the events.
    pub fn set_ready(&self, pod: u32, ready: bool) -> u32 {
        let mut changed = self.changed.lock();
        let mut state = pod_state(&changed, pod);
        state.ready = ready;
        self.put_pod(&mut changed, pod, state, "MODIFIED", Vec::new());
        1 + self.put_slices(&mut changed, pod, ready)
    }

    /// A pod is shown with other labels. Returns the events.
    pub fn relabel(&self, pod: u32) -> u32 {
        let mut changed = self.changed.lock();
        let mut state = pod_state(&changed, pod);
        state.version += 1;
        self.put_pod(&mut changed, pod, state, "MODIFIED", Vec::new());
        1
    }

    /// A pod is deleted; another comes in its place, gets an address, and the slices name it. Returns the events.
    pub fn replace(&self, pod: u32) -> u32 {
        let mut changed = self.changed.lock();
        let old = pod_state(&changed, pod);
        let gone = vec![Effect::Address { pod, ip: old.ip, present: false }];
        self.put_pod(&mut changed, pod, old, "DELETED", gone);
        let ip = plan::new_ip(changed.new_pods);
        changed.new_pods += 1;
        let generation = old.generation + 1;
        let pending =
            PodState { generation, ready: false, running: false, version: old.version, ip, revision: 0 };
        self.put_pod(&mut changed, pod, pending, "ADDED", Vec::new());
        let come = vec![Effect::Address { pod, ip, present: true }];
        self.put_pod(&mut changed, pod, PodState { ready: true, running: true, ..pending }, "MODIFIED", come);
        3 + self.put_slices(&mut changed, pod, true)
    }

    fn put_pod(
        &self,
        changed: &mut Changed,
        pod: u32,
        mut state: PodState,
        what: &str,
        effects: Vec<Effect>,
    ) {
        state.revision = self.log.revision() + 1;
        changed.pods.insert(pod, state);
        let kind = kind_of(Computed::Pods);
        let line = |form| line(what, |out| self.drawings.pod(pod, &state, form, out));
        self.log.publish(Event {
            kind,
            revision: state.revision,
            namespace: self.plan.namespace_of(self.plan.workload_of_pod(pod)),
            name: self.plan.pod(pod, state.generation),
            node: plan::node(self.plan.node_of(pod)),
            whole: line(Form::Whole),
            metadata: line(Form::Metadata),
            effects: Mutex::new(effects),
        });
    }

    /// Publishes the slices of the services in front of a pod, in which it now is an endpoint or no longer one.
    fn put_slices(&self, changed: &mut Changed, pod: u32, present: bool) -> u32 {
        let now = pod_state(changed, pod);
        let mut events = 0;
        for service in self.plan.services_of(pod) {
            let revision = self.log.revision() + 1;
            changed.slices.insert(service, revision);
            let vip = self.plan.cluster_ip(service);
            let effect = Effect::Endpoint { pod, vip, ip: now.ip, present };
            let line = |form| line("MODIFIED", |out| self.draw_slice(changed, service, form, out));
            self.log.publish(Event {
                kind: kind_of(Computed::Slices),
                revision,
                namespace: self.plan.namespace_of(self.plan.workload_of_service(service)),
                name: format!("{}-x7k2p", self.plan.service(service)),
                node: String::new(),
                whole: line(Form::Whole),
                metadata: line(Form::Metadata),
                effects: Mutex::new(vec![effect]),
            });
            events += 1;
        }
        events
    }
}

fn line(what: &str, draw: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = format!("{{\"type\":\"{what}\",\"object\":").into_bytes();
    draw(&mut out);
    out.extend_from_slice(b"}\n");
    out.into()
}

fn first_revision(number: u32) -> u64 {
    1 + u64::from(number) % (FIRST_REVISION - 1)
}

fn pod_state(changed: &Changed, pod: u32) -> PodState {
    changed.pods.get(&pod).copied().unwrap_or_else(|| PodState {
        generation: 0,
        ready: true,
        running: true,
        version: 1,
        ip: plan::first_ip(pod),
        revision: first_revision(pod),
    })
}

fn kind_of(computed: Computed) -> usize {
    KINDS.iter().position(|kind| kind.computed == Some(computed)).expect("every computed kind is served")
}

/// Reads a given object, which then has what an API server gives each.
fn read_given(mut object: Value) -> Result<Given> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    let same = |known: &Kind| known.kind == kind && known.api_version() == version;
    let place = Place {
        namespace: text("/metadata/namespace"),
        name: text("/metadata/name"),
        node: text("/spec/nodeName"),
    };
    if place.name.is_empty() {
        bail!("a given {kind} has no name");
    }
    let kind = KINDS.iter().position(same).with_context(|| format!("{version} {kind} is not served"))?;
    if object["metadata"]["uid"].is_null() {
        object["metadata"]["uid"] = format!("given-{kind}-{}-{}", place.namespace, place.name).into();
    }
    object["metadata"]["resourceVersion"] = "1".into();
    object["metadata"]["creationTimestamp"] = "2026-03-02T08:00:00Z".into();
    Ok(Given { kind, place, object })
}

#[cfg(test)]
mod tests;
