//! One call of `weft.mesh.v1.Reports`: who speaks, is this the place, is it a report?
//!
//! All but the last is settled before the body is read, so that only agents can make us read a large one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};

use super::Heard;
use super::nodes::{Fault, Taken};
use crate::control::callers::{Callers, Unknown};
use crate::control::limits::Limits;
use crate::lifecycle::clock;
use crate::progress::wire::{self, LEADER, Report};

/// Reports that a node may make at once, and per second: it makes two a second at most while everything changes, and a few
/// more when leaders change.
const BURST: f64 = 20.0;
const PER_SECOND: f64 = 5.0;

/// Whether this replica leads, and which one does otherwise.
#[derive(Clone, Debug)]
pub struct Leading {
    /// It leads.
    pub leads: watch::Receiver<bool>,
    /// Where the one that leads serves, as far as that is known.
    pub leader: watch::Receiver<Option<SocketAddr>>,
}

impl Leading {
    /// The only one there is.
    pub fn alone() -> Self {
        Self { leads: watch::channel(true).1, leader: watch::channel(None).1 }
    }
}

/// Takes reports.
#[derive(Debug)]
pub struct Desk {
    leading: Leading,
    heard: Heard,
    limits: Mutex<Limits>,
    tally: [AtomicU64; Answer::ALL.len()],
}

/// How a call was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    BeginAgain,
    NotLeader,
    BadToken,
    BadRequest,
    RateLimited,
    Unavailable,
}

impl Answer {
    const ALL: [Self; 7] = [
        Self::Taken,
        Self::BeginAgain,
        Self::NotLeader,
        Self::BadToken,
        Self::BadRequest,
        Self::RateLimited,
        Self::Unavailable,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::BeginAgain => "begin_again",
            Self::NotLeader => "not_leader",
            Self::BadToken => "bad_token",
            Self::BadRequest => "bad_request",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Desk {
    /// Takes reports while this replica leads.
    pub fn new(leading: Leading) -> Self {
        let limits = Mutex::new(Limits::new(BURST, PER_SECOND));
        Self { leading, heard: Heard::default(), limits, tally: Default::default() }
    }

    /// What has been heard.
    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// How many calls were answered how, by stable label.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Answer::ALL
            .iter()
            .zip(&self.tally)
            .map(|(answer, count)| (answer.label(), count.load(Ordering::Relaxed)))
    }

    /// The node that may report here, by its token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, `UNAVAILABLE`, `RESOURCE_EXHAUSTED`; `FAILED_PRECONDITION` where another replica takes reports.
    pub async fn admit(&self, callers: &Callers, token: Option<&str>) -> Result<Arc<str>, Status> {
        let node = callers.node_of(token).await.map_err(|unknown| match unknown {
            Unknown::Refused(why) => self.refuse(Answer::BadToken, Code::Unauthenticated, why),
            Unknown::Unavailable(why) => self.refuse(Answer::Unavailable, Code::Unavailable, why),
        })?;
        if !self.limits.lock().admit(&node, clock::now()) {
            let why = format!("rate: node {node} reports too often");
            return Err(self.refuse(Answer::RateLimited, Code::ResourceExhausted, why));
        }
        self.must_lead()?;
        Ok(node)
    }

    fn must_lead(&self) -> Result<(), Status> {
        if *self.leading.leads.borrow() {
            return Ok(());
        }
        let Some(leader) = *self.leading.leader.borrow() else {
            let why = "leader: this replica does not lead, and it is not known where the one is that does";
            return Err(self.refuse(Answer::NotLeader, Code::FailedPrecondition, why.to_owned()));
        };
        let why = format!("leader: this replica does not lead, the one at {leader} does");
        let mut status = self.refuse(Answer::NotLeader, Code::FailedPrecondition, why);
        let mut metadata = MetadataMap::new();
        metadata.insert(LEADER, leader.to_string().parse().expect("an address is ASCII"));
        *status.metadata_mut() = metadata;
        Err(status)
    }

    /// Takes what the node says.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: it is not a report. `FAILED_PRECONDITION`: this replica has stopped leading meanwhile.
    pub fn take(&self, node: &Arc<str>, report: &Report) -> Result<Response<wire::Heard>, Status> {
        self.must_lead()?;
        let taken = self.heard.nodes.lock().take(node, report, clock::now());
        let begin_again = match taken {
            Ok(Taken::News) => {
                self.heard.changed.send_replace(());
                false
            }
            Ok(Taken::Nothing) => false,
            Ok(Taken::BeginAgain) => true,
            Err(fault) => return Err(self.bad(node, &fault)),
        };
        self.count(if begin_again { Answer::BeginAgain } else { Answer::Taken });
        Ok(Response::new(wire::Heard { begin_again }))
    }

    fn bad(&self, node: &Arc<str>, fault: &Fault) -> Status {
        tracing::warn!(%node, %fault, "report refused");
        self.refuse(Answer::BadRequest, Code::InvalidArgument, fault.to_string())
    }

    fn refuse(&self, answer: Answer, code: Code, why: String) -> Status {
        self.count(answer);
        Status::new(code, why)
    }

    fn count(&self, answer: Answer) {
        let found = Answer::ALL.iter().zip(&self.tally).find(|(one, _)| **one == answer);
        let (_, count) = found.expect("every answer is among all");
        count.fetch_add(1, Ordering::Relaxed);
    }
}
