//! Changes on their way to the kernel: from the moment when a watch's connection takes the event until the maps show it.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;

use super::clock;
use super::kernel::Kernel;

/// Pause between two looks at the maps: what times are rounded up by, and small beside what is wanted of them (50 ms).
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// What an event shall bring about in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A pod's address is known, or no longer.
    Address {
        /// Pod.
        pod: u32,
        /// Address.
        ip: Ipv4Addr,
        /// Known.
        present: bool,
    },
    /// A service has an endpoint, or no longer.
    Endpoint {
        /// Pod.
        pod: u32,
        /// Service.
        vip: Ipv4Addr,
        /// The pod's address.
        ip: Ipv4Addr,
        /// Has.
        present: bool,
    },
}

impl Effect {
    /// Which pod it is about.
    pub fn pod(&self) -> u32 {
        let (Self::Address { pod, .. } | Self::Endpoint { pod, .. }) = self;
        *pod
    }

    fn has_come(&self, kernel: &Kernel) -> Result<bool> {
        Ok(match *self {
            Self::Address { ip, present, .. } => kernel.has_address(ip)? == present,
            Self::Endpoint { vip, ip, present, .. } => kernel.has_endpoint(vip, ip)? == present,
        })
    }
}

/// An effect that has come, and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Which.
    pub effect: Effect,
    /// When the event was taken to be written.
    pub since: Instant,
    /// From the socket to the map.
    pub took: Duration,
}

/// The effects that are waited for.
#[derive(Clone)]
pub struct Waiting {
    shared: Arc<Shared>,
}

struct Shared {
    written: Mutex<mpsc::Sender<(Effect, Instant)>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pending: HashSet<u32>,
    arrivals: Vec<Arrival>,
    waiting_count: usize,
    failure: Option<String>,
}

impl Waiting {
    /// Events with these effects are being written now.
    pub fn written(&self, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        let now = clock::now();
        let mut state = self.shared.state.lock();
        let sender = self.shared.written.lock();
        for effect in effects {
            state.pending.insert(effect.pod());
            state.waiting_count += 1;
            // The other end lives as long as the program.
            let _ = sender.send((effect, now));
        }
    }

    /// Whether effects about this pod are still waited for.
    pub fn is_pending(&self, pod: u32) -> bool {
        self.shared.state.lock().pending.contains(&pod)
    }

    /// How many effects are waited for, and why nobody looks any more if that is so.
    pub fn left(&self) -> (usize, Option<String>) {
        let state = self.shared.state.lock();
        (state.waiting_count, state.failure.clone())
    }

    /// What has come since the last call.
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.shared.state.lock().arrivals)
    }
}

/// Starts to look. The maps are opened when the first effect is waited for: the agent has made them by then.
pub fn start(pins: PathBuf) -> Waiting {
    let (sender, receiver) = mpsc::channel();
    let shared = Arc::new(Shared { written: Mutex::new(sender), state: Mutex::default() });
    let looking = shared.clone();
    std::thread::spawn(move || {
        if let Err(error) = look(&pins, &receiver, &looking.state) {
            looking.state.lock().failure = Some(format!("{error:#}"));
        }
    });
    Waiting { shared }
}

fn look(
    pins: &std::path::Path,
    written: &mpsc::Receiver<(Effect, Instant)>,
    state: &Mutex<State>,
) -> Result<()> {
    let mut kernel = None;
    let mut waiting: Vec<(Effect, Instant)> = Vec::new();
    loop {
        if waiting.is_empty() {
            let Ok(first) = written.recv() else { return Ok(()) };
            waiting.push(first);
        }
        waiting.extend(written.try_iter());
        let kernel = match &kernel {
            Some(kernel) => kernel,
            None => kernel.insert(Kernel::open(pins)?),
        };
        let mut left = Vec::with_capacity(waiting.len());
        let mut arrivals = Vec::new();
        for (effect, since) in waiting {
            match effect.has_come(kernel)? {
                true => arrivals.push(Arrival { effect, since, took: clock::now().duration_since(since) }),
                false => left.push((effect, since)),
            }
        }
        waiting = left;
        settle(&mut state.lock(), &arrivals, &waiting);
        std::thread::sleep(LOOK_EVERY);
    }
}

fn settle(state: &mut State, arrivals: &[Arrival], waiting: &[(Effect, Instant)]) {
    for arrival in arrivals {
        let pod = arrival.effect.pod();
        if !waiting.iter().any(|(effect, _)| effect.pod() == pod) {
            state.pending.remove(&pod);
        }
    }
    state.waiting_count -= arrivals.len();
    state.arrivals.extend_from_slice(arrivals);
}
