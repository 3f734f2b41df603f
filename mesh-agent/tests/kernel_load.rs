//! The running kernel accepts the programs, and a second agent takes over the first one's pins.
//!
//! Needs root and the built object (`cargo xtask test` provides both).

use std::path::PathBuf;
use std::time::Duration;

use mesh_agent::kernel::{Kernel, Settings};

fn settings(name: &str) -> Settings {
    let object = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/release/weft.bpf.o");
    Settings {
        object,
        pin_dir: PathBuf::from(format!("/sys/fs/bpf/weft/test-{name}-{}", std::process::id())),
        cgroup: None,
        heartbeat_age_max: Duration::from_secs(1),
    }
}

struct Unpin(PathBuf);

impl Drop for Unpin {
    fn drop(&mut self) {
        mesh_agent::kernel::load::uninstall(&self.0).expect("pins can be removed");
    }
}

#[test]
fn the_kernel_accepts_every_program_and_pins_outlive_the_agent() {
    let settings = settings("load");
    let _unpin = Unpin(settings.pin_dir.clone());
    let first = Kernel::load(&settings).expect("run as root: `sudo cargo xtask test`");
    assert_eq!(first.generation(), 1);
    first.configure(true, false).unwrap();
    mesh_agent::kernel::load::beat(first.maps(), first.generation()).unwrap();
    first.maps().held.put(&7, &1).unwrap();
    drop(first);
    let second = Kernel::load(&settings).unwrap();
    assert_eq!(second.generation(), 2);
    assert_eq!(second.maps().held.get(&7).unwrap(), Some(1));
}

#[test]
fn every_probe_is_answered() {
    let settings = settings("probes");
    let _unpin = Unpin(settings.pin_dir.clone());
    let mut kernel = Kernel::load(&settings).expect("run as root: `sudo cargo xtask test`");
    let results = mesh_agent::kernel::probes::run(&mut kernel).unwrap();
    for result in &results {
        eprintln!("{result:?}");
    }
    assert!(results.len() >= 10);
}

#[test]
fn programs_follow_the_control_group_of_the_pods() {
    let settings = settings("follow");
    let _unpin = Unpin(settings.pin_dir.clone());
    let mounts = mesh_agent::kernel::cgroup::Mounts::of_self().unwrap();
    let root = mounts.unified.expect("this machine has the unified hierarchy");
    let groups = ["one", "two"].map(|name| root.join(format!("weft-test-{name}-{}", std::process::id())));
    groups.iter().for_each(|group| std::fs::create_dir(group).expect("run as root"));
    let attached = |group: &PathBuf| {
        let shown = std::process::Command::new("bpftool").args(["cgroup", "show"]).arg(group).output();
        let shown = shown.expect("bpftool is installed");
        String::from_utf8_lossy(&shown.stdout).lines().filter(|line| line.contains("connect4")).count()
    };
    let mut kernel = Kernel::load(&settings).expect("run as root: `sudo cargo xtask test`");
    for (here, there) in [(0, 1), (1, 0)] {
        for _ in 0..2 {
            kernel.attach(&groups[here]).unwrap();
            assert_eq!((attached(&groups[here]), attached(&groups[there])), (1, 0));
        }
    }
    // The group is removed and made anew, as kubelet's is after a reboot of nothing but kubelet.
    std::fs::remove_dir(&groups[1]).unwrap();
    std::fs::create_dir(&groups[1]).unwrap();
    kernel.attach(&groups[1]).unwrap();
    assert_eq!(attached(&groups[1]), 1);
    groups.iter().for_each(|group| std::fs::remove_dir(group).expect("nothing is in it"));
}
