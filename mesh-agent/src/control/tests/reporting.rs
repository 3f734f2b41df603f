//! Agents tell control what is in force: real gRPC, an API in memory.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::Code;

use super::cluster::{Cluster, Replica, own};
use super::reviewing::token;
use super::{Mesh, put_secret, until};
use crate::control::reports::desk::Desk;
use crate::identity::line::{Failure, Line};
use crate::lifecycle::{Shutdown, Trigger, shutdown};
use crate::model::{Generations, Publication, Versions};
use crate::progress::{self, wire};
use std::time::Duration;
use wire::{Heard, InForce, REPORT, REPORT_BYTES_MAX, Report};

const USER: &str = "system:serviceaccount:weft-system:weft-agent";

/// An agent's part in this: what discovery and capture would say.
struct Agent {
    versions: watch::Sender<Versions>,
    in_kernel: watch::Sender<Publication>,
    _trigger: Trigger,
}

impl Agent {
    fn start(line: Line) -> Self {
        let (versions, in_kernel) = (watch::Sender::default(), watch::Sender::default());
        let (trigger, shutdown): (Trigger, Shutdown) = shutdown::channel();
        progress::start(line, versions.subscribe(), in_kernel.subscribe(), shutdown);
        Self { versions, in_kernel, _trigger: trigger }
    }

    /// Discovery publishes this policy, and it is in the kernel.
    fn puts_in_force(&self, version: u64, generation: i64) {
        let publication = Publication { registry: version, policies: version, routes: 1 };
        let generations: Generations = [("policy".into(), generation)].into();
        self.versions.send_replace(Versions { publication, generations: Arc::new(generations) });
        self.in_kernel.send_replace(publication);
    }
}

/// On how many of both nodes this generation is in force.
fn ready(desk: &Desk, generation: i64) -> usize {
    let nodes = ["node-1", "node-2"].map(Into::into).into();
    desk.heard().expecting(&nodes).count("policy", generation).ready
}

fn count(desk: &Desk, label: &str) -> u64 {
    desk.counts().filter(|(result, _)| *result == label).map(|(_, count)| count).sum()
}

fn whole(number: u64, uids: &[&str]) -> Report {
    let in_force = uids.iter().map(|uid| InForce { uid: (*uid).to_owned(), generation: 1 }).collect();
    Report { series: 1, number, in_force, gone: Vec::new() }
}

async fn refusal(line: &Line, report: Report) -> tonic::Status {
    match line.call::<_, Heard>(REPORT, report).await {
        Err(Failure::Refused(status)) => *status,
        other => panic!("not refused: {other:?}"),
    }
}

async fn two_replicas(cluster: &Cluster) -> (Replica, Replica) {
    let (one, two) = tokio::join!(cluster.start(own()), cluster.start(own()));
    until("one of them leads", || one.leads() != two.leads()).await;
    if one.leads() { (one, two) } else { (two, one) }
}

#[tokio::test]
async fn agents_find_the_leader_tell_of_changes_and_follow_to_the_next() {
    let cluster = Cluster::new();
    let (leader, other) = two_replicas(&cluster).await;
    let agents = ["node-1", "node-2"].map(|node| Agent::start(cluster.mesh.line(node, &other.address)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(leader.desk.heard().reporting(), 0, "nothing is in force yet");
    agents[0].puts_in_force(1, 1);
    until("one has it", || ready(&leader.desk, 1) == 1).await;
    agents[1].puts_in_force(1, 1);
    until("both have it", || ready(&leader.desk, 1) == 2).await;
    agents[0].puts_in_force(2, 2);
    until("one has the next", || ready(&leader.desk, 2) == 1).await;
    assert_eq!(ready(&leader.desk, 1), 2);
    assert!(count(&other.desk, "not_leader") >= 2 && other.desk.heard().reporting() == 0);
    leader.trigger.fire();
    until("the other leads", || other.leads()).await;
    agents[0].puts_in_force(3, 4);
    agents[1].puts_in_force(3, 3);
    until("it hears of both", || (ready(&other.desk, 3), ready(&other.desk, 4)) == (2, 1)).await;
}

#[tokio::test]
async fn a_replica_that_does_not_lead_names_the_one_that_does() {
    let cluster = Cluster::new();
    let (leader, other) = two_replicas(&cluster).await;
    let line = cluster.mesh.line("node-1", &other.address);
    until("its address is in the Lease", || {
        let lease =
            cluster.api.get("/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-control");
        lease.is_some_and(|lease| {
            lease["metadata"]["annotations"]["weft.dev/address"] == leader.address.as_str()
        })
    })
    .await;
    let named = async {
        loop {
            let status = refusal(&line, whole(0, &[])).await;
            assert_eq!(status.code(), Code::FailedPrecondition);
            match status.metadata().get(wire::LEADER) {
                Some(address) => return address.to_str().expect("text").to_owned(),
                None => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
    };
    let named = tokio::time::timeout(super::PATIENCE, named).await.expect("it reads the Lease");
    assert_eq!(named, leader.address);
    line.lead_to(Some(named.parse().expect("an address")));
    let heard = line.call::<_, Heard>(REPORT, whole(0, &["policy"])).await.expect("the leader takes it");
    assert!(!heard.begin_again);
    assert_eq!(ready(&leader.desk, 1), 1);
}

#[tokio::test]
async fn a_caller_is_known_by_its_token_and_speaks_for_its_own_node() {
    let cluster = Cluster::new();
    let replica = cluster.start(own()).await;
    until("it leads", || replica.leads()).await;
    let line = cluster.mesh.line("node-2", &replica.address);
    line.call::<_, Heard>(REPORT, whole(0, &["policy"])).await.expect("an agent's token");
    let lacking = replica
        .desk
        .heard()
        .expecting(&["node-1", "node-2"].map(Into::into).into())
        .count("policy", 1)
        .lacking;
    assert_eq!(lacking, ["node-1".into()]);
    put_secret(&cluster.mesh.path("node-2.token"), &token("weft-control", USER, 3600, "forged"));
    assert_eq!(refusal(&line, whole(0, &["policy"])).await.code(), Code::Unauthenticated);
    assert_eq!((count(&replica.desk, "taken"), count(&replica.desk, "bad_token")), (1, 1));
    cluster.api.set_away(true);
    let known = cluster.mesh.line("node-1", &replica.address);
    match known.call::<_, Heard>(REPORT, whole(0, &[])).await {
        Err(Failure::Unreachable { message, .. }) => assert!(message.contains("try again"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_no_report_or_comes_too_often_is_refused_by_name() {
    let mesh = Mesh::new(Duration::from_secs(3600));
    let control = crate::control::Control::open(mesh.settings.clone(), mesh.registry.clone()).expect("opens");
    let (address, desk) = (control.local_addr().to_string(), control.desk());
    let running = mesh.shutdown.clone();
    crate::lifecycle::tasks::spawn("control", async move { control.run(running).await.expect("runs") });
    let line = mesh.line("node-1", &address);

    let twice = refusal(&line, whole(0, &["x", "x"])).await;
    assert_eq!((twice.code(), twice.message()), (Code::InvalidArgument, "report: an object is named twice"));
    let long = "x".repeat(REPORT_BYTES_MAX);
    let large = refusal(&line, whole(0, &[&long])).await;
    assert_eq!(large.code(), Code::OutOfRange);
    assert!(large.message().contains("too large"), "{}", large.message());
    let ahead = line.call::<_, Heard>(REPORT, whole(7, &[])).await.expect("answered");
    assert!(ahead.begin_again);
    let good = line.call::<_, Heard>(REPORT, whole(0, &["policy"])).await.expect("answered");
    assert!(!good.begin_again);
    assert_eq!((ready(&desk, 1), desk.heard().reporting()), (1, 1));

    let limited = async {
        loop {
            match line.call::<_, Heard>(REPORT, whole(0, &[])).await {
                Ok(_) => {}
                Err(Failure::Refused(status)) => return *status,
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    let limited = tokio::time::timeout(super::PATIENCE, limited).await.expect("held back");
    assert_eq!(
        (limited.code(), limited.message()),
        (Code::ResourceExhausted, "rate: node node-1 reports too often")
    );
    mesh.line("node-2", &address).call::<_, Heard>(REPORT, whole(0, &[])).await.expect("others are not");
}
