//! Layouts of control groups as kubelets and runtimes make them, on trees of plain files.

use std::fs;

use super::*;
use crate::capture::sandbox::Place;
use crate::model::{MeshConfig, SpiffeId, WorkloadName};

const UID: &str = "0b6a3c5e-9f1d-4a52-8f0e-7d2c1b3a4f55";
const UNDERSCORES: &str = "0b6a3c5e_9f1d_4a52_8f0e_7d2c1b3a4f55";
const OTHER: &str = "77777777-9f1d-4a52-8f0e-7d2c1b3a4f55";
const HASH: &str = "8cb3a1f0d2e94b7c8a6d5e4f3a2b1c0d";
const ID: &str = "4d7ae1c2b3f4a5968778695a4b3c2d1e0f4d7ae1c2b3f4a5968778695a4b3c2d";

/// A node of plain files.
struct Node {
    dir: tempfile::TempDir,
    next: u32,
}

impl Node {
    /// The node's own network namespace is `host`.
    fn new() -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap(), next: 100 };
        fs::create_dir_all(node.path("netns")).unwrap();
        fs::create_dir_all(node.path("proc/self/ns")).unwrap();
        for hierarchy in ["v2", "memory", "systemd"] {
            fs::create_dir_all(node.path(hierarchy)).unwrap();
        }
        node.link("host", "proc/self/ns/net");
        node
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    fn link(&self, netns: &str, at: &str) {
        let file = self.path("netns").join(netns);
        if !file.exists() {
            fs::write(&file, "").unwrap();
        }
        fs::hard_link(file, self.path(at)).unwrap();
    }

    /// A process in a group (`v2/...`, `memory/...`) and a network namespace; later ones are younger.
    fn process(&mut self, group: &str, netns: &str, argv0: &str) -> u32 {
        let pid = self.next;
        self.next += 1;
        let proc = format!("proc/{pid}");
        fs::create_dir_all(self.path(&proc).join("ns")).unwrap();
        self.link(netns, &format!("{proc}/ns/net"));
        let stat = format!("{pid} (a) name) S 1 {}{pid}000 0", "0 ".repeat(17));
        fs::write(self.path(&proc).join("stat"), stat).unwrap();
        fs::write(self.path(&proc).join("cmdline"), format!("{argv0}\0--flag\0")).unwrap();
        self.group(group);
        let procs = self.path(group).join("cgroup.procs");
        let text = fs::read_to_string(&procs).unwrap_or_default();
        fs::write(procs, format!("{text}{pid}\n")).unwrap();
        pid
    }

    fn group(&self, group: &str) {
        fs::create_dir_all(self.path(group)).unwrap();
    }

    fn tree(&self) -> Tree {
        Tree {
            unified: Some(self.path("v2")),
            legacy: vec![self.path("systemd"), self.path("memory")],
            proc: self.path("proc"),
        }
    }

    fn groups(&self) -> Groups {
        Groups::new(self.tree(), None)
    }

    fn netns(&self, name: &str) -> Place {
        Place::of(self.path("netns").join(name))
    }

    fn look(&self, workloads: Vec<Workload>) -> (Look, Option<String>) {
        let mut groups = self.groups();
        let look = groups.look(&Snapshot::new(MeshConfig::default(), workloads, Vec::new()), "n1");
        let point = groups.attach_point().map(|path| path.strip_prefix(self.dir.path()).unwrap());
        (look, point.map(|path| path.to_string_lossy().into_owned()))
    }
}

fn pod(uid: &str) -> Workload {
    Workload {
        uid: WorkloadUid(uid.into()),
        name: WorkloadName { namespace: "shop".into(), name: uid[..4].into() },
        owner: "pod".into(),
        node: "n1".into(),
        zone: None,
        addresses: vec!["10.0.0.1".parse().unwrap()],
        service_account: "default".into(),
        identity: SpiffeId::of_service_account(&"td".parse().unwrap(), "shop", "default"),
        labels: Default::default(),
        ports: Vec::new(),
        enrolled: true,
        splice: None,
        forward_client_cert: false,
        skip_outbound_ports: Default::default(),
        skip_inbound_ports: Default::default(),
        probe_ports: Default::default(),
        manifest_hash: None,
        failure_mode: Default::default(),
        host_network: false,
        ready: true,
        terminating: false,
    }
}

fn places(look: &Look) -> Vec<Option<crate::capture::sandbox::NetnsId>> {
    let sandbox = look.sandboxes.get(&WorkloadUid(UID.into())).map(|(sandbox, _)| sandbox);
    sandbox.map(|sandbox| sandbox.places.iter().map(|place| place.id).collect()).unwrap_or_default()
}

#[test]
fn every_layout_leads_to_the_pods_namespace_and_to_kubelets_root() {
    let layouts = [
        // Driver cgroupfs, by quality of service.
        (format!("v2/kubepods/burstable/pod{UID}/{ID}"), "v2/kubepods"),
        (format!("v2/kubepods/besteffort/pod{UID}/{ID}"), "v2/kubepods"),
        (format!("v2/kubepods/pod{UID}/{ID}"), "v2/kubepods"),
        // Roots of one's own (kubelet's cgroupRoot).
        (format!("v2/k8s-n1/kubepods/burstable/pod{UID}/{ID}"), "v2/k8s-n1/kubepods"),
        (format!("v2/a/b/c/besteffort/pod{UID}/{ID}"), "v2/a/b/c"),
        // Driver systemd with containerd.
        (
            format!(
                "v2/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORES}.slice/cri-containerd-{ID}.scope"
            ),
            "v2/kubepods.slice",
        ),
        (
            format!("v2/kubepods.slice/kubepods-pod{UNDERSCORES}.slice/cri-containerd-{ID}.scope"),
            "v2/kubepods.slice",
        ),
        // Driver systemd with CRI-O.
        (
            format!(
                "v2/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORES}.slice/crio-{ID}.scope"
            ),
            "v2/kubepods.slice",
        ),
        (
            format!("v2/kubepods.slice/kubepods-pod{UNDERSCORES}.slice/crio-{ID}.scope/container"),
            "v2/kubepods.slice",
        ),
        // Driver cgroupfs with CRI-O.
        (format!("v2/kubepods/burstable/pod{UID}/crio-{ID}"), "v2/kubepods"),
        // A node in a container (kind).
        (
            format!(
                "v2/system.slice/docker-{ID}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{UNDERSCORES}.slice/cri-containerd-{ID}.scope"
            ),
            "v2/system.slice/docker-4d7ae1c2b3f4a5968778695a4b3c2d1e0f4d7ae1c2b3f4a5968778695a4b3c2d.scope/kubelet.slice/kubelet-kubepods.slice",
        ),
        // A container that divides its own group (systemd inside).
        (format!("v2/kubepods/burstable/pod{UID}/{ID}/init.scope"), "v2/kubepods"),
        // Processes in the pod's own group.
        (format!("v2/kubepods/burstable/pod{UID}"), "v2/kubepods"),
    ];
    for (group, root) in layouts {
        let mut node = Node::new();
        node.process("v2/system.slice/sshd.service", "host", "sshd");
        node.process("v2/kubepods/burstable/podman", "elsewhere", "podman");
        node.process(&group, "pod", "/pause");
        let (look, point) = node.look(vec![pod(UID)]);
        assert_eq!(places(&look), [node.netns("pod").id], "{group}");
        assert_eq!(point.as_deref(), Some(root), "{group}");
        assert!(look.problems.is_empty() && look.left_out.is_empty(), "{group}: {look:?}");
        let (sandbox, _) = &look.sandboxes[&WorkloadUid(UID.into())];
        let own = node.path(&group);
        assert!(own.starts_with(sandbox.cgroup.as_ref().expect("known to the programs")), "{group}");
    }
}

#[test]
fn processes_that_only_version_1_has_are_found_beside_the_pods_group() {
    for twin in [format!("memory/kubepods/burstable/pod{UID}/{ID}"), format!("systemd/other/pod{UID}/{ID}")] {
        let mut node = Node::new();
        node.group(&format!("v2/kubepods/burstable/pod{UID}"));
        node.process(&twin, "pod", "/pause");
        let (look, point) = node.look(vec![pod(UID)]);
        assert_eq!(places(&look), [node.netns("pod").id], "{twin}");
        assert_eq!(point.as_deref(), Some("v2/kubepods"));
    }
}

#[test]
fn a_runtime_that_knows_version_1_only_attaches_where_its_processes_are() {
    let mut node = Node::new();
    let pid = node.process(&format!("memory/kubepods/burstable/pod{UID}/{ID}"), "pod", "/pause");
    fs::write(node.path(&format!("proc/{pid}/cgroup")), "4:memory:/kubepods\n0::/system.slice/runtime\n")
        .unwrap();
    node.group("v2/system.slice/runtime");
    let (look, point) = node.look(vec![pod(UID)]);
    assert_eq!(places(&look), [node.netns("pod").id]);
    assert_eq!(
        look.sandboxes[&WorkloadUid(UID.into())].0.cgroup,
        None,
        "no group that the programs know by number"
    );
    assert_eq!(point.as_deref(), Some("v2/system.slice/runtime"));
}

#[test]
fn a_static_pod_is_found_by_its_manifests_hash_unless_that_is_anothers_uid() {
    let mut node = Node::new();
    node.process(&format!("v2/kubepods/burstable/pod{HASH}/{ID}"), "pod", "/pause");
    let mut mirror = pod(UID);
    mirror.manifest_hash = Some(HASH.into());
    let (look, _) = node.look(vec![mirror.clone()]);
    assert_eq!(places(&look), [node.netns("pod").id]);
    let (look, _) = node.look(vec![mirror, pod(HASH)]);
    assert!(places(&look).is_empty(), "{look:?}");
    let (look, _) = node.look(vec![pod(UID)]);
    assert!(look.sandboxes.is_empty());
    assert!(look.problems[0].reason.contains("no control group has its UID"), "{look:?}");
}

#[test]
fn the_oldest_process_comes_first_and_a_namespace_is_named_once() {
    let mut node = Node::new();
    node.process(&format!("v2/kubepods/pod{UID}/{ID}"), "pod", "/pause");
    node.process(&format!("v2/kubepods/pod{UID}/app"), "nested", "app");
    node.process(&format!("v2/kubepods/pod{UID}/app"), "pod", "app");
    node.process(&format!("v2/kubepods/pod{UID}/app"), "host", "nsenter");
    let (look, _) = node.look(vec![pod(UID)]);
    assert_eq!(places(&look), [node.netns("pod").id, node.netns("nested").id]);
}

#[test]
fn a_runtimes_own_process_beside_a_container_is_not_the_pods() {
    let mut node = Node::new();
    let slice = format!("v2/kubepods.slice/kubepods-pod{UNDERSCORES}.slice");
    node.process(&format!("{slice}/crio-conmon-{ID}.scope"), "conmons", "conmon");
    node.process(&format!("{slice}/crio-{ID}.scope"), "pod", "/pause");
    let (look, _) = node.look(vec![pod(UID)]);
    assert_eq!(places(&look), [node.netns("pod").id]);
}

#[test]
fn a_pod_without_processes_is_waited_for_and_one_in_the_nodes_network_is_told() {
    let mut node = Node::new();
    node.group(&format!("v2/kubepods/burstable/pod{UID}"));
    node.process(&format!("v2/kubepods/burstable/pod{OTHER}/{ID}"), "host", "app");
    let mut unaddressed = pod(UID);
    unaddressed.addresses.clear();
    let (look, _) = node.look(vec![unaddressed, pod(OTHER)]);
    assert!(places(&look).is_empty() && look.sandboxes.len() == 2, "both are held: {look:?}");
    assert_eq!(look.problems.len(), 1, "{look:?}");
    let told = look.problems[0].to_string();
    assert!(told.contains("7777") && told.contains("node's own network"), "{look:?}");
}

#[test]
fn a_pod_behind_another_kernel_is_left_out_with_the_reason() {
    for (argv0, runtime) in
        [("runsc-sandbox", "gVisor"), ("/usr/bin/containerd-shim-kata-v2", "Kata Containers")]
    {
        let mut node = Node::new();
        node.process(&format!("v2/kubepods/pod{UID}/{ID}"), "pod", argv0);
        let (look, _) = node.look(vec![pod(UID)]);
        assert!(look.sandboxes.is_empty(), "{look:?}");
        assert!(look.left_out[0].reason.contains(runtime), "{look:?}");
    }
    // A virtual machine that a pod runs is the pod's own business.
    let mut node = Node::new();
    node.process(&format!("v2/kubepods/pod{UID}/{ID}"), "pod", "/pause");
    node.process(&format!("v2/kubepods/pod{UID}/{ID}"), "pod", "/usr/bin/qemu-system-x86_64");
    assert_eq!(places(&node.look(vec![pod(UID)]).0), [node.netns("pod").id]);
}

#[test]
fn unmeshed_pods_say_where_kubelets_root_is_and_pods_of_other_nodes_do_not() {
    let mut node = Node::new();
    node.process(&format!("v2/k8s-n1/kubepods/burstable/pod{UID}/{ID}"), "pod", "/pause");
    node.process(&format!("v2/k8s-n2/kubepods/burstable/pod{OTHER}/{ID}"), "other", "/pause");
    let (mut unmeshed, mut elsewhere) = (pod(UID), pod(OTHER));
    unmeshed.enrolled = false;
    elsewhere.node = "n2".into();
    let (look, point) = node.look(vec![unmeshed, elsewhere]);
    assert!(look.sandboxes.is_empty() && look.problems.is_empty(), "{look:?}");
    assert_eq!(point.as_deref(), Some("v2/k8s-n1/kubepods"));
}

#[test]
fn the_root_is_known_at_once_in_a_pod_late_without_and_never_changed_where_it_is_given() {
    let mut node = Node::new();
    let own = node.path(&format!("v2/k8s-n1/kubepods/besteffort/pod{OTHER}/{ID}"));
    let groups = Groups::new(node.tree(), Some(&own));
    assert_eq!(groups.attach_point(), Some(&*node.path("v2/k8s-n1/kubepods")));

    let snapshot = Snapshot::new(MeshConfig::default(), vec![pod(UID)], Vec::new());
    let (mut groups, mut given) = (node.groups(), node.groups());
    given.attach_only_to(&node.path("v2"));
    groups.look(&snapshot, "n1");
    assert_eq!(groups.attach_point(), None, "a node without pods");
    node.process(&format!("v2/kubepods/burstable/pod{UID}/{ID}"), "pod", "/pause");
    // The next look walks the tree again only after a while; a new source has not walked yet.
    let mut groups = node.groups();
    groups.look(&snapshot, "n1");
    given.look(&snapshot, "n1");
    assert_eq!(groups.attach_point(), Some(&*node.path("v2/kubepods")));
    assert_eq!(given.attach_point(), Some(&*node.path("v2")));
    let watched = groups.watched(&BTreeSet::from([WorkloadUid(UID.into())]));
    for dir in ["v2/kubepods", "v2/kubepods/burstable", &format!("v2/kubepods/burstable/pod{UID}")] {
        assert!(watched.contains(&node.path(dir)), "{dir}: {watched:?}");
    }
}
