//! Numbers by which the kernel programs know pods, services, endpoints and policies.
//!
//! A number is given back when nothing has it any more, so that churn does not fill the memory, and the next one to be
//! handed out is always one that was not used for the longest time: four thousand million others lie between, so that
//! neither an entry nor an open connection of before can take it for its own.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::WorkloadUid;

/// Numbers of one agent's life. Each start of an agent begins in a range of its own, and never hands out what the kernel
/// still holds from before.
#[derive(Debug)]
pub struct Numbers {
    next: u32,
    held: HashSet<u32>,
    pods: HashMap<WorkloadUid, u32>,
    policies: HashMap<Arc<str>, u32>,
    endpoints: HashMap<SocketAddr, Shared>,
    names: HashMap<u32, Arc<str>>,
    /// Policies that the last tables no longer named: an event that names one may still be on its way.
    fading: HashSet<u32>,
}

/// A number that several have.
#[derive(Clone, Copy, Debug)]
struct Shared {
    number: u32,
    uses: u32,
}

impl Numbers {
    /// Numbers for this agent start.
    pub fn new(generation: u64) -> Self {
        let range = u32::try_from(generation % 4096).expect("below 4096") << 20;
        Self {
            next: range + 1,
            held: HashSet::new(),
            pods: HashMap::new(),
            policies: HashMap::new(),
            endpoints: HashMap::new(),
            names: HashMap::new(),
            fading: HashSet::new(),
        }
    }

    /// These numbers are somebody's whom this agent does not know.
    pub fn avoid(&mut self, numbers: impl IntoIterator<Item = u32>) {
        self.held.extend(numbers);
    }

    /// A number for something that has no name here; never 0.
    pub fn take(&mut self) -> u32 {
        loop {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            if number != 0 && self.held.insert(number) {
                return number;
            }
        }
    }

    /// Nothing has the number any more.
    pub fn give_back(&mut self, number: u32) {
        self.held.remove(&number);
    }

    /// The pod's number.
    pub fn pod(&mut self, uid: &WorkloadUid) -> u32 {
        if let Some(number) = self.pods.get(uid) {
            return *number;
        }
        let number = self.take();
        self.pods.insert(uid.clone(), number);
        self.names.insert(number, uid.0.clone());
        number
    }

    /// The mesh no longer speaks of the pod.
    pub fn forget_pod(&mut self, uid: &WorkloadUid) {
        if let Some(number) = self.pods.remove(uid) {
            self.names.remove(&number);
            self.give_back(number);
        }
    }

    /// The number of a policy, or of the default's stable label.
    pub fn policy(&mut self, name: &str) -> u32 {
        if let Some(number) = self.policies.get(name) {
            return *number;
        }
        let (number, name) = (self.take(), Arc::<str>::from(name));
        self.policies.insert(name.clone(), number);
        self.names.insert(number, name);
        number
    }

    /// Forgets policies that nothing names now and that nothing named at the last call.
    pub fn keep_policies(&mut self, named: &HashSet<u32>) {
        let fading: HashSet<u32> =
            self.policies.values().filter(|number| !named.contains(number)).copied().collect();
        let gone: Vec<u32> = fading.intersection(&self.fading).copied().collect();
        self.policies.retain(|_, number| !gone.contains(number));
        for number in gone {
            self.names.remove(&number);
            self.give_back(number);
        }
        self.fading = fading;
    }

    /// The endpoint's number, once more in use; true when nobody had it before.
    pub fn take_endpoint(&mut self, address: SocketAddr) -> (u32, bool) {
        if let Some(shared) = self.endpoints.get_mut(&address) {
            shared.uses += 1;
            return (shared.number, false);
        }
        let number = self.take();
        self.endpoints.insert(address, Shared { number, uses: 1 });
        (number, true)
    }

    /// One use less; the number when that was the last.
    pub fn give_back_endpoint(&mut self, address: SocketAddr) -> Option<u32> {
        let shared = self.endpoints.get_mut(&address)?;
        shared.uses -= 1;
        if shared.uses > 0 {
            return None;
        }
        let number = shared.number;
        self.endpoints.remove(&address);
        self.give_back(number);
        Some(number)
    }

    /// The name of the pod or policy behind a number.
    pub fn name(&self, number: u32) -> Option<&str> {
        self.names.get(&number).map(|name| &**name)
    }

    /// How many are in use.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: u32) -> WorkloadUid {
        WorkloadUid(format!("uid-{n}").into())
    }

    #[test]
    fn names_come_and_go_without_filling_the_memory_and_no_number_comes_back_soon() {
        let mut numbers = Numbers::new(7);
        let first = numbers.pod(&uid(0));
        assert_eq!((first, numbers.pod(&uid(0)), numbers.name(first)), (7 << 20 | 1, first, Some("uid-0")));
        for n in 1..10_000 {
            assert_ne!(numbers.pod(&uid(n)), first);
            numbers.forget_pod(&uid(n));
        }
        numbers.forget_pod(&uid(0));
        assert_eq!((numbers.len(), numbers.name(first)), (0, None));
        assert_ne!(numbers.pod(&uid(0)), first);
    }

    #[test]
    fn handing_out_goes_round_and_passes_over_what_is_held() {
        let mut numbers = Numbers::new(0);
        numbers.avoid([2]);
        assert_eq!((numbers.take(), numbers.take()), (1, 3));
        numbers.next = u32::MAX;
        numbers.give_back(1);
        assert_eq!((numbers.take(), numbers.take(), numbers.take()), (u32::MAX, 1, 4));
    }

    #[test]
    fn an_endpoint_of_two_services_has_one_number_until_both_are_gone() {
        let mut numbers = Numbers::new(0);
        let address = "10.0.0.1:80".parse().unwrap();
        let (number, is_new) = numbers.take_endpoint(address);
        assert!(is_new);
        assert_eq!(numbers.take_endpoint(address), (number, false));
        assert_eq!(numbers.give_back_endpoint(address), None);
        assert_eq!(numbers.give_back_endpoint(address), Some(number));
        assert_eq!(numbers.give_back_endpoint(address), None);
        assert_ne!(numbers.take_endpoint(address).0, number);
    }

    #[test]
    fn a_policy_that_nothing_names_is_known_a_little_longer() {
        let mut numbers = Numbers::new(0);
        let number = numbers.policy("shop/p");
        numbers.keep_policies(&[number].into());
        numbers.keep_policies(&HashSet::new());
        assert_eq!(numbers.name(number), Some("shop/p"));
        numbers.keep_policies(&HashSet::new());
        assert_eq!((numbers.name(number), numbers.len()), (None, 0));
    }
}
