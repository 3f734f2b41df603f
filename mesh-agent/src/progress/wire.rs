//! The messages of `weft.mesh.v1.Reports`, which stands beside the certificate service.
//!
//! ```proto
//! package weft.mesh.v1;
//! service Reports { rpc Report(ReportRequest) returns (ReportResponse); }
//! ```
//!
//! Which node speaks is not in the message: it is the one that the caller's token stands for.

/// Path of the one call.
pub const REPORT: &str = "/weft.mesh.v1.Reports/Report";

/// Metadata of a refusal with `FAILED_PRECONDITION`: `IP:PORT` of the replica that takes reports, where it is known.
pub const LEADER: &str = "weft-leader";

/// Most objects that a node can tell about. Each is a UID and a number, 46 bytes, so that a whole report stays below
/// [`REPORT_BYTES_MAX`].
pub const OBJECTS_MAX: usize = 20_000;

/// Largest report, in bytes.
pub const REPORT_BYTES_MAX: usize = 1024 * 1024;

/// Longest UID, in bytes. Those of Kubernetes have 36.
pub const UID_LEN_MAX: usize = 64;

/// What is in force on a node, as far as it has changed since the report before.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Report {
    /// Drawn anew for each whole report; those that follow it carry the same.
    #[prost(fixed64, tag = "1")]
    pub series: u64,
    /// Place in the series. 0 is a whole report: what it does not name is not in force.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Objects that are in force in another version than said before, or were not.
    #[prost(message, repeated, tag = "3")]
    pub in_force: Vec<InForce>,
    /// UIDs of objects that are not in force any more.
    #[prost(string, repeated, tag = "4")]
    pub gone: Vec<String>,
}

/// One object.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InForce {
    /// `metadata.uid`.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// `metadata.generation`.
    #[prost(int64, tag = "2")]
    pub generation: i64,
}

/// What control says to that.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Heard {
    /// It does not know what was said before: a whole report is wanted.
    #[prost(bool, tag = "1")]
    pub begin_again: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn the_largest_whole_report_fits() {
        let one = InForce { uid: "6f3c1e0a-0000-4000-8000-000000000000".to_owned(), generation: 1 << 20 };
        let report =
            Report { series: u64::MAX, number: 0, in_force: vec![one; OBJECTS_MAX], gone: Vec::new() };
        assert!(report.encoded_len() < REPORT_BYTES_MAX, "{}", report.encoded_len());
    }

    #[test]
    fn a_sign_of_life_is_a_few_bytes() {
        let report = Report { series: u64::MAX, number: 1000, in_force: Vec::new(), gone: Vec::new() };
        assert_eq!(report.encoded_len(), 12);
    }
}
