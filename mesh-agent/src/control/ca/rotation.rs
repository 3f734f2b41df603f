//! How one root follows another without a connection noticing.
//!
//! Three stages, each started by a person, each one rename on disk, each noticed by the running control plane:
//!
//! 1. `begin`: a new root is made and published beside the old one. The old one goes on signing. Wait until every agent
//!    has the new bundle.
//! 2. `switch`: a new intermediate under the new root signs from now on. The old root stays published, since
//!    certificates under it are in use. Wait until they have been renewed, one lifetime of an SVID.
//! 3. `finish`: the old root is published no more.
//!
//! At every moment each agent trusts whatever any other agent may show. The old root's key is destroyed by the switch.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::store::{self, AUTHORITY, NEXT_ROOT, RETIRED_ROOT, SECRET};
use super::{Authority, BACKDATE, Error, new_intermediate, new_root};
use crate::lifecycle::clock;

/// What a person asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Publish a second root.
    Begin,
    /// Sign under it.
    Switch,
    /// Stop publishing the first.
    Finish,
}

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One root.
    Steady,
    /// Two roots, the old one signs.
    Begun,
    /// Two roots, the new one signs.
    Switched,
}

/// Why a stage is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageRefused {
    /// Another stage comes next.
    #[error("{stage} does not follow on {phase}; the next stage is {next}")]
    OutOfOrder {
        /// What was asked for.
        stage: Stage,
        /// Where the rotation stands.
        phase: Phase,
        /// What comes next.
        next: Stage,
    },
    /// The stage before is too young.
    #[error(
        "{stage} is too early: certificates or bundles from before are still in use; wait another {wait:?}"
    )]
    TooEarly {
        /// What was asked for.
        stage: Stage,
        /// How long to wait.
        wait: Duration,
    },
}

impl Stage {
    /// How long the stage before should have lasted: a minute for the bundle to reach every agent before the switch,
    /// the longest lifetime of a leaf (`certificate_ttl`) before the finish.
    pub fn patience(self, certificate_ttl: Duration) -> Duration {
        match self {
            Self::Begin => Duration::ZERO,
            Self::Switch => Duration::from_secs(60),
            Self::Finish => certificate_ttl,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begin => "begin",
            Self::Switch => "switch",
            Self::Finish => "finish",
        })
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steady => "a steady root",
            Self::Begun => "begin",
            Self::Switched => "switch",
        })
    }
}

impl Authority {
    /// Where a rotation stands.
    pub fn phase(&self) -> Phase {
        match (&self.next, &self.retired) {
            (Some(_), _) => Phase::Begun,
            (None, Some(_)) => Phase::Switched,
            (None, None) => Phase::Steady,
        }
    }
}

/// Carries out one stage in a state directory; a control plane that runs on it follows by itself. Refuses when the stage
/// before is younger than `patience` (see [`Stage::patience`]; zero: do it now). Returns the phase that is reached.
///
/// # Errors
/// The stage does not come next or comes too early; a file is unusable or cannot be written. Nothing has changed then.
pub fn rotate(dir: &Path, stage: Stage, patience: Duration) -> Result<Phase, Error> {
    let _lock = store::lock(dir)?;
    let authority = Authority::read(dir)?;
    let trust_domain = authority.trust_domain(dir)?;
    check_order(&authority, stage)?;
    check_age(&authority, stage, patience)?;
    match stage {
        Stage::Begin => {
            let next = new_root(&trust_domain)?;
            store::write_whole(&dir.join(NEXT_ROOT), store::signer_pem(&next).as_bytes(), SECRET)?;
        }
        Stage::Switch => {
            let next = authority.next.as_ref().expect("the order was checked: there is a next root");
            let intermediate = new_intermediate(&trust_domain, next)?;
            let retired = store::certificate_pem(&authority.root.certificate);
            store::write_whole(&dir.join(RETIRED_ROOT), retired.as_bytes(), SECRET)?;
            // This rename is the switch. Before it, the retired root is the active one and is not counted twice; after
            // it, the next root is.
            store::write_authority(dir, next, &intermediate)?;
            store::remove(&dir.join(NEXT_ROOT))?;
        }
        Stage::Finish => store::remove(&dir.join(RETIRED_ROOT))?,
    }
    tracing::info!(%stage, file = %dir.join(AUTHORITY).display(), "root rotation");
    Ok(Authority::read(dir)?.phase())
}

fn check_order(authority: &Authority, stage: Stage) -> Result<(), StageRefused> {
    let phase = authority.phase();
    let next = match phase {
        Phase::Steady => Stage::Begin,
        Phase::Begun => Stage::Switch,
        Phase::Switched => Stage::Finish,
    };
    if stage == next { Ok(()) } else { Err(StageRefused::OutOfOrder { stage, phase, next }) }
}

/// The stage before left its date in a certificate: the next root was made by `begin`, the intermediate by `switch`.
fn check_age(authority: &Authority, stage: Stage, patience: Duration) -> Result<(), StageRefused> {
    let made = match (stage, &authority.next) {
        (Stage::Begin, _) | (Stage::Switch, None) => return Ok(()),
        (Stage::Switch, Some(next)) => &next.certificate,
        (Stage::Finish, _) => &authority.intermediate.certificate,
    };
    let made_at = store::validity(made).0 + BACKDATE;
    let age = clock::wall().duration_since(made_at).unwrap_or_default();
    match patience.checked_sub(age) {
        Some(wait) if !wait.is_zero() => Err(StageRefused::TooEarly { stage, wait }),
        _ => Ok(()),
    }
}
