//! Archives, read back as a node's container runtime reads them.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::Value;

use super::*;

fn image() -> Image {
    let mut image = Image::named("example.org/tool:1.2");
    image.file("/usr/bin/tool", 0o755, "program");
    image.file("etc/passwd", 0o644, "root:x:0:0::/:\n");
    image.link("bin/tool", "/usr/bin/tool");
    image.directory("tmp", 0o1777);
    image.entrypoint = vec!["/usr/bin/tool".to_owned(), "run".to_owned()];
    image.user = "65532:65532".to_owned();
    image
}

fn written(image: &Image) -> Vec<u8> {
    let dir = Scratch::new();
    image.write(&dir.0.join("image.tar")).expect("written");
    fs::read(dir.0.join("image.tar")).expect("read back")
}

/// A directory that is gone after the test.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("weft-image-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn unpacked(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("a tar file");
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("a whole entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read");
        (entry.path().expect("a path").to_string_lossy().into_owned(), bytes)
    };
    entries.map(read).collect()
}

/// Follows a descriptor, and checks size and digest on the way.
fn follow(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
    let named = descriptor["digest"].as_str().expect("a digest");
    let bytes = &files[&format!("blobs/{}", named.replace(':', "/"))];
    assert_eq!(digest(bytes), named);
    assert_eq!(descriptor["size"], bytes.len());
    bytes.clone()
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn the_index_leads_to_every_part_by_its_digest() {
    let files = unpacked(&written(&image()));
    assert_eq!(json_of(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let index = json_of(&files["index.json"]);
    let reference = &index["manifests"][0];
    assert_eq!(reference["annotations"]["io.containerd.image.name"], "example.org/tool:1.2");
    assert_eq!(reference["annotations"]["org.opencontainers.image.ref.name"], "1.2");
    let manifest = json_of(&follow(&files, reference));
    let config = json_of(&follow(&files, &manifest["config"]));
    let layer = follow(&files, &manifest["layers"][0]);
    assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/tool", "run"]));
    assert_eq!(config["config"]["User"], "65532:65532");
}

#[test]
fn the_layer_holds_files_links_and_the_directories_around_them() {
    let files = unpacked(&written(&image()));
    let manifest = json_of(&follow(&files, &json_of(&files["index.json"])["manifests"][0]));
    let layer = follow(&files, &manifest["layers"][0]);
    let mut archive = tar::Archive::new(&layer[..]);
    let seen: Vec<(String, u32, EntryType)> = archive
        .entries()
        .expect("a tar file")
        .map(|entry| {
            let entry = entry.expect("a whole entry");
            let header = entry.header();
            assert_eq!((header.mtime().ok(), header.uid().ok()), (Some(0), Some(0)));
            let path = entry.path().expect("a path").to_string_lossy().into_owned();
            (path, header.mode().expect("a mode"), header.entry_type())
        })
        .collect();
    let expected = [
        ("bin/", 0o755, EntryType::Directory),
        ("bin/tool", 0o777, EntryType::Symlink),
        ("etc/", 0o755, EntryType::Directory),
        ("etc/passwd", 0o644, EntryType::Regular),
        ("tmp/", 0o1777, EntryType::Directory),
        ("usr/", 0o755, EntryType::Directory),
        ("usr/bin/", 0o755, EntryType::Directory),
        ("usr/bin/tool", 0o755, EntryType::Regular),
    ];
    assert_eq!(seen, expected.map(|(path, mode, kind)| (path.to_owned(), mode, kind)));
}

#[test]
fn the_same_contents_give_the_same_bytes_and_others_do_not() {
    assert_eq!(written(&image()), written(&image()));
    let mut changed = image();
    changed.file("etc/passwd", 0o644, "");
    assert_ne!(written(&image()), written(&changed));
}

#[test]
fn a_name_without_a_tag_is_refused() {
    for name in ["weft", "localhost:5000/weft"] {
        let error = Image::named(name).write(Path::new("/nowhere/image.tar")).expect_err(name);
        assert!(format!("{error:#}").contains("TAG"), "{error:#}");
    }
}
