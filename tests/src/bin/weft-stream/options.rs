//! Socket options that no safe crate names: nix writes the calls.

use nix::{setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// `TCP_DEFER_ACCEPT`, in seconds: accept(2) waits for the first data.
    DeferAccept,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    i32
);

sockopt_impl!(
    /// `SO_ZEROCOPY`: MSG_ZEROCOPY is wanted.
    ZeroCopy,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_ZEROCOPY,
    i32
);
