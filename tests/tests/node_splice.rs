//! The fast path: pods of one node whose sockets the kernel joins must not be able to tell, whatever they do with them.
//!
//! Every stream's bytes are checked at both ends. That messages were really redirected is read from the agent's counters:
//! bytes that arrive over TCP prove nothing here. What differs between kernels or depends on timing is measured against the
//! same traffic without a mesh, in the same test.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use mesh_tests::lab::{Options, canonical};
use mesh_tests::traffic::{Account, Exchange, Server, call, call_alone};
use mesh_tests::wait::{eventually, now, within};
use mesh_tests::{Lab, World};
use serde_json::Value;

const CLIENT: &str = "shop/client";
const SERVER: &str = "shop/server";
/// Its owner says nothing about the fast path, so it may use splice(2).
const RELAY: &str = "relays/relay";
const NODE: &str = "node-1";

/// Pods of one node. Those in `shop` vouch that they do not call splice(2), which lets them in on every kernel.
fn world() -> World {
    World::new()
        .object(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  \
             labels: {weft.dev/mesh: enabled, weft.dev/splice: enabled}\n",
        )
        .meshed("relays")
        .pod(CLIENT, NODE)
        .pod(SERVER, NODE)
        .pod(RELAY, NODE)
}

/// The same pods, which say nothing about the fast path.
fn unvouched_lab() -> Lab {
    Lab::up(&World::new().meshed("shop").pod(CLIENT, NODE).pod(SERVER, NODE))
}

/// Pods that have not vouched were spliced only if the kernel passes the probe.
#[track_caller]
fn assert_spliced_only_where(lab: &Lab, probe: &str) {
    let passed = lab.metrics(NODE).sum("weft_probe_result", &[("probe", probe)]) > 0.0;
    let opened = |path| lab.metrics(NODE).sum("weft_connections_opened_total", &[("path", path)]);
    within(Duration::from_secs(5), "the connections are counted", || {
        (opened("splice") + opened("direct") > 0.0).then_some(())
    });
    let (spliced, direct) = (opened("splice"), opened("direct"));
    assert!(spliced + direct > 0.0, "the connections stayed on the node");
    assert!(passed || spliced == 0.0, "probe {probe} failed and {spliced} connections were spliced");
}

/// The same pods without a mesh.
fn plain_lab() -> Lab {
    Lab::up_with(&world(), &Options::default().arg("--no-mesh"))
}

/// A lab whose pods are spliced.
#[track_caller]
fn spliced_lab() -> Lab {
    let lab = Lab::up(&world());
    let metrics = lab.metrics(NODE);
    assert!(
        metrics.sum("weft_splice_enabled", &[]) > 0.0,
        "the fast path is off; failed probes:\n{}",
        metrics.family("weft_probe_result")
    );
    lab
}

fn count(lab: &Lab, verdict: &str) -> f64 {
    lab.metrics(NODE).sum("weft_kernel_verdicts_total", &[("verdict", verdict)])
}

/// The three ways in which a program can name a port of a pod.
fn families(lab: &Lab, pod: &str, port: u16) -> [SocketAddr; 3] {
    [lab.v4(pod, port), lab.v6(pod, port), lab.mapped(pod, port)]
}

/// The agent's record of a connection.
#[track_caller]
fn record_of(lab: &Lab, exchange: &Exchange) -> Value {
    let client = canonical(exchange.client.local.expect("the client knows its address")).to_string();
    lab.record(NODE, &exchange.order, |record| {
        record["source"]["address"] == *client && record["reporter"] == "source"
    })
}

#[track_caller]
fn recorded_path(lab: &Lab, exchange: &Exchange) -> String {
    record_of(lab, exchange)["path"].as_str().expect("a record has a path").to_owned()
}

#[track_caller]
fn assert_spliced(lab: &Lab, exchange: &Exchange) {
    assert_eq!(recorded_path(lab, exchange), "splice", "{}", exchange.order);
}

/// Everything that a program may do with its sockets, in every address family: the bytes are right, the connection was
/// spliced, messages were redirected, and the record counts what the programs counted.
#[test]
fn every_way_to_use_a_socket_works_on_a_spliced_connection() {
    let lab = spliced_lab();
    let server = Server::start(&lab, SERVER, &["4:7090", "defer:7091", "7000-7019"]);
    let ways = [
        "mode=duplex up=4M down=4M pause_us=300",
        "mode=duplex up=4M down=4M read=vectored write=vectored",
        "mode=duplex up=4M down=4M read=peek",
        "mode=duplex up=4M down=4M chunk=700",
        "mode=duplex up=4M down=4M read=edge pause_us=300",
        "mode=duplex up=4M down=4M write=file",
        "mode=duplex up=2M down=2M write=zero-copy",
        "mode=duplex up=4M down=4M read=edge",
        "mode=half-client up=1M down=1M",
        "mode=half-server up=1M down=1M",
        "mode=ping-pong count=1000 chunk=16K",
        "mode=pending count=300",
        "mode=duplex up=1M down=1M connect=early",
        "mode=duplex up=1M down=1M connect=fast-open",
        "mode=slow up=8M hold_ms=600",
    ];
    let mut bytes = 0;
    for (port, way) in (7000..).zip(ways) {
        for target in families(&lab, SERVER, port) {
            let before = count(&lab, "splice_redirected");
            let exchange = call(&lab, CLIENT, target, &server, way);
            exchange.assert_good();
            assert_spliced(&lab, &exchange);
            assert!(count(&lab, "splice_redirected") > before, "{}: nothing was redirected", exchange.order);
            bytes += exchange.bytes();
        }
    }
    for target in [lab.v4(SERVER, 7090), lab.v4(SERVER, 7091), lab.v6(SERVER, 7091), lab.mapped(SERVER, 7091)]
    {
        let exchange = call(&lab, CLIENT, target, &server, "mode=duplex up=1M down=1M");
        assert_spliced(&lab, exchange.assert_good());
        bytes += exchange.bytes();
    }
    eprintln!("{} MiB exact, {} messages redirected", bytes >> 20, count(&lab, "splice_redirected"));
    lab.down();
}

/// Where a pair is demoted to TCP, and then taken out of the sockmap, no byte may overtake another.
#[test]
fn a_gibibyte_in_both_directions_at_once_keeps_its_order_across_demotion_and_eviction() {
    let lab = spliced_lab();
    let server = Server::start(&lab, SERVER, &["7000-7007"]);
    let targets = (7000..7002).flat_map(|port| families(&lab, SERVER, port));
    let exchanges: Vec<Exchange> = thread::scope(|scope| {
        let (lab, server) = (&lab, &server);
        let calls: Vec<_> = targets
            .map(|target| {
                let order = "mode=duplex up=96M down=96M pause_us=200";
                scope.spawn(move || call(lab, CLIENT, target, server, order))
            })
            .collect();
        calls.into_iter().map(|call| call.join().expect("a call does not panic")).collect()
    });
    let mut bytes = 0;
    for exchange in &exchanges {
        assert_spliced(&lab, exchange.assert_good());
        bytes += exchange.bytes();
    }
    assert!(bytes >= 1 << 30, "only {bytes} bytes");
    assert!(count(&lab, "splice_redirected") > 0.0);
    assert!(count(&lab, "splice_demoted") > 0.0, "bulk demotes");
    lab.metric_reaches(NODE, "weft_kernel_events_total", &[("kind", "evict")], 1.0);
    eprintln!(
        "{} MiB exact, {} messages redirected, {} by TCP, {} pairs demoted",
        bytes >> 20,
        count(&lab, "splice_redirected"),
        count(&lab, "splice_tcp"),
        count(&lab, "splice_demoted"),
    );
    lab.down();
}

/// A sender whose reader sleeps is stopped by TCP's window; the fast path may not take much more than that.
#[test]
fn a_sleeping_reader_stops_its_sender_as_soon_as_tcp_would() {
    let order = "mode=slow up=64M hold_ms=1500";
    let blocked = |lab: &Lab| {
        let server = Server::start(lab, SERVER, &["7000-7001"]);
        families(lab, SERVER, 7000).map(|target| {
            let exchange = call(lab, CLIENT, target, &server, order);
            exchange.assert_good();
            let blocked_at = exchange.client.blocked_at;
            blocked_at.unwrap_or_else(|| panic!("{}: 64 MiB went into a sleeping reader", exchange.order))
        })
    };
    let plain_lab = plain_lab();
    let plain = blocked(&plain_lab);
    plain_lab.down();
    let lab = spliced_lab();
    let spliced = blocked(&lab);
    lab.metric_reaches(NODE, "weft_kernel_verdicts_total", &[("verdict", "connect_splice")], 3.0);
    lab.metric_reaches(NODE, "weft_kernel_verdicts_total", &[("verdict", "splice_redirected")], 1.0);
    assert!(count(&lab, "splice_demoted") >= 3.0, "a sleeping reader demotes");
    eprintln!("bytes before the sender is blocked: plain {plain:?}, spliced {spliced:?}");
    for (plain, spliced) in plain.iter().zip(&spliced) {
        assert!(spliced <= &(plain * 2), "plain TCP takes {plain} bytes, the fast path {spliced}");
    }
    lab.down();
}

/// Resets and a reader that never reads: the other end sees what it would see over TCP, with the exceptions listed here.
#[test]
fn abrupt_endings_look_as_they_do_without_a_mesh() {
    // What spliced ends may see instead, client first, and why.
    let unread_client: &[[&str; 2]] = &[["-", "end"]];
    let unread_server: &[[&str; 2]] = &[["end", "-"]];
    // TCP resets when a socket is closed with unread bytes in *its* queue; redirected bytes wait in another, and for the
    // other end such a close is an ordinary one. A later write is refused in either case.
    let orders: [(&str, &[[&str; 2]]); 7] = [
        ("mode=reset-client up=256K", &[]),
        ("mode=reset-server up=256K", &[]),
        ("mode=unread-client down=64K", unread_client),
        ("mode=unread-server up=64K", unread_server),
        ("mode=unread-client down=2K chunk=2K", unread_client),
        ("mode=unread-server up=2K chunk=2K", unread_server),
        ("mode=never-read hold_ms=500", &[["EPIPE", "-"]]),
    ];
    let seen = |lab: &Lab| -> Vec<(String, [String; 2])> {
        let server = Server::start(lab, SERVER, &["7000-7009"]);
        let mut seen = Vec::new();
        for (port, (order, _)) in (7000..).zip(orders) {
            for target in families(lab, SERVER, port) {
                let exchange = call(lab, CLIENT, target, &server, order);
                let ends = [&exchange.client, &exchange.server];
                assert!(ends.iter().all(|end| end.error.is_none() && end.mismatch.is_none()), "{exchange:?}");
                let saw = ends.map(|end| end.saw.clone().unwrap_or_else(|| "-".to_owned()));
                seen.push((format!("{} {order}", target.ip()), saw));
            }
        }
        seen
    };
    let plain_lab = plain_lab();
    let plain = seen(&plain_lab);
    plain_lab.down();
    let lab = spliced_lab();
    let spliced = seen(&lab);
    let all = spliced.len() as f64;
    lab.metric_reaches(NODE, "weft_kernel_verdicts_total", &[("verdict", "connect_splice")], all);
    let allowed = orders.iter().flat_map(|(_, allowed)| [allowed; 3]);
    let differences: Vec<String> = plain
        .iter()
        .zip(&spliced)
        .zip(allowed)
        .filter(|((plain, spliced), allowed)| {
            plain.1 != spliced.1 && !allowed.iter().any(|allowed| *allowed == spliced.1)
        })
        .map(|(((order, plain), (_, spliced)), _)| {
            format!("{order}: client and server saw {plain:?} plain, {spliced:?} spliced")
        })
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    lab.down();
}

/// FIONREAD counts bytes that wait, whichever way they came. Where the kernel's probe says that it does not behind a
/// demotion, pods that have not vouched for their programs are not spliced.
#[test]
fn fionread_tells_what_waits_to_pods_that_do_not_vouch() {
    let lab = unvouched_lab();
    let server = Server::start(&lab, SERVER, &["7000"]);
    let mut faults = Vec::new();
    for target in families(&lab, SERVER, 7000) {
        let exchange = call(&lab, CLIENT, target, &server, "mode=slow up=4M hold_ms=600 read=pending");
        faults.extend(exchange.server.error.map(|error| format!("{}: {error}", exchange.order)));
    }
    assert_spliced_only_where(&lab, "fionread_demoted");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    lab.down();
}

/// A blocking read waits until there is something to read: EAGAIN, which means a time-out that the program set, must not
/// come for nothing, whatever else happens to the socket meanwhile (the FIN is acknowledged, there is room to send again).
/// Where the kernel's probe says that it does, pods that have not vouched for their programs are not spliced.
#[test]
fn a_blocking_reader_that_does_not_vouch_is_never_told_to_try_again() {
    let lab = unvouched_lab();
    let server = Server::start(&lab, SERVER, &["7000-7009"]);
    let orders = [
        "mode=half-client up=64K down=64K block=true patience_s=4",
        "mode=slow up=64K hold_ms=300 block=true patience_s=4",
        "mode=ping-pong count=2000 chunk=16K block=true patience_s=4",
        "mode=duplex up=16M down=16M pause_us=300 block=true patience_s=4",
        "mode=duplex up=4M down=4M read=wait-all block=true patience_s=4",
        "mode=reset-server up=64K block=true patience_s=4",
        "mode=reset-client up=64K block=true patience_s=4",
    ];
    let mut faults = Vec::new();
    for (port, order) in (7000..).zip(orders) {
        for target in families(&lab, SERVER, port) {
            let exchange = call(&lab, CLIENT, target, &server, order);
            for end in [&exchange.client, &exchange.server] {
                let told = [end.error.as_deref(), end.saw.as_deref()];
                if end.mismatch.is_some() || end.error.is_some() || end.saw.as_deref() == Some("EAGAIN") {
                    faults
                        .push(format!("{} {}: {told:?} after {} bytes", exchange.order, end.side, end.read));
                }
            }
        }
    }
    assert_spliced_only_where(&lab, "blocking_read");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    lab.down();
}

#[test]
fn ten_thousand_short_connections_are_spliced_and_forgotten() {
    let lab = spliced_lab();
    let _server = Server::start(&lab, SERVER, &["7000"]);
    for (target, count) in families(&lab, SERVER, 7000).into_iter().zip([4000, 4000, 2000]) {
        let order = format!("mode=churn count={count} at_once=8");
        let churn = call_alone(&lab, CLIENT, target, &order);
        assert!(churn.client.error.is_none(), "{churn:?}");
        assert_eq!(churn.client.connections, count, "{churn:?}");
        eprintln!("{target}: {:.0} connections per second", f64::from(count) / churn.client.seconds);
    }
    // A chatty port stays spliced. The agent reads the kernel's counters every second.
    lab.metric_reaches(NODE, "weft_kernel_verdicts_total", &[("verdict", "connect_splice")], 10_000.0);
    within(Duration::from_secs(10), "no connection is counted as open", || {
        (lab.metrics(NODE).sum("weft_connections_open", &[]) == 0.0).then_some(())
    });
    let closed = [("reporter", "source"), ("path", "splice")];
    lab.metric_reaches(NODE, "weft_connections_closed_total", &closed, 10_000.0);
    lab.down();
}

/// Go's `io.Copy` between two sockets moves bytes with splice(2), which does not see redirected bytes. Where the kernel lets
/// the mesh refuse that call the relay is spliced and copies; where not, a pod that does not vouch is left on TCP.
#[test]
fn a_relay_that_uses_splice_moves_every_byte() {
    let lab = spliced_lab();
    let server = Server::start(&lab, SERVER, &["7000"]);
    let relay = Server::relay(&lab, RELAY, 7300, lab.v4(SERVER, 7000));
    let refused = lab.metrics(NODE).sum("weft_probe_result", &[("probe", "splice")]) > 0.0;
    for target in families(&lab, RELAY, 7300) {
        let exchange = call(&lab, CLIENT, target, &server, "mode=duplex up=32M down=32M pause_us=200");
        exchange.assert_good();
        let path = recorded_path(&lab, &exchange);
        assert_eq!(path, if refused { "splice" } else { "direct" }, "{}", exchange.order);
    }
    let accounts = eventually("both directions of three relayed connections end", || {
        Some(relay.accounts()).filter(|accounts| accounts.len() == 6)
    });
    for account in accounts {
        let way = if refused { "copied" } else { "spliced" };
        assert!(account["error"].is_null() && account[way].as_u64() >= Some(32 << 20), "{account}");
    }
    lab.down();
}

/// The agent is only told about spliced connections: killed, it is not missed by those that are open, whether they go on
/// being redirected, are demoted after its death, or had been demoted and not yet evicted.
#[test]
fn open_connections_outlive_the_agent_that_is_killed() {
    let mut lab = spliced_lab();
    let server = Server::start(&lab, SERVER, &["7000-7003"]);
    let orders = [
        "mode=ping-pong count=60000 chunk=4K",
        "mode=duplex up=24M down=24M chunk=64K pause_us=20000",
        "mode=slow up=64M hold_ms=2500",
        "mode=duplex up=200M down=200M",
    ];
    let redirected_before = count(&lab, "splice_redirected");
    let started = now();
    let exchanges: Vec<Exchange> = thread::scope(|scope| {
        let calls: Vec<_> = (7000..)
            .zip(orders)
            .flat_map(|(port, order)| families(&lab, SERVER, port).map(|target| (target, order)))
            .map(|(target, order)| {
                let (lab, server) = (&lab, &server);
                scope.spawn(move || call(lab, CLIENT, target, server, order))
            })
            .collect();
        lab.metric_reaches(NODE, "weft_kernel_verdicts_total", &[("verdict", "connect_splice")], 12.0);
        lab.metric_reaches(
            NODE,
            "weft_kernel_verdicts_total",
            &[("verdict", "splice_redirected")],
            redirected_before + 100.0,
        );
        lab.kill_agent(NODE);
        eprintln!("killed {} ms after the first call", started.elapsed().as_millis());
        assert!(calls.iter().filter(|call| !call.is_finished()).count() >= 6, "killed in the middle");
        calls.into_iter().map(|call| call.join().expect("a call does not panic")).collect()
    });
    for exchange in &exchanges {
        exchange.assert_good();
    }
    lab.restart_agent(NODE);
    let exchange = within(Duration::from_secs(10), "new connections are spliced again", || {
        let exchange = call(&lab, CLIENT, lab.v4(SERVER, 7003), &server, "mode=ping-pong count=50");
        exchange.client.error.is_none().then_some(exchange)
    });
    assert_spliced(&lab, exchange.assert_good());
    lab.down();
}

/// The record of a spliced connection tells how long it was open.
#[test]
fn a_spliced_connection_is_recorded_with_its_bytes_and_its_duration() {
    let lab = spliced_lab();
    let server = Server::start(&lab, SERVER, &["7000-7004"]);
    let mut wrong = Vec::new();
    for (port, order) in (7000..).zip([
        "mode=half-server up=123457 down=7",
        "mode=half-client up=123457 down=7",
        "mode=slow up=2M hold_ms=800",
        "mode=reset-client up=100001",
        "mode=reset-server up=100001",
    ]) {
        for target in families(&lab, SERVER, port) {
            let exchange = call(&lab, CLIENT, target, &server, order);
            let record = record_of(&lab, &exchange);
            assert_eq!(record["path"], "splice", "{record}");
            let bytes = [record["bytes_sent"].as_u64(), record["bytes_received"].as_u64()];
            if bytes != [Some(exchange.client.written), Some(exchange.client.read)] {
                let Account { written, read, .. } = exchange.client;
                wrong.push(format!("{}: wrote {written}, read {read}, recorded {bytes:?}", exchange.order));
            }
            let recorded = record["duration_ms"].as_f64().expect("a record has a duration") / 1000.0;
            // A close may linger for a moment after the program has gone on.
            let measured = exchange.client.seconds;
            assert!(recorded > measured * 0.9 - 0.02 && recorded < measured + 0.3, "{measured} s: {record}");
            assert_eq!(record["destination"]["dialled"], canonical(target).to_string(), "{record}");
            assert_eq!(record["source"]["pod"], "client", "{record}");
        }
    }
    assert!(wrong.is_empty(), "bytes are miscounted:\n{}", wrong.join("\n"));
    lab.down();
}

/// One end's word is enough, and so is the mesh's.
#[test]
fn who_opts_out_is_not_spliced() {
    let opted_out = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: out, namespace: shop}\n---\n\
                     apiVersion: v1\nkind: Pod\nmetadata:\n  name: out\n  namespace: shop\n  \
                     labels: {app: out, weft.dev/splice: disabled}\nspec:\n  nodeName: node-1\n  serviceAccountName: out\n";
    let lab = Lab::up(&world().object(opted_out));
    let server = Server::start(&lab, SERVER, &["7000-7003"]);
    let out = Server::start(&lab, "shop/out", &["7000-7003"]);
    let order = "mode=duplex up=1M down=1M";
    let path = |client: &str, target, server: &Server| {
        let exchange = call(&lab, client, target, server, order);
        recorded_path(&lab, exchange.assert_good())
    };
    assert_eq!(path(CLIENT, lab.v4(SERVER, 7000), &server), "splice");
    for (pod, port) in [("shop/out", 7001), ("shop/out", 7002)] {
        assert_eq!(path(CLIENT, lab.v4(pod, port), &out), "direct", "the server opted out");
        assert_eq!(path(pod, lab.v6(SERVER, port), &server), "direct", "the client opted out");
    }
    lab.apply(
        "mesh.yaml",
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec:\n  fastPath: {splice: Disabled}\n",
    );
    within(Duration::from_secs(5), "no pod is spliced once the mesh says so", || {
        (path(CLIENT, lab.v4(SERVER, 7000), &server) == "direct").then_some(())
    });
    lab.remove("mesh.yaml");
    within(Duration::from_secs(5), "pods are spliced again", || {
        (path(CLIENT, lab.v4(SERVER, 7003), &server) == "splice").then_some(())
    });
    lab.down();
}
