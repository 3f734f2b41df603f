//! Which endpoints are in question: the nearest group that has a ready one, as the service's `trafficDistribution`
//! asks (KEP-2433, KEP-3015). The kernel's backend tables are filled by the same rule.

use std::net::SocketAddr;

use crate::model::{Endpoint, EndpointState, TrafficDistribution};

use super::Locality;

/// How far away an endpoint may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Node,
    Zone,
    Anywhere,
}

/// The group of endpoints that is drawn from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    state: EndpointState,
    reach: Reach,
    client: Locality<'a>,
    exclude: &'a [SocketAddr],
}

/// The endpoints that new connections of this client go to, with their indices. Empty when none takes connections.
///
/// Ready endpoints of the preferred reach while there are any, then those farther away; terminating ones only when no
/// endpoint is ready anywhere; never one that is not ready.
pub fn preferred<'a>(
    candidates: &'a [Endpoint],
    client: Locality<'a>,
    distribution: TrafficDistribution,
) -> impl Iterator<Item = (usize, &'a Endpoint)> {
    let group = Group::nearest(candidates, client, distribution, &[]);
    candidates
        .iter()
        .enumerate()
        .filter(move |(_, endpoint)| group.is_some_and(|group| group.holds(endpoint)))
}

impl<'a> Group<'a> {
    /// The nearest group with a member; `None` when there is no endpoint to draw.
    pub(super) fn nearest(
        candidates: &[Endpoint],
        client: Locality<'a>,
        distribution: TrafficDistribution,
        exclude: &'a [SocketAddr],
    ) -> Option<Self> {
        // Excluded ones count here: a ready endpoint that has just failed does not make a terminating one eligible.
        let any_ready = candidates.iter().any(|endpoint| endpoint.state == EndpointState::Ready);
        let state = if any_ready { EndpointState::Ready } else { EndpointState::Draining };
        steps(distribution)
            .iter()
            .map(|reach| Self { state, reach: *reach, client, exclude })
            .find(|group| candidates.iter().any(|endpoint| group.holds(endpoint)))
    }

    pub(super) fn holds(&self, endpoint: &Endpoint) -> bool {
        let near = match self.reach {
            Reach::Anywhere => true,
            Reach::Node => endpoint.node.as_deref() == Some(self.client.node),
            Reach::Zone => self.client.zone.is_some() && endpoint.zone.as_deref() == self.client.zone,
        };
        near && endpoint.state == self.state && !self.exclude.contains(&endpoint.address)
    }
}

fn steps(distribution: TrafficDistribution) -> &'static [Reach] {
    match distribution {
        TrafficDistribution::Any => &[Reach::Anywhere],
        TrafficDistribution::PreferSameZone => &[Reach::Zone, Reach::Anywhere],
        TrafficDistribution::PreferSameNode => &[Reach::Node, Reach::Zone, Reach::Anywhere],
    }
}
