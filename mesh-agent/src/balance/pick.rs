//! One endpoint of the preferred group: the less busy of two drawn at random.
//!
//! Two choices keep the fullest endpoint within `log log n` of the mean (Mitzenmacher, "The Power of Two Choices in
//! Randomized Load Balancing", 2001), and unlike "the least busy of all" they do not send every worker to the same
//! newcomer at once.

use std::net::SocketAddr;

use crate::model::{Endpoint, TrafficDistribution};

use super::Locality;
use super::preference::Group;

/// Index into `candidates` of the endpoint to connect to.
///
/// `open` tells how many connections an endpoint has; `exclude` lists those that were tried for this connection and
/// failed: they are never drawn again, not even as a last resort. `None`: no endpoint takes connections.
pub fn pick(
    candidates: &[Endpoint],
    client: Locality<'_>,
    distribution: TrafficDistribution,
    open: &dyn Fn(SocketAddr) -> u32,
    exclude: &[SocketAddr],
    rng: &mut fastrand::Rng,
) -> Option<usize> {
    let group = Group::nearest(candidates, client, distribution, exclude)?;
    let members = || candidates.iter().enumerate().filter(|(_, endpoint)| group.holds(endpoint));
    let size = members().count();
    let first = rng.usize(..size);
    let (first_index, first_endpoint) = members().nth(first)?;
    if size == 1 {
        return Some(first_index);
    }
    // Drawn from the others, so that the two differ.
    let second = (first + 1 + rng.usize(..size - 1)) % size;
    let (second_index, second_endpoint) = members().nth(second)?;
    let second_is_freer = open(second_endpoint.address) < open(first_endpoint.address);
    Some(if second_is_freer { second_index } else { first_index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{OpenConnections, preferred};
    use crate::model::EndpointState::{self, Draining, NotReady, Ready};
    use crate::model::TrafficDistribution::{Any, PreferSameNode, PreferSameZone};

    fn endpoint(index: u8, node: &str, zone: &str, state: EndpointState) -> Endpoint {
        Endpoint {
            address: SocketAddr::from(([10, 0, 0, index], 80)),
            workload: None,
            node: (!node.is_empty()).then(|| node.into()),
            zone: (!zone.is_empty()).then(|| zone.into()),
            state,
        }
    }

    fn here() -> Locality<'static> {
        Locality { node: "n1", zone: Some("z1") }
    }

    /// Which endpoints (by index) a client on node n1 in zone z1 is ever sent to; `exclude` by index too.
    #[track_caller]
    fn check(
        endpoints: &[(&str, &str, EndpointState)],
        distribution: TrafficDistribution,
        exclude: &[u8],
        expected: &[usize],
    ) {
        check_from(here(), endpoints, distribution, exclude, expected);
    }

    #[track_caller]
    fn check_from(
        client: Locality<'_>,
        endpoints: &[(&str, &str, EndpointState)],
        distribution: TrafficDistribution,
        exclude: &[u8],
        expected: &[usize],
    ) {
        let candidates: Vec<Endpoint> = (0..)
            .zip(endpoints)
            .map(|(index, (node, zone, state))| endpoint(index, node, zone, *state))
            .collect();
        let exclude: Vec<SocketAddr> = exclude.iter().map(|i| candidates[usize::from(*i)].address).collect();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            seen.extend(pick(&candidates, client, distribution, &|_| 0, &exclude, &mut rng));
        }
        assert_eq!(Vec::from_iter(seen), expected, "picked");
        if exclude.is_empty() {
            let listed: Vec<usize> = preferred(&candidates, client, distribution).map(|(i, _)| i).collect();
            assert_eq!(listed, expected, "preferred");
        }
    }

    #[test]
    fn every_ready_endpoint_is_drawn_when_nothing_is_preferred() {
        check(&[("n1", "z1", Ready), ("n2", "z1", Ready), ("n3", "z2", Ready)], Any, &[], &[0, 1, 2]);
        check(&[], Any, &[], &[]);
        check(&[("", "", Ready)], Any, &[], &[0]);
    }

    #[test]
    fn the_nearest_group_with_a_ready_endpoint_is_drawn_from() {
        let three = [("n1", "z1", Ready), ("n2", "z1", Ready), ("n3", "z2", Ready)];
        check(&three, PreferSameNode, &[], &[0]);
        check(&three, PreferSameZone, &[], &[0, 1]);
        check(&three[1..], PreferSameNode, &[], &[0]);
        check(&three[2..], PreferSameNode, &[], &[0]);
        check(&three[2..], PreferSameZone, &[], &[0]);
        check(&[("n1", "z1", NotReady), ("n2", "z1", Ready), ("n3", "z2", Ready)], PreferSameNode, &[], &[1]);
        check(&[("n1", "z1", NotReady), ("n3", "z2", Ready)], PreferSameZone, &[], &[1]);
    }

    #[test]
    fn a_client_without_a_zone_is_near_to_no_zone() {
        let nowhere = Locality { node: "n9", zone: None };
        check_from(nowhere, &[("n1", "", Ready), ("n2", "z1", Ready)], PreferSameZone, &[], &[0, 1]);
    }

    #[test]
    fn terminating_endpoints_serve_only_when_none_is_ready_anywhere() {
        check(&[("n1", "z1", Draining), ("n3", "z2", Ready)], PreferSameNode, &[], &[1]);
        check(&[("n1", "z1", Draining), ("n3", "z2", NotReady)], Any, &[], &[0]);
        check(&[("n1", "z1", Draining), ("n3", "z2", Draining)], Any, &[], &[0, 1]);
        check(&[("n1", "z1", Draining), ("n3", "z2", Draining)], PreferSameNode, &[], &[0]);
        check(&[("n1", "z1", Draining), ("n3", "z2", Ready)], Any, &[1], &[]);
    }

    #[test]
    fn endpoints_that_are_not_ready_are_never_drawn() {
        check(&[("n1", "z1", NotReady)], Any, &[], &[]);
    }

    #[test]
    fn excluded_endpoints_are_never_drawn_and_the_next_group_steps_in() {
        let three = [("n1", "z1", Ready), ("n2", "z1", Ready), ("n3", "z2", Ready)];
        check(&three, Any, &[1], &[0, 2]);
        check(&three, PreferSameNode, &[0], &[1]);
        check(&three, PreferSameNode, &[0, 1], &[2]);
        check(&three, PreferSameNode, &[0, 1, 2], &[]);
    }

    #[test]
    fn the_less_busy_of_two_wins() {
        let candidates = [endpoint(0, "n1", "z1", Ready), endpoint(1, "n1", "z1", Ready)];
        let busy = candidates[0].address;
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100 {
            let open = |addr| u32::from(addr == busy);
            assert_eq!(pick(&candidates, here(), Any, &open, &[], &mut rng), Some(1));
        }
    }

    /// One random choice would leave the fullest of 20 endpoints about 30 % above the mean after 2,000 connections; two
    /// choices keep all within a few connections of it.
    #[test]
    fn two_choices_keep_the_fullest_endpoint_near_the_mean() {
        let candidates: Vec<Endpoint> = (0..20).map(|index| endpoint(index, "n1", "z1", Ready)).collect();
        let table = OpenConnections::default();
        let mut rng = fastrand::Rng::with_seed(42);
        let guards: Vec<_> = (0..2000)
            .map(|_| {
                let index = pick(&candidates, here(), Any, &|addr| table.open(addr), &[], &mut rng).unwrap();
                table.begin(candidates[index].address)
            })
            .collect();
        let counts: Vec<u32> = candidates.iter().map(|endpoint| table.open(endpoint.address)).collect();
        assert_eq!(counts.iter().sum::<u32>(), 2000);
        assert!(counts.iter().all(|count| (96..=104).contains(count)), "{counts:?}");
        drop(guards);
    }

    #[test]
    fn equally_busy_endpoints_are_drawn_alike() {
        let candidates: Vec<Endpoint> = (0..5).map(|index| endpoint(index, "n1", "z1", Ready)).collect();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut counts = [0_u32; 5];
        for _ in 0..10_000 {
            counts[pick(&candidates, here(), Any, &|_| 4, &[], &mut rng).unwrap()] += 1;
        }
        // Mean 2,000, standard deviation 40: five of those on either side.
        assert!(counts.iter().all(|count| (1800..=2200).contains(count)), "{counts:?}");
    }
}
