//! The machine that this runs on, as a node to be: kernel, type information, control groups, bpffs, and whose programs hang on the
//! hooks that the mesh uses.

use std::fs;
use std::path::{Path, PathBuf};

use super::look::{Complaint, Finding, Said};
use crate::kernel::hooks;

/// Oldest kernel that has all helpers which the kernel programs name.
const KERNEL_MIN: (u32, u32) = (5, 18);

/// Looks at everything.
pub(super) fn looks() -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let unified = mount_of(&mounts, "cgroup2");
    let mut findings = vec![
        Finding::new("kernel", kernel(), "take a kernel of 5.18 or later"),
        Finding::new("btf", btf(), "take a kernel built with CONFIG_DEBUG_INFO_BTF=y"),
        Finding::new(
            "control groups",
            cgroups(unified.as_deref()),
            "mount the unified hierarchy, beside that of version 1 if need be: mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
        Finding::new(
            "bpffs",
            bpffs(&mounts),
            "mount -t bpf bpf /sys/fs/bpf, and make it permanent in /etc/fstab",
        ),
    ];
    if let Some(root) = unified {
        findings.push(Finding::new(
            "other hooks",
            other_hooks(&root),
            "see that the other program leaves the mesh's pods alone: the later one attached sees the earlier one's address",
        ));
    }
    findings
}

/// Whether a kernel's release, such as `6.18.5-amd64`, is one that can carry the mesh.
pub(super) fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(['.', '-', '+']).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= KERNEL_MIN,
        _ => false,
    }
}

fn kernel() -> Said {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if is_new_enough(release) { Ok(release.to_owned()) } else { Err(Complaint::Failure(release.to_owned())) }
}

fn btf() -> Said {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    if path.exists() {
        return Ok(path.display().to_string());
    }
    Err(Complaint::Failure(format!("{} is not there", path.display())))
}

fn cgroups(unified: Option<&Path>) -> Said {
    match unified {
        Some(root) => Ok(format!("version 2 at {}", root.display())),
        None => Err(Complaint::Failure("the unified hierarchy (version 2) is not mounted".to_owned())),
    }
}

fn bpffs(mounts: &str) -> Said {
    match mount_of(mounts, "bpf") {
        Some(path) if path == Path::new("/sys/fs/bpf") => Ok(path.display().to_string()),
        Some(path) => Err(Complaint::Warning(format!("at {}, not at /sys/fs/bpf", path.display()))),
        None => Err(Complaint::Failure("not mounted".to_owned())),
    }
}

fn other_hooks(root: &Path) -> Said {
    let attached = hooks::attached(root)
        .map_err(|error| Complaint::Warning(format!("cannot be asked ({error}); run this as root")))?;
    let others: Vec<String> = attached
        .iter()
        .filter(|hook| !hook.programs.is_empty())
        .map(|hook| format!("{} ({})", hook.name, hook.programs.len()))
        .collect();
    if others.is_empty() {
        return Ok(format!("none at {}", root.display()));
    }
    Err(Complaint::Warning(format!("at {}: {}", root.display(), others.join(", "))))
}

/// Where a file system of this kind is mounted whole (proc(5), `mountinfo`); of several, the one with the shortest path.
fn mount_of(mounts: &str, kind: &str) -> Option<PathBuf> {
    let place = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let is_kind = back.split(' ').next() == Some(kind);
        let mut fields = front.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        (is_kind && root == "/").then(|| PathBuf::from(place))
    };
    mounts.lines().filter_map(place).min_by_key(|path| path.as_os_str().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_their_numbers() {
        for (release, expected) in [
            ("6.18.5-amd64", true),
            ("5.18.0", true),
            ("5.17.15-generic", false),
            ("4.19.0-21-cloud", false),
            ("10.1", true),
            ("6.1-rc3+", true),
            ("unknown", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(release), expected, "{release}");
        }
    }

    #[test]
    fn mounts_are_found_by_their_kind() {
        let mounts = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
41 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
42 31 0:32 /kubepods /part rw - cgroup2 cgroup2 rw
50 23 0:40 / /sys/fs/bpf rw shared:7 - bpf bpf rw
";
        assert_eq!(mount_of(mounts, "cgroup2").as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(bpffs(mounts).is_ok());
        assert!(matches!(bpffs(""), Err(Complaint::Failure(_))));
        assert!(matches!(cgroups(None), Err(Complaint::Failure(_))));
    }

    #[test]
    fn the_machine_of_these_tests_can_be_looked_at() {
        let findings = looks();
        let names: Vec<&str> = findings.iter().map(|finding| finding.look).collect();
        assert_eq!(names, ["kernel", "btf", "control groups", "bpffs", "other hooks"]);
        assert!(findings.iter().all(|finding| !finding.fix.is_empty()));
    }
}
