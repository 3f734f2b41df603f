//! Updates: a node's new agent starts beside the old one and takes the pods over. No call fails, what is open goes on until it
//! ends or until the drain deadline, and an agent that dies is followed at once by the one that waits.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mesh_tests::http::Session;
use mesh_tests::http::routes::{self, CLIENTS, FILE, PORTS, SERVERS};
use mesh_tests::lab::Options;
use mesh_tests::wire::Serve;
use mesh_tests::{Ask, Backend, Lab, Web, World, eventually, seen, wait};

/// The drain deadline, and what a busy machine adds.
const PATIENCE: Duration = Duration::from_secs(30);

fn world() -> World {
    World::new().meshed("shop").pod("shop/web", "node-1").pod("shop/near", "node-1").pod("shop/far", "node-2")
}

/// The new agent has the pods.
fn has_pods(lab: &Lab, node: &str, pods: f64) {
    // An agent that loads programs on a busy machine may be slow to answer.
    wait::within(PATIENCE, "the new agent has the pods", || {
        let (_, page) = seen::get(&lab.agent(node).admin, "/metrics").ok()?;
        (seen::Metrics::parse(&page).sum("weft_enrolled_pods", &[]) >= pods).then_some(())
    });
}

#[test]
fn a_node_changes_its_agent_under_load_and_no_call_fails() {
    let mut lab = Lab::up(&world());
    let (near, far, web) = (lab.probe("shop/near"), lab.probe("shop/far"), lab.probe("shop/web"));
    let _served = [&near, &far, &web].map(|probe| probe.serve(8080, Serve::Greet));
    let held = web.connect(lab.v4("shop/far", 8080)).expect("all is well");
    held.receive().expect("it greets");
    let local = web.connect(lab.v4("shop/near", 8080)).expect("all is well");
    local.receive().expect("it greets");

    let callers = [lab.probe("shop/web"), lab.probe("shop/web"), lab.probe("shop/far")];
    let to = ["shop/near", "shop/far", "shop/web"].map(|pod| lab.v4(pod, 8080));
    let loads: Vec<_> = callers.iter().zip(to).map(|(caller, to)| caller.load(&[to], 1000)).collect();
    let seen = || loads.iter().map(|load| load.seen().good).collect::<Vec<_>>();
    let more =
        |before: &[u64]| seen().iter().zip(before).all(|(now, before)| *now > before + 50).then_some(());
    eventually("traffic flows", || more(&[0; 3]));

    for round in 1..=2 {
        let old = lab.replace_agent("node-1");
        has_pods(&lab, "node-1", 2.0);
        let before = seen();
        wait::within(PATIENCE, "traffic flows under the new agent", || more(&before));
        if round == 1 {
            assert!(!lab.has_ended(&old), "the old agent still has a connection");
            for conn in [&held, &local] {
                assert_eq!(conn.exchange("and it goes on").as_deref(), Ok("and it goes on"));
            }
            held.finish_sending().expect("it is open");
            assert_eq!(held.receive().map_err(|refusal| refusal.0), Err("eof".to_owned()));
        }
        eventually("the old agent ends with its last connection", || lab.has_ended(&old).then_some(()));
    }
    for load in loads {
        let seen = load.stop();
        assert_eq!((seen.bad, &seen.faults), (0, &Vec::new()), "{seen:?}");
    }
    assert_eq!(local.exchange("under the third").as_deref(), Ok("under the third"));
    let record = lab.record("node-1", "the connection that the first agent had to its end", |record| {
        record["path"] == "tunnel" && record["bytes_sent"] == "and it goes on".len()
    });
    assert_eq!(record["ending"], "closed", "{record}");
    lab.down();
}

#[test]
fn what_outlives_the_drain_deadline_ends_with_the_old_agent() {
    let mut lab = Lab::up_with(&world(), &Options::default().agent_arg("--drain-deadline=2s"));
    let (far, web) = (lab.probe("shop/far"), lab.probe("shop/web"));
    let _served = far.serve(8080, Serve::Greet);
    let to = lab.v4("shop/far", 8080);
    let held = web.connect(to).expect("all is well");
    held.receive().expect("it greets");
    let old = lab.replace_agent("node-1");
    has_pods(&lab, "node-1", 2.0);
    web.call(to).expect("new connections go to the new agent");
    let ending = held.receive().expect_err("nothing is said on it").0;
    assert!(["ECONNRESET", "eof"].contains(&&*ending), "{ending}");
    eventually("the old agent is gone", || lab.has_ended(&old).then_some(()));
    let record = lab.record("node-1", "what became of it", |record| record["ending"] == "shutdown");
    assert_eq!(record["destination"]["pod"], "far", "{record}");
    web.call(to).expect("and the new one stays");
    lab.down();
}

#[test]
fn an_agent_that_is_killed_is_followed_at_once_by_the_one_that_waits() {
    let lab = Lab::up(&world());
    let (far, web) = (lab.probe("shop/far"), lab.probe("shop/web"));
    let _served = far.serve(8080, Serve::Greet);
    let to = lab.v4("shop/far", 8080);
    web.call(to).expect("all is well");
    let (next, log) = lab.impostor("node-1", &[]);
    let says = |what: &str| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(what)).then_some(());
    eventually("the second agent waits", || says("ready to take over"));
    let (third, refused) = lab.impostor("node-1", &[]);
    eventually("a third one is turned away", || {
        std::fs::read_to_string(&refused).is_ok_and(|text| text.contains("two agents use")).then_some(())
    });

    lab.kill_agent("node-1");
    eventually("the second agent has the pods", || web.call(to).ok().map(drop));
    eventually("and says so", || says("pod joined the mesh"));
    drop((next, third));
    lab.down();
}

/// Tells clients to stop, when the test fails too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a client of requests saw that keeps its connection as long as the other side lets it.
#[derive(Debug, Default)]
struct Asked {
    good: u64,
    connections: u64,
    failed: Vec<String>,
}

fn keep_asking(web: &Web, to: SocketAddr, is_http2: bool, stop: &AtomicBool) -> Asked {
    let mut asked = Asked::default();
    let mut kept: Option<Session> = None;
    while !stop.load(Ordering::Relaxed) {
        let open = kept.take().filter(Session::is_open);
        let session = match open {
            Some(session) => Ok(session),
            None => {
                asked.connections += 1;
                if is_http2 { web.http2(to) } else { web.http1(to) }
            }
        };
        let answer = session.and_then(|mut session| Ok((session.try_ask(Ask::get("/"))?, session)));
        match answer {
            Ok((answer, session)) if answer.status == 200 => {
                asked.good += 1;
                kept = (answer.header("connection").as_deref() != Some("close")).then_some(session);
            }
            Ok((answer, _)) => asked.failed.push(format!("status {}", answer.status)),
            // The server said GOAWAY before the request was sent: any client sends it on another connection.
            Err(error) if is_http2 && was_never_sent(&error) => {}
            Err(error) => asked.failed.push(format!("{error:#}")),
        }
    }
    asked
}

fn was_never_sent(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled))
}

#[test]
fn requests_on_kept_connections_go_on_over_updates_of_both_nodes() {
    let mut lab = Lab::up_with(&routes::world(), &Options::default().agent_arg("--drain-deadline=3s"));
    let _servers = SERVERS.map(|pod| Backend::start(&lab, pod, &PORTS));
    lab.apply(FILE, &routes::everything_to("all", "echo:80", "echo:80"));
    let webs = CLIENTS.map(|pod| Web::start(&lab, pod));
    let to = lab.vip("echo/echo", 80);
    for web in &webs {
        eventually("the route is in force", || {
            web.try_ask(to, Ask::get("/")).ok().filter(|answer| answer.status == 200)
        });
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for web in &webs {
            for is_http2 in [false, true] {
                let stop = &stop;
                clients.push((is_http2, scope.spawn(move || keep_asking(web, to, is_http2, stop))));
            }
        }
        let ended = Stop(&stop);
        for node in ["node-1", "node-2"] {
            let old = lab.replace_agent(node);
            has_pods(&lab, node, 2.0);
            // Connections in use are given up with their next answer, idle ones at the deadline.
            wait::within(PATIENCE, "the old agent ends", || lab.has_ended(&old).then_some(()));
        }
        drop(ended);
        for (is_http2, client) in clients {
            let asked = client.join().expect("no panic");
            // What a connection carries that its agent has to cut at the deadline: see decision 19.
            assert!(asked.failed.len() as u64 * 1000 <= asked.good, "HTTP/2 {is_http2}: {asked:?}");
            assert!(asked.good > 20, "HTTP/2 {is_http2}: {asked:?}");
            assert!(asked.connections >= 2, "its agent changed: HTTP/2 {is_http2}: {asked:?}");
        }
    });
    lab.down();
}
