//! Station 12: `getpeername(2)`, and the address that `accept(2)` returns.
//!
//! A client is shown what it dialled; a server behind the agent is shown the true client. Nothing was translated on the
//! wire, so there is no state to lose: it is the answer that is chosen here.
//! Minimum kernel: 5.15. Helpers used: `bpf_sk_storage_get`, `bpf_get_netns_cookie`.
//! On any failure: the kernel's own answer stands.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{ClientKey, action};

use crate::{
    connect::ALLOW,
    ctx::{self, sock_addr},
    maps::{CLIENTS, SOCKET_STATE},
};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show(&ctx, false);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    show(&ctx, true);
    ALLOW
}

#[inline(always)]
fn show(ctx: &SockAddrContext, v6: bool) {
    // SAFETY: the pointer is used only when non-null.
    let state = unsafe { SOCKET_STATE.get_ptr_mut(ctx) };
    if !state.is_null() {
        // SAFETY: checked above; storage of the socket that the call holds.
        let state = unsafe { &*state };
        if state.side == 0 && (state.action != action::PASS || state.endpoint != 0) {
            sock_addr::set(ctx.sock_addr, v6, &state.dialled, state.dialled_port);
            return;
        }
    }
    let peer = sock_addr::address(ctx.sock_addr, v6);
    if !ctx::is_loopback(&peer) {
        return;
    }
    let key = ClientKey {
        netns: ctx::netns_cookie(ctx),
        port: sock_addr::port(ctx.sock_addr),
        family: if ctx::is_v4(&peer) { 4 } else { 6 },
        reserved: 0,
    };
    // SAFETY: the agent writes it before it connects and removes it after it has closed.
    if let Some(client) = unsafe { CLIENTS.get(key) } {
        if v6 || ctx::is_v4(&client.address) {
            sock_addr::set(ctx.sock_addr, v6, &client.address, client.port);
        }
    }
}
