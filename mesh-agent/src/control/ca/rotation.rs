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
use std::time::{Duration, SystemTime};

use super::pems::{self, Pems, Place, authority_pem, certificate_pem, signer_pem};
use super::{Authority, BACKDATE, Error, Roots, new_intermediate, new_root, store};
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
        match &self.roots {
            Roots::Own(own) if own.next.is_some() => Phase::Begun,
            Roots::Own(own) if own.retired.is_some() => Phase::Switched,
            Roots::Own(_) | Roots::Foreign(_) => Phase::Steady,
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
    let place = Place::Dir(dir.to_owned());
    let pems = advance(&store::read_pems(dir)?, &place, stage, patience)?;
    store::save(dir, &pems)?;
    tracing::info!(%stage, dir = %dir.display(), "root rotation");
    Ok(Authority::read(dir)?.phase())
}

/// The texts after one stage.
///
/// # Errors
/// As [`rotate`].
pub fn advance(before: &Pems, place: &Place, stage: Stage, patience: Duration) -> Result<Pems, Error> {
    let authority = Authority::parse(before, place)?;
    let trust_domain = authority.trust_domain(place)?;
    let roots = authority.own(place)?;
    check_order(&authority, stage)?;
    let made = match (stage, &roots.next) {
        (Stage::Begin, _) | (Stage::Switch, None) => None,
        // The stage before left its date in a certificate: the next root was made by `begin`, the intermediate by
        // `switch`.
        (Stage::Switch, Some(next)) => Some(&next.certificate),
        (Stage::Finish, _) => Some(&authority.intermediate.certificate),
    };
    if let Some(made) = made {
        check_age(pems::validity(made).0 + BACKDATE, stage, patience)?;
    }
    let mut after = before.clone();
    match stage {
        Stage::Begin => after.next_root = Some(signer_pem(&new_root(&trust_domain)?)),
        Stage::Switch => {
            let next = roots.next.as_ref().expect("the order was checked: there is a next root");
            after.retired_root = Some(certificate_pem(&roots.active.certificate));
            after.authority = authority_pem(next, &new_intermediate(&trust_domain, next)?);
            after.next_root = None;
        }
        Stage::Finish => after.retired_root = None,
    }
    Ok(after)
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

fn check_age(made_at: SystemTime, stage: Stage, patience: Duration) -> Result<(), StageRefused> {
    let age = clock::wall().duration_since(made_at).unwrap_or_default();
    match patience.checked_sub(age) {
        Some(wait) if !wait.is_zero() => Err(StageRefused::TooEarly { stage, wait }),
        _ => Ok(()),
    }
}
