//! Which frame may come when, and when a tunnel may be used again. A pure state machine.
//!
//! Each side of a connection is idle, open, finished (FIN) or reset; DONE says that its sender will send nothing more of
//! this connection. When both have said it the tunnel is clean. The rules are those of `docs/tunnel.md` section 4.

use super::codec::Kind;

/// Which end of the tunnel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The TLS client: the only one that may send OPEN and RESUME.
    Opener,
    /// The TLS server.
    Acceptor,
}

/// The state of the connection on a tunnel, as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// No connection; the tunnel is clean.
    Idle,
    /// Both directions are open.
    Open,
    /// We sent FIN.
    HalfClosedLocal,
    /// The peer sent FIN.
    HalfClosedRemote,
    /// Both directions are closed in order; a DONE is missing.
    Finishing,
    /// One side reset; a DONE is missing.
    Reset,
}

/// What to do with a legal frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Act on it.
    Deliver,
    /// It crossed our RESET on the wire: drop it.
    Discard,
}

/// A frame came, or was about to be sent, when it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Wrong state.
    #[error("{kind:?} is not legal in state {state:?}")]
    State {
        /// The frame.
        kind: Kind,
        /// The state.
        state: State,
    },
    /// Wrong side.
    #[error("only the opener sends {0:?}")]
    Role(Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Idle,
    Open,
    Fin,
    Reset,
}

#[derive(Clone, Copy, Debug)]
struct Side {
    half: Half,
    done: bool,
}

const IDLE: Side = Side { half: Half::Idle, done: false };
const OPEN: Side = Side { half: Half::Open, done: false };

/// The state machine. One per tunnel, for all its connections.
#[derive(Clone, Debug)]
pub struct Session {
    role: Role,
    local: Side,
    remote: Side,
}

impl Session {
    /// A clean tunnel.
    pub fn new(role: Role) -> Self {
        Self { role, local: IDLE, remote: IDLE }
    }

    /// The state as one word.
    pub fn state(&self) -> State {
        match (self.local.half, self.remote.half) {
            (Half::Idle, _) | (_, Half::Idle) => State::Idle,
            (Half::Reset, _) | (_, Half::Reset) => State::Reset,
            (Half::Open, Half::Open) => State::Open,
            (Half::Fin, Half::Open) => State::HalfClosedLocal,
            (Half::Open, Half::Fin) => State::HalfClosedRemote,
            (Half::Fin, Half::Fin) => State::Finishing,
        }
    }

    /// True when a new connection may begin.
    pub fn is_clean(&self) -> bool {
        self.state() == State::Idle
    }

    /// True when the peer has reset the connection.
    pub fn peer_has_reset(&self) -> bool {
        self.remote.half == Half::Reset
    }

    /// True when the peer has said DONE, so that only ours is missing.
    pub fn peer_is_done(&self) -> bool {
        self.remote.done
    }

    /// True when this side has nothing more to say about the last connection: the peer's DONE may come with its next OPEN.
    pub fn is_done(&self) -> bool {
        self.local.done || self.is_clean()
    }

    /// True when DONE may be sent.
    pub fn may_send_done(&self) -> bool {
        may_be_done(self.local, self.remote)
    }

    /// Records that this side sends a frame.
    ///
    /// # Errors
    /// The frame must not be sent now; nothing changed.
    pub fn send(&mut self, kind: Kind) -> Result<(), Violation> {
        let by_opener = self.role == Role::Opener;
        let state = self.state();
        let (mut local, mut remote) = (self.local, self.remote);
        step(kind, by_opener, state, &mut local, &mut remote)?;
        self.settle(local, remote);
        Ok(())
    }

    /// Records that the peer sent a frame.
    ///
    /// # Errors
    /// The peer broke the protocol; the tunnel must be closed.
    pub fn receive(&mut self, kind: Kind) -> Result<Disposition, Violation> {
        let by_opener = self.role == Role::Acceptor;
        let state = self.state();
        let (mut local, mut remote) = (self.local, self.remote);
        step(kind, by_opener, state, &mut remote, &mut local)?;
        let crossed = self.local.half == Half::Reset && !matches!(kind, Kind::Done | Kind::Ping);
        self.settle(local, remote);
        Ok(if crossed { Disposition::Discard } else { Disposition::Deliver })
    }

    fn settle(&mut self, local: Side, remote: Side) {
        let clean = local.done && remote.done;
        (self.local, self.remote) = if clean { (IDLE, IDLE) } else { (local, remote) };
    }
}

/// One frame from `from` towards `to`.
fn step(kind: Kind, by_opener: bool, state: State, from: &mut Side, to: &mut Side) -> Result<(), Violation> {
    let illegal = Violation::State { kind, state };
    if matches!(kind, Kind::Open | Kind::Resume) && !by_opener {
        return Err(Violation::Role(kind));
    }
    if kind == Kind::Ping {
        return Ok(());
    }
    if from.done {
        return Err(illegal);
    }
    match kind {
        Kind::Open | Kind::Resume if state == State::Idle => (*from, *to) = (OPEN, OPEN),
        Kind::Data | Kind::Pause if from.half == Half::Open => {}
        Kind::Fin if from.half == Half::Open => from.half = Half::Fin,
        Kind::Reset if matches!(from.half, Half::Open | Half::Fin) => from.half = Half::Reset,
        Kind::Done if may_be_done(*from, *to) => from.done = true,
        _ => return Err(illegal),
    }
    Ok(())
}

/// A side may say DONE once nothing it could still send has a meaning: after FIN both ways, or a RESET either way.
fn may_be_done(from: Side, to: Side) -> bool {
    let ended = matches!((from.half, to.half), (Half::Fin, Half::Fin) | (Half::Reset, _) | (_, Half::Reset));
    ended && !from.done
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs frames given as `>` (opener sends) or `<` (acceptor sends) on both ends at once.
    fn run(frames: &[(char, Kind)]) -> Result<(State, State), Violation> {
        let (mut opener, mut acceptor) = (Session::new(Role::Opener), Session::new(Role::Acceptor));
        for (way, kind) in frames {
            let (from, to) =
                if *way == '>' { (&mut opener, &mut acceptor) } else { (&mut acceptor, &mut opener) };
            from.send(*kind)?;
            to.receive(*kind)?;
        }
        Ok((opener.state(), acceptor.state()))
    }

    #[test]
    fn orderly_close_makes_the_tunnel_clean_and_reusable() {
        use Kind::*;
        let once = [
            ('>', Open),
            ('>', Data),
            ('<', Data),
            ('>', Fin),
            ('<', Data),
            ('<', Fin),
            ('<', Done),
            ('>', Done),
        ];
        assert_eq!(run(&once), Ok((State::Idle, State::Idle)));
        let twice = [once, once].concat();
        assert_eq!(run(&twice), Ok((State::Idle, State::Idle)));
    }

    #[test]
    fn states_are_named_as_the_specification_names_them() {
        use Kind::*;
        type Frames = &'static [(char, Kind)];
        let table: [(Frames, State, State); 6] = [
            (&[], State::Idle, State::Idle),
            (&[('>', Open)], State::Open, State::Open),
            (&[('>', Open), ('>', Fin)], State::HalfClosedLocal, State::HalfClosedRemote),
            (&[('>', Open), ('<', Fin)], State::HalfClosedRemote, State::HalfClosedLocal),
            (&[('>', Open), ('<', Fin), ('>', Fin)], State::Finishing, State::Finishing),
            (&[('>', Open), ('<', Reset), ('<', Done)], State::Reset, State::Reset),
        ];
        for (frames, opener, acceptor) in table {
            assert_eq!(run(frames), Ok((opener, acceptor)), "{frames:?}");
        }
    }

    #[test]
    fn reset_and_refusal_leave_a_reusable_tunnel() {
        use Kind::*;
        assert_eq!(
            run(&[('>', Open), ('<', Reset), ('<', Done), ('>', Done), ('>', Open)]),
            Ok((State::Open, State::Open))
        );
        assert_eq!(
            run(&[('>', Open), ('>', Reset), ('<', Done), ('>', Done)]),
            Ok((State::Idle, State::Idle))
        );
    }

    #[test]
    fn frames_that_cross_our_reset_are_discarded() {
        let mut session = Session::new(Role::Opener);
        session.send(Kind::Open).unwrap();
        session.send(Kind::Reset).unwrap();
        assert_eq!(session.receive(Kind::Data), Ok(Disposition::Discard));
        assert_eq!(session.receive(Kind::Fin), Ok(Disposition::Discard));
        assert_eq!(session.receive(Kind::Done), Ok(Disposition::Deliver));
        assert!(!session.is_clean());
        session.send(Kind::Done).unwrap();
        assert!(session.is_clean());
    }

    #[test]
    fn illegal_sequences_are_refused_by_name() {
        use Kind::*;
        let table: [(&[(char, Kind)], Violation); 9] = [
            (&[('<', Open)], Violation::Role(Open)),
            (&[('<', Resume)], Violation::Role(Resume)),
            (&[('>', Data)], Violation::State { kind: Data, state: State::Idle }),
            (&[('>', Open), ('>', Open)], Violation::State { kind: Open, state: State::Open }),
            (
                &[('>', Open), ('>', Fin), ('>', Data)],
                Violation::State { kind: Data, state: State::HalfClosedLocal },
            ),
            (
                &[('>', Open), ('>', Fin), ('>', Done)],
                Violation::State { kind: Done, state: State::HalfClosedLocal },
            ),
            (
                &[('>', Open), ('>', Reset), ('>', Reset)],
                Violation::State { kind: Reset, state: State::Reset },
            ),
            (
                &[('>', Open), ('>', Reset), ('>', Done), ('>', Open)],
                Violation::State { kind: Open, state: State::Reset },
            ),
            (
                &[('>', Open), ('>', Reset), ('>', Done), ('>', Data)],
                Violation::State { kind: Data, state: State::Reset },
            ),
        ];
        for (frames, violation) in table {
            assert_eq!(run(frames), Err(violation), "{frames:?}");
        }
    }

    proptest::proptest! {
        /// Whatever one end may send, the other accepts, and a tunnel is clean on both ends or on none.
        #[test]
        fn both_ends_agree(picks in proptest::collection::vec((proptest::bool::ANY, 1u8..=8), 0..60)) {
            let (mut opener, mut acceptor) = (Session::new(Role::Opener), Session::new(Role::Acceptor));
            for (by_opener, wire) in picks {
                let kind = [Kind::Open, Kind::Data, Kind::Fin, Kind::Reset, Kind::Done, Kind::Pause, Kind::Resume, Kind::Ping]
                    [usize::from(wire) - 1];
                let (from, to) = if by_opener { (&mut opener, &mut acceptor) } else { (&mut acceptor, &mut opener) };
                if from.send(kind).is_ok() {
                    proptest::prop_assert!(to.receive(kind).is_ok());
                } else {
                    proptest::prop_assert!(to.clone().receive(kind).is_err());
                }
                proptest::prop_assert_eq!(opener.is_clean(), acceptor.is_clean());
            }
        }
    }
}
