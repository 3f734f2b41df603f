//! Whole journeys: application, source agent, tunnel, destination agent, application, over loopback sockets.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::carrier::{Carrier, Counted, Flow, Received, Scratch};
use super::testing::{OneCaller, TestCa, World, id, tcp_pair, tunnel_pair};
use super::tunnel::{Event, Kind, Open, Protocol, Role, codec};
use super::worker::{Local, Served};
use super::{Workers, inbound, tls, tunnel};
use crate::capture::Caller;
use crate::model::{
    Action, AuthorizationPolicy, ClientAddr, DefaultInbound, EndpointAddr, MeshConfig, OriginalDst,
    PolicyName, Rule, Source,
};
use crate::policy::PolicySet;

/// A server application in a pod, and what it accepts.
async fn server(world: &World, host: u8) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((world.ip(host), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Two pods, each on its worker, with a server application in the second.
async fn two_pods() -> (World, SocketAddr, TcpListener, SocketAddr) {
    let mut world = World::new();
    let outbound = world.add_pod("client", 1);
    world.add_pod("server", 2);
    let (listener, address) = server(&world, 2).await;
    (world, outbound, listener, address)
}

async fn say(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
}

async fn hear(stream: &mut TcpStream, text: &[u8]) {
    let mut heard = vec![0; text.len()];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut heard))
        .await
        .expect("in time")
        .unwrap();
    assert_eq!(heard, text);
}

/// The next read fails with a reset.
async fn is_reset(stream: &mut TcpStream) {
    let read =
        tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 16])).await.expect("in time");
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// The connection is reset, perhaps before the dialler has looked.
async fn was_reset(dialled: std::io::Result<TcpStream>) {
    match dialled {
        Ok(mut stream) => is_reset(&mut stream).await,
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

async fn is_ended(stream: &mut TcpStream) {
    let read =
        tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 16])).await.expect("in time");
    assert_eq!(read.unwrap(), 0);
}

fn policy(name: &str, action: Action, source: Source) -> Arc<AuthorizationPolicy> {
    Arc::new(AuthorizationPolicy {
        name: PolicyName { namespace: "default".into(), name: name.into() },
        cluster_wide: false,
        selectors: Vec::new(),
        action,
        rules: vec![Rule { sources: Some(vec![source]), ports: None, http: None }],
        unusable: None,
    })
}

fn publish(world: &World, policies: Vec<Arc<AuthorizationPolicy>>) {
    let trust_domain = MeshConfig::default().trust_domain;
    world.policies.publish(PolicySet::new(policies, DefaultInbound::Permissive, trust_domain));
}

#[tokio::test]
async fn a_connection_travels_through_a_tunnel_and_is_told_by_both_ends() {
    let (world, outbound, listener, address) = two_pods().await;
    let mut client = world.dial(outbound, address).await;
    let client_address = client.local_addr().unwrap();
    say(&mut client, b"ping").await;
    let (mut app, agent) = listener.accept().await.unwrap();
    assert_eq!(world.origins.shown(agent), Some(ClientAddr::new(client_address)));
    hear(&mut app, b"ping").await;
    say(&mut app, b"pong!").await;
    hear(&mut client, b"pong!").await;
    drop(client);
    is_ended(&mut app).await;
    drop(app);
    let records = world.records(2).await;
    for record in &records {
        assert_eq!(record["path"], "tunnel");
        assert_eq!(record["ending"], "closed");
        assert_eq!(record["bytes_sent"], 4);
        assert_eq!(record["bytes_received"], 5);
        assert_eq!(record["source"]["workload"], "client");
        assert_eq!(record["destination"]["workload"], "server");
        assert_eq!(record["source"]["identity"], id("client").as_str());
        assert_eq!(record["destination"]["identity"], id("server").as_str());
        assert_eq!(record["tls"]["key_exchange"], "X25519MLKEM768");
        assert_eq!(record["source"]["address"], client_address.to_string());
    }
    assert_eq!(world.origins.shown_len(), 0);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let (world, outbound, listener, address) = two_pods().await;
    let mut client = world.dial(outbound, address).await;
    let (mut app, _) = listener.accept().await.unwrap();
    say(&mut app, b"220 hello").await;
    hear(&mut client, b"220 hello").await;
}

#[tokio::test]
async fn half_closes_travel_both_ways() {
    let (world, outbound, listener, address) = two_pods().await;
    for client_first in [true, false] {
        let mut client = world.dial(outbound, address).await;
        let (mut app, _) = listener.accept().await.unwrap();
        let (first, second) = if client_first { (&mut client, &mut app) } else { (&mut app, &mut client) };
        say(first, b"last words").await;
        first.shutdown().await.unwrap();
        hear(second, b"last words").await;
        is_ended(second).await;
        say(second, b"answer").await;
        hear(first, b"answer").await;
        second.shutdown().await.unwrap();
        is_ended(first).await;
    }
    assert!(world.records(4).await.iter().all(|record| record["ending"] == "closed"));
}

#[tokio::test]
async fn a_client_reset_reaches_the_server_as_a_reset() {
    let (world, outbound, listener, address) = two_pods().await;
    let client = world.dial(outbound, address).await;
    let (mut app, _) = listener.accept().await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    is_reset(&mut app).await;
    assert!(world.records(2).await.iter().all(|record| record["ending"] == "client_reset"));
}

#[tokio::test]
async fn a_server_reset_reaches_the_client_as_a_reset() {
    let (world, outbound, listener, address) = two_pods().await;
    let mut client = world.dial(outbound, address).await;
    let (app, _) = listener.accept().await.unwrap();
    app.set_zero_linger().unwrap();
    drop(app);
    is_reset(&mut client).await;
    assert!(world.records(2).await.iter().all(|record| record["ending"] == "server_reset"));
}

#[tokio::test]
async fn a_refused_connect_is_a_reset_at_the_client_and_leaves_the_tunnel_usable() {
    let (world, outbound, listener, address) = two_pods().await;
    drop(listener);
    let mut client = world.dial(outbound, address).await;
    say(&mut client, b"anybody?").await;
    is_reset(&mut client).await;
    assert!(world.records(2).await.iter().all(|record| record["ending"] == "connect_refused"));
    let listener = TcpListener::bind(address).await.unwrap();
    let mut client = world.dial(outbound, address).await;
    let (mut app, _) = listener.accept().await.unwrap();
    say(&mut client, b"again").await;
    hear(&mut app, b"again").await;
    assert_eq!(world.metric("weft_tunnel_handshakes_total{role=\"client\",result=\"success\"}"), Some(1.0));
}

#[tokio::test]
async fn a_tunnel_is_reused_without_a_second_handshake() {
    let (world, outbound, listener, address) = two_pods().await;
    for round in 0..20_usize {
        let mut client = world.dial(outbound, address).await;
        let (mut app, _) = listener.accept().await.unwrap();
        say(&mut client, b"q").await;
        hear(&mut app, b"q").await;
        say(&mut app, b"a").await;
        if round % 2 == 0 {
            drop(app);
            hear(&mut client, b"a").await;
            is_ended(&mut client).await;
            drop(client);
        } else {
            hear(&mut client, b"a").await;
            drop(client);
            is_ended(&mut app).await;
            drop(app);
        }
        world.records(2 * (round + 1)).await;
        // The last DONE follows the record by less than this.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(world.metric("weft_tunnel_handshakes_total{role=\"client\",result=\"success\"}"), Some(1.0));
    assert_eq!(world.metric("weft_tunnels_open"), Some(2.0));
}

#[tokio::test]
async fn a_renewed_certificate_makes_a_new_tunnel() {
    let (world, outbound, listener, address) = two_pods().await;
    for _ in 0..2 {
        let client = world.dial(outbound, address).await;
        let (mut app, _) = listener.accept().await.unwrap();
        drop(client);
        is_ended(&mut app).await;
        drop(app);
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.credentials.rotate();
    }
    assert_eq!(world.metric("weft_tunnel_handshakes_total{role=\"client\",result=\"success\"}"), Some(2.0));
}

#[tokio::test]
async fn large_transfers_in_both_directions_at_once_are_exact() {
    const BYTES: usize = 24 << 20;
    let (world, outbound, listener, address) = two_pods().await;
    let client = world.dial(outbound, address).await;
    let (app, _) = listener.accept().await.unwrap();
    async fn write(mut half: tokio::net::tcp::OwnedWriteHalf, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut left = BYTES;
        while left > 0 {
            let mut chunk = vec![0; rng.usize(1..200_000).min(left)];
            let mut content = fastrand::Rng::with_seed(seed ^ left as u64);
            content.fill(&mut chunk);
            half.write_all(&chunk).await.unwrap();
            left -= chunk.len();
            if rng.u8(..) < 8 {
                tokio::time::sleep(Duration::from_micros(rng.u64(..2000))).await;
            }
        }
        half.shutdown().await.unwrap();
    }
    async fn read(mut half: tokio::net::tcp::OwnedReadHalf, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut left = BYTES;
        while left > 0 {
            let mut expected = vec![0; rng.usize(1..200_000).min(left)];
            let mut content = fastrand::Rng::with_seed(seed ^ left as u64);
            content.fill(&mut expected);
            let mut chunk = vec![0; expected.len()];
            half.read_exact(&mut chunk).await.unwrap();
            assert!(chunk == expected, "difference with {left} bytes to go");
            left -= chunk.len();
            if rng.u8(..) < 8 {
                rng.u64(..2000);
            }
        }
        assert_eq!(half.read(&mut [0]).await.unwrap(), 0);
    }
    let ((client_read, client_write), (app_read, app_write)) = (client.into_split(), app.into_split());
    tokio::join!(write(client_write, 1), read(app_read, 1), write(app_write, 2), read(client_read, 2));
    let records = world.records(2).await;
    assert!(records.iter().all(|record| record["ending"] == "closed" && record["bytes_sent"] == BYTES));
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer() {
    let (world, outbound, listener, address) = two_pods().await;
    let mut client = world.dial(outbound, address).await;
    let (mut app, _) = listener.accept().await.unwrap();
    let chunk = vec![7; 64 * 1024];
    let mut written = 0_usize;
    while let Ok(result) = tokio::time::timeout(Duration::from_millis(300), client.write(&chunk)).await {
        written += result.unwrap();
        assert!(written < 64 << 20, "nothing stops the writer");
    }
    // Kernel buffers of four sockets, and one batch each way per agent.
    client.shutdown().await.unwrap();
    let mut heard = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match app.read(&mut buffer).await.unwrap() {
            0 => break,
            read => heard += read,
        }
    }
    assert_eq!(heard, written);
}

#[tokio::test]
async fn another_endpoint_is_tried_when_one_refuses_and_the_first_words_are_repeated() {
    let (mut world, outbound, listener, address) = two_pods().await;
    world.add_pod("second", 3);
    let dead = { server(&world, 3).await.1 };
    let vip = world.ip(200);
    world.add_service("shop", vip, &[dead, address]);
    for _ in 0..8 {
        let mut client = world.dial_drawn(outbound, SocketAddr::new(vip, 80), Some(dead)).await;
        say(&mut client, b"hello").await;
        let (mut app, _) = listener.accept().await.unwrap();
        hear(&mut app, b"hello").await;
        say(&mut app, b"there").await;
        hear(&mut client, b"there").await;
    }
    let records = world.records(8).await;
    let refused = records.iter().filter(|record| record["ending"] == "connect_refused");
    assert!(
        refused.clone().count() > 0 && refused.into_iter().all(|record| record["reporter"] == "destination")
    );
}

#[tokio::test]
async fn a_connection_keeps_its_address_family_on_the_way_to_an_endpoint() {
    let (mut world, outbound, listener, address) = two_pods().await;
    let other_family = TcpListener::bind("[::1]:0").await.unwrap();
    let vip = world.ip(200);
    world.add_service("shop", vip, &[address, other_family.local_addr().unwrap()]);
    for _ in 0..16 {
        let mut client = world.dial(outbound, SocketAddr::new(vip, 80)).await;
        say(&mut client, b"hello").await;
        tokio::select! {
            accepted = listener.accept() => drop(accepted.unwrap()),
            _ = other_family.accept() => panic!("an IPv4 service was answered by an IPv6 endpoint"),
        }
    }
}

#[tokio::test]
async fn when_every_endpoint_refuses_so_does_the_service() {
    let (mut world, outbound, listener, address) = two_pods().await;
    drop(listener);
    let vip = world.ip(200);
    world.add_service("shop", vip, &[address]);
    let mut client = world.dial(outbound, SocketAddr::new(vip, 80)).await;
    is_reset(&mut client).await;
    let records = world.records(2).await;
    let source = records.iter().find(|record| record["reporter"] == "source").unwrap();
    assert_eq!(source["ending"], "connect_refused");
    assert_eq!(source["destination"]["service"], "default/shop");
}

#[tokio::test]
async fn a_service_without_endpoints_and_an_unknown_socket_are_refused() {
    let (mut world, outbound, _listener, _address) = two_pods().await;
    let vip = world.ip(200);
    world.add_service("empty", vip, &[]);
    was_reset(world.try_dial(outbound, SocketAddr::new(vip, 80), None).await).await;
    was_reset(TcpStream::connect(outbound).await).await;
    let endings: Vec<_> = world.records(2).await.iter().map(|record| record["ending"].clone()).collect();
    assert_eq!(endings, ["no_endpoint", "unknown_destination"]);
}

#[tokio::test]
async fn ways_back_into_the_agent_are_refused() {
    let (world, outbound, _listener, _address) = two_pods().await;
    let targets =
        [outbound, SocketAddr::new(world.ip(1), tunnel::PORT), SocketAddr::new(world.ip(2), tunnel::PORT)];
    for target in targets {
        was_reset(world.try_dial(outbound, target, None).await).await;
    }
    assert!(world.records(3).await.iter().all(|record| record["ending"] == "loop"));
}

#[tokio::test]
async fn policy_refuses_before_any_byte_reaches_the_application() {
    let (world, outbound, listener, address) = two_pods().await;
    publish(&world, vec![policy("keep-out", Action::Deny, Source::Spiffe(id("client").to_string()))]);
    let mut client = world.dial(outbound, address).await;
    say(&mut client, b"let me in").await;
    is_reset(&mut client).await;
    let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(accepted.is_err(), "the application saw a connection");
    let records = world.records(2).await;
    assert!(records.iter().all(|record| record["ending"] == "policy_denied"));
    let reason = |reporter| {
        let record = records.iter().find(|record| record["reporter"] == reporter).unwrap();
        record.get("reason").and_then(|reason| reason.as_str())
    };
    assert_eq!(reason("destination"), Some("default/keep-out"));
    assert_eq!(reason("source"), None, "the name does not travel");
    // The tunnel is as good as before once the policy is gone.
    publish(&world, Vec::new());
    let mut client = world.dial(outbound, address).await;
    let (mut app, _) = listener.accept().await.unwrap();
    say(&mut client, b"now").await;
    hear(&mut app, b"now").await;
    assert_eq!(world.metric("weft_tunnel_handshakes_total{role=\"client\",result=\"success\"}"), Some(1.0));
}

#[tokio::test]
async fn a_policy_change_closes_the_losers_and_only_them() {
    let (mut world, outbound, listener, address) = two_pods().await;
    let other = world.add_pod("other", 3);
    let mut loser = world.dial(outbound, address).await;
    let (mut loser_app, _) = listener.accept().await.unwrap();
    let mut winner = world.dial(other, address).await;
    let (mut winner_app, _) = listener.accept().await.unwrap();
    publish(&world, vec![policy("keep-out", Action::Deny, Source::Spiffe(id("client").to_string()))]);
    is_reset(&mut loser).await;
    is_reset(&mut loser_app).await;
    say(&mut winner, b"still here").await;
    hear(&mut winner_app, b"still here").await;
    assert!(world.records(2).await.iter().all(|record| record["ending"] == "policy_revoked"));
}

#[tokio::test]
async fn a_destination_with_another_identity_gets_no_byte() {
    let (world, outbound, listener, address) = two_pods().await;
    world.credentials.impostors.lock().insert(id("server"), id("mallory"));
    let mut client = world.dial(outbound, address).await;
    say(&mut client, b"secret").await;
    is_reset(&mut client).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err());
    let records = world.records(1).await;
    let source = records.iter().find(|record| record["reporter"] == "source").unwrap();
    assert_eq!(source["ending"], "identity_mismatch");
    assert_eq!(source["destination"]["identity"], id("mallory").as_str());
    assert_eq!(source["bytes_sent"], 0);
}

#[tokio::test]
async fn plain_text_on_the_tunnel_port_has_its_own_reason() {
    let (world, _outbound, _listener, address) = two_pods().await;
    let mut stranger = TcpStream::connect((address.ip(), tunnel::PORT)).await.unwrap();
    say(&mut stranger, b"GET / HTTP/1.1\r\n\r\n").await;
    is_reset(&mut stranger).await;
    let records = world.records(1).await;
    assert_eq!(records[0]["ending"], "tls_failed");
    assert_eq!(records[0]["reason"], "plaintext_on_tunnel_port");
}

#[tokio::test]
async fn peers_outside_the_mesh_are_reached_in_plain_text() {
    let (mut world, outbound, _listener, _address) = two_pods().await;
    world.add_workload("legacy", 9, false);
    for host in [9, 10] {
        let (listener, address) = server(&world, host).await;
        let mut client = world.dial(outbound, address).await;
        say(&mut client, b"plain").await;
        let (mut app, _) = listener.accept().await.unwrap();
        hear(&mut app, b"plain").await;
        say(&mut app, b"answer").await;
        app.shutdown().await.unwrap();
        hear(&mut client, b"answer").await;
        is_ended(&mut client).await;
        drop(client);
        is_ended(&mut app).await;
    }
    let records = world.records(2).await;
    assert!(records.iter().all(|record| record["path"] == "plain" && record["ending"] == "closed"));
    assert!(records.iter().all(|record| record["bytes_sent"] == 5 && record["bytes_received"] == 6));
    assert_eq!(records[0]["destination"]["workload"], "legacy");
    assert!(records[1]["destination"].get("workload").is_none());
}

#[tokio::test]
async fn a_pod_that_goes_takes_its_connections_along() {
    let (mut world, outbound, listener, address) = two_pods().await;
    let mut client = world.dial(outbound, address).await;
    let (mut app, _) = listener.accept().await.unwrap();
    world.remove_pod("client");
    is_reset(&mut client).await;
    is_reset(&mut app).await;
    assert!(world.records(2).await.iter().all(|record| record["ending"] == "shutdown"));
}

#[tokio::test]
async fn workers_that_drain_serve_what_is_open_and_then_end() {
    let (mut world, outbound, listener, address) = two_pods().await;
    let mut client = world.dial(outbound, address).await;
    say(&mut client, b"before").await;
    let (mut app, _) = listener.accept().await.unwrap();
    hear(&mut app, b"before").await;
    world.drain.0.fire();
    // Longer than what waits in the listeners' queues is taken for.
    tokio::time::sleep(world.settings.last_arrivals * 2).await;
    assert!(TcpStream::connect(outbound).await.is_err(), "nothing new comes");
    say(&mut client, b"after").await;
    hear(&mut app, b"after").await;
    app.shutdown().await.unwrap();
    is_ended(&mut client).await;
    drop(client);
    is_ended(&mut app).await;
    let workers = std::mem::take(&mut world.workers);
    let ended = tokio::task::spawn_blocking(|| workers.into_iter().for_each(Workers::join));
    ended.await.expect("they end by themselves");
    assert!(world.records(2).await.iter().all(|record| record["ending"] == "closed"));
}

/// Dials a pod's plaintext port from outside the mesh, as the in-pod listener would hand it over.
async fn arrive_in_plain_text(world: &World, served: &Rc<Served>, address: SocketAddr) -> TcpStream {
    let (stranger, peer) = tcp_pair().await;
    let client = ClientAddr::new(stranger.local_addr().unwrap());
    let (settings, handles, served) = (world.settings, world.handles.clone(), served.clone());
    tokio::task::spawn_local(async move {
        let local = Local::new(settings, handles);
        inbound::serve_plain(&local, &served, peer, EndpointAddr::new(address), client).await;
    });
    stranger
}

#[tokio::test(flavor = "local")]
async fn plain_text_from_outside_is_judged_like_everything_else() {
    let mut world = World::new();
    let pod = world.add_workload("server", 2, true);
    let served = Rc::new(Served { pod, ports: [1, 2] });
    let (listener, address) = server(&world, 2).await;
    let mut stranger = arrive_in_plain_text(&world, &served, address).await;
    let (mut app, agent) = listener.accept().await.unwrap();
    assert_eq!(world.origins.shown(agent), Some(ClientAddr::new(stranger.local_addr().unwrap())));
    say(&mut stranger, b"hello").await;
    hear(&mut app, b"hello").await;
    say(&mut app, b"hi").await;
    drop(app);
    hear(&mut stranger, b"hi").await;
    is_ended(&mut stranger).await;
    drop(stranger);
    let record = world.records(1).await.remove(0);
    assert_eq!((&record["ending"], &record["path"]), (&"closed".into(), &"plain".into()));
    assert_eq!((&record["bytes_sent"], &record["bytes_received"]), (&5.into(), &2.into()));

    publish(&world, vec![policy("known-only", Action::Allow, Source::AnyAuthenticated)]);
    let mut stranger = arrive_in_plain_text(&world, &served, address).await;
    is_reset(&mut stranger).await;
    assert_eq!(world.records(2).await[1]["ending"], "policy_denied");
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err());
}

#[tokio::test(flavor = "local")]
async fn a_probe_of_the_node_passes_a_strict_policy_and_nobody_else_on_its_port_does() {
    let mut world = World::new();
    let pod = world.add_workload("server", 2, true);
    let (listener, address) = server(&world, 2).await;
    publish(&world, vec![policy("known-only", Action::Allow, Source::AnyAuthenticated)]);
    let mut workload = (*pod.workload()).clone();
    workload.probe_ports.insert(address.port());
    pod.update(Arc::new(workload.clone()));
    let served = Rc::new(Served { pod, ports: [1, 2] });

    world.handles.callers = Arc::new(OneCaller(Caller::Node));
    let mut kubelet = arrive_in_plain_text(&world, &served, address).await;
    let (mut app, _) = listener.accept().await.unwrap();
    say(&mut kubelet, b"well?").await;
    hear(&mut app, b"well?").await;
    drop(app);
    is_ended(&mut kubelet).await;
    drop(kubelet);
    let record = world.records(1).await.remove(0);
    assert_eq!((&record["ending"], &record["reason"]), (&"closed".into(), &"probe".into()));

    // Somebody else behind the same address.
    for caller in [Caller::Other, Caller::Gone] {
        world.handles.callers = Arc::new(OneCaller(caller));
        let mut stranger = arrive_in_plain_text(&world, &served, address).await;
        say(&mut stranger, b"well?").await;
        is_reset(&mut stranger).await;
    }
    assert!(world.records(3).await[1..].iter().all(|record| record["ending"] == "policy_denied"));
    // Who came and went without a word may be kubelet's; the application never hears of it.
    drop(arrive_in_plain_text(&world, &served, address).await);
    let record = world.records(4).await.remove(3);
    assert_eq!((&record["ending"], &record["reason"]), (&"closed".into(), &"probe".into()));

    // The same caller on a port that is no probe's.
    world.handles.callers = Arc::new(OneCaller(Caller::Node));
    workload.probe_ports.clear();
    served.pod.update(Arc::new(workload));
    let mut kubelet = arrive_in_plain_text(&world, &served, address).await;
    is_reset(&mut kubelet).await;
    assert_eq!(world.records(5).await[4]["ending"], "policy_denied");
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err());
}

/// A peer that speaks weft/1 by hand.
async fn send(carrier: &mut Carrier, put: impl FnOnce(&mut Carrier)) {
    put(carrier);
    assert!(carrier.flush().unwrap());
}

fn plain_open() -> Open {
    Open {
        destination: EndpointAddr::new("10.0.0.1:80".parse().unwrap()),
        client: ClientAddr::new("10.0.0.2:1".parse().unwrap()),
        dialled: OriginalDst::new("10.0.0.1:80".parse().unwrap()),
        protocol: Protocol::Tcp,
        trace: None,
    }
}

/// The next events of a tunnel, at least `count`.
async fn events(carrier: &mut Carrier, scratch: &mut Scratch, count: usize) -> Vec<String> {
    let mut events = Vec::new();
    while events.len() < count {
        let received = carrier.receive(&mut scratch.receive, &mut |event| {
            events.push(format!("{event:?}"));
            Flow::Continue
        });
        if received.unwrap() == Received::Blocked {
            tokio::time::timeout(Duration::from_secs(5), carrier.stream().readable()).await.unwrap().unwrap();
        }
    }
    events
}

#[tokio::test]
async fn records_may_arrive_in_any_pieces() {
    let (mut near, far) = tunnel_pair(&TestCa::new()).await;
    let mut scratch = Scratch::default();
    send(&mut near, |near| near.put_open(&plain_open(), &[5; 5000], true).unwrap()).await;
    // Between the two ends stands somebody who passes on a few bytes at a time.
    let (mut passer, receiver) = tcp_pair().await;
    let mut wire = vec![0; 20_000];
    far.stream().readable().await.unwrap();
    let bytes = far.stream().try_read(&mut wire).unwrap();
    let mut far = far.on_another_socket(receiver);
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut at, mut heard, mut kinds) = (0, 0, Vec::new());
    while kinds.last() != Some(&Kind::Fin) {
        let next = (at + rng.usize(1..60)).min(bytes);
        say(&mut passer, &wire[at..next]).await;
        at = next;
        while far
            .receive(&mut scratch.receive, &mut |event| {
                kinds.push(event.kind());
                if let Event::Data(data) = event {
                    assert!(data.iter().all(|byte| *byte == 5));
                    heard += data.len();
                }
                Flow::Continue
            })
            .unwrap()
            != Received::Blocked
        {}
        tokio::task::yield_now().await;
    }
    assert_eq!((heard, kinds[0]), (5000, Kind::Open));
}

#[tokio::test]
async fn a_hand_over_is_refused_by_name_and_pings_are_answered() {
    let (world, _outbound, _listener, address) = two_pods().await;
    let (client, _) = world.credentials.pair(&id("client"));
    let stream = TcpStream::connect((address.ip(), tunnel::PORT)).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    let established = tls::connect(&stream, client, name, tunnel::ALPN).await.unwrap();
    let counted = Counted::new(&world.handles.telemetry);
    let mut carrier = Carrier::new(stream, established, Role::Opener, counted);
    let mut scratch = Scratch::default();
    send(&mut carrier, |carrier| carrier.put_raw(&ping_and_resume(), Kind::Resume)).await;
    let heard = events(&mut carrier, &mut scratch, 2).await;
    assert!(heard[0].contains("NotNegotiated") && heard[0].contains("hand-over"), "{heard:?}");
    assert_eq!(heard[1], "Done");
    assert!(carrier.may_be_reused());
}

fn ping_and_resume() -> Vec<u8> {
    let mut frames = Vec::new();
    codec::put_ping(&mut frames, codec::Ping::Question, *b"12345678");
    let position = codec::Position { stream_id: [1; 16], sent_bytes: 0, received_bytes: 0 };
    codec::put_position(&mut frames, Kind::Resume, &position);
    frames
}

#[tokio::test]
async fn a_reused_tunnel_that_was_closed_on_purpose_costs_nothing() {
    let (world, outbound, listener, address) = two_pods().await;
    for round in 0..3 {
        let mut client = world.dial(outbound, address).await;
        say(&mut client, b"once more").await;
        let (mut app, _) = listener.accept().await.unwrap();
        hear(&mut app, b"once more").await;
        drop((client, app));
        world.records(2 * (round + 1)).await;
        // A renewed server certificate closes its idle tunnels, and the next connection runs into the closed one.
        world.credentials.rotate_server();
    }
    let records = world.records(6).await;
    assert!(records.iter().all(|record| record["ending"] == "closed"), "{records:?}");
}

/// What one idle relayed connection holds in this agent, besides rustls' key schedule and the kernel: the task, the
/// tunnel and the sockets' registrations. rustls' part and the two AEAD contexts add about 2.5 KiB.
#[test]
fn an_idle_connection_is_small() {
    let outbound = size_of_outbound();
    let inbound = size_of_inbound();
    let carrier = size_of::<Carrier>();
    assert!(outbound <= 1792, "outbound task: {outbound} bytes");
    assert!(inbound <= 1792, "inbound task: {inbound} bytes");
    assert!(carrier <= 896, "carrier: {carrier} bytes");
}

fn size_of_outbound() -> usize {
    fn of<A, R, F>(_: impl FnOnce(Rc<Local>, Rc<Served>, TcpStream, A, R) -> F) -> usize {
        size_of::<F>()
    }
    of(super::outbound::serve_bytes)
}

fn size_of_inbound() -> usize {
    fn of<F>(_: impl FnOnce(Rc<Local>, Rc<Served>, TcpStream, SocketAddr) -> F) -> usize {
        size_of::<F>()
    }
    of(inbound::serve)
}
