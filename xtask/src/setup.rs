//! What must be installed to build and test Weft, and how to get it.
//!
//! Every step looks first and installs only what is missing, so that a second run takes a moment. Without root or
//! without apt-get it stops with the exact command.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::shell::{self, answer, say};

/// The bpf-linker release that the kernel programs are linked with.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// The newest cargo-nextest known to build with the pinned toolchain (rust-toolchain.toml).
const NEXTEST_VERSION: &str = "0.9.143";

/// Debian's LLVM, against which bpf-linker is built.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// What to install.
#[derive(Args)]
pub struct Options {
    /// Also what the benches compare with: haproxy, and openssl for its certificates.
    #[arg(long)]
    bench: bool,
}

/// Installs what the options ask for.
pub fn install(options: &Options) -> Result<()> {
    if options.bench {
        debian_package("haproxy", "haproxy", has_haproxy)?;
        debian_package("openssl", "openssl", has_openssl)?;
    }
    run()
}

/// Fails, with the command to use, when something that the benches compare with is missing.
pub fn require_bench_tools() -> Result<()> {
    for (what, present) in [("haproxy", has_haproxy as fn() -> bool), ("openssl", has_openssl)] {
        ensure!(
            present(),
            "{what} is missing: run `cargo xtask setup --bench`, or install the package {what}"
        );
    }
    Ok(())
}

/// Fails, with the command to use, when what makes the cluster's certificates is missing.
pub fn require_openssl() -> Result<()> {
    ensure!(has_openssl(), "openssl is missing: install the package openssl");
    Ok(())
}

/// Installs what is missing for building and testing.
pub fn run() -> Result<()> {
    debian_package("ip", "iproute2", has_ip)?;
    debian_package("bpftool", "bpftool", has_bpftool)?;
    debian_package("openssl", "openssl", has_openssl)?;
    python_tests()?;
    kernel_compiler()?;
    bpf_linker()?;
    nextest()?;
    say("setup is complete");
    Ok(())
}

/// Which compiler builds the kernel programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelCompiler {
    /// Debian's rustc-web, which brings a ready `core` for bpfel-unknown-none.
    Debian,
    /// A rustup nightly with rust-src; `core` is built along.
    Nightly,
}

/// Finds a compiler for the kernel programs. Debian's comes first: it needs neither unstable flags nor the sources of `core`.
pub fn find_kernel_compiler() -> Option<KernelCompiler> {
    if let Some(sysroot) = answer("/usr/bin/rustc", &["--print", "sysroot"])
        && has_core(Path::new(sysroot.trim()))
    {
        return Some(KernelCompiler::Debian);
    }
    let sysroot = answer("rustup", &["run", "nightly", "rustc", "--print", "sysroot"])?;
    let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    sources.exists().then_some(KernelCompiler::Nightly)
}

/// Whether `sysroot` has a compiled `core` for the kernel's target.
fn has_core(sysroot: &Path) -> bool {
    let libraries = sysroot.join("lib/rustlib/bpfel-unknown-none/lib");
    let Ok(entries) = libraries.read_dir() else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn has_ip() -> bool {
    answer("ip", &["-V"]).is_some()
}

fn has_bpftool() -> bool {
    answer("bpftool", &["version"]).is_some() || answer("/usr/sbin/bpftool", &["version"]).is_some()
}

fn has_haproxy() -> bool {
    answer("haproxy", &["-v"]).is_some() || answer("/usr/sbin/haproxy", &["-v"]).is_some()
}

fn has_openssl() -> bool {
    answer("openssl", &["version"]).is_some()
}

/// Whether a Python has its own network tests, which the transparency test runs inside pods.
fn has_python_tests() -> bool {
    let find = ["-c", "import test.test_socket, test.test_asyncio, test.libregrtest.main"];
    ["python3", "/usr/bin/python3"].iter().any(|python| answer(python, &find).is_some())
}

/// Whether the linker is there in the release that is asked for.
fn has_bpf_linker() -> bool {
    answer("bpf-linker", &["--version"]).is_some_and(|said| said.contains(BPF_LINKER_VERSION))
}

fn debian_package(what: &str, package: &str, present: fn() -> bool) -> Result<()> {
    if present() {
        say(format!("{what}: present"));
        return Ok(());
    }
    say(format!("{what}: missing, installing the package {package}"));
    apt_install(&[package])?;
    if !present() {
        bail!("{package} is installed, but {what} still cannot be run; is /usr/sbin on the PATH?");
    }
    Ok(())
}

fn python_tests() -> Result<()> {
    if has_python_tests() {
        say("Python with its own tests: present");
        return Ok(());
    }
    say("Python with its own tests: missing, installing them");
    apt_install(&["python3", "libpython3-testsuite"])?;
    if !has_python_tests() {
        bail!(
            "libpython3-testsuite is installed, but neither python3 nor /usr/bin/python3 finds its own tests"
        );
    }
    Ok(())
}

fn kernel_compiler() -> Result<()> {
    match find_kernel_compiler() {
        Some(KernelCompiler::Debian) => {
            say("compiler for the kernel programs: present (Debian's /usr/bin/rustc)");
            return Ok(());
        }
        Some(KernelCompiler::Nightly) => {
            say("compiler for the kernel programs: present (nightly with rust-src)");
            return Ok(());
        }
        None => say("compiler for the kernel programs: missing, installing it"),
    }
    if has_apt() {
        apt_install(&["rustc-web", "libstd-rust-web-dev-bpf"])?;
    } else {
        let install = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
        shell::run(Command::new("rustup").args(install))
            .context("no apt-get and no rustup: install rustup (https://rustup.rs), then run this again")?;
    }
    if find_kernel_compiler().is_none() {
        bail!(
            "still no compiler for bpfel-unknown-none: install Debian's rustc-web and libstd-rust-web-dev-bpf, or run \
             `rustup toolchain install nightly --component rust-src`"
        );
    }
    Ok(())
}

fn bpf_linker() -> Result<()> {
    if has_bpf_linker() {
        say(format!("bpf-linker {BPF_LINKER_VERSION}: present"));
        return Ok(());
    }
    say(format!("bpf-linker {BPF_LINKER_VERSION}: missing, building it (about three minutes)"));
    let mut install = shell::cargo();
    install.args(["install", "--locked", "bpf-linker", "--version", BPF_LINKER_VERSION]);
    if has_apt() {
        if !Path::new(LLVM_PREFIX).join("bin/llvm-config").exists() {
            apt_install(&["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"])?;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        install.args(["--no-default-features", "--features", "llvm-22"]);
        install.env("LLVM_PREFIX", LLVM_PREFIX).env("PATH", format!("{LLVM_PREFIX}/bin:{path}"));
    }
    shell::run(&mut install).context(
        "bpf-linker needs LLVM's development files (Debian: llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev; \
         elsewhere LLVM 23, found through LLVM_PREFIX)",
    )?;
    if !has_bpf_linker() {
        bail!("bpf-linker is built, but is not on the PATH: add ~/.cargo/bin to it");
    }
    Ok(())
}

fn nextest() -> Result<()> {
    if answer("cargo-nextest", &["nextest", "--version"]).is_some() {
        say("cargo-nextest: present");
        return Ok(());
    }
    say(format!("cargo-nextest: missing, building {NEXTEST_VERSION} (some minutes)"));
    shell::run(shell::cargo().args(["install", "--locked", "cargo-nextest", "--version", NEXTEST_VERSION]))
}

fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !has_apt() {
        bail!("install what this system calls: {list}");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("run: sudo apt-get update && sudo apt-get install -y --no-install-recommends {list}");
    }
    let update = || shell::run(Command::new("apt-get").args(["update", "-qq"]).stdout(std::io::stderr()));
    update().context("the package lists cannot be fetched; is there a network?")?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    install.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr());
    shell::run(&mut install).with_context(|| {
        format!("apt cannot install {list}; rustc-web and llvm-22 are in Debian 12 with its security updates")
    })
}
