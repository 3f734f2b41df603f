//! Socket addresses by role, so that none travels nameless, and the one place where IPv4-mapped IPv6 is folded.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// `::ffff:a.b.c.d` becomes `a.b.c.d`; everything else is returned as it is.
///
/// Java and dual-stack Go dial IPv4 peers through IPv6 sockets (RFC 4291 section 2.5.5.2); the mesh decides on the
/// address the packet will carry.
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// [`canonical_ip`] for a socket address; flow label and scope are dropped for mapped addresses.
pub fn canonical_socket_addr(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V4(ip), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Takes the address in canonical form (IPv4-mapped folded to IPv4).
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical_socket_addr(addr))
            }
            /// The address.
            pub fn addr(self) -> SocketAddr {
                self.0
            }
            /// The IP.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }
            /// The port, host order.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

role! {
    /// Who dialled: the application's own address, never the agent's.
    ClientAddr
}
role! {
    /// What the application dialled, before any rewrite: a ClusterIP, a pod IP, or an address outside the mesh.
    OriginalDst
}
role! {
    /// Where the bytes go: a pod IP and container port chosen for the connection.
    EndpointAddr
}
