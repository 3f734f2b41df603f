//! What a control group's name says: which pod it is of, which of the groups above is kubelet's own.
//!
//! Pure. Nothing depends on the word `kubepods`: kubelet's root can be put anywhere (`cgroupRoot`), so a pod's group is known
//! by the UID in its name, and kubelet's root by standing above pods.

use std::path::Path;

/// The pod whose group has this name: the UID as kubelet wrote it, dashes restored.
///
/// | driver | name |
/// |---|---|
/// | cgroupfs | `podUID` |
/// | systemd | `...-podUID.slice`, the dashes of the UID written as underscores |
///
/// A UID is a UUID, or for a static pod the 32 digits of its manifest's hash.
pub fn pod(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => match slice.rsplit_once("-pod") {
            Some((_, uid)) => uid,
            None => slice.strip_prefix("pod")?,
        }
        .replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then_some(uid)
}

fn is_uid(text: &str) -> bool {
    let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut parts = text.split('-').map(|part| (part.len(), hex(part)));
    let is_hash = text.len() == 32 && hex(text);
    is_hash
        || [8, 4, 4, 4, 12].iter().all(|length| parts.next() == Some((*length, true)))
            && parts.next().is_none()
}

/// The group above all pods of the kubelet that made this pod's group: the parent, or the one above where the parent only
/// stands for a quality of service. Guaranteed pods have no such level.
pub fn kubelet_root(pod: &Path) -> Option<&Path> {
    let parent = pod.parent()?;
    let name = parent.file_name()?.to_str()?;
    let level = name.strip_suffix(".slice").and_then(|slice| slice.rsplit('-').next()).unwrap_or(name);
    if matches!(level, "burstable" | "besteffort") { parent.parent() } else { Some(parent) }
}

/// Whether a group below a pod's belongs to the runtime and not to the pod: CRI-O keeps the process that watches a
/// container (conmon) beside it, in the host's network.
pub fn is_runtimes_own(name: &str) -> bool {
    name.starts_with("crio-conmon-")
}

/// The runtime behind a process that stands for a whole pod, where that pod's own processes are elsewhere: in a virtual
/// machine or behind a kernel in user space.
pub fn sandboxed_runtime(argv0: &str) -> Option<&'static str> {
    let name = argv0.rsplit('/').next().unwrap_or(argv0);
    let known = [
        ("runsc", "gVisor"),
        ("containerd-shim-kata", "Kata Containers"),
        ("kata-", "Kata Containers"),
        ("qemu-", "a virtual machine"),
        ("cloud-hypervisor", "a virtual machine"),
        ("firecracker", "a virtual machine"),
        ("dragonball", "a virtual machine"),
    ];
    known.iter().find(|(start, _)| name.starts_with(start)).map(|(_, runtime)| *runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b6a3c5e-9f1d-4a52-8f0e-7d2c1b3a4f55";
    const UNDERSCORES: &str = "0b6a3c5e_9f1d_4a52_8f0e_7d2c1b3a4f55";
    const HASH: &str = "8cb3a1f0d2e94b7c8a6d5e4f3a2b1c0d";

    #[test]
    fn a_pods_group_is_known_by_the_uid_in_its_name() {
        for name in [
            format!("pod{UID}"),
            format!("kubepods-burstable-pod{UNDERSCORES}.slice"),
            format!("kubepods-pod{UNDERSCORES}.slice"),
            format!("kubelet-kubepods-besteffort-pod{UNDERSCORES}.slice"),
            format!("some-pods-of-mine-pod{UNDERSCORES}.slice"),
            format!("pod{UNDERSCORES}.slice"),
        ] {
            assert_eq!(pod(&name).as_deref(), Some(UID), "{name}");
        }
        for name in [format!("pod{HASH}"), format!("kubepods-burstable-pod{HASH}.slice")] {
            assert_eq!(pod(&name).as_deref(), Some(HASH), "{name}");
        }
    }

    #[test]
    fn other_groups_are_no_pods() {
        for name in [
            "kubepods",
            "kubepods.slice",
            "pods",
            "podman",
            "pod",
            "pod1",
            "kubepods-pod.slice",
            "burstable",
            "user-1000.slice",
            "pod0b6a3c5e-9f1d-4a52-8f0e",
            "pod0b6a3c5e-9f1d-4a52-8f0e-7d2c1b3a4f55-6666",
            "pod0b6a3c5e-9f1d-4a52-8f0e-7d2c1b3a4fzz",
        ] {
            assert_eq!(pod(name), None, "{name}");
        }
        assert_eq!(pod(&format!("cri-containerd-{HASH}{HASH}.scope")), None);
    }

    #[test]
    fn kubelets_root_is_above_the_levels_of_quality() {
        let root = |path: &str| kubelet_root(Path::new(path)).and_then(Path::to_str).map(str::to_owned);
        assert_eq!(root("/c/kubepods/burstable/podX").as_deref(), Some("/c/kubepods"));
        assert_eq!(root("/c/k8s-n1/kubepods/besteffort/podX").as_deref(), Some("/c/k8s-n1/kubepods"));
        assert_eq!(root("/c/kubepods/podX").as_deref(), Some("/c/kubepods"));
        assert_eq!(
            root("/c/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice").as_deref(),
            Some("/c/kubepods.slice")
        );
        assert_eq!(root("/c/mine/podX").as_deref(), Some("/c/mine"));
    }

    #[test]
    fn a_runtime_that_hides_its_pods_is_recognised() {
        assert_eq!(sandboxed_runtime("runsc-sandbox"), Some("gVisor"));
        assert_eq!(sandboxed_runtime("/opt/kata/bin/qemu-system-x86_64"), Some("a virtual machine"));
        assert_eq!(sandboxed_runtime("/usr/bin/containerd-shim-kata-v2"), Some("Kata Containers"));
        assert_eq!(sandboxed_runtime("/pause"), None);
        assert_eq!(sandboxed_runtime("/usr/bin/firefox"), None);
        assert!(is_runtimes_own("crio-conmon-8cb3.scope") && !is_runtimes_own("crio-8cb3.scope"));
    }
}
