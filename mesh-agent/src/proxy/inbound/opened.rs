//! One connection on a tunnel, from OPEN until the next OPEN may come.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use super::arrival::Arrival;
use super::{end_app, ending_of};
use crate::model::{ClientAddr, Ending, Path, SpiffeId};
use crate::proxy::carrier::{self, Carrier, Flow, Received};
use crate::proxy::http::entry::sniff_tunnel;
use crate::proxy::http::io::{Io, Returned, TunnelIo};
use crate::proxy::protocol::Spoken;
use crate::proxy::relay::{self, Early, First, Outcome};
use crate::proxy::report::Report;
use crate::proxy::tunnel::{Open, ResetReason, Role};
use crate::proxy::worker::{Local, Served};
use crate::telemetry::Reporter;

/// One connection on a tunnel. `None`: the tunnel is dead.
pub(super) async fn serve_open(
    local: &Rc<Local>,
    served: &Rc<Served>,
    mut carrier: Box<Carrier>,
    identity: &SpiffeId,
    address: ClientAddr,
    open: Box<Open>,
) -> Option<Box<Carrier>> {
    let client = believable(local, identity, open.client, address);
    let mut report = Report::new(&local.handles.telemetry, Reporter::Destination, client);
    report.path = Path::Tunnel;
    report.source_identity = Some(identity.clone());
    report.destination_identity = Some(served.pod.workload().identity.clone());
    report.key_exchange = Some(carrier.key_exchange());
    let arrival = Arrival {
        local,
        served,
        identity: Some(identity),
        client,
        destination: open.destination,
        node_probe: false,
    };
    let mut early = Early::default();
    if arrival.reads_requests() {
        let entry = local.open.enter(served.pod.clone(), None);
        let (mut tunnel, returned) = TunnelIo::accepted(carrier);
        let sniffed = Box::pin(sniff_tunnel(&mut tunnel, arrival.patience(), &entry.close)).await;
        match sniffed.and_then(|sniffed| arrival.spoken(sniffed)) {
            Ok(Spoken::Http { is_h2 }) => {
                arrival.note(&mut report, open.dialled);
                let first = tunnel.take_kept();
                let io = Io::Tunnel(tunnel);
                let serving = arrival.serve_requests(io, first, is_h2, entry, open.dialled, report);
                Box::pin(serving).await;
                return Box::pin(settle_accepted(local, returned)).await;
            }
            Ok(Spoken::Bytes) => {
                let (bytes, end);
                (carrier, bytes, end) = tunnel.into_parts()?;
                early = Early { bytes, end };
            }
            Err(ending) => {
                arrival.note(&mut report, open.dialled);
                report.close(ending);
                drop(tunnel);
                return Box::pin(settle_accepted(local, returned)).await;
            }
        }
    }
    let (permit, entry) = match arrival.judge(&mut report, open.dialled) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let told = carrier.put_reset(refusal.reset(), "").is_ok();
            refusal.tell(report);
            return told.then_some(carrier);
        }
    };
    let app = match arrival.dial(&permit).await {
        Ok(app) => app,
        Err(ending) => {
            report.close(ending);
            return carrier.put_reset(reset_of(ending), "").is_ok().then_some(carrier);
        }
    };
    report.opened();
    // The destination never replays anything.
    let mut first = First::none();
    let outcome = relay::tunnelled(
        &app.stream,
        &mut carrier,
        Role::Acceptor,
        &mut first,
        early,
        &mut report.bytes,
        &entry.close,
        local.scratch,
    )
    .await;
    report.close(end_app(app, ending_of(&outcome)));
    (!matches!(outcome, Outcome::Broken(_))).then_some(carrier)
}

/// Brings a tunnel that carried HTTP to where the next OPEN may come. `None`: it cannot be.
async fn settle_accepted(local: &Local, returned: Returned) -> Option<Box<Carrier>> {
    let mut carrier = returned.take()?;
    let settled = poll_fn(|context| {
        loop {
            carrier.put_done_if_due()?;
            let flushed = carrier.flush()?;
            if carrier.session().is_done() {
                return Poll::Ready(Ok::<_, carrier::Error>(()));
            }
            let received = {
                let mut scratch = local.scratch.borrow_mut();
                carrier.receive(&mut scratch.receive, &mut |_late| Flow::Continue)?
            };
            if received != Received::Blocked {
                continue;
            }
            let writable = !flushed && carrier.stream().poll_write_ready(context).is_ready();
            if !writable && carrier.stream().poll_read_ready(context).is_pending() {
                return Poll::Pending;
            }
        }
    });
    let settled = tokio::time::timeout(local.settings.settle_timeout, settled).await;
    matches!(settled, Ok(Ok(()))).then_some(carrier)
}

/// The client address that OPEN claims, if its owner has the identity that was proven; else the tunnel's own.
fn believable(local: &Local, identity: &SpiffeId, claimed: ClientAddr, seen: ClientAddr) -> ClientAddr {
    let mesh = local.handles.registry.snapshot();
    let owner_fits = mesh.workload_by_ip(claimed.ip()).is_some_and(|owner| owner.identity == *identity);
    if owner_fits { claimed } else { seen }
}

/// What the client's agent is told when the application could not be reached.
fn reset_of(ending: Ending) -> ResetReason {
    match ending {
        Ending::ConnectRefused => ResetReason::ConnectRefused,
        Ending::ServerReset => ResetReason::Application,
        Ending::ConnectTimeout => ResetReason::ConnectTimeout,
        Ending::Unreachable => ResetReason::Unreachable,
        _ => ResetReason::Exhausted,
    }
}
