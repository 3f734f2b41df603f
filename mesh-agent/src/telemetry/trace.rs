//! W3C Trace Context: which trace a request belongs to, and what of it goes on to the server.
//!
//! The agent exports no spans. A trace that comes with a request therefore goes on exactly as it came: a parent id of ours
//! would name a span that nobody ever reports, and break the chain. Only when none comes, and sampling says so, is one
//! begun here, so that the applications behind have something to continue. Pure: random numbers come as an argument.
//!
//! Source: W3C Trace Context, level 1 (Recommendation, 2021) and level 2.

use std::fmt;

use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::model::MeshConfig;

/// The header that says which trace and which span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with what tracing systems add. Means nothing without a valid [`TRACEPARENT`].
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of a `traceparent` of version 00, and of the part that later versions keep:
/// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`.
const LEN: usize = 55;

/// The flag of a trace that its caller may have recorded.
const SAMPLED: u8 = 1;

/// A trace, and the span of it that this request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// The caller's span. Never all zero.
    pub span_id: [u8; 8],
    /// Whether the caller may have recorded it.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`. `None` for everything that section 3.2 calls invalid: another length, digits that are not
    /// lower case, ids of nothing but zeroes, version `ff`. Of a later version the part known today is read, provided that
    /// a `-` follows it (section 3.3.2); flags other than `sampled` are passed over.
    pub fn parse(traceparent: &[u8]) -> Option<Self> {
        let (known, rest) = traceparent.split_at_checked(LEN)?;
        let [version] = bytes_of(&known[..2])?;
        let ends_well = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => matches!(rest, [] | [b'-', ..]),
        };
        let dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        let trace_id = bytes_of(&known[3..35])?;
        let span_id = bytes_of(&known[36..52])?;
        let [flags] = bytes_of(&known[53..])?;
        let has_ids = trace_id != [0; 16] && span_id != [0; 8];
        (ends_well && dashes && has_ids).then_some(Self { trace_id, span_id, sampled: flags & SAMPLED != 0 })
    }

    /// Begins a trace.
    ///
    /// Ids are as random as `rng`, which is seeded with 64 bits: enough that traces do not meet by accident, not enough to
    /// be a secret.
    pub fn generate(rng: &mut Rng, sampled: bool) -> Self {
        Self { trace_id: rng.u128(1..).to_be_bytes(), span_id: rng.u64(1..).to_be_bytes(), sampled }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn child(&self, rng: &mut Rng) -> Self {
        Self { span_id: rng.u64(1..).to_be_bytes(), ..*self }
    }

    /// As a `traceparent` of version 00.
    ///
    /// No flag but `sampled` is ever set, although level 2 knows one for random ids: widespread readers refuse a version 00
    /// with flags that they do not know.
    pub fn to_header(&self) -> HeaderValue {
        let flags = u8::from(self.sampled);
        let text = format!("00-{}-{}-{flags:02x}", Hex(&self.trace_id), Hex(&self.span_id));
        HeaderValue::try_from(text).expect("hexadecimal digits and dashes are visible ASCII")
    }

    /// What the headers say. Several `traceparent` lines are as good as a malformed one: no reader can tell which is meant.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(TRACEPARENT).iter();
        let first = lines.next()?;
        if lines.next().is_some() { None } else { Self::parse(first.as_bytes()) }
    }

    /// Makes the headers of a request what the server shall see, and tells the trace that it belongs to.
    ///
    /// A valid context stays as it came, `tracestate` and all. Otherwise both headers go (section 3.2: a `tracestate`
    /// without a valid `traceparent` must not be passed on), and a sampled trace is begun if `sampling` says so.
    pub fn carry(headers: &mut HeaderMap, sampling: Sampling, rng: &mut Rng) -> Option<Self> {
        if let Some(context) = Self::of(headers) {
            return Some(context);
        }
        headers.remove(TRACEPARENT);
        headers.remove(TRACESTATE);
        sampling.takes(rng).then(|| {
            let context = Self::generate(rng, true);
            headers.insert(TRACEPARENT, context.to_header());
            context
        })
    }
}

/// `trace_id` and `span_id`, as access records show them.
impl Serialize for TraceContext {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut fields = out.serialize_struct("TraceContext", 2)?;
        fields.serialize_field("trace_id", &format_args!("{}", Hex(&self.trace_id)))?;
        fields.serialize_field("span_id", &format_args!("{}", Hex(&self.span_id)))?;
        fields.end()
    }
}

/// How many of the requests that come without a trace begin one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Of 10,000 requests; more than that is all of them.
    pub per_10_000: u16,
}

impl Sampling {
    /// No request begins a trace. The default.
    pub const NEVER: Self = Self { per_10_000: 0 };
    /// Every request does.
    pub const ALWAYS: Self = Self { per_10_000: 10_000 };

    /// As the mesh is configured.
    pub fn of(config: &MeshConfig) -> Self {
        Self { per_10_000: config.trace_sampling_permyriad }
    }

    /// Whether this request does.
    pub fn takes(self, rng: &mut Rng) -> bool {
        // Most meshes leave it off: they shall not pay for the draw.
        self != Self::NEVER && rng.u16(..10_000) < self.per_10_000
    }
}

/// Bytes as lower-case hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// `N` bytes from twice as many digits, lower case only (section 3.2.2).
fn bytes_of<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    debug_assert_eq!(digits.len(), 2 * N, "the caller cuts by the layout");
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
