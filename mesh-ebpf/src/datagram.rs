//! UDP: passes, is counted, and is refused where the destination only accepts verified identities, which UDP has not.
//!
//! Connected sockets meet this at connect (see [`crate::connect`]), unconnected ones at `sendmsg`.
//! Minimum kernel: 5.15. Helpers used: `bpf_get_netns_cookie`.
//! On any failure: pass; a datagram that is not for an enrolled strict destination is none of the mesh's business.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{Address, counter, reason, workload};

use crate::{
    connect::{ALLOW, REFUSE},
    ctx::{self, sock_addr},
    maps::{ADDRESSES, WORKLOADS, count},
};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, false)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, true)
}

#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, v6: bool) -> i32 {
    if WORKLOADS.get_ptr(ctx::netns_cookie(ctx)).is_none() {
        return ALLOW;
    }
    let destination = sock_addr::address(ctx.sock_addr, v6);
    if ctx::is_loopback(&destination) {
        return ALLOW;
    }
    decide(&destination)
}

/// The rule for both hooks. A refusal reads EPERM.
#[inline(always)]
pub fn decide(destination: &Address) -> i32 {
    // SAFETY: sixteen bytes that the agent replaces as a whole.
    let strict = unsafe { ADDRESSES.get(destination) }
        .is_some_and(|l| l.flags & workload::ENROLLED != 0 && l.flags & workload::STRICT != 0);
    if strict {
        count(counter::UDP_DENY);
        count(counter::REASON_BASE + reason::STRICT_UDP);
        return REFUSE;
    }
    count(counter::UDP_PASS);
    ALLOW
}
