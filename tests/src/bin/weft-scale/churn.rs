//! Changes at a steady rate, of the kinds and in the shares that a busy cluster has, and how long they took.
//!
//! One change is one thing that happens to a pod; an API server makes of it one event (labels) to five (a pod replaced
//! behind two services). Changes come one by one, evenly spaced, in an order that is the same in every run.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::clock;
use super::cluster::Cluster;
use super::waiting::{Arrival, Effect, Waiting};

/// Of ten changes, so many are of a pod's readiness; a pod that failed passes again as another such change.
const READINESS: u32 = 4;

/// Of ten changes, so many replace a pod. The rest change labels.
const REPLACED: u32 = 2;

/// How long a pod fails its checks, at least.
const DOWN_FOR: Duration = Duration::from_secs(5);

/// How long a change that is late may be waited for when all have been made.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many of the slowest changes are told one by one.
const SLOWEST_TOLD: usize = 5;

/// Start of the order of changes. Any number would do.
const SEED: u64 = 0x5ca1_ab1e;

/// What shall be done.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Changes per second.
    pub per_s: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Makes changes, and tells of them.
pub async fn run(cluster: &Cluster, waiting: &Waiting, order: &Order) -> Result<Value> {
    ensure!(order.per_s > 0.0 && order.seconds > 0.0, "nothing to change");
    let mut changes = Changes::new(cluster, waiting);
    let begin = clock::now();
    let count = (order.per_s * order.seconds) as u64;
    let mut late_max = Duration::ZERO;
    for number in 0..count {
        let due = begin + Duration::from_secs_f64(number as f64 / order.per_s);
        sleep(due.saturating_duration_since(clock::now())).await;
        late_max = late_max.max(clock::now().saturating_duration_since(due));
        changes.make_one()?;
    }
    let lasts = begin + Duration::from_secs_f64(order.seconds);
    sleep(lasts.saturating_duration_since(clock::now())).await;
    let took = clock::now().duration_since(begin);
    Ok(json!({
        "changes": count, "events": changes.events, "seconds": took.as_secs_f64(),
        "readiness": changes.readiness, "replaced": changes.replaced, "relabelled": changes.relabelled,
        "lateMaxMs": late_max.as_secs_f64() * 1e3,
    }))
}

/// Waits for what is still on its way, and tells how long each took.
pub async fn settle(waiting: &Waiting) -> Result<Value> {
    let deadline = clock::now() + PATIENCE;
    loop {
        let (left, failure) = waiting.left();
        if let Some(failure) = failure {
            bail!("the maps cannot be read: {failure}");
        }
        if left == 0 || clock::now() > deadline {
            return Ok(told(&waiting.take_arrivals(), left));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn told(arrivals: &[Arrival], left: usize) -> Value {
    let of = |wanted: fn(&Effect) -> bool| {
        let taken = arrivals.iter().filter(|arrival| wanted(&arrival.effect));
        let mut times: Vec<f64> = taken.map(|arrival| arrival.took.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&times, share);
        json!({"count": times.len(), "p50Ms": at(0.5), "p99Ms": at(0.99), "maxMs": at(1.0)})
    };
    json!({
        "all": of(|_| true),
        "addresses": of(|effect| matches!(effect, Effect::Address { .. })),
        "endpoints": of(|effect| matches!(effect, Effect::Endpoint { .. })),
        "slowest": slowest(arrivals),
        "neverSeen": left,
    })
}

/// Which took longest, and how long after the first change they happened: an agent may be slow at the beginning, now and
/// then, or all the time.
fn slowest(arrivals: &[Arrival]) -> Vec<Value> {
    let mut slowest: Vec<&Arrival> = arrivals.iter().collect();
    slowest.sort_by_key(|arrival| Reverse(arrival.took));
    let first = arrivals.iter().map(|arrival| arrival.since).min();
    let told = |arrival: &&Arrival| {
        let what = match arrival.effect {
            Effect::Address { present, .. } => {
                if present {
                    "new address"
                } else {
                    "address gone"
                }
            }
            Effect::Endpoint { present, .. } => {
                if present {
                    "new endpoint"
                } else {
                    "endpoint gone"
                }
            }
        };
        let after = first.map(|first| arrival.since.duration_since(first).as_secs_f64());
        json!({"what": what, "afterS": after, "tookMs": arrival.took.as_secs_f64() * 1e3})
    };
    slowest.iter().take(SLOWEST_TOLD).map(told).collect()
}

/// The smallest value that `share` of them do not exceed.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Which change comes next.
struct Changes<'a> {
    cluster: &'a Cluster,
    waiting: &'a Waiting,
    random: Rng,
    down: VecDeque<(u32, Instant)>,
    events: u64,
    readiness: u64,
    replaced: u64,
    relabelled: u64,
}

impl<'a> Changes<'a> {
    fn new(cluster: &'a Cluster, waiting: &'a Waiting) -> Self {
        let random = Rng::with_seed(SEED);
        Self {
            cluster,
            waiting,
            random,
            down: VecDeque::new(),
            events: 0,
            readiness: 0,
            replaced: 0,
            relabelled: 0,
        }
    }

    fn make_one(&mut self) -> Result<()> {
        let draw = self.random.u32(0..10);
        let events = if draw < READINESS {
            self.readiness += 1;
            match self.recovered() {
                Some(pod) => self.cluster.set_ready(pod, true),
                None => {
                    let pod = self.quiet_pod()?;
                    self.down.push_back((pod, clock::now()));
                    self.cluster.set_ready(pod, false)
                }
            }
        } else if draw < READINESS + REPLACED {
            self.replaced += 1;
            self.cluster.replace(self.quiet_pod()?)
        } else {
            self.relabelled += 1;
            self.cluster.relabel(self.quiet_pod()?)
        };
        self.events += u64::from(events);
        Ok(())
    }

    /// A pod that has failed its checks for long enough, and of which the kernel knows that.
    fn recovered(&mut self) -> Option<u32> {
        let (pod, since) = *self.down.front()?;
        let is_time = clock::now().duration_since(since) >= DOWN_FOR && !self.waiting.is_pending(pod);
        is_time.then(|| self.down.pop_front())?.map(|(pod, _)| pod)
    }

    /// A pod that passes its checks and of which nothing is on its way: a second change would hide the first.
    fn quiet_pod(&mut self) -> Result<u32> {
        // Of 50,000 pods few are busy; with few pods there may be none left.
        for _ in 0..1000 {
            let pod = self.random.u32(0..self.cluster.plan().sizes.pods);
            if self.cluster.pod(pod).ready && !self.waiting.is_pending(pod) {
                return Ok(pod);
            }
        }
        bail!("too few pods for so many changes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99)), (Some(50.0), Some(99.0)));
        assert_eq!(quantile(&sorted, 1.0), Some(100.0));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
