//! What control reports of itself: whether it leads, whether its keys are usable, what it answered, heard and wrote.

use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Unit;

use super::Telemetry;
use super::families::{Catalogue, ResultLabels};

/// Control's families.
#[derive(Debug)]
pub(super) struct Control {
    leader: Gauge,
    authority_fault: Gauge,
    authority_expiry: Gauge,
    requests: Family<ResultLabels, Counter>,
    token_reviews: Family<ResultLabels, Counter>,
    status_writes: Family<ResultLabels, Counter>,
    reports: Family<ResultLabels, Counter>,
    nodes_reporting: Gauge,
}

impl Control {
    /// Registers them.
    pub(super) fn register(all: &mut Catalogue) -> Self {
        Self {
            leader: all.add(
                "control_leader",
                None,
                &[],
                "(control) 1 while this replica leads: it publishes the trust bundle and writes status",
                Gauge::default(),
            ),
            authority_fault: all.add(
                "control_authority_fault",
                None,
                &[],
                "(control) 1 while the keys as they are kept now cannot be used and the last good ones sign",
                Gauge::default(),
            ),
            authority_expiry: all.add(
                "control_authority_expiry_timestamp",
                Some(Unit::Seconds),
                &[],
                "(control) When the intermediate in use expires, in seconds since 1970; 0 before there is one",
                Gauge::default(),
            ),
            requests: all.add(
                "control_certificate_requests",
                None,
                &["result"],
                "(control) Requests for a certificate, by result (issued, or why not)",
                Family::default(),
            ),
            token_reviews: all.add(
                "control_token_reviews",
                None,
                &["result"],
                "(control) Questions to the API server about a caller's token, by answer (good, refused, unavailable)",
                Family::default(),
            ),
            status_writes: all.add(
                "control_status_writes",
                None,
                &["result"],
                "(control) Writes of an object's status, by result (written, conflict, failed)",
                Family::default(),
            ),
            reports: all.add(
                "control_reports",
                None,
                &["result"],
                "(control) Reports of agents about what is in force, by result (taken, begin_again, or why not)",
                Family::default(),
            ),
            nodes_reporting: all.add(
                "control_nodes_reporting",
                None,
                &[],
                "(control) Nodes that have reported in the last minute; 0 where another replica leads",
                Gauge::default(),
            ),
        }
    }
}

impl Telemetry {
    /// Whether this replica of control leads.
    pub fn control_leads(&self, leads: bool) {
        self.0.families.control.leader.set(i64::from(leads));
    }

    /// Whether the CA's keys, as they are kept now, cannot be used.
    pub fn authority_fault(&self, is_faulty: bool) {
        self.0.families.control.authority_fault.set(i64::from(is_faulty));
    }

    /// When the CA's intermediate expires.
    pub fn authority_expires(&self, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        self.0.families.control.authority_expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// How many requests for a certificate ended like this; somebody else counts, so the value replaces the one before.
    pub fn certificate_requests(&self, result: &'static str, total: u64) {
        let counter = self.0.families.control.requests.get_or_create_owned(&ResultLabels { result });
        counter.inner().store(total, std::sync::atomic::Ordering::Relaxed);
    }

    /// The API server was asked about a token; `result` is a stable label.
    pub fn token_reviewed(&self, result: &'static str) {
        self.0.families.control.token_reviews.get_or_create_owned(&ResultLabels { result }).inc();
    }

    /// How many reports ended like this; somebody else counts, so the value replaces the one before.
    pub fn reports(&self, result: &'static str, total: u64) {
        let counter = self.0.families.control.reports.get_or_create_owned(&ResultLabels { result });
        counter.inner().store(total, std::sync::atomic::Ordering::Relaxed);
    }

    /// How many nodes report.
    pub fn nodes_reporting(&self, count: usize) {
        self.0.families.control.nodes_reporting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A status was written or not; `result` is a stable label.
    pub fn status_written(&self, result: &'static str) {
        self.0.families.control.status_writes.get_or_create_owned(&ResultLabels { result }).inc();
    }
}
