//! The proxy's questions about a caught socket, answered from the kernel's tables.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::{Address, Client, ClientKey, DialKey};

use super::{Origin, OriginTable, Pod};
use crate::kernel::Maps;
use crate::model::{ClientAddr, EndpointAddr, OriginalDst};

/// [`OriginTable`] over the pinned maps. One system call per question.
#[derive(Debug)]
pub struct KernelOrigins(pub Arc<Maps>);

impl OriginTable for KernelOrigins {
    fn take(&self, pod: &Pod, client: SocketAddr) -> Option<Origin> {
        let key = DialKey {
            netns: pod.netns_cookie,
            address: Address::from(client.ip()),
            port: client.port(),
            reserved: 0,
            reserved2: 0,
        };
        let dial = match self.0.dials.take(&key) {
            Ok(dial) => dial?,
            Err(error) => {
                tracing::warn!(%error, "cannot look up an original destination");
                return None;
            }
        };
        let drawn = (dial.drawn_port != 0)
            .then(|| EndpointAddr::new(SocketAddr::new(dial.drawn.into(), dial.drawn_port)));
        Some(Origin {
            dialled: OriginalDst::new(SocketAddr::new(dial.dialled.into(), dial.dialled_port)),
            drawn,
        })
    }

    fn show_client(&self, pod: &Pod, agent: SocketAddr, client: ClientAddr) -> io::Result<()> {
        let value =
            Client { address: Address::from(client.ip()), port: client.port(), reserved: 0, reserved2: 0 };
        match self.0.clients.add(&client_key(pod, agent), &value) {
            Ok(true) => Ok(()),
            // Another connection of the agent has this port, towards another port of the pod: draw again.
            Ok(false) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn forget_client(&self, pod: &Pod, agent: SocketAddr) {
        if let Err(error) = self.0.clients.remove(&client_key(pod, agent)) {
            tracing::warn!(%error, "cannot forget a client address");
        }
    }
}

fn client_key(pod: &Pod, agent: SocketAddr) -> ClientKey {
    ClientKey {
        netns: pod.netns_cookie,
        port: agent.port(),
        family: if agent.ip().to_canonical().is_ipv4() { 4 } else { 6 },
        reserved: 0,
    }
}
