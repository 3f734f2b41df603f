//! Debian's packages, without installing any: lists, downloads and unpacking all happen in the cache.
//!
//! Where they come from is what this machine's own apt says of Debian 12; no server is named here. Only source packages are
//! asked for in addition.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{self, say};

/// The release whose Kubernetes can be built and whose programs run together.
const CODENAME: &str = "bookworm";

/// Where apt keeps its sources.
const APT_DIR: &str = "/etc/apt";

/// An apt of our own: this machine's sources of Debian 12, everything else in a directory of the cache.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Writes the sources and fetches the lists.
    pub fn prepare(dir: &Path) -> Result<Self> {
        for tool in ["apt-get", "dpkg-deb", "tar"] {
            ensure!(
                shell::answer(tool, &["--version"]).is_some(),
                "{tool} is missing: the cluster is built from Debian's packages, on Debian or with its tools installed"
            );
        }
        let _ = fs::remove_dir_all(dir.join("sources"));
        for part in ["sources", "lists/partial", "cache/archives/partial"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let sources = sources_of_release(&machine_sources()?);
        ensure!(
            !sources.is_empty(),
            "no file below {APT_DIR} names Debian 12 ({CODENAME}): add its main archive to {APT_DIR}/sources.list.d"
        );
        for (name, text) in sources {
            fs::write(dir.join("sources").join(name), text)?;
        }
        let apt = Self { dir: dir.to_owned() };
        say("fetching Debian's package lists");
        shell::run(apt.command("apt-get").arg("update"))
            .context("the package lists cannot be fetched; is there a network?")?;
        Ok(apt)
    }

    /// The version of a source package.
    pub fn source_version(&self, package: &str) -> Result<String> {
        let output = self.command("apt-cache").args(["showsrc", "--only-source", package]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let versions = text.lines().filter_map(|line| line.strip_prefix("Version: "));
        // Security updates are listed beside the release; apt takes the highest, and so does this.
        let highest = versions.reduce(|one, other| if is_newer(other, one) { other } else { one });
        Ok(highest.with_context(|| format!("apt knows no source package {package}"))?.trim().to_owned())
    }

    /// Downloads packages and unpacks them into one tree.
    pub fn unpack(&self, packages: &[&str], downloads: &Path, tree: &Path) -> Result<()> {
        fs::create_dir_all(downloads)?;
        say(format!("downloading {} packages", packages.len()));
        let mut download = self.command("apt-get");
        download.arg("download").args(packages).current_dir(downloads);
        shell::run(&mut download)?;
        let mut files: Vec<PathBuf> = fs::read_dir(downloads)?.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        for file in files {
            shell::run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(tree))?;
        }
        Ok(fs::remove_dir_all(downloads)?)
    }

    /// Downloads a source package, which apt checks, and unpacks upstream's part of it.
    pub fn unpack_source(&self, package: &str, version: &str, downloads: &Path, tree: &Path) -> Result<()> {
        fs::create_dir_all(downloads)?;
        fs::create_dir_all(tree)?;
        say(format!("downloading the source of {package} {version}"));
        let mut source = self.command("apt-get");
        source.args(["source", "--download-only", &format!("{package}={version}")]).current_dir(downloads);
        shell::run(&mut source)?;
        let mut files = fs::read_dir(downloads)?.flatten().map(|entry| entry.path());
        let original = files
            .find(|path| path.to_string_lossy().contains(".orig.tar"))
            .with_context(|| format!("the source package {package} has no .orig.tar file"))?;
        shell::run(
            Command::new("tar").arg("xf").arg(original).arg("-C").arg(tree).arg("--strip-components=1"),
        )?;
        Ok(fs::remove_dir_all(downloads)?)
    }

    fn command(&self, program: &str) -> Command {
        let option = |name: &str, value: &Path| {
            let mut word = OsString::from(format!("-o{name}="));
            word.push(value);
            word
        };
        let mut command = Command::new(program);
        command.args(["-q", "-q", "-oAPT::Sandbox::User=root"]);
        command.arg(option("Dir::Etc::SourceList", Path::new("/dev/null")));
        command.arg(option("Dir::Etc::SourceParts", &self.dir.join("sources")));
        command.arg(option("Dir::State::Lists", &self.dir.join("lists")));
        command.arg(option("Dir::Cache", &self.dir.join("cache")));
        command
    }
}

/// The machine's source files: name and content.
fn machine_sources() -> Result<Vec<(String, String)>> {
    let dir = Path::new(APT_DIR);
    let parts =
        fs::read_dir(dir.join("sources.list.d")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files = Vec::new();
    for path in parts.chain([dir.join("sources.list")]).filter(|path| path.exists()) {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text));
    }
    if files.is_empty() {
        bail!("{APT_DIR} has no sources: is this Debian?");
    }
    Ok(files)
}

/// What of the sources speaks of our release, with source packages asked for.
fn sources_of_release(files: &[(String, String)]) -> Vec<(String, String)> {
    let kept = files.iter().map(|(name, text)| {
        let of_release =
            if name.ends_with(".sources") { stanzas_of_release(text) } else { lines_of_release(text) };
        (name.clone(), of_release)
    });
    kept.filter(|(_, text)| !text.is_empty()).collect()
}

fn is_of_release(suite: &str) -> bool {
    suite.trim_end_matches('/') == CODENAME || suite.starts_with(&format!("{CODENAME}-"))
}

/// deb822-style files: stanzas between empty lines (sources.list(5)).
fn stanzas_of_release(text: &str) -> String {
    let mut kept = String::new();
    for stanza in text.split("\n\n") {
        let lines: Vec<&str> = stanza.lines().filter(|line| !line.starts_with('#')).collect();
        let of_release = lines.iter().any(|line| {
            let suites = line.strip_prefix("Suites:");
            suites.is_some_and(|suites| suites.split_whitespace().any(is_of_release))
        });
        if !of_release {
            continue;
        }
        for line in lines {
            kept.push_str(if line.starts_with("Types:") { "Types: deb deb-src" } else { line });
            kept.push('\n');
        }
        kept.push('\n');
    }
    kept
}

/// One-line-style files: `deb [options] uri suite component...` (sources.list(5)).
fn lines_of_release(text: &str) -> String {
    let mut kept = String::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let without_options = match rest.trim_start().strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, after)| after),
            None => rest,
        };
        if without_options.split_whitespace().nth(1).is_some_and(is_of_release) {
            kept.push_str(&format!("deb {rest}\ndeb-src {rest}\n"));
        }
    }
    kept
}

/// Whether one version is higher, as dpkg orders them.
fn is_newer(version: &str, than: &str) -> bool {
    let compare = Command::new("dpkg").args(["--compare-versions", version, "gt", than]).status();
    compare.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, text: &str) -> Vec<(String, String)> {
        sources_of_release(&[(name.to_owned(), text.to_owned())])
    }

    #[test]
    fn stanzas_of_the_release_are_kept_with_their_sources_and_others_are_not() {
        let text = "# Debian\nTypes: deb\nURIs: http://deb.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\n\nTypes: deb\nURIs: http://other.example\nSuites: nodistro\n";
        let kept = kept("debian.sources", text);
        assert_eq!(
            kept[0].1,
            "Types: deb deb-src\nURIs: http://deb.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n"
        );
    }

    #[test]
    fn lines_of_the_release_are_kept_with_their_sources_and_others_are_not() {
        let text = "deb [signed-by=/k.gpg] http://deb.example/debian bookworm main\n# deb http://x bookworm main\n\
                    deb http://cloud.example cloud-sdk-bookworm main\ndeb http://deb.example/debian trixie main\n";
        let kept = kept("sources.list", text);
        assert_eq!(
            kept[0].1,
            "deb [signed-by=/k.gpg] http://deb.example/debian bookworm main\n\
             deb-src [signed-by=/k.gpg] http://deb.example/debian bookworm main\n"
        );
    }

    #[test]
    fn sources_of_other_releases_leave_nothing() {
        assert!(kept("debian.sources", "Types: deb\nURIs: http://deb.example\nSuites: trixie\n").is_empty());
    }
}
