//! What the CA's own files must be like.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{Mesh, domain, put_secret};
use crate::control::ca::{Authority, Stage, rotate};
use crate::control::{Control, Error};

const HOUR: Duration = Duration::from_secs(3600);

fn open(dir: &Path) -> Result<Authority, Error> {
    Authority::open(dir, &domain("cluster.local"))
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("readable");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn first_start_makes_keys_that_only_the_owner_can_read_and_the_second_finds_them() {
    let mesh = Mesh::new(HOUR);
    let dir = &mesh.settings.state_dir;
    let first = open(dir).expect("made");
    assert_eq!((mode(dir), mode(&dir.join("authority.pem"))), (0o700, 0o600));
    assert_eq!(names(dir), ["authority.pem", "lock"]);
    let second = open(dir).expect("found");
    assert!(second.is_same_as(&first));
    assert_eq!(second.chain_pem(), first.chain_pem());
}

#[test]
fn key_file_that_others_can_read_is_refused_by_name() {
    let mesh = Mesh::new(HOUR);
    let dir = &mesh.settings.state_dir;
    open(dir).expect("made");
    rotate(dir, Stage::Begin, Duration::ZERO).expect("begins");
    for name in ["authority.pem", "next-root.pem"] {
        let path = dir.join(name);
        for loose in [0o640, 0o604, 0o620, 0o666] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(loose)).expect("mode set");
            let said = open(dir).expect_err("loose").to_string();
            assert!(said.contains(name) && said.contains(&format!("{loose:04o}")), "{said}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode set");
        open(dir).expect("tight again");
    }
}

#[test]
fn truncated_or_mismatching_authority_is_refused_by_name() {
    let (mesh, other) = (Mesh::new(HOUR), Mesh::new(HOUR));
    let path = mesh.settings.state_dir.join("authority.pem");
    open(&mesh.settings.state_dir).expect("made");
    open(&other.settings.state_dir).expect("made");
    let ours = std::fs::read_to_string(&path).expect("PEM");
    let theirs = std::fs::read_to_string(other.settings.state_dir.join("authority.pem")).expect("PEM");
    let sections = |text: &str| -> Vec<String> {
        text.split_inclusive("-----END CERTIFICATE-----\n")
            .flat_map(|part| part.split_inclusive("-----END PRIVATE KEY-----\n"))
            .map(str::to_owned)
            .collect()
    };
    let (ours_in_parts, theirs_in_parts) = (sections(&ours), sections(&theirs));
    assert_eq!(ours_in_parts.len(), 4, "root, key, intermediate, key");
    let mix = |picks: [&String; 4]| picks.map(String::as_str).concat();
    let [root, root_key, intermediate, intermediate_key] = [0, 1, 2, 3].map(|index| &ours_in_parts[index]);
    for (text, expected) in [
        (String::new(), "0 certificates and 0 keys"),
        (ours[..ours.len() / 2].to_owned(), ""),
        (ours[..ours.len() - 40].to_owned(), ""),
        (mix([root, root_key, intermediate, &theirs_in_parts[3]]), "do not belong together"),
        (mix([root, &theirs_in_parts[1], intermediate, intermediate_key]), "do not belong together"),
        (
            mix([&theirs_in_parts[0], &theirs_in_parts[1], intermediate, intermediate_key]),
            "not signed by the root",
        ),
    ] {
        put_secret(&path, &text);
        let said = open(&mesh.settings.state_dir).expect_err("unusable").to_string();
        assert!(said.contains("authority.pem") && said.contains(expected), "{said}");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), text, "left as it was found");
    }
    put_secret(&path, &ours);
    open(&mesh.settings.state_dir).expect("whole again");
}

#[test]
fn state_of_another_trust_domain_is_refused() {
    let mesh = Mesh::new(HOUR);
    open(&mesh.settings.state_dir).expect("made");
    let said =
        Authority::open(&mesh.settings.state_dir, &domain("other.example")).expect_err("foreign").to_string();
    assert!(
        said.contains("authority.pem belongs to trust domain cluster.local, not to other.example"),
        "{said}"
    );
}

#[test]
fn loose_join_token_stops_the_start() {
    let mesh = Mesh::new(HOUR);
    let token = mesh.settings.join_tokens_dir.join("node-1");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).expect("mode set");
    let said = Control::open(mesh.settings.clone(), mesh.registry.clone()).expect_err("loose").to_string();
    assert!(said.contains("node-1") && said.contains("0644"), "{said}");
}

/// Needs root: the full disk is a tmpfs in a mount namespace of this thread alone, gone when the test ends.
#[test]
fn full_disk_is_a_clear_error_and_leaves_nothing_half_written() {
    unshare(CloneFlags::CLONE_NEWNS).expect("run this test as root: sudo -E cargo nextest run full_disk");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mounts made private");
    let mesh = Mesh::new(HOUR);
    let disk = mesh.path("disk");
    std::fs::create_dir(&disk).expect("made");
    mount(Some("none"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=64k,mode=0700")).expect("mounted");
    let fill = || {
        let filler = std::fs::write(disk.join("filler"), vec![0; 1 << 20]);
        assert_eq!(filler.expect_err("full").kind(), std::io::ErrorKind::StorageFull);
    };
    let empty = || std::fs::remove_file(disk.join("filler")).expect("removed");
    let is_full = |error: Error, name: &str| match error {
        Error::Write { path, source } => {
            assert_eq!(path, disk.join(name));
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{source}");
        }
        other => panic!("{other}"),
    };

    fill();
    is_full(open(&disk).expect_err("no room for the keys"), "authority.pem");
    assert_eq!(names(&disk), ["filler", "lock"]);
    empty();
    let authority = open(&disk).expect("room again");

    fill();
    is_full(rotate(&disk, Stage::Begin, Duration::ZERO).expect_err("no room for a root"), "next-root.pem");
    assert_eq!(names(&disk), ["authority.pem", "filler", "lock"]);
    let mut settings = mesh.settings.clone();
    settings.trust_bundle_out = Some(disk.join("roots.pem"));
    is_full(Control::open(settings, mesh.registry.clone()).expect_err("no room for the bundle"), "roots.pem");
    assert!(open(&disk).expect("as before").is_same_as(&authority));
}
