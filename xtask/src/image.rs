//! `cargo xtask image`: Weft as an OCI archive, without a Docker daemon.
//!
//! It holds the two programs, the kernel programs and the shared libraries that they were linked with on this machine,
//! and nothing else: no shell, no package manager. [`archive`] writes it; the tests' own images use the same writer.

pub mod archive;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{build, ebpf, shell};
use archive::Image;

/// How a node knows the image; the version follows. Nothing is pulled from there unless somebody pushes it there.
pub const NAME: &str = "weft.dev/weft";

/// Where the archive goes, below the workspace.
const ARCHIVE: &str = "target/weft-image.tar";

/// Where the agent looks for its kernel programs when they are not beside it.
const OBJECT_DIR: &str = "usr/lib/weft";

/// User and group of the control plane and of `meshctl`; the agent runs as root by its manifest. The number is the one
/// that images without a shell use by custom.
const NOBODY: u32 = 65532;

/// What to write where.
#[derive(Args)]
pub struct Options {
    /// The archive.
    #[arg(long, value_name = "FILE", default_value = ARCHIVE)]
    out: PathBuf,

    /// Name and tag of the image [default: weft.dev/weft:VERSION].
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,

    /// Take target/release as it is.
    #[arg(long)]
    no_build: bool,
}

/// Builds what is needed and writes the archive.
pub fn run(options: &Options) -> Result<()> {
    if !options.no_build {
        build::run()?;
    }
    let name = options.name.clone().unwrap_or_else(name);
    let out = shell::workspace_dir().join(&options.out);
    let image = weft(&name, &shell::workspace_dir().join("target/release"))?;
    let digest = image.write(&out)?;
    let size = fs::metadata(&out).map_or(0, |about| about.len());
    shell::say(format!("{name}: {} ({} MiB), {digest}", out.display(), size >> 20));
    shell::say(format!("into a node's containerd: ctr --namespace k8s.io images import {}", out.display()));
    Ok(())
}

/// Writes the archive of what is built, as it is, and says where.
pub fn write_built() -> Result<PathBuf> {
    run(&Options { out: ARCHIVE.into(), name: None, no_build: true })?;
    Ok(shell::workspace_dir().join(ARCHIVE))
}

/// The name of the image of this version.
pub fn name() -> String {
    format!("{NAME}:{}", env!("CARGO_PKG_VERSION"))
}

/// The image, from a directory with what was built.
pub fn weft(name: &str, built: &Path) -> Result<Image> {
    let mut image = Image::named(name);
    for program in ["mesh-agent", "meshctl"] {
        add_program(&mut image, &format!("usr/bin/{program}"), &built.join(program))?;
    }
    let object = built.join(ebpf::OBJECT_NAME);
    let bytes = fs::read(&object)
        .with_context(|| format!("{} is missing: run `cargo xtask build-ebpf`", object.display()))?;
    image.file(&format!("{OBJECT_DIR}/{}", ebpf::OBJECT_NAME), 0o644, bytes);
    image.file(
        "etc/passwd",
        0o644,
        format!("root:x:0:0:root:/:/sbin/nologin\nweft:x:{NOBODY}:{NOBODY}:weft:/:/sbin/nologin\n"),
    );
    image.file("etc/group", 0o644, format!("root:x:0:\nweft:x:{NOBODY}:\n"));
    // Without it the C library asks for hosts in an order that ignores /etc/hosts in some versions.
    image.file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n");
    image.directory("tmp", 0o1777);
    image.entrypoint = vec!["/usr/bin/mesh-agent".to_owned()];
    image.environment = vec!["PATH=/usr/bin".to_owned()];
    image.user = format!("{NOBODY}:{NOBODY}");
    let labels = [
        ("title", "Weft"),
        ("description", "Agent, control plane and command line of the Weft mesh"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", "Apache-2.0"),
        ("url", env!("CARGO_PKG_REPOSITORY")),
    ];
    image.labels = labels
        .iter()
        .map(|(key, value)| (format!("org.opencontainers.image.{key}"), (*value).to_owned()))
        .collect();
    Ok(image)
}

/// Adds a program and the shared libraries that it needs, each at the path where the loader looks for it.
pub fn add_program(image: &mut Image, path: &str, program: &Path) -> Result<()> {
    let bytes = fs::read(program)
        .with_context(|| format!("{} is missing: run `cargo xtask build`", program.display()))?;
    image.file(path, 0o755, bytes);
    for library in libraries(program)? {
        let bytes =
            fs::read(&library).with_context(|| format!("cannot read the library {}", library.display()))?;
        image.file(&library.to_string_lossy(), 0o755, bytes);
    }
    Ok(())
}

/// The shared libraries of a program and its loader, as `ldd` names them; none for a static one.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = std::process::Command::new("ldd").arg(program).env("LC_ALL", "C").output();
    let output = output.context("cannot run ldd (package libc-bin)")?;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        let is_static = said.contains("statically linked") || complained.contains("not a dynamic executable");
        ensure!(is_static, "ldd {} failed: {}", program.display(), complained.trim());
        return Ok(BTreeSet::new());
    }
    parse_ldd(&said).with_context(|| format!("ldd {}", program.display()))
}

/// Lines are `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader; what has no path is the kernel's own.
fn parse_ldd(said: &str) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for line in said.lines() {
        let line = line.trim();
        if line.contains("=> not found") {
            bail!("a library is missing: {line}");
        }
        let place = line.split_once("=> ").map_or(line, |(_, place)| place);
        if let Some(path) = place.split(" (").next().filter(|path| path.starts_with('/')) {
            found.insert(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_the_kernels_own_is_not() {
        let said = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(said).expect("readable"), expected.map(PathBuf::from).into());
        assert!(parse_ldd("\tstatically linked\n").expect("readable").is_empty());
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let error = parse_ldd("\tlibfoo.so.1 => not found\n").expect_err("refused");
        assert!(error.to_string().contains("libfoo.so.1"), "{error}");
    }
}
