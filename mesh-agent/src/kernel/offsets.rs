//! Where the running kernel keeps the fields that the programs read, from its own type information (BTF,
//! Documentation/bpf/btf.rst). Never hard-coded: offsets move between builds.

use std::collections::HashMap;
use std::path::Path;

use super::Error;

/// Byte offsets from the start of `struct sock` (a `tcp_sock` starts with one). 0 stands for "not found".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Offsets {
    /// `tcp_sock.write_seq`.
    pub write_seq: u32,
    /// `tcp_sock.copied_seq`.
    pub copied_seq: u32,
    /// `sock.sk_backlog.rmem_alloc`.
    pub rmem_alloc: u32,
    /// `sock.sk_rcvbuf`.
    pub rcvbuf: u32,
    /// `sock.__sk_common.skc_flags` (`sk_flags` is a macro).
    pub sk_flags: u32,
    /// `1 << SOCK_ZEROCOPY`.
    pub zerocopy_flag: u32,
    /// `socket.sk`.
    pub socket_sk: u32,
    /// The system call's number in `pt_regs`.
    pub syscall: u32,
}

impl Offsets {
    /// True when the fast path can be used at all.
    pub fn are_complete(self) -> bool {
        self.write_seq != 0 && self.copied_seq != 0 && self.rmem_alloc != 0 && self.rcvbuf != 0
    }

    /// From the running kernel.
    ///
    /// # Errors
    /// There is no BTF, or it is not what the format says.
    pub fn of_running_kernel() -> Result<Self, Error> {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        let data = std::fs::read(path).map_err(|source| Error::Open {
            what: "kernel type information",
            path: path.to_owned(),
            source,
        })?;
        Self::from_btf(&data).ok_or_else(|| Error::Btf("vmlinux is malformed".to_owned()))
    }

    fn from_btf(data: &[u8]) -> Option<Self> {
        let types = Types::parse(data)?;
        let find = |structure: &str, path: &[&str]| types.offset(structure, path).unwrap_or(0);
        Some(Self {
            write_seq: find("tcp_sock", &["write_seq"]),
            copied_seq: find("tcp_sock", &["copied_seq"]),
            rmem_alloc: find("sock", &["sk_backlog", "rmem_alloc"]),
            rcvbuf: find("sock", &["sk_rcvbuf"]),
            sk_flags: find("sock", &["__sk_common", "skc_flags"]),
            zerocopy_flag: types
                .enumerator("SOCK_ZEROCOPY")
                .and_then(|bit| 1_u32.checked_shl(bit))
                .unwrap_or(0),
            socket_sk: find("socket", &["sk"]),
            syscall: find("pt_regs", &[SYSCALL_FIELD]),
        })
    }
}

/// Where `struct pt_regs` keeps the number of the system call (arch/*/include/asm/ptrace.h).
#[cfg(target_arch = "aarch64")]
const SYSCALL_FIELD: &str = "syscallno";
#[cfg(not(target_arch = "aarch64"))]
const SYSCALL_FIELD: &str = "orig_ax";

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// Position of every type record, and of every named structure.
struct Types<'a> {
    data: &'a [u8],
    strings: usize,
    records: Vec<usize>,
    structures: HashMap<&'a str, usize>,
    enumerations: Vec<(usize, usize)>,
}

impl<'a> Types<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let header = u32_at(data, 4)? as usize;
        let types = header + u32_at(data, 8)? as usize;
        let types_end = types + u32_at(data, 12)? as usize;
        let strings = header + u32_at(data, 16)? as usize;
        // Type ids start at 1; 0 is void.
        let mut all =
            Self { data, strings, records: vec![0], structures: HashMap::new(), enumerations: Vec::new() };
        let mut at = types;
        while at < types_end {
            all.records.push(at);
            let (kind, count) = all.kind(at)?;
            if kind == KIND_STRUCT {
                all.structures.entry(all.string(u32_at(data, at)?)?).or_insert(at);
            }
            if kind == KIND_ENUM {
                all.enumerations.push((at, count));
            }
            at += 12 + record_tail_len(kind, count);
        }
        Some(all)
    }

    fn kind(&self, at: usize) -> Option<(u32, usize)> {
        let info = u32_at(self.data, at + 4)?;
        Some(((info >> 24) & 0x1f, (info & 0xffff) as usize))
    }

    fn string(&self, offset: u32) -> Option<&'a str> {
        let bytes = self.data.get(self.strings + offset as usize..)?;
        let end = bytes.iter().position(|b| *b == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    }

    /// The value of an enumerator; their names are unique in C.
    fn enumerator(&self, name: &str) -> Option<u32> {
        let members =
            self.enumerations.iter().flat_map(|(at, count)| (0..*count).map(move |i| at + 12 + 8 * i));
        members
            .filter(|member| u32_at(self.data, *member).and_then(|offset| self.string(offset)) == Some(name))
            .find_map(|member| u32_at(self.data, member + 4))
    }

    fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        self.offset_in(*self.structures.get(structure)?, path)
    }

    /// Looks through anonymous members, as C does.
    fn offset_in(&self, at: usize, path: &[&str]) -> Option<u32> {
        let (kind, count) = self.kind(at)?;
        if kind != KIND_STRUCT && kind != KIND_UNION {
            return None;
        }
        for member in (0..count).map(|i| at + 12 + 12 * i) {
            let name = self.string(u32_at(self.data, member)?)?;
            let type_at = *self.records.get(u32_at(self.data, member + 4)? as usize)?;
            // With kind_flag the upper byte is a bit-field width; byte-sized members keep bits 0 to 23.
            let bytes = (u32_at(self.data, member + 8)? & 0x00ff_ffff) / 8;
            let below = match path {
                [] => return None,
                [last] if name == *last => Some(0),
                [first, rest @ ..] if name == *first => self.offset_in(type_at, rest),
                _ if name.is_empty() => self.offset_in(type_at, path),
                _ => None,
            };
            if let Some(below) = below {
                return Some(bytes + below);
            }
        }
        None
    }
}

fn record_tail_len(kind: u32, count: usize) -> usize {
    match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
        _ => 0,
    }
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_names_every_field() {
        let offsets = Offsets::of_running_kernel().expect("this kernel has BTF");
        assert!(offsets.are_complete(), "{offsets:?}");
        assert!(offsets.syscall != 0 && offsets.zerocopy_flag != 0 && offsets.sk_flags != 0, "{offsets:?}");
        assert!(offsets.write_seq > offsets.rcvbuf, "a tcp_sock starts with its sock: {offsets:?}");
    }

    #[test]
    fn truncated_type_information_is_refused_not_followed() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").expect("this kernel has BTF");
        for length in [0, 7, 23, 1000] {
            assert_eq!(Offsets::from_btf(&data[..length]), None);
        }
    }
}
