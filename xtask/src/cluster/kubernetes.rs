//! Kubernetes out of Debian's own source package, which carries upstream's whole tree with all that it depends on, built with
//! Debian's Go.
//!
//! The tree is of 2021 and Go is of 2023, so three things are done to it first; each function says why. Nothing is installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cache::{self, Build, Cache, Extent};
use super::packages::Apt;
use crate::clock;
use crate::shell::{self, say};

/// The source package.
const SOURCE_PACKAGE: &str = "kubernetes";

/// What Debian 12 has of Kubernetes; its package version carries it behind `really`.
pub const VERSION: &str = "1.20.2";

/// What builds it, and the store. reflect2 replaces a copy in the tree.
const PACKAGES: [&str; 4] =
    ["golang-1.19-go", "golang-1.19-src", "golang-github-modern-go-reflect2-dev", "etcd-server"];

/// What a node runs: the container runtime, the network's plugins, and what kube-proxy calls.
const NODE_PACKAGES: [&str; 13] = [
    "busybox-static",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "iptables",
    "libip4tc2",
    "libip6tc2",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftnl11",
    "libxtables12",
    "runc",
];

/// The program that keeps a pod's namespaces open.
const PAUSE_SOURCE: &str = include_str!("../../../tests/cluster/pause.go");

/// Builds what is missing, and says where it lies.
pub fn build(extent: Extent) -> Result<Build> {
    let cache = Cache::new();
    if let Some(found) = cache.find(extent) {
        return Ok(found);
    }
    let _lock = cache.lock()?;
    // Another build may just have ended.
    if let Some(found) = cache.find(extent) {
        return Ok(found);
    }
    let started = clock::now();
    let apt = Apt::prepare(&cache.path("apt"))?;
    let version = apt.source_version(SOURCE_PACKAGE)?;
    ensure!(
        version.contains(VERSION),
        "Debian's {SOURCE_PACKAGE} is {version}, but only {VERSION} is known to build and run here"
    );
    let build = cache.build(&version);
    cache::whole(&build.packages(), |tree| apt.unpack(&PACKAGES, &build.dir.join("downloads"), tree))?;
    let tree = Tree { build: &build, dir: build.dir.join("source") };
    cache::whole(&tree.dir, |dir| tree.prepare(&apt, &version, dir))?;
    for program in extent.programs() {
        cache::whole(&build.program(program), |file| tree.compile(program, file))?;
    }
    if extent == Extent::Cluster {
        cache::whole(&build.node_packages(), |dir| {
            apt.unpack(&NODE_PACKAGES, &build.dir.join("downloads"), dir)?;
            keep_only_usr(dir)
        })?;
        tree.remove()?;
    }
    let missing = build.missing(extent);
    ensure!(missing.is_empty(), "the build left out {missing:?}");
    say(format!("Kubernetes {VERSION} is built, in {} s", started.elapsed().as_secs()));
    Ok(build)
}

/// The unpacked source, as the part of a GOPATH.
struct Tree<'a> {
    build: &'a Build,
    dir: PathBuf,
}

impl Tree<'_> {
    /// Unpacks the source and makes it fit for a newer Go.
    fn prepare(&self, apt: &Apt, version: &str, dir: &Path) -> Result<()> {
        let source = checkout(dir);
        apt.unpack_source(SOURCE_PACKAGE, version, &self.build.dir.join("downloads"), &source)?;
        self.replace_reflect2(&source)?;
        keep_empty_defaults(&source)?;
        self.generate_openapi(dir, &source)
    }

    /// The tree's reflect2 reads the Go runtime's internals as they were before Go 1.18; Debian's is newer.
    fn replace_reflect2(&self, source: &Path) -> Result<()> {
        let place = source.join("vendor/github.com/modern-go/reflect2");
        let newer = self.build.packages().join("usr/share/gocode/src/github.com/modern-go/reflect2");
        let is_code = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name.ends_with(".go") || name.ends_with(".s")) && !name.ends_with("_test.go")
        };
        for entry in fs::read_dir(&place).context("the source has no vendored reflect2")?.flatten() {
            if is_code(&entry.path()) {
                fs::remove_file(entry.path())?;
            }
        }
        for entry in fs::read_dir(&newer).context("Debian's reflect2 is not where it was")?.flatten() {
            if is_code(&entry.path()) {
                fs::copy(entry.path(), place.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Upstream's build makes one file by a generator of its own; the source package does not have it.
    fn generate_openapi(&self, gopath: &Path, source: &Path) -> Result<()> {
        say("generating the API's description");
        let generator = gopath.join("openapi-gen");
        let mut make = self.go(gopath);
        make.args(["build", "-o"]).arg(&generator).arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen");
        shell::run(make.current_dir(source))?;
        let packages: Vec<String> = described_packages(source)?.into_iter().collect();
        let mut generate = Command::new(&generator);
        generate.env("GOROOT", self.goroot()).env("GOPATH", gopath).env("GO111MODULE", "off");
        generate.env("PATH", self.path_with_go()?);
        generate.args(["--logtostderr", "-i", &packages.join(",")]);
        generate.args(["-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi"]);
        generate.args(["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt", "-r", "/dev/null"]);
        shell::run(generate.current_dir(source))?;
        let generated = source.join("pkg/generated/openapi/zz_generated.openapi.go");
        ensure!(generated.exists(), "the generator left no {}", generated.display());
        Ok(())
    }

    /// Compiles a program.
    fn compile(&self, program: &str, file: &Path) -> Result<()> {
        say(format!("building {program}"));
        let started = clock::now();
        let mut go = self.go(&self.dir);
        if program == "pause" {
            let source = self.dir.join("pause.go");
            fs::write(&source, PAUSE_SOURCE)?;
            go.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(file).arg(source);
        } else {
            go.args(["build", "-trimpath", "-ldflags", &link_flags(), "-o"])
                .arg(file)
                .arg(format!("./cmd/{program}"));
        }
        shell::run(go.current_dir(checkout(&self.dir)))
            .with_context(|| format!("{program} does not build"))?;
        say(format!("{program}: {} s", started.elapsed().as_secs()));
        Ok(())
    }

    /// Source and intermediate results are most of what lies there, and of no more use when all is built.
    fn remove(&self) -> Result<()> {
        for dir in [self.dir.clone(), self.go_cache()] {
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("cannot remove {}", dir.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn go(&self, gopath: &Path) -> Command {
        let mut go = Command::new(self.goroot().join("bin/go"));
        // The tree is older than today's rules for modules; the old way of finding packages still builds it.
        go.env("GOROOT", self.goroot()).env("GOPATH", gopath).env("GO111MODULE", "off");
        go.env("GOCACHE", self.go_cache()).env("CGO_ENABLED", "0").env("GOFLAGS", "");
        go
    }

    fn goroot(&self) -> PathBuf {
        self.build.packages().join("usr/lib/go-1.19")
    }

    fn go_cache(&self) -> PathBuf {
        self.build.dir.join("go-cache")
    }

    fn path_with_go(&self) -> Result<std::ffi::OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = [self.goroot().join("bin")].into_iter().chain(std::env::split_paths(&path));
        Ok(std::env::join_paths(dirs)?)
    }
}

/// Where Go looks for the package `k8s.io/kubernetes`.
fn checkout(gopath: &Path) -> PathBuf {
    gopath.join("src/k8s.io/kubernetes")
}

/// Two validators take an empty string for "nothing" under a newer Go, and refuse it as a default of a custom resource.
fn keep_empty_defaults(source: &Path) -> Result<()> {
    const OLD: &str =
        "if data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data)) {";
    const NEW: &str = "if data == nil {";
    for file in [
        "vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go",
        "vendor/github.com/go-openapi/validate/type.go",
    ] {
        let path = source.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("the source has no {file}"))?;
        ensure!(text.contains(OLD), "{file} is not the one that is known to need a change");
        fs::write(&path, text.replace(OLD, NEW))?;
    }
    Ok(())
}

/// The Go packages whose types the API describes: those with the generator's mark.
fn described_packages(source: &Path) -> Result<BTreeSet<String>> {
    const IGNORED: [&str; 5] = ["code-generator", "sample-apiserver", "_examples", "testdata", "generators"];
    let mut found = BTreeSet::new();
    for (top, package) in
        [("cmd", "cmd"), ("pkg", "pkg"), ("plugin", "plugin"), ("staging/src/k8s.io", "vendor/k8s.io")]
    {
        let root = source.join(top);
        let mut dirs = vec![root.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir)?.flatten() {
                let (path, about) = (entry.path(), entry.file_type()?);
                let name = entry.file_name().to_string_lossy().into_owned();
                if about.is_dir() && !(top.starts_with("staging") && IGNORED.contains(&name.as_str())) {
                    dirs.push(path);
                } else if about.is_file() && name.ends_with(".go") && !name.ends_with("_test.go") {
                    let text = fs::read(&path)?;
                    if String::from_utf8_lossy(&text).contains("+k8s:openapi-gen=") {
                        let below = dir.strip_prefix(&root)?.display().to_string();
                        found.insert(
                            format!("k8s.io/kubernetes/{package}/{below}").trim_end_matches('/').to_owned(),
                        );
                    }
                }
            }
        }
    }
    ensure!(!found.is_empty(), "no Go package carries the generator's mark");
    Ok(found)
}

fn link_flags() -> String {
    let (major, minor) = ("1", "20");
    let mut flags = "-s -w".to_owned();
    for package in ["component-base/version", "client-go/pkg/version"] {
        let place = format!("k8s.io/kubernetes/vendor/k8s.io/{package}");
        flags += &format!(
            " -X {place}.gitVersion=v{VERSION} -X {place}.gitMajor={major} -X {place}.gitMinor={minor}"
        );
    }
    flags
}

/// A node sees these packages as part of its own root. There `bin`, `sbin` and `lib` are links into `usr`, which unpacked
/// directories of those names would hide; what programs need of them moves there.
fn keep_only_usr(tree: &Path) -> Result<()> {
    for dir in ["bin", "sbin"] {
        let Ok(entries) = fs::read_dir(tree.join(dir)) else { continue };
        let place = tree.join("usr").join(dir);
        fs::create_dir_all(&place)?;
        for entry in entries.flatten() {
            fs::rename(entry.path(), place.join(entry.file_name()))?;
        }
    }
    for entry in fs::read_dir(tree)?.flatten().filter(|entry| entry.file_name() != "usr") {
        fs::remove_dir_all(entry.path())?;
    }
    // Debian's installer would choose between two kinds of iptables; this is the one that the kernel's nftables carries.
    let sbin = tree.join("usr/sbin");
    for name in ["iptables", "ip6tables"] {
        for form in ["", "-save", "-restore"] {
            let place = sbin.join(format!("{name}{form}"));
            let _ = fs::remove_file(&place);
            std::os::unix::fs::symlink("xtables-nft-multi", place)?;
        }
    }
    Ok(())
}
