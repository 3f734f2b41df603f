//! Who leads, by paused time and an API in memory.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::fake_api::FakeApi;
use crate::control::lease::{Candidate, DURATION, RENEW_LIMIT, RETRY};
use crate::lifecycle::{Trigger, clock, shutdown, tasks};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-control";

struct Replica {
    leads: watch::Receiver<bool>,
    task: JoinHandle<()>,
    trigger: Trigger,
}

fn stand(api: &FakeApi, identity: &str) -> Replica {
    let (candidate, leads) = Candidate::new(&api.client(), "weft-system", identity);
    let (trigger, shutdown) = shutdown::channel();
    Replica { leads, task: tasks::spawn("candidate", candidate.run(shutdown)), trigger }
}

async fn until_leads(replica: &mut Replica, leads: bool) -> Duration {
    let started = clock::now();
    let changed = replica.leads.wait_for(|now| *now == leads);
    tokio::time::timeout(Duration::from_secs(120), changed).await.expect("in time").expect("it runs");
    clock::now().duration_since(started)
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_renews_the_record() {
    let api = FakeApi::default();
    let mut one = stand(&api, "one");
    until_leads(&mut one, true).await;
    let two = stand(&api, "two");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(*one.leads.borrow() && !*two.leads.borrow());
    let spec = &api.get(LEASE).expect("made")["spec"];
    assert_eq!((spec["holderIdentity"].as_str(), spec["leaseTransitions"].as_i64()), (Some("one"), Some(0)));
    assert!(api.requests("PUT").len() > 40, "renewed every two seconds: {}", api.requests("PUT").len());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_is_followed_after_the_duration_and_not_before() {
    let api = FakeApi::default();
    let mut one = stand(&api, "one");
    until_leads(&mut one, true).await;
    let mut two = stand(&api, "two");
    tokio::time::sleep(Duration::from_secs(5)).await;
    one.task.abort();
    let waited = until_leads(&mut two, true).await;
    assert!(waited >= DURATION - RETRY * 2 && waited <= DURATION + RETRY * 3, "{waited:?}");
    let spec = &api.get(LEASE).expect("there")["spec"];
    assert_eq!((spec["holderIdentity"].as_str(), spec["leaseTransitions"].as_i64()), (Some("two"), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stops_gives_the_lease_back_and_is_followed_at_once() {
    let api = FakeApi::default();
    let mut one = stand(&api, "one");
    until_leads(&mut one, true).await;
    let mut two = stand(&api, "two");
    tokio::time::sleep(Duration::from_secs(5)).await;
    one.trigger.fire();
    one.task.await.expect("ends");
    let waited = until_leads(&mut two, true).await;
    assert!(waited <= RETRY * 2, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_may_begin() {
    let api = FakeApi::default();
    let mut one = stand(&api, "one");
    until_leads(&mut one, true).await;
    api.set_away(true);
    let waited = until_leads(&mut one, false).await;
    assert!(waited >= RENEW_LIMIT - RETRY * 2 && waited < DURATION, "{waited:?}");
    api.set_away(false);
    until_leads(&mut one, true).await;
}

#[tokio::test(start_paused = true)]
async fn times_of_a_clock_far_off_decide_nothing() {
    for renewed in ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] {
        let api = FakeApi::default();
        let spec =
            serde_json::json!({"holderIdentity": "else", "leaseDurationSeconds": 15, "renewTime": renewed});
        api.put(LEASE, serde_json::json!({"metadata": {"name": "weft-control"}, "spec": spec}));
        let mut one = stand(&api, "one");
        let waited = until_leads(&mut one, true).await;
        assert!(waited >= DURATION && waited <= DURATION + RETRY * 2, "{renewed}: {waited:?}");
    }
}
