//! The kernel programs: another target, so another compiler than the rest of the workspace.
//!
//! Two recipes give the same object (see [`setup::find_kernel_compiler`]); this file says which one it took. The object
//! carries BTF, without which neither the agent's maps nor `bpftool map dump` would know field names.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::setup::{self, KernelCompiler};
use crate::shell::{self, say};

/// The object's file name; the agent looks for it beside its own executable.
pub const OBJECT_NAME: &str = "weft.bpf.o";

/// The kernel's name for the target: little-endian, as every machine we support is.
const TARGET: &str = "bpfel-unknown-none";

/// Builds the object and returns where it lies.
pub fn run() -> Result<PathBuf> {
    let source_dir = shell::workspace_dir().join("mesh-ebpf");
    ensure!(source_dir.join("Cargo.toml").exists(), "{} has no kernel programs", source_dir.display());
    if shell::answer("bpf-linker", &["--version"]).is_none() {
        bail!("bpf-linker {} is missing: run `cargo xtask setup`", setup::BPF_LINKER_VERSION);
    }
    let compiler = setup::find_kernel_compiler().context(
        "no compiler for bpfel-unknown-none (Debian's rustc-web with libstd-rust-web-dev-bpf, or a nightly with rust-src): \
         run `cargo xtask setup`",
    )?;
    compile(&source_dir, compiler)?;
    let built = source_dir.join("target").join(TARGET).join("release/weft");
    let object = fs::read(&built).with_context(|| format!("the build left no {}", built.display()))?;
    check_object(&object).with_context(|| format!("{} is not usable", built.display()))?;
    deliver(&object)
}

fn compile(source_dir: &Path, compiler: KernelCompiler) -> Result<()> {
    let mut build = match compiler {
        KernelCompiler::Debian => {
            say("building the kernel programs with Debian's /usr/bin/rustc");
            let mut build = shell::cargo();
            // Debian's core is compiled already; the flag only unlocks the features that eBPF crates use.
            build.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc").arg("build");
            build
        }
        KernelCompiler::Nightly => {
            say("building the kernel programs with the nightly toolchain and -Z build-std=core");
            let mut build = std::process::Command::new("rustup");
            build.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]).env_remove("RUSTC");
            build
        }
    };
    build.current_dir(source_dir).args(["--release", "--target", TARGET, "--bin", "weft"]);
    // Linker and flags stand in mesh-ebpf/.cargo/config.toml; those of the outer cargo are meant for another target.
    build.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_RUSTFLAGS");
    build.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET_DIR");
    build.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
    shell::run(&mut build).context("the kernel programs do not build")
}

/// Puts the object beside the release binaries, and beside this executable when that is elsewhere.
fn deliver(object: &[u8]) -> Result<PathBuf> {
    let release_dir = shell::workspace_dir().join("target/release");
    let own_dir = shell::executable_dir()?;
    for dir in [&own_dir, &release_dir] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let temporary = dir.join(format!("{OBJECT_NAME}.new"));
        fs::write(&temporary, object).with_context(|| format!("cannot write {}", temporary.display()))?;
        fs::rename(&temporary, dir.join(OBJECT_NAME))?;
    }
    let path = release_dir.join(OBJECT_NAME);
    say(format!("kernel programs: {} ({} bytes, with BTF)", path.display(), object.len()));
    Ok(path)
}

/// Checks that the object is eBPF and carries BTF.
fn check_object(object: &[u8]) -> Result<()> {
    let sections = section_names(object).context("it is not a 64-bit little-endian ELF file")?;
    for needed in [".BTF", ".BTF.ext"] {
        let found = sections.iter().any(|name| name == needed);
        ensure!(
            found,
            "section {needed} is missing; does mesh-ebpf/.cargo/config.toml give bpf-linker --btf, and does the profile keep debug info?"
        );
    }
    Ok(())
}

/// Section names of a 64-bit little-endian ELF file (ELF specification, chapter 4).
fn section_names(object: &[u8]) -> Option<Vec<String>> {
    if object.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let table = usize::try_from(number(object, 0x28, 8)?).ok()?;
    let size = usize::try_from(number(object, 0x3a, 2)?).ok()?;
    let count = usize::try_from(number(object, 0x3c, 2)?).ok()?;
    let strings_index = usize::try_from(number(object, 0x3e, 2)?).ok()?;
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let strings = usize::try_from(number(object, header(strings_index)?.checked_add(0x18)?, 8)?).ok()?;
    let mut names = Vec::new();
    for index in 0..count {
        let name = usize::try_from(number(object, header(index)?, 4)?).ok()?;
        let bytes = object.get(strings.checked_add(name)?..)?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        names.push(String::from_utf8_lossy(&bytes[..end]).into_owned());
    }
    Some(names)
}

/// A little-endian number of `width` bytes at `at`.
fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(width)?)?;
    Some(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_names_of_this_very_executable_are_read() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let names = section_names(&own).unwrap();
        assert!(names.iter().any(|name| name == ".text"), "{names:?}");
    }

    #[test]
    fn an_object_without_btf_is_refused_by_name() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(check_object(&own).unwrap_err().to_string().contains(".BTF"));
    }

    #[test]
    fn truncated_and_foreign_files_are_not_elf() {
        assert!(section_names(b"").is_none());
        assert!(section_names(b"#!/bin/sh\n").is_none());
        assert!(section_names(&[0x7f, b'E', b'L', b'F', 2, 1]).is_none());
    }
}
