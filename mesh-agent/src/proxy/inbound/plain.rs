//! A connection from outside the mesh: its client has no identity, and the kernel vouches for its address. Station 11 follows.

use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::arrival::Arrival;
use super::{end_app, ending_of};
use crate::capture::Caller;
use crate::model::{ClientAddr, Ending, EndpointAddr, OriginalDst, Path};
use crate::policy::NODE_PROBE;
use crate::proxy::http::entry::sniff_socket;
use crate::proxy::http::io::Io;
use crate::proxy::protocol::Spoken;
use crate::proxy::relay::{self, Early, First};
use crate::proxy::report::Report;
use crate::proxy::worker::{Local, Served};
use crate::telemetry::Reporter;

/// How long the end of a connection may take whose client has closed already: it is on its way within this node.
const FIN_PATIENCE: Duration = Duration::from_millis(100);

/// A connection from outside the mesh.
pub(in crate::proxy) async fn serve_plain(
    local: &Rc<Local>,
    served: &Rc<Served>,
    peer: TcpStream,
    dialled: EndpointAddr,
    client: ClientAddr,
) {
    let mut report = Report::new(&local.handles.telemetry, Reporter::Destination, client);
    report.path = Path::Plain;
    let caller = node_caller(local, served, dialled, client);
    let node_probe = caller == Caller::Node;
    let arrival = Arrival { local, served, identity: None, client, destination: dialled, node_probe };
    let dialled = OriginalDst::new(dialled.addr());
    if caller == Caller::Gone && is_empty_and_over(&peer).await {
        // A `tcpSocket` probe has its answer by now. Nothing was said, so the application is not dialled either.
        arrival.note(&mut report, dialled);
        report.reason = Some(NODE_PROBE.into());
        return report.close(Ending::Closed);
    }
    let mut first = First::default();
    if arrival.reads_requests() {
        let entry = local.open.enter(served.pod.clone(), None);
        let sniffed = Box::pin(sniff_socket(&peer, &mut first, arrival.patience(), &entry.close)).await;
        match sniffed.and_then(|sniffed| arrival.spoken(sniffed)) {
            Ok(Spoken::Http { is_h2 }) => {
                arrival.note(&mut report, dialled);
                let (first, _end) = first.take();
                let io = Io::Tcp(peer);
                return Box::pin(arrival.serve_requests(io, first, is_h2, entry, dialled, report)).await;
            }
            Ok(Spoken::Bytes) => {}
            Err(ending) => {
                arrival.note(&mut report, dialled);
                if ending == Ending::NotHttp {
                    relay::reset_on_close(&peer);
                }
                return report.close(ending);
            }
        }
    }
    let (permit, entry) = match arrival.judge(&mut report, dialled) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            relay::reset_on_close(&peer);
            return refusal.tell(report);
        }
    };
    let ending = match arrival.dial(&permit).await {
        Ok(app) => {
            report.opened();
            let (bytes, end) = first.take();
            let outcome = relay::plain(
                &app.stream,
                &peer,
                Vec::new(),
                false,
                Early { bytes, end },
                &mut report.bytes,
                &entry.close,
                local.scratch,
            )
            .await;
            end_app(app, ending_of(&outcome))
        }
        Err(ending) => ending,
    };
    if ending != Ending::Closed {
        relay::reset_on_close(&peer);
    }
    report.close(ending);
}

/// Who on this node dialled a port that the pod declares for kubelet's probes; every other arrival is not asked about.
fn node_caller(local: &Local, served: &Served, dialled: EndpointAddr, client: ClientAddr) -> Caller {
    let is_probe_port = served.pod.workload().probe_ports.contains(&dialled.port());
    let mesh = local.handles.registry.snapshot();
    if !is_probe_port || mesh.workload_by_ip(client.ip()).is_some() {
        return Caller::Other;
    }
    local.handles.callers.of(client.addr(), dialled.addr())
}

/// Whether a connection whose client is known to be gone ends without a byte.
async fn is_empty_and_over(peer: &TcpStream) -> bool {
    matches!(tokio::time::timeout(FIN_PATIENCE, peer.peek(&mut [0])).await, Ok(Ok(0) | Err(_)))
}
