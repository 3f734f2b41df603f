//! Whose turn it is: of the agents that a node has during an update, one at a time writes the tables.
//!
//! Two directories of the node's pins are locked with flock(2), which works on every file system and ends with its process,
//! however that ends. Whoever holds the directory itself is the node's agent; whoever holds `links` in it is the next one.
//! A lock belongs to an inode, so agents in different pods meet at it as long as they mount the same bpffs.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Error, load};

/// This process is the node's agent, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    _pins: Flock<File>,
    links: PathBuf,
}

/// Another process is the node's agent; this one is next.
#[derive(Debug)]
pub struct Waiting {
    pins: File,
    links: PathBuf,
    place: Flock<File>,
}

/// What came of asking for the turn.
#[derive(Debug)]
pub enum Claimed {
    /// Nobody else had it.
    Now(Turn),
    /// An agent is there.
    Later(Waiting),
}

/// Asks for the turn at the pins in `pin_dir`, which are made where there are none.
///
/// # Errors
/// The directory cannot be made or is not on a bpffs, or two agents are there already.
pub fn claim(pin_dir: &Path) -> Result<Claimed, Error> {
    let links = load::make_pin_dir(pin_dir)?;
    claim_at(pin_dir, links)
}

fn claim_at(pin_dir: &Path, links: PathBuf) -> Result<Claimed, Error> {
    let pins = match Flock::lock(open(pin_dir)?, FlockArg::LockExclusiveNonblock) {
        Ok(pins) => return Ok(Claimed::Now(Turn { _pins: pins, links })),
        Err((pins, Errno::EWOULDBLOCK)) => pins,
        Err((_, errno)) => return Err(flock(errno)),
    };
    match Flock::lock(open(&links)?, FlockArg::LockExclusiveNonblock) {
        Ok(place) => Ok(Claimed::Later(Waiting { pins, links, place })),
        Err((_, Errno::EWOULDBLOCK)) => Err(Error::TwoAgents(pin_dir.to_owned())),
        Err((_, errno)) => Err(flock(errno)),
    }
}

impl Turn {
    /// Whether another agent waits for it.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn is_awaited(&self) -> Result<bool, Error> {
        match Flock::lock(open(&self.links)?, FlockArg::LockSharedNonblock) {
            Ok(_free) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(flock(errno)),
        }
    }
}

impl Waiting {
    /// Waits for the turn. Blocks until the agent before gives it up or ends; nothing but the end of the process interrupts it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn wait(self) -> Result<Turn, Error> {
        let Self { mut pins, links, place } = self;
        loop {
            match Flock::lock(pins, FlockArg::LockExclusive) {
                Ok(pins) => {
                    drop(place);
                    return Ok(Turn { _pins: pins, links });
                }
                Err((again, Errno::EINTR)) => pins = again,
                Err((_, errno)) => return Err(flock(errno)),
            }
        }
    }
}

fn open(dir: &Path) -> Result<File, Error> {
    File::open(dir).map_err(|source| Error::Open { what: "pin directory", path: dir.to_owned(), source })
}

fn flock(errno: Errno) -> Error {
    Error::Call { call: "flock", source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_turn(claimed: &Result<Claimed, Error>) -> bool {
        matches!(claimed, Ok(Claimed::Now(_)))
    }

    #[test]
    fn one_has_the_turn_one_waits_and_a_third_is_turned_away() {
        let dir = tempfile::tempdir().unwrap();
        let links = dir.path().join("links");
        std::fs::create_dir(&links).unwrap();
        let claim = || claim_at(dir.path(), links.clone());
        let Ok(Claimed::Now(first)) = claim() else { panic!("nobody is there") };
        assert!(!first.is_awaited().unwrap());
        let Ok(Claimed::Later(second)) = claim() else { panic!("one is there") };
        assert!(first.is_awaited().unwrap());
        assert!(matches!(claim(), Err(Error::TwoAgents(_))));
        assert!(first.is_awaited().unwrap(), "a third that asked changes nothing");

        let waiting = std::thread::spawn(|| second.wait());
        drop(first);
        let second = waiting.join().unwrap().unwrap();
        assert!(!second.is_awaited().unwrap(), "its place is free for the next");
        assert!(matches!(claim(), Ok(Claimed::Later(_))), "who waited and went leaves nothing");
        drop(second);
        assert!(is_turn(&claim()));
    }
}
