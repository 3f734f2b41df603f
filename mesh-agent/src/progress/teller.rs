//! When is control told? Soon after something changed, and from time to time when nothing did.
//!
//! One replica of control takes reports; the others say which one it is. When nobody does, or nobody answers, it is tried
//! again with pauses that grow, and what is said then is the whole.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};

use super::in_force::InForce;
use super::series::Series;
use super::wire::{Heard, LEADER, REPORT};
use crate::identity::line::{Failure, Line};
use crate::lifecycle::back_off;
use crate::model::Generations;

/// Longest silence; a fifth less at random. Control forgets a node after three of these.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How long changes are gathered, at least and at most, at random between: every node hears of a change at the same moment.
const GATHER_MIN: Duration = Duration::from_millis(100);
const GATHER_MAX: Duration = Duration::from_millis(600);
/// Pause before somebody else is asked, or the whole is told, at most; drawn between nothing and this.
const TURN_MAX: Duration = Duration::from_millis(500);
/// Pause after a failure, the first and the longest; drawn between half and whole.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// Pause where the one who is asked knows no reports (another CA, an older control); drawn between half and whole.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(120);
/// Failures in a row after which the log says so.
const FAILURES_TOLD: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Teller {
    line: Line,
    in_force: InForce,
    /// What control has heard; `None`: the whole is due.
    series: Option<Series>,
    failures: u32,
}

/// How one report went.
enum Outcome {
    Heard,
    /// Somebody else, or the same once more from the beginning.
    Turn,
    Failed,
    /// There are no reports here.
    Unknown,
}

impl Teller {
    pub(super) fn new(line: Line, in_force: InForce) -> Self {
        Self { line, in_force, series: None, failures: 0 }
    }

    /// Does not end by itself.
    pub(super) async fn run(mut self) {
        loop {
            match self.in_force.look() {
                Some(current) => {
                    let outcome = self.tell(&current).await;
                    self.wait_after(outcome).await;
                }
                None => self.in_force.changed().await,
            }
        }
    }

    async fn tell(&mut self, current: &Arc<Generations>) -> Outcome {
        let series = self.series.take().unwrap_or_else(|| Series::begin(fastrand::u64(..)));
        let (report, heard) = series.report(current);
        match self.line.call::<_, Heard>(REPORT, report).await {
            Ok(Heard { begin_again: false }) => {
                self.series = Some(heard);
                if self.failures >= FAILURES_TOLD {
                    tracing::info!("control is told again what is in force");
                }
                self.failures = 0;
                Outcome::Heard
            }
            Ok(Heard { begin_again: true }) => Outcome::Turn,
            Err(failure) => self.failed(&failure),
        }
    }

    /// Decides whom to ask next.
    fn failed(&mut self, failure: &Failure) -> Outcome {
        let leader = match failure {
            Failure::Refused(status) if status.code() == Code::FailedPrecondition => leader(status),
            _ => None,
        };
        self.line.lead_to(leader);
        if leader.is_none() {
            self.line.hang_up();
        }
        match failure {
            _ if leader.is_some() => return Outcome::Turn,
            Failure::Refused(status) if status.code() == Code::Unimplemented => return Outcome::Unknown,
            Failure::Unable(error) => tracing::debug!(%error, "control cannot be told"),
            Failure::Unreachable { address, message } => {
                tracing::debug!(address, message, "control cannot be told");
            }
            Failure::Refused(status) => {
                tracing::debug!(code = ?status.code(), message = status.message(), "control takes no report");
            }
        }
        if self.failures + 1 == FAILURES_TOLD {
            let why = match failure {
                Failure::Unable(error) => error.to_string(),
                Failure::Unreachable { message, .. } => message.clone(),
                Failure::Refused(status) => status.message().to_owned(),
            };
            tracing::warn!(why, "control cannot be told what is in force; nothing else depends on that");
        }
        Outcome::Failed
    }

    async fn wait_after(&mut self, outcome: Outcome) {
        if !matches!(outcome, Outcome::Heard) {
            self.failures = self.failures.saturating_add(1);
        }
        let pause = match outcome {
            Outcome::Heard => return self.wait_for_news().await,
            Outcome::Turn if self.failures <= 1 => TURN_MAX.mul_f64(fastrand::f64()),
            Outcome::Turn | Outcome::Failed => {
                back_off::after_failures(BACK_OFF_MIN, BACK_OFF_MAX, self.failures)
            }
            Outcome::Unknown => back_off::half_to_whole(UNKNOWN_PAUSE),
        };
        tokio::time::sleep(pause).await;
    }

    /// Until something is in force that control has not heard of, or the silence has lasted long enough.
    async fn wait_for_news(&mut self) {
        let silence = tokio::time::sleep(SILENCE_MAX.mul_f64(1.0 - fastrand::f64() / 5.0));
        tokio::pin!(silence);
        loop {
            tokio::select! {
                () = &mut silence => return,
                () = self.in_force.changed() => {}
            }
            let current = self.in_force.look();
            let told = |current: &Arc<_>| self.series.as_ref().is_some_and(|series| series.has_told(current));
            if current.is_some_and(|current| !told(&current)) {
                let gather = (GATHER_MAX - GATHER_MIN).mul_f64(fastrand::f64());
                return tokio::time::sleep(GATHER_MIN + gather).await;
            }
        }
    }
}

/// The replica that a refusal names.
fn leader(status: &Status) -> Option<std::net::SocketAddr> {
    status.metadata().get(LEADER)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_is_taken_for_the_leaders() {
        for (text, expected) in
            [("10.0.0.1:15012", true), ("[fd00::1]:15012", true), ("weft-control:1", false)]
        {
            let mut status = Status::failed_precondition("x");
            status.metadata_mut().insert(LEADER, text.parse().expect("ASCII"));
            assert_eq!(leader(&status).is_some(), expected, "{text}");
        }
        assert_eq!(leader(&Status::failed_precondition("x")), None);
    }
}
