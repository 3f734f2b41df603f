//! Two system calls that the kernel does not keep right for a socket that receives or sends by redirection, answered the
//! way a kernel without the feature answers, so that programs fall back to the calls that work.
//!
//! `refuse_splice` (LSM, `file_permission`): `splice(2)` *from* a spliced socket reads TCP's queue only and does not see
//! redirected bytes (net/ipv4/tcp.c, `tcp_splice_read`): it would wait for ever. It is refused with EINVAL, on which Go's
//! `io.Copy`, HAProxy and others go on with read and write. Attached only where the boot-time probe finds the fault.
//!
//! `refuse_zerocopy` (cgroup, `setsockopt`): `tcp_bpf_sendmsg` copies and never reports the completion of a
//! `MSG_ZEROCOPY` send, which the sender may wait for. On a spliced socket `SO_ZEROCOPY` is refused with EOPNOTSUPP, the
//! documented cue to send normally; a socket that has it set before the handshake never enters the sockmap (see
//! [`crate::established`]).
//!
//! Minimum kernel: 5.18 (`bpf_set_retval`), LSM with `bpf` in the list of active modules. Helpers used:
//! `bpf_sock_from_file`, `bpf_get_current_task_btf`, `bpf_task_pt_regs`, `bpf_probe_read_kernel`, `bpf_sk_storage_get`.
//! On any failure: let the call go on.

use aya_ebpf::{
    bindings::{file, sk_action::SK_PASS},
    helpers::{
        bpf_get_current_task_btf,
        generated::{bpf_set_retval, bpf_sk_storage_get, bpf_sock_from_file, bpf_task_pt_regs},
    },
    macros::{cgroup_sockopt, lsm},
    programs::{LsmContext, SockoptContext},
};
use core::ffi::c_void;
use mesh_common::{SocketState, action};

use crate::{ctx, maps::SOCKET_STATE};

const MAY_READ: i32 = 4;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const SOL_SOCKET: i32 = 1;
const SO_ZEROCOPY: i32 = 60;

#[lsm(hook = "file_permission")]
pub fn refuse_splice(ctx: LsmContext) -> i32 {
    let previous: i32 = ctx.arg(2);
    let mask: i32 = ctx.arg(1);
    if previous != 0 || mask & MAY_READ == 0 {
        return previous;
    }
    let opened: *mut file = ctx.arg(0);
    // SAFETY: the first argument of the hook; the helper answers null for anything but a socket.
    let socket = unsafe { bpf_sock_from_file(opened) };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: no arguments; the registers belong to the running task.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    if !ctx::is_splice_call(registers) {
        return 0;
    }
    // SAFETY: a socket that the helper has just answered.
    let sk = unsafe { ctx::sock_of(socket.cast()) };
    if sk.is_null() || !is_spliced(sk) {
        return 0;
    }
    -EINVAL
}

#[cgroup_sockopt(setsockopt)]
pub fn refuse_zerocopy(ctx: SockoptContext) -> i32 {
    // SAFETY: fields of the context.
    let (level, name, sk) =
        unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname, (*ctx.sockopt).__bindgen_anon_1.sk) };
    if level == SOL_SOCKET && name == SO_ZEROCOPY && !sk.is_null() && is_spliced(sk.cast()) {
        // SAFETY: sets the value that the call returns.
        unsafe { bpf_set_retval(-EOPNOTSUPP) };
        return 0;
    }
    SK_PASS as i32
}

#[inline(always)]
fn is_spliced(sk: *mut c_void) -> bool {
    // SAFETY: the map is ours; the callers pass a socket that the kernel holds.
    let state = unsafe {
        bpf_sk_storage_get((&raw const SOCKET_STATE).cast_mut().cast(), sk, core::ptr::null_mut(), 0)
    };
    // SAFETY: non-null means the storage of that socket.
    unsafe { state.cast::<SocketState>().as_ref() }
        .is_some_and(|state| state.pair != 0 && state.action == action::SPLICE)
}
