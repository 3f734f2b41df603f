//! Station 10, who is it: a peer's agent proves for whom it speaks, and then brings connections one after the other.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use rustls::ServerConfig;
use tokio::net::TcpStream;

use super::opened::serve_open;
use crate::identity;
use crate::model::{ClientAddr, Ending, Path, SpiffeId};
use crate::proxy::carrier::{self, Carrier, Counted, Flow, Received};
use crate::proxy::open::CloseSignal;
use crate::proxy::reach::tls_label;
use crate::proxy::report::Report;
use crate::proxy::tunnel::{self, Event, Open, ResetReason, Role};
use crate::proxy::worker::{Local, Served};
use crate::proxy::{relay, tls};
use crate::telemetry::{Reporter, TunnelRole};

/// A tunnel and, one after the other, the connections on it.
pub(super) async fn serve_tunnel(
    local: &Rc<Local>,
    served: &Rc<Served>,
    peer: TcpStream,
    address: ClientAddr,
) {
    // Stands for the tunnel between connections: closed with the pod, or when the agent stops.
    let idle = local.open.enter(served.pod.clone(), None);
    let identity = served.pod.workload().identity.clone();
    let Some(config) = local.handles.credentials.server_config(&identity) else {
        return refuse_tunnel(local, served, peer, address, Ending::NoCertificate, "no_certificate");
    };
    let (mut carrier, client) = match Box::pin(shake_hands(local, peer, config.clone())).await {
        Ok(accepted) => accepted,
        Err((peer, label)) => {
            return refuse_tunnel(local, served, peer, address, Ending::TlsFailed, label);
        }
    };
    local.handles.telemetry.tunnel_handshake(TunnelRole::Server, "success");
    while let Some(open) = next_open(&mut carrier, &idle.close, local).await {
        let Some(used) = serve_open(local, served, carrier, &client, address, open).await else { return };
        carrier = used;
        // After a rotation the peer's next connection should meet the new certificate.
        let is_current = local
            .handles
            .credentials
            .server_config(&identity)
            .is_some_and(|current| Arc::ptr_eq(&current, &config));
        if !is_current {
            break;
        }
    }
    let _ = carrier.flush();
    if carrier.session().is_clean() {
        let _ = carrier.close();
    }
}

async fn shake_hands(
    local: &Local,
    peer: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<(Box<Carrier>, SpiffeId), (TcpStream, &'static str)> {
    let Ok(_turn) = local.handshakes_in.acquire().await else { return Err((peer, "shutdown")) };
    let shaking = tls::accept(&peer, config, tunnel::ALPN);
    let established = match tokio::time::timeout(local.settings.handshake_timeout, shaking).await {
        Ok(Ok(established)) => established,
        Ok(Err(error)) => return Err((peer, tls_label(&error))),
        Err(_elapsed) => return Err((peer, "handshake_timeout")),
    };
    match identity::peer_identity(&established.peer_certificates) {
        Ok(client) => {
            let counted = Counted::new(&local.handles.telemetry);
            Ok((Box::new(Carrier::new(peer, established, Role::Acceptor, counted)), client))
        }
        Err(_) => Err((peer, "no_spiffe_id")),
    }
}

fn refuse_tunnel(
    local: &Local,
    served: &Served,
    peer: TcpStream,
    client: ClientAddr,
    ending: Ending,
    label: &'static str,
) {
    let telemetry = &local.handles.telemetry;
    telemetry.tunnel_handshake(TunnelRole::Server, label);
    let mut report = Report::new(telemetry, Reporter::Destination, client);
    report.path = Path::Tunnel;
    report.destination = Some(served.pod.workload());
    report.source = local.handles.registry.snapshot().workload_by_ip(client.ip()).cloned();
    report.reason = Some(label.into());
    tracing::warn!(%client, pod = %served.pod.workload().name, label, "tunnel refused");
    relay::reset_on_close(&peer);
    report.close(ending);
}

/// Waits for the next connection on an idle tunnel. `None`: the tunnel is over.
async fn next_open(carrier: &mut Carrier, close: &CloseSignal, local: &Local) -> Option<Box<Open>> {
    let next = poll_fn(|context| {
        if close.poll(context).is_some() || close.is_draining() {
            return Poll::Ready(Ok(None));
        }
        loop {
            let flushed = carrier.flush()?;
            let mut next = None;
            let mut refused = false;
            let received = {
                let mut scratch = local.scratch.borrow_mut();
                carrier.receive(&mut scratch.receive, &mut |event| match event {
                    Event::Open(open) => {
                        next = Some(open);
                        Flow::Stop
                    }
                    Event::Resume(_) => {
                        refused = true;
                        Flow::Stop
                    }
                    // The end of the connection before.
                    _ => Flow::Continue,
                })?
            };
            if refused {
                carrier.put_reset(ResetReason::NotNegotiated, "hand-over was not negotiated")?;
                continue;
            }
            if next.is_some() {
                return Poll::Ready(Ok::<_, carrier::Error>(next));
            }
            if received != Received::Blocked {
                continue;
            }
            let writable = !flushed && carrier.stream().poll_write_ready(context).is_ready();
            if !writable && carrier.stream().poll_read_ready(context).is_pending() {
                return Poll::Pending;
            }
        }
    });
    match next.await {
        Ok(open) => open,
        // The peer closes idle tunnels as it likes.
        Err(carrier::Error::Closed { .. } | carrier::Error::Io(_)) => None,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "tunnel broke between connections");
            None
        }
    }
}
