//! What reaches a pod.
//!
//! [`serve`] is the table of contents of this half of the data path: who dials, what, permit, application, relay, ending.
//! The application is dialled with a [`Permit`](crate::policy::Permit) in hand or not at all.
//!
//! Reading order: this file (which of the two it is, and how it ended), `tunnelled` (a peer's agent, station 10), `opened` (one
//! connection on its tunnel), `plain` (a client outside the mesh), `arrival` (may it, station 11).

mod arrival;
mod opened;
mod plain;
mod tunnelled;

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::dial::Application;
use super::relay::{self, Outcome};
use super::tunnel::{self, ResetReason};
use super::worker::{Local, Served};
use crate::model::{ClientAddr, Ending, EndpointAddr};

pub(super) use arrival::{note_audits, reason_of};
pub(super) use plain::serve_plain;
use tunnelled::serve_tunnel;

/// One socket, from accept to its end: one plaintext connection, or one tunnel with connections one after the other.
pub async fn serve(local: Rc<Local>, pod: Rc<Served>, peer: TcpStream, address: SocketAddr) {
    let Ok(dialled) = peer.local_addr() else { return };
    let (dialled, address) = (EndpointAddr::new(dialled), ClientAddr::new(address));
    if dialled.port() == tunnel::PORT {
        serve_tunnel(&local, &pod, peer, address).await;
    } else {
        serve_plain(&local, &pod, peer, dialled, address).await;
    }
}

/// How it ended, as the server's side sees it. In the plaintext relay, too, the application is the first socket.
fn ending_of(outcome: &Outcome) -> Ending {
    match outcome {
        Outcome::Closed => Ending::Closed,
        Outcome::AppReset => Ending::ServerReset,
        Outcome::Told(ending) => *ending,
        Outcome::Broken(_) => Ending::TunnelFailed,
        Outcome::PeerReset { reason } => match reason {
            ResetReason::Application => Ending::ClientReset,
            ResetReason::Shutdown => Ending::Shutdown,
            _ => Ending::TunnelFailed,
        },
    }
}

/// Closes the application's socket the way the connection ended.
fn end_app(app: Application, ending: Ending) -> Ending {
    if ending != Ending::Closed {
        relay::reset_on_close(&app.stream);
    }
    ending
}
