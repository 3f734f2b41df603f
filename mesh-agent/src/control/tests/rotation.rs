//! One root follows another while handshakes go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::handshakes::shake;
use super::{Mesh, domain, id, until};
use crate::control::Error;
use crate::control::ca::{Authority, Phase, Stage, StageRefused, rotate};
use crate::identity::Identities;
use crate::lifecycle::tasks;

fn roots_published(mesh: &Mesh) -> usize {
    let text = std::fs::read_to_string(mesh.path("roots.pem")).expect("published");
    text.matches("BEGIN CERTIFICATE").count()
}

fn issuer(identities: &Identities) -> String {
    identities.certificates()[0].issuer.clone()
}

/// Both directions, over and over; counts what fails.
fn keep_shaking(one: Identities, two: Identities, stop: Arc<AtomicBool>) -> Arc<[AtomicU64; 2]> {
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let tally = counts.clone();
    tasks::spawn("handshakes", async move {
        while !stop.load(Ordering::Relaxed) {
            for (from, client, to, server) in
                [(&one, "orders", &two, "payments"), (&two, "payments", &one, "orders")]
            {
                let (client, server) = (from.client_config(&id(client)), to.server_config(&id(server)));
                let outcome = match (client, server) {
                    (Some(client), Some(server)) => shake(client, server).err(),
                    _ => Some("no certificate to use"),
                };
                tally[usize::from(outcome.is_some())].fetch_add(1, Ordering::Relaxed);
                if let Some(why) = outcome {
                    eprintln!("handshake failed: {why}");
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    counts
}

#[tokio::test]
async fn root_is_rotated_through_all_stages_without_one_failed_handshake() {
    let mesh = Mesh::new(Duration::from_secs(4));
    let (address, _) = mesh.start_control();
    let one = mesh.start_node("node-1", &address, &["orders"]).await;
    let two = mesh.start_node("node-2", &address, &["payments"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let counts = keep_shaking(one.clone(), two.clone(), stop.clone());
    let (dir, before) = (&mesh.settings.state_dir, issuer(&one));
    assert_eq!(roots_published(&mesh), 1);
    let first_roots = std::fs::read(mesh.path("roots.pem")).expect("published");

    assert_eq!(rotate(dir, Stage::Begin, Duration::ZERO).expect("begins"), Phase::Begun);
    until("two roots everywhere", || {
        roots_published(&mesh) == 2 && [&one, &two].iter().all(|node| node.counts().bundle_reloads == 1)
    })
    .await;
    assert_eq!(issuer(&one), before, "the old root signs");

    assert_eq!(rotate(dir, Stage::Switch, Duration::ZERO).expect("switches"), Phase::Switched);
    until("both renewed under the new root", || issuer(&one) != before && issuer(&two) != before).await;
    assert_eq!(roots_published(&mesh), 2);

    assert_eq!(rotate(dir, Stage::Finish, Duration::ZERO).expect("finishes"), Phase::Steady);
    until("one root everywhere", || {
        roots_published(&mesh) == 1 && [&one, &two].iter().all(|node| node.counts().bundle_reloads == 2)
    })
    .await;
    assert_ne!(std::fs::read(mesh.path("roots.pem")).expect("published"), first_roots);
    let after_finish = counts[0].load(Ordering::Relaxed);
    until("handshakes go on", || counts[0].load(Ordering::Relaxed) > after_finish + 20).await;
    // A renewal under the new root alone, over a fresh connection to the CA.
    let issued = one.counts().issued;
    until("renewed once more", || one.counts().issued > issued).await;
    stop.store(true, Ordering::Relaxed);
    assert_eq!(counts[1].load(Ordering::Relaxed), 0, "failed, of {}", counts[0].load(Ordering::Relaxed));
}

#[tokio::test]
async fn certificate_under_a_root_that_left_the_bundle_is_renewed_at_once() {
    let mesh = Mesh::new(Duration::from_secs(3600));
    let (address, _) = mesh.start_control();
    let one = mesh.start_node("node-1", &address, &["orders"]).await;
    let before = issuer(&one);
    for (stage, reloads) in [(Stage::Begin, 1), (Stage::Switch, 1), (Stage::Finish, 2)] {
        rotate(&mesh.settings.state_dir, stage, Duration::ZERO).expect("next stage");
        until("the bundle is followed", || one.counts().bundle_reloads == reloads).await;
    }
    until("renewed long before two thirds of an hour", || issuer(&one) != before).await;
    assert_eq!(one.counts().issued, 2);
}

#[tokio::test]
async fn unusable_bundle_is_counted_and_the_last_good_one_stays_in_use() {
    let mesh = Mesh::new(Duration::from_secs(3600));
    let (address, _) = mesh.start_control();
    let one = mesh.start_node("node-1", &address, &["orders", "web"]).await;
    std::fs::write(mesh.path("roots.pem"), "not a bundle").expect("written");
    until("it is noticed", || one.counts().bundle_failures > 0).await;
    let (client, server) = (one.client_config(&id("orders")), one.server_config(&id("web")));
    let outcome = shake(client.expect("valid"), server.expect("valid"));
    assert_eq!(outcome, Ok((id("web"), id("orders"))));
    assert_eq!(one.counts().bundle_reloads, 0);
    until("the control plane publishes it anew", || roots_published(&mesh) == 1).await;
}

#[test]
fn stages_come_in_order_and_not_too_early() {
    let mesh = Mesh::new(Duration::from_secs(3600));
    let dir = &mesh.settings.state_dir;
    Authority::open(dir, &domain("cluster.local")).expect("opens");
    let refused = |stage, patience| match rotate(dir, stage, Duration::from_secs(patience)) {
        Err(Error::Rotation(refused)) => refused,
        other => panic!("{other:?}"),
    };
    let out_of_order = |stage| matches!(refused(stage, 0), StageRefused::OutOfOrder { .. });
    let too_early = |stage| {
        matches!(refused(stage, 100), StageRefused::TooEarly { wait, .. }
        if (Duration::from_secs(90)..=Duration::from_secs(100)).contains(&wait))
    };

    assert!(out_of_order(Stage::Switch) && out_of_order(Stage::Finish));
    rotate(dir, Stage::Begin, Duration::from_secs(100)).expect("begins at any time");
    assert!(out_of_order(Stage::Begin) && out_of_order(Stage::Finish) && too_early(Stage::Switch));
    rotate(dir, Stage::Switch, Duration::ZERO).expect("switches");
    assert!(out_of_order(Stage::Begin) && out_of_order(Stage::Switch) && too_early(Stage::Finish));
    assert_eq!(
        refused(Stage::Begin, 0).to_string(),
        "begin does not follow on switch; the next stage is finish"
    );
    rotate(dir, Stage::Finish, Duration::ZERO).expect("finishes");
}

#[test]
fn switch_that_was_interrupted_is_either_done_or_not() {
    let mesh = Mesh::new(Duration::from_secs(3600));
    let dir = &mesh.settings.state_dir;
    let open = || Authority::open(dir, &domain("cluster.local")).expect("opens");
    open();
    rotate(dir, Stage::Begin, Duration::ZERO).expect("begins");
    let (authority, next) = (dir.join("authority.pem"), dir.join("next-root.pem"));
    let read = |path| std::fs::read(path).expect("there");
    let (old_authority, old_next) = (read(&authority), read(&next));
    rotate(dir, Stage::Switch, Duration::ZERO).expect("switches");
    let new_authority = read(&authority);

    // Stopped after the old root was noted, before the rename.
    super::put_secret(&next, std::str::from_utf8(&old_next).expect("PEM"));
    super::put_secret(&authority, std::str::from_utf8(&old_authority).expect("PEM"));
    assert_eq!(open().phase(), Phase::Begun);
    assert_eq!(open().bundle_pem().matches("BEGIN").count(), 2);
    // Stopped after the rename, before the new root's own file was removed.
    super::put_secret(&authority, std::str::from_utf8(&new_authority).expect("PEM"));
    assert_eq!(open().phase(), Phase::Switched);
    assert_eq!(open().bundle_pem().matches("BEGIN").count(), 2);
    rotate(dir, Stage::Finish, Duration::ZERO).expect("finishes");
    assert_eq!(open().bundle_pem().matches("BEGIN").count(), 1);
}
