//! Makes a new tunnel to the pod behind an endpoint, and makes sure of who answers before any byte is sent.
//!
//! Station 7 of the walk, for connections and for requests alike. It takes nothing from the pool and keeps nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::carrier::{Carrier, Counted};
use super::tunnel::{self, Role};
use super::worker::Local;
use super::{dial, tls};
use crate::capture::Pod;
use crate::identity;
use crate::model::{Ending, EndpointAddr, SpiffeId};
use crate::telemetry::TunnelRole;

/// Why there is no tunnel.
#[derive(Debug)]
pub struct Unreached {
    /// How the connection ends.
    pub ending: Ending,
    /// Stable label of a TLS failure.
    pub reason: Option<&'static str>,
    /// Who answered instead.
    pub found: Option<SpiffeId>,
}

impl From<Ending> for Unreached {
    fn from(ending: Ending) -> Self {
        Self { ending, reason: None, found: None }
    }
}

/// Dials the endpoint's pod on its tunnel port.
///
/// # Errors
/// How far it came. Cancel safe: a dropped attempt leaves nothing behind.
pub async fn new_tunnel(
    local: &Local,
    pod: &Pod,
    endpoint: EndpointAddr,
    expected: &SpiffeId,
    config: Arc<ClientConfig>,
) -> Result<Box<Carrier>, Unreached> {
    let result = Box::pin(shake_hands(local, pod, endpoint, expected, config)).await;
    let label = result.as_ref().map_or_else(|unreached| unreached.ending.label(), |_| "success");
    local.handles.telemetry.tunnel_handshake(TunnelRole::Client, label);
    result
}

async fn shake_hands(
    local: &Local,
    pod: &Pod,
    endpoint: EndpointAddr,
    expected: &SpiffeId,
    config: Arc<ClientConfig>,
) -> Result<Box<Carrier>, Unreached> {
    let settings = &local.settings;
    let _turn = local.handshakes.acquire().await.map_err(|_closed| Ending::Shutdown)?;
    let ip = endpoint.ip();
    let failed = |reason| Unreached { ending: Ending::TlsFailed, reason: Some(reason), found: None };
    let dialling = dial::from_pod(pod, SocketAddr::new(ip, tunnel::PORT), settings.connect_timeout);
    let stream = dialling.await.map_err(|ending| match ending {
        // An agent without a certificate resets at once, perhaps before we have seen the connection open.
        Ending::ServerReset => failed("closed_in_handshake"),
        ending => ending.into(),
    })?;
    let shaking = tls::connect(&stream, config, ServerName::IpAddress(ip.into()), tunnel::ALPN);
    let established = match tokio::time::timeout(settings.handshake_timeout, shaking).await {
        Ok(Ok(established)) => established,
        Ok(Err(error)) => {
            tracing::warn!(%endpoint, %expected, error = &error as &dyn std::error::Error, "tunnel handshake failed");
            return Err(failed(tls_label(&error)));
        }
        Err(_elapsed) => return Err(failed("handshake_timeout")),
    };
    let peer = identity::peer_identity(&established.peer_certificates).ok();
    if peer.as_ref() != Some(expected) {
        tracing::warn!(%endpoint, %expected, found = peer.as_ref().map(tracing::field::display), "the peer is somebody else");
        return Err(Unreached { ending: Ending::IdentityMismatch, reason: None, found: peer });
    }
    let counted = Counted::new(&local.handles.telemetry);
    Ok(Box::new(Carrier::new(stream, established, Role::Opener, counted)))
}

/// Stable label of a TLS failure.
pub(super) fn tls_label(error: &tls::Error) -> &'static str {
    match error {
        tls::Error::NotTls => "plaintext_on_tunnel_port",
        tls::Error::ClosedInHandshake => "closed_in_handshake",
        tls::Error::Handshake(error) => identity::refusal_label(error),
        tls::Error::FlightTooLarge => "flight_too_large",
        tls::Error::Protocol => "no_common_protocol",
        tls::Error::Suite => "unsupported_suite",
        tls::Error::Alert(_) => "alert_from_peer",
        tls::Error::BadRecord => "bad_record",
        tls::Error::Message(_) => "unexpected_message",
        tls::Error::Seal => "seal",
        tls::Error::Io(_) => "socket",
    }
}
