//! How a connection ended: one closed enum for the whole data path.
//!
//! Three exhaustive matches (side, label, retry) make the compiler ask about every new variant.

use std::fmt;

/// The way the bytes took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Joined in the kernel on one node (sk_msg).
    Splice,
    /// Plain TCP between two pods of one node, authorized by the kernel programs, agent not on the path.
    Direct,
    /// mTLS between two agents.
    Tunnel,
    /// Through the agent, without encryption (peer outside the mesh).
    Plain,
    /// Through the agent of the one node that both pods run on, which reads the requests.
    Local,
    /// A client's connection whose requests each take a way of their own.
    Http,
}

impl Path {
    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Splice => "splice",
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Plain => "plain",
            Self::Local => "local",
            Self::Http => "http",
        }
    }
}

/// Who ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client application, or the agent on its side.
    Downstream,
    /// The server application, or the agent on its side.
    Upstream,
    /// This agent.
    Agent,
    /// A policy.
    Policy,
}

/// Whether another endpoint may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// No byte reached the application.
    Safe,
    /// Bytes may have reached it, or trying again cannot help.
    Never,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Both directions were closed in order.
    Closed,
    /// The client reset it.
    ClientReset,
    /// The server reset it.
    ServerReset,
    /// A policy refused it before any byte reached the application.
    PolicyDenied,
    /// It was open when a policy change turned against it.
    PolicyRevoked,
    /// The application's port refused (RST on SYN).
    ConnectRefused,
    /// The endpoint did not answer in time.
    ConnectTimeout,
    /// No route to the endpoint.
    Unreachable,
    /// No endpoint takes connections.
    NoEndpoint,
    /// The captured socket has no recorded destination.
    UnknownDestination,
    /// The dialled address belongs to the agent itself, or leads back to it.
    Loop,
    /// The TLS handshake failed; the log has the reason.
    TlsFailed,
    /// The peer's identity is not the one that the registry or the policy expects.
    IdentityMismatch,
    /// This agent has no valid certificate for the pod.
    NoCertificate,
    /// The tunnel's other side broke the protocol or vanished.
    TunnelFailed,
    /// The port carries HTTP by configuration, and the client said something else.
    NotHttp,
    /// The client's HTTP cannot be read, or could be read in two ways; the record has the reason.
    BadRequest,
    /// A request took longer than its route allows.
    RequestTimeout,
    /// No rule of the routes that are attached takes the connection.
    NoRoute,
    /// The agent stopped.
    Shutdown,
    /// The agent ran out of a resource (file descriptors, ports, memory budget).
    Exhausted,
}

impl Ending {
    /// Who ended it.
    pub fn side(self) -> Side {
        match self {
            Self::Closed | Self::ClientReset | Self::NotHttp | Self::BadRequest => Side::Downstream,
            Self::ServerReset
            | Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::Unreachable
            | Self::TlsFailed
            | Self::IdentityMismatch
            | Self::TunnelFailed
            | Self::RequestTimeout => Side::Upstream,
            Self::PolicyDenied | Self::PolicyRevoked => Side::Policy,
            Self::NoEndpoint
            | Self::NoRoute
            | Self::UnknownDestination
            | Self::Loop
            | Self::NoCertificate
            | Self::Shutdown
            | Self::Exhausted => Side::Agent,
        }
    }

    /// Stable metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::ServerReset => "server_reset",
            Self::PolicyDenied => "policy_denied",
            Self::PolicyRevoked => "policy_revoked",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Unreachable => "unreachable",
            Self::NoEndpoint => "no_endpoint",
            Self::UnknownDestination => "unknown_destination",
            Self::Loop => "loop",
            Self::TlsFailed => "tls_failed",
            Self::IdentityMismatch => "identity_mismatch",
            Self::NoCertificate => "no_certificate",
            Self::TunnelFailed => "tunnel_failed",
            Self::NotHttp => "not_http",
            Self::BadRequest => "bad_request",
            Self::RequestTimeout => "request_timeout",
            Self::NoRoute => "no_route",
            Self::Shutdown => "shutdown",
            Self::Exhausted => "exhausted",
        }
    }

    /// Whether the same connection may be tried on another endpoint.
    pub fn retry(self) -> Retry {
        match self {
            Self::ConnectRefused | Self::ConnectTimeout | Self::Unreachable | Self::TlsFailed => Retry::Safe,
            Self::Closed
            | Self::ClientReset
            | Self::ServerReset
            | Self::PolicyDenied
            | Self::PolicyRevoked
            | Self::NoEndpoint
            | Self::UnknownDestination
            | Self::Loop
            | Self::IdentityMismatch
            | Self::NoCertificate
            | Self::TunnelFailed
            | Self::NotHttp
            | Self::BadRequest
            | Self::RequestTimeout
            | Self::NoRoute
            | Self::Shutdown
            | Self::Exhausted => Retry::Never,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
