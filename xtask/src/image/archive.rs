//! An OCI archive: what an image holds, written as one tar file that `ctr images import` takes.
//!
//! Bytes depend on the contents alone: entries are sorted, and times, owners and names of the building machine are left
//! out. So the same binaries give the same digest. It runs no container tool and asks no daemon.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What an image is made of.
#[derive(Debug, Default)]
pub struct Image {
    /// `HOST/NAME:TAG`, under which a node finds it.
    pub name: String,
    /// Files by their path in the image, without a slash in front.
    files: BTreeMap<String, Entry>,
    /// The program that a container runs, and its first arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// What tools show about the image.
    pub labels: BTreeMap<String, String>,
    /// `UID:GID` when a pod does not say it; empty for root.
    pub user: String,
}

/// One file of the image.
#[derive(Debug)]
enum Entry {
    File { bytes: Vec<u8>, mode: u32 },
    Directory { mode: u32 },
    Link { target: String },
}

impl Image {
    /// An image without files.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Adds a file with these bytes.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.add(path, Entry::File { bytes: bytes.into(), mode });
    }

    /// Adds a directory, which is needed only for an empty one or for one with a mode of its own.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.add(path, Entry::Directory { mode });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(path, Entry::Link { target: target.to_owned() });
    }

    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/').to_owned();
        for (end, _) in path.match_indices('/') {
            self.files.entry(path[..end].to_owned()).or_insert(Entry::Directory { mode: 0o755 });
        }
        self.files.insert(path, entry);
    }

    /// Writes the archive and returns the digest of the image's manifest.
    pub fn write(&self, to: &Path) -> Result<String> {
        let (_, tag) = self.name.rsplit_once(':').context("an image's name ends in :TAG")?;
        ensure!(!tag.contains('/'), "{:?} has no tag: write HOST/NAME:TAG", self.name);
        let layer = self.layer().context("the layer cannot be put together")?;
        let config = self.config(&digest(&layer)).to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut reference = descriptor(MANIFEST, &manifest);
        // The first is read by containerd, the second by everybody else.
        reference["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        reference["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [reference]});

        let mut archive = Builder::new(Vec::new());
        add_file(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add_file(&mut archive, "index.json", 0o644, index.to_string().as_bytes())?;
        for blob in [&layer, &config, &manifest] {
            add_file(&mut archive, &blob_path(blob), 0o644, blob)?;
        }
        put(to, &archive.into_inner()?).with_context(|| format!("cannot write {}", to.display()))?;
        Ok(digest(&manifest))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        for (path, entry) in &self.files {
            match entry {
                Entry::File { bytes, mode } => add_file(&mut layer, path, *mode, bytes)?,
                Entry::Directory { mode } => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    layer.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Entry::Link { target } => {
                    layer.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }

    fn config(&self, layer: &str) -> serde_json::Value {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": self.environment,
                "Entrypoint": self.entrypoint,
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [layer]},
        })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// This machine's architecture, by the name that images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn add_file(archive: &mut Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    archive.append_data(&mut header(EntryType::Regular, mode, bytes.len() as u64), path, bytes)?;
    Ok(())
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/{}", digest(bytes).replace(':', "/"))
}

fn descriptor(kind: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

/// A reader never sees half an archive.
fn put(to: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = to.with_extension("new");
    fs::File::create(&temporary)?.write_all(bytes)?;
    fs::rename(&temporary, to)?;
    Ok(())
}

#[cfg(test)]
mod tests;
