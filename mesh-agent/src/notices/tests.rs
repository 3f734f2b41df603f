//! What is said and what is not; and the writer over an API that a test answers for, with a clock that stands still.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use socket2::Socket;
use tokio::sync::watch;

use super::book::{Book, LASTING, Matter, Notice, REMEMBERED};
use super::event;
use crate::capture::compile::Caught;
use crate::capture::{Complaint, Pod, SocketSource, State};
use crate::lifecycle::{Trigger, clock, shutdown};
use crate::model::{FailureMode, SpiffeId, Workload, WorkloadName, WorkloadUid};

const SECOND: Duration = Duration::from_secs(1);

fn workload(name: &str) -> Workload {
    Workload {
        uid: WorkloadUid(format!("uid-{name}").into()),
        name: WorkloadName { namespace: "shop".into(), name: name.into() },
        owner: name.into(),
        node: "node-1".into(),
        zone: None,
        addresses: Vec::new(),
        service_account: name.into(),
        identity: SpiffeId::of_service_account(&"cluster.local".parse().expect("valid"), "shop", name),
        labels: Default::default(),
        ports: Vec::new(),
        enrolled: true,
        splice: None,
        forward_client_cert: false,
        skip_outbound_ports: BTreeSet::new(),
        skip_inbound_ports: BTreeSet::new(),
        probe_ports: BTreeSet::new(),
        manifest_hash: None,
        failure_mode: FailureMode::default(),
        host_network: false,
        ready: true,
        terminating: false,
    }
}

#[derive(Debug)]
struct NoSockets;

impl SocketSource for NoSockets {
    fn tcp_socket(&self, _v6: bool) -> io::Result<Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A state in which these pods fail with these reasons, and those are caught.
fn state(failing: &[(&str, &str)], caught: &[&str]) -> State {
    let pod = |name: &&str| {
        let workload = workload(name);
        let uid = workload.uid.clone();
        let caught = Caught { uid, netns_cookie: 1, slot: 0, outbound_ports: Vec::new(), cgroup_id: None };
        (Arc::new(Pod::new(Arc::new(workload), Box::new(NoSockets), 1)), caught)
    };
    let complaint = |(name, reason): &(&str, &str)| Complaint::of_pod(&workload(name), *reason);
    State {
        pods: caught.iter().map(pod).collect(),
        problems: failing.iter().map(complaint).collect(),
        left_out: Vec::new(),
    }
}

// The book.

/// Says everything that is due, as if it had been written; `reason: note` of each.
fn say(book: &mut Book, now: Instant) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(notice) = book.next(now) {
        book.said(&notice, true);
        said.push(format!("{} {}: {}", notice.pod, notice.matter.reason(), notice.note));
    }
    said
}

#[test]
fn a_complaint_that_lasts_is_said_once_and_its_end_too() {
    let (mut book, start) = (Book::default(), clock::now());
    let at = |seconds| start + SECOND * seconds;
    let failing = state(&[("web", "no process")], &[]);
    book.follow(&failing, at(0));
    assert_eq!(book.wait(at(1)), Some(LASTING - SECOND));
    assert!(say(&mut book, at(4)).is_empty(), "it may mend itself");
    book.follow(&failing, at(4));
    assert_eq!(say(&mut book, at(5)), ["shop/web EnrolmentFailed: no process"]);
    book.follow(&failing, at(60));
    assert!(say(&mut book, at(60)).is_empty(), "nothing has changed");
    assert_eq!(book.wait(at(60)), None);
    book.follow(&state(&[("web", "another namespace")], &[]), at(61));
    assert_eq!(say(&mut book, at(66)), ["shop/web EnrolmentFailed: another namespace"]);
    // Between two sandboxes there is nothing to complain of.
    book.follow(&state(&[], &[]), at(70));
    assert!(say(&mut book, at(80)).is_empty());
    book.follow(&state(&[], &["web"]), at(81));
    let caught = say(&mut book, at(81));
    assert_eq!(caught, ["shop/web Enrolled: it has been caught and is part of the mesh now"]);
    book.follow(&state(&[], &["web"]), at(82));
    assert!(say(&mut book, at(90)).is_empty());
}

#[test]
fn pods_that_are_caught_as_they_should_be_are_not_told() {
    let (mut book, start) = (Book::default(), clock::now());
    book.follow(&state(&[("late", "no process"), ("gone", "no process")], &["well"]), start);
    book.follow(&state(&[], &["well", "late"]), start + LASTING / 2);
    assert!(say(&mut book, start + LASTING * 2).is_empty());
    assert_eq!(book.wait(start), None);
}

#[test]
fn a_pod_that_stays_outside_is_told_so_and_the_node_is_no_pod() {
    let (mut book, start) = (Book::default(), clock::now());
    let mut state = state(&[], &[]);
    state.left_out.push(Complaint::of_pod(&workload("sealed"), "it runs in gVisor"));
    state.problems.push(Complaint::of_node("no room"));
    book.follow(&state, start);
    assert_eq!(say(&mut book, start + LASTING), ["shop/sealed NotEnrolled: it runs in gVisor"]);
}

#[test]
fn what_has_waited_longest_is_said_first_and_what_nobody_read_has_no_end() {
    let (mut book, start) = (Book::default(), clock::now());
    book.follow(&state(&[("z", "first")], &[]), start);
    book.follow(&state(&[("a", "second"), ("z", "first")], &[]), start + SECOND);
    let first = book.next(start + LASTING * 2).expect("due");
    assert_eq!(&*first.pod.name, "z");
    book.said(&first, false);
    assert_eq!(&*book.next(start + LASTING * 2).expect("due").pod.name, "a");
    book.follow(&state(&[("a", "second")], &["z"]), start + LASTING * 2);
    assert_eq!(say(&mut book, start + LASTING * 2), ["shop/a EnrolmentFailed: second"]);
}

// The object.

#[test]
fn an_event_is_what_the_api_server_takes_however_long_its_parts_are() {
    let long = "ä".repeat(2000);
    let name = format!("{}.a", "x".repeat(251));
    let pod = WorkloadName { namespace: "shop".into(), name: name.as_str().into() };
    let uid = WorkloadUid("u".into());
    let notice = Notice { pod, uid, matter: Matter::NotEnrolled, note: long };
    let event = json!(event::first(&notice, &"n".repeat(200), SystemTime::UNIX_EPOCH + SECOND));
    let len = |field: &Value| field.as_str().expect("text").len();
    assert_eq!((len(&event["note"]), len(&event["reportingInstance"])), (1024, 128));
    let own = event["metadata"]["name"].as_str().expect("a name");
    assert!(own.len() <= 253 && own.ends_with("x.3b9aca00"), "{own}");
    assert_eq!(event["regarding"]["name"], name.as_str());
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("NotEnrolled")));
    assert_eq!(event["eventTime"], "1970-01-01T00:00:01.000000Z");
}

// The writer.

/// An API that answers every request with the status that is set, and remembers what was asked.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    /// 0: as it should be.
    status: u16,
    asked: Vec<(String, Value)>,
}

impl Scripted {
    fn client(&self) -> Client {
        let script = self.0.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let script = script.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a body").to_bytes();
                let mut script = script.lock();
                let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
                script.asked.push((format!("{} {}", head.method, head.uri.path()), sent.clone()));
                let status = if script.status == 0 { 200 } else { script.status };
                let said = json!({"kind": "Status", "code": status, "message": "no", "reason": "Forbidden"});
                let answer = if status == 200 { sent } else { said };
                let response = Response::builder().status(status).header("content-type", "application/json");
                let body = Full::new(bytes::Bytes::from(answer.to_string()));
                Ok::<_, Infallible>(response.body(body).expect("valid"))
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, status: u16) {
        self.0.lock().status = status;
    }

    /// Requests since the last look.
    fn take(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.0.lock().asked)
    }
}

struct Scene {
    api: Scripted,
    states: watch::Sender<Arc<State>>,
    _trigger: Trigger,
}

impl Scene {
    fn begin() -> Self {
        let api = Scripted::default();
        let (states, published) = watch::channel(Arc::new(State::default()));
        let (trigger, shutdown) = shutdown::channel();
        super::start(api.client(), "node-1", published, shutdown);
        Self { api, states, _trigger: trigger }
    }

    fn publish(&self, state: State) {
        self.states.send_replace(Arc::new(state));
    }
}

#[tokio::test(start_paused = true)]
async fn what_repeats_is_counted_on_one_event() {
    let scene = Scene::begin();
    for round in 1..=3 {
        scene.publish(state(&[("web", "no process")], &[]));
        tokio::time::sleep(LASTING + SECOND).await;
        let [(request, event)] = &scene.api.take()[..] else { panic!("one request in round {round}") };
        if round == 1 {
            assert_eq!(request, "POST /apis/events.k8s.io/v1/namespaces/shop/events");
            assert_eq!(event["regarding"]["uid"], "uid-web");
            assert_eq!((&event["note"], &event["type"]), (&json!("no process"), &json!("Warning")));
            assert_eq!(event["reportingInstance"], "node-1");
        } else {
            assert!(
                request.starts_with("PATCH /apis/events.k8s.io/v1/namespaces/shop/events/web."),
                "{request}"
            );
            assert_eq!(event["series"]["count"], round);
        }
        // The same again is nothing new.
        scene.publish(state(&[("web", "no process")], &[]));
        tokio::time::sleep(SECOND * 60).await;
        assert!(scene.api.take().is_empty());
        scene.publish(state(&[], &[]));
        tokio::time::sleep(SECOND).await;
    }
    scene.publish(state(&[], &["web"]));
    tokio::time::sleep(SECOND).await;
    let asked = scene.api.take();
    assert_eq!(asked.len(), 1);
    assert_eq!((&asked[0].1["reason"], &asked[0].1["type"]), (&json!("Enrolled"), &json!("Normal")));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_api_server_has_forgotten_is_made_anew() {
    let scene = Scene::begin();
    scene.publish(state(&[("web", "no process")], &[]));
    tokio::time::sleep(LASTING + SECOND).await;
    assert_eq!(scene.api.take().len(), 1);
    scene.publish(state(&[], &[]));
    tokio::time::sleep(REMEMBERED).await;
    scene.publish(state(&[("web", "no process")], &[]));
    tokio::time::sleep(LASTING + SECOND).await;
    let asked = scene.api.take();
    assert!(asked.len() == 1 && asked[0].0.starts_with("POST"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_writes_ten_at_once_and_one_a_second() {
    let scene = Scene::begin();
    let names: Vec<String> = (0..100).map(|index| format!("pod-{index}")).collect();
    let failing: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "no process")).collect();
    scene.publish(state(&failing, &[]));
    tokio::time::sleep(LASTING + SECOND / 2).await;
    assert_eq!(scene.api.take().len(), 10);
    tokio::time::sleep(SECOND * 20).await;
    let more = scene.api.take().len();
    assert!((19..=21).contains(&more), "{more}");
    // Most mend themselves before their turn: nobody needs to hear of them.
    scene.publish(state(&[], &[]));
    tokio::time::sleep(SECOND * 100).await;
    assert!(scene.api.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_asked_once_for_each_pod() {
    let scene = Scene::begin();
    scene.api.answer(403);
    scene.publish(state(&[("one", "no process"), ("two", "no process")], &[]));
    tokio::time::sleep(SECOND * 600).await;
    assert_eq!(scene.api.take().len(), 2);
    // Nobody has read that something was wrong.
    scene.publish(state(&[("two", "no process")], &["one"]));
    tokio::time::sleep(SECOND * 600).await;
    assert!(scene.api.take().is_empty());
    scene.api.answer(0);
    scene.publish(state(&[("two", "something else")], &["one"]));
    tokio::time::sleep(LASTING + SECOND).await;
    assert_eq!(scene.api.take().len(), 1, "the role has been given meanwhile");
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_away_is_asked_less_and_less_and_told_in_the_end() {
    let scene = Scene::begin();
    scene.api.answer(503);
    scene.publish(state(&[("web", "no process")], &[]));
    tokio::time::sleep(SECOND * 600).await;
    let asked = scene.api.take().len();
    assert!((10..=20).contains(&asked), "{asked} times in ten minutes");
    scene.api.answer(0);
    tokio::time::sleep(SECOND * 61).await;
    assert_eq!(scene.api.take().len(), 1);
    tokio::time::sleep(SECOND * 600).await;
    assert!(scene.api.take().is_empty());
}
