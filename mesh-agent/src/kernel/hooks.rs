//! Whose programs hang on the hooks that the mesh uses? Asked of the kernel, changed by nobody here.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::sys;

/// The hooks of a control group where the mesh attaches programs: `enum bpf_attach_type` of `linux/bpf.h`, and its name there.
const HOOKS: [(u32, &str); 8] = [
    (3, "sock_ops"),
    (10, "connect4"),
    (11, "connect6"),
    (14, "sendmsg4"),
    (15, "sendmsg6"),
    (22, "setsockopt"),
    (29, "getpeername4"),
    (30, "getpeername6"),
];

/// One hook and the numbers of the programs that are attached to it, here and above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The kernel's name of it.
    pub name: &'static str,
    /// Numbers of programs (`bpftool prog show id N`).
    pub programs: Vec<u32>,
}

/// What is attached to a control group. Needs CAP_NET_ADMIN (or CAP_BPF).
///
/// # Errors
/// The group cannot be opened, or the kernel does not answer.
pub fn attached(group: &Path) -> io::Result<Vec<Hook>> {
    let group = File::open(group)?;
    let ask = |&(hook, name): &(u32, &'static str)| {
        Ok(Hook { name, programs: sys::attached_programs(group.as_fd(), hook)? })
    };
    HOOKS.iter().map(ask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_is_asked_for_and_a_file_is_no_group() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted");
        let root = unified.split(' ').nth(4).expect("a path");
        let hooks = attached(Path::new(root)).expect("as root");
        assert_eq!(hooks.len(), HOOKS.len());
        assert!(attached(Path::new("/proc/self/status")).is_err());
        assert!(attached(Path::new("/nonexistent")).is_err());
    }
}
