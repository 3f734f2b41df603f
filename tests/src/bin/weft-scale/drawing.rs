//! Objects as JSON, in the three forms in which an API server sends them.
//!
//! The texts are in `objects/`: as large as a real API server's, with managed fields and all, since an agent has to read
//! through everything.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::plan::{self, Plan};
use super::template::Template;

/// A form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An item of a list: without `apiVersion` and `kind`, as in a list of a built-in kind.
    Item,
    /// Whole, as in an event of a watch.
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// What changes about a pod.
#[derive(Clone, Copy, Debug)]
pub struct PodState {
    /// How many pods were at this place before it.
    pub generation: u32,
    /// Passes its readiness checks.
    pub ready: bool,
    /// Has an address; one that was just made has none.
    pub running: bool,
    /// Shown as a label.
    pub version: u32,
    /// Its address.
    pub ip: std::net::Ipv4Addr,
    /// Its resource version.
    pub revision: u64,
}

/// One kind's templates.
struct Forms {
    item: Template,
    whole: Template,
    metadata: Template,
}

impl Forms {
    fn new(object: &Value, slots: &[&str]) -> Result<Self> {
        Ok(Self {
            item: Template::new(&in_form(object, Form::Item), slots)?,
            whole: Template::new(object, slots)?,
            metadata: Template::new(&in_form(object, Form::Metadata), slots)?,
        })
    }

    fn write(&self, form: Form, values: &[impl AsRef<str>], out: &mut Vec<u8>) {
        let template = match form {
            Form::Item => &self.item,
            Form::Whole => &self.whole,
            Form::Metadata => &self.metadata,
        };
        template.write(values, out);
    }
}

/// An object in a form.
pub fn in_form(object: &Value, form: Form) -> Value {
    match form {
        Form::Whole => object.clone(),
        Form::Item => {
            let fields = object.as_object().cloned().unwrap_or_default();
            fields
                .into_iter()
                .filter(|(key, _)| key != "apiVersion" && key != "kind")
                .collect::<Map<_, _>>()
                .into()
        }
        Form::Metadata => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
        }
    }
}

/// Draws every kind.
pub struct Drawings {
    plan: Plan,
    pod: Forms,
    pending: Forms,
    slice: Forms,
    endpoint: Template,
    service: Forms,
    account: Forms,
    namespace: Forms,
    node: Forms,
}

const POD_SLOTS: [&str; 13] = [
    "name",
    "replica_set",
    "namespace",
    "uid",
    "revision",
    "app",
    "version",
    "owner_uid",
    "node",
    "ready",
    "ready_status",
    "host_ip",
    "pod_ip",
];
const SLICE_SLOTS: [&str; 8] =
    ["name", "service", "namespace", "uid", "revision", "app", "owner_uid", "endpoints"];
const ENDPOINT_SLOTS: [&str; 7] = ["pod_ip", "ready", "node", "zone", "namespace", "name", "uid"];
const SERVICE_SLOTS: [&str; 6] = ["service", "namespace", "uid", "revision", "app", "cluster_ip"];
const SIMPLE_SLOTS: [&str; 7] = ["name", "namespace", "uid", "revision", "zone", "pod_cidr", "host_ip"];

impl Drawings {
    /// Reads the texts.
    pub fn new(plan: Plan) -> Result<Self> {
        let read = |text: &str| serde_json::from_str::<Value>(text).context("a drawing's text");
        let simple = |text: &str| Forms::new(&read(text)?, &SIMPLE_SLOTS);
        let pod = read(include_str!("objects/pod.json"))?;
        let mut pending = pod.clone();
        pending["status"] = read(include_str!("objects/pending.json"))?;
        Ok(Self {
            plan,
            pod: Forms::new(&pod, &POD_SLOTS)?,
            pending: Forms::new(&pending, &POD_SLOTS)?,
            slice: Forms::new(&read(include_str!("objects/slice.json"))?, &SLICE_SLOTS)?,
            endpoint: Template::new(&read(include_str!("objects/endpoint.json"))?, &ENDPOINT_SLOTS)?,
            service: Forms::new(&read(include_str!("objects/service.json"))?, &SERVICE_SLOTS)?,
            account: simple(include_str!("objects/service-account.json"))?,
            namespace: simple(include_str!("objects/namespace.json"))?,
            node: simple(include_str!("objects/node.json"))?,
        })
    }

    /// A pod.
    pub fn pod(&self, pod: u32, state: &PodState, form: Form, out: &mut Vec<u8>) {
        let workload = self.plan.workload_of_pod(pod);
        let app = self.plan.app(workload);
        let node = self.plan.node_of(pod);
        let values = [
            self.plan.pod(pod, state.generation),
            format!("{app}-7c9d6b5f4c"),
            self.plan.namespace_of(workload),
            plan::uid(b'p', pod, state.generation),
            state.revision.to_string(),
            app.clone(),
            format!("v{}", state.version),
            plan::uid(b'r', workload, 0),
            plan::node(node),
            state.ready.to_string(),
            if state.ready { "True" } else { "False" }.to_owned(),
            plan::node_ip(node).to_string(),
            state.ip.to_string(),
        ];
        let forms = if state.running { &self.pod } else { &self.pending };
        forms.write(form, &values, out);
    }

    /// The slice of a service; `state` tells of each pod.
    pub fn slice(
        &self,
        service: u32,
        revision: u64,
        state: impl Fn(u32) -> PodState,
        form: Form,
        out: &mut Vec<u8>,
    ) {
        let workload = self.plan.workload_of_service(service);
        let name = self.plan.service(service);
        let values = [
            format!("{name}-x7k2p"),
            name.clone(),
            self.plan.namespace_of(workload),
            plan::uid(b'e', service, 0),
            revision.to_string(),
            self.plan.app(workload),
            plan::uid(b's', service, 0),
            self.endpoints(service, state),
        ];
        self.slice.write(form, &values, out);
    }

    fn endpoints(&self, service: u32, state: impl Fn(u32) -> PodState) -> String {
        let namespace = self.plan.namespace_of(self.plan.workload_of_service(service));
        let mut out = b"[".to_vec();
        for pod in self.plan.members(service) {
            let state = state(pod);
            if !state.running {
                continue;
            }
            if out.len() > 1 {
                out.push(b',');
            }
            let node = self.plan.node_of(pod);
            let values = [
                state.ip.to_string(),
                state.ready.to_string(),
                plan::node(node),
                plan::zone(node),
                namespace.clone(),
                self.plan.pod(pod, state.generation),
                plan::uid(b'p', pod, state.generation),
            ];
            self.endpoint.write(&values, &mut out);
        }
        out.push(b']');
        String::from_utf8(out).expect("templates and values are text")
    }

    /// A service.
    pub fn service(&self, service: u32, revision: u64, form: Form, out: &mut Vec<u8>) {
        let workload = self.plan.workload_of_service(service);
        let values = [
            self.plan.service(service),
            self.plan.namespace_of(workload),
            plan::uid(b's', service, 0),
            revision.to_string(),
            self.plan.app(workload),
            self.plan.cluster_ip(service).to_string(),
        ];
        self.service.write(form, &values, out);
    }

    /// The service account of a workload.
    pub fn account(&self, workload: u32, revision: u64, form: Form, out: &mut Vec<u8>) {
        let (name, namespace) = (self.plan.app(workload), self.plan.namespace_of(workload));
        let values = [name, namespace, plan::uid(b'a', workload, 0), revision.to_string()];
        write_simple(&self.account, &values, form, out);
    }

    /// A namespace.
    pub fn namespace(&self, number: u32, revision: u64, form: Form, out: &mut Vec<u8>) {
        let values =
            [plan::namespace(number), String::new(), plan::uid(b'n', number, 0), revision.to_string()];
        write_simple(&self.namespace, &values, form, out);
    }

    /// A node.
    pub fn node(&self, number: u32, revision: u64, form: Form, out: &mut Vec<u8>) {
        let range = format!("10.{}.{}.0/24", 128 + number / 256 % 64, number % 256);
        let values = [
            plan::node(number),
            String::new(),
            plan::uid(b'o', number, 0),
            revision.to_string(),
            plan::zone(number),
            range,
            plan::node_ip(number).to_string(),
        ];
        write_simple(&self.node, &values, form, out);
    }
}

/// Writes what has few slots; those that are not given are empty.
fn write_simple(forms: &Forms, given: &[String], form: Form, out: &mut Vec<u8>) {
    let mut values = [""; SIMPLE_SLOTS.len()];
    for (value, given) in values.iter_mut().zip(given) {
        *value = given;
    }
    forms.write(form, &values, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Sizes;

    fn drawn(draw: impl FnOnce(&mut Vec<u8>)) -> (usize, Value) {
        let mut out = Vec::new();
        draw(&mut out);
        (out.len(), serde_json::from_slice(&out).expect("a drawing is JSON"))
    }

    fn state(running: bool) -> PodState {
        let ip = [10, 1, 2, 3].into();
        PodState { generation: 1, ready: running, running, version: 7, ip, revision: 42 }
    }

    #[test]
    fn objects_are_as_large_as_a_real_api_servers() {
        let drawings = Drawings::new(Plan { sizes: Sizes::default() }).unwrap();
        let (pod, _) = drawn(|out| drawings.pod(12_345, &state(true), Form::Item, out));
        assert!((5_000..7_500).contains(&pod), "{pod}");
        let (slice, value) = drawn(|out| drawings.slice(77, 5, |_| state(true), Form::Item, out));
        assert!((3_000..5_000).contains(&slice), "{slice}");
        assert_eq!(value["endpoints"].as_array().map(Vec::len), Some(10));
    }

    #[test]
    fn a_pod_without_an_address_is_in_no_slice() {
        let drawings = Drawings::new(Plan { sizes: Sizes::default() }).unwrap();
        let (_, pod) = drawn(|out| drawings.pod(3, &state(false), Form::Whole, out));
        assert_eq!((&pod["kind"], &pod["status"]["phase"]), (&json!("Pod"), &json!("Pending")));
        assert_eq!(pod["status"]["podIP"], Value::Null);
        let (_, slice) = drawn(|out| drawings.slice(0, 5, |pod| state(pod != 3), Form::Whole, out));
        assert_eq!(slice["endpoints"].as_array().map(Vec::len), Some(9));
    }

    #[test]
    fn metadata_alone_says_so() {
        let drawings = Drawings::new(Plan { sizes: Sizes::default() }).unwrap();
        let (_, namespace) = drawn(|out| drawings.namespace(3, 5, Form::Metadata, out));
        assert_eq!(namespace["kind"], "PartialObjectMetadata");
        assert_eq!(namespace["metadata"]["labels"]["weft.dev/mesh"], "enabled");
        assert_eq!(namespace["spec"], Value::Null);
    }
}
