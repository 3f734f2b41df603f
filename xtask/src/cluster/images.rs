//! The images that every node of a cluster has: the one that keeps pods open, and one of test programs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::cache::Build;
use crate::image::add_program;
use crate::image::archive::Image;
use crate::shell;

/// What keeps a pod's namespaces open.
pub const PAUSE_IMAGE: &str = "weft.dev/pause:1";

/// `cargo xtask app ...` as `/bin/xtask`, the probe of the tests, and busybox for a shell and its kin.
pub const TEST_IMAGE: &str = "weft.dev/test:1";

/// What scripts in pods call of busybox.
const SHELL_TOOLS: [&str; 14] =
    ["cat", "date", "echo", "env", "grep", "ip", "ls", "nc", "nslookup", "ps", "sh", "sleep", "true", "wget"];

/// Writes the archives.
pub fn write(build: &Build, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut pause = Image::named(PAUSE_IMAGE);
    pause.file("pause", 0o755, read(&build.program("pause"))?);
    pause.entrypoint = vec!["/pause".to_owned()];
    pause.write(&dir.join("pause.tar"))?;

    let mut tests = Image::named(TEST_IMAGE);
    let own = std::env::current_exe().context("cannot find the running executable")?;
    add_program(&mut tests, "bin/xtask", &own)?;
    for program in ["weft-probe", "weft-http"] {
        add_program(&mut tests, &format!("bin/{program}"), &shell::executable_dir()?.join(program))?;
    }
    tests.file("bin/busybox", 0o755, read(&build.node_packages().join("usr/bin/busybox"))?);
    for tool in SHELL_TOOLS {
        tests.link(&format!("bin/{tool}"), "busybox");
    }
    tests.directory("tmp", 0o1777);
    tests.environment = vec!["PATH=/bin".to_owned()];
    tests.entrypoint = vec!["/bin/xtask".to_owned()];
    tests.write(&dir.join("test.tar"))?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
