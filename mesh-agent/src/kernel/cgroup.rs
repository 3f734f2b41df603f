//! Control groups as files: where the hierarchies are mounted, which group this process is in, and a group's number.
//!
//! The mounts are read from `/proc/self/mountinfo` (proc(5)): `/sys/fs/cgroup` may be the unified hierarchy, a tmpfs with
//! the unified one beside those of version 1, or inside a container a window onto one's own group only.
//! It never changes a group and never looks at what a group's name means: that is `capture`'s.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How deep below the root groups are looked for; kubelet's stand at three to six, nested nodes' a few deeper.
const DEPTH_MAX: usize = 16;

/// Where control groups are mounted, as this process sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// The unified hierarchy (version 2).
    pub unified: Option<PathBuf>,
    /// Hierarchies of version 1, those first that every runtime uses.
    pub legacy: Vec<PathBuf>,
}

impl Mounts {
    /// Those of this process.
    ///
    /// # Errors
    /// `/proc/self/mountinfo` cannot be read.
    pub fn of_self() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// From the text of a `mountinfo`.
    ///
    /// Of several mounts of the unified hierarchy the one counts that shows most of it: a container has one of its own
    /// group, and the host's where somebody mounted it.
    pub fn parse(mountinfo: &str) -> Self {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let unified =
            mounts.iter().filter(|mount| mount.kind == "cgroup2").min_by_key(|mount| mount.height());
        let mut legacy: Vec<&Mount> = mounts.iter().filter(|mount| mount.kind == "cgroup").collect();
        legacy.sort_by_key(|mount| (mount.controller_rank(), mount.height()));
        Self {
            unified: unified.map(|mount| mount.place.clone()),
            legacy: legacy.into_iter().map(|mount| mount.place.clone()).collect(),
        }
    }
}

#[derive(Debug)]
struct Mount {
    /// What of the hierarchy is shown, seen from the group namespace's root.
    root: String,
    place: PathBuf,
    kind: String,
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, place) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        Some(Self {
            root: root.to_owned(),
            place: unescape(place),
            kind: back.next()?.to_owned(),
            options: back.nth(1).unwrap_or_default().to_owned(),
        })
    }

    /// Orders by how far up the shown part begins: `/../..` is above `/`, which is above `/a`.
    fn height(&self) -> (isize, usize) {
        let steps = self.root.split('/').filter(|step| !step.is_empty());
        let depth = steps.map(|step| if step == ".." { -1 } else { 1 }).sum();
        (depth, self.place.as_os_str().len())
    }

    fn controller_rank(&self) -> usize {
        let has = |name: &&str| self.options.split(',').any(|option| option == *name);
        ["name=systemd", "memory", "pids"].iter().position(has).unwrap_or(3)
    }
}

/// Undoes the kernel's spelling of white space (`\040`).
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The kernel's number of a group: the inode number of its directory (kernfs). Never given twice while the machine is up.
///
/// # Errors
/// The group is gone.
pub fn id(group: &Path) -> io::Result<u64> {
    fs::metadata(group).map(|metadata| metadata.ino())
}

/// The group (version 2) that this process is in, as a directory below `unified`.
///
/// `/proc/self/cgroup` answers relative to the group namespace, which need not be the mount's; so its answer is believed
/// only where the group lists this process, and otherwise the group that does is looked for.
pub fn own(unified: &Path) -> Option<PathBuf> {
    let said = fs::read_to_string("/proc/self/cgroup").ok();
    let said = said.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::/")));
    let said = said.filter(|path| !path.contains("..")).map(|path| unified.join(path));
    let pid = std::process::id();
    if let Some(group) = said.filter(|group| processes(group).contains(&pid)) {
        return Some(group);
    }
    let mut found = None;
    walk(unified, &mut |group| {
        if found.is_none() && processes(group).contains(&pid) {
            found = Some(group.to_owned());
        }
        found.is_none()
    });
    found
}

/// The numbers of a group and of all below it.
pub fn ids_below(group: &Path) -> HashSet<u64> {
    let mut ids = HashSet::new();
    walk(group, &mut |group| {
        ids.extend(id(group).ok());
        true
    });
    ids
}

/// The processes of one group, without those below. Processes that this process cannot see (another PID namespace's) are
/// left out.
pub fn processes(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
}

/// The groups directly below one.
pub fn children(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

/// Looks at a group and all below it, parents first; groups below one for which `look` says false are passed over.
pub fn walk(group: &Path, look: &mut impl FnMut(&Path) -> bool) {
    walk_to(group, DEPTH_MAX, look);
}

fn walk_to(group: &Path, depth: usize, look: &mut impl FnMut(&Path) -> bool) {
    if look(group) && depth > 0 {
        children(group).iter().for_each(|child| walk_to(child, depth - 1, look));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const PURE: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    /// As a container with a group namespace of its own sees it, the host's tree mounted beside its own group.
    const CONTAINER: &str = "\
700 690 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw
701 690 0:26 /../../../.. /host/sys/fs/cgroup rw master:4 - cgroup2 cgroup2 rw
";

    #[test]
    fn the_hierarchies_are_found_on_hybrid_pure_and_legacy_hosts_and_in_containers() {
        let hybrid = Mounts::parse(HYBRID);
        assert_eq!(hybrid.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        let legacy: Vec<_> = hybrid.legacy.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(legacy, ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu"]);
        assert_eq!(Mounts::parse(PURE).unified.as_deref(), Some(Path::new("/sys/fs/cgroup")));
        assert_eq!(Mounts::parse(CONTAINER).unified.as_deref(), Some(Path::new("/host/sys/fs/cgroup")));
        let without: String = HYBRID.lines().filter(|line| !line.contains("cgroup2")).collect();
        assert_eq!(Mounts::parse(&without).unified, None);
    }

    #[test]
    fn a_mount_of_a_part_yields_to_one_of_the_whole() {
        let text =
            "1 0 0:26 /kubepods /part rw - cgroup2 cgroup2 rw\n2 0 0:26 / /a\\040b rw - cgroup2 cgroup2 rw\n";
        assert_eq!(Mounts::parse(text).unified.as_deref(), Some(Path::new("/a b")));
    }

    #[test]
    fn this_process_finds_its_own_group() {
        let unified = Mounts::of_self().unwrap().unified.expect("this machine has the unified hierarchy");
        let own = own(&unified).expect("a process is in a group");
        assert!(processes(&own).contains(&std::process::id()));
        assert!(ids_below(&unified).contains(&id(&own).unwrap()));
    }
}
