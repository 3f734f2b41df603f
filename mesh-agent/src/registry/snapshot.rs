//! One state of the mesh: looking things up, and how the next state follows from it.

use super::change::{Changed, History};
use super::shards::Shards;
use super::{
    Arc, Destination, IpAddr, MeshConfig, OriginalDst, Service, ServiceName, Workload, WorkloadName,
    WorkloadUid,
};

/// One state of the mesh. Immutable once published; a clone shares everything.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up by one per publication.
    pub version: u64,
    /// Mesh-wide settings.
    pub config: MeshConfig,
    workloads: Shards<WorkloadUid, Arc<Workload>>,
    by_ip: Shards<IpAddr, Claim>,
    by_name: Shards<WorkloadName, Arc<Workload>>,
    by_node: Shards<Arc<str>, Arc<[Arc<Workload>]>>,
    services: Shards<ServiceName, Arc<Service>>,
    by_frontend: Shards<(IpAddr, u16), (Arc<Service>, usize)>,
    history: History,
}

/// Who says that an address is theirs.
#[derive(Clone, Debug)]
enum Claim {
    One(Arc<Workload>),
    /// Nobody has it: the wrong one of them would be worse than none.
    Contested(Arc<[Arc<Workload>]>),
}

impl Claim {
    fn all(&self) -> &[Arc<Workload>] {
        match self {
            Self::One(workload) => std::slice::from_ref(workload),
            Self::Contested(workloads) => workloads,
        }
    }

    fn of(mut workloads: Vec<Arc<Workload>>) -> Option<Self> {
        match workloads.len() {
            0 | 1 => workloads.pop().map(Self::One),
            _ => Some(Self::Contested(workloads.into())),
        }
    }
}

impl Snapshot {
    /// A state with these workloads and services. Pods of the host network are not found by IP: the address is the node's,
    /// not theirs.
    ///
    /// Where two pods claim one address, neither is found by it: the wrong one of them would be worse than none. Sources
    /// settle such conflicts before, so this is the last line.
    pub fn new(config: MeshConfig, workloads: Vec<Workload>, mut services: Vec<Service>) -> Self {
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let mut snapshot = Self { config, ..Self::default() };
        let workloads = workloads.into_iter().map(Arc::new);
        snapshot.change_workloads(workloads.map(|new| (new.uid.clone(), Some(new))).collect());
        let services = services.into_iter().map(Arc::new);
        snapshot.change_services(services.map(|new| (new.name.clone(), Some(new))).collect());
        snapshot
    }

    /// Replaces, adds and (`None`) removes workloads.
    pub fn change_workloads(&mut self, changes: Vec<(WorkloadUid, Option<Arc<Workload>>)>) {
        // What goes goes first: its name or address may be somebody else's by now.
        for (uid, _) in &changes {
            if let Some(old) = self.workloads.get(uid).cloned() {
                self.forget_workload(&old);
            }
        }
        for new in changes.into_iter().filter_map(|(_, new)| new) {
            self.enter_workload(new);
        }
    }

    fn forget_workload(&mut self, old: &Arc<Workload>) {
        let others = |held: &[Arc<Workload>]| -> Vec<_> {
            held.iter().filter(|other| other.uid != old.uid).cloned().collect()
        };
        for ip in own_addresses(old) {
            match self.by_ip.get(ip).and_then(|claim| Claim::of(others(claim.all()))) {
                Some(left) => self.by_ip.insert(*ip, left),
                None => self.by_ip.remove(ip),
            }
        }
        if self.by_name.get(&old.name).is_some_and(|held| held.uid == old.uid) {
            self.by_name.remove(&old.name);
        }
        match self.by_node.get(&old.node).map(|held| others(held)) {
            Some(left) if !left.is_empty() => self.by_node.insert(old.node.clone(), left.into()),
            _ => self.by_node.remove(&old.node),
        }
        self.workloads.remove(&old.uid);
    }

    fn enter_workload(&mut self, new: Arc<Workload>) {
        for ip in own_addresses(&new) {
            let mut claimants = self.by_ip.get(ip).map(|claim| claim.all().to_vec()).unwrap_or_default();
            claimants.retain(|other| other.uid != new.uid);
            claimants.push(new.clone());
            if let Some(claim) = Claim::of(claimants) {
                self.by_ip.insert(*ip, claim);
            }
        }
        // A pod that is not scheduled is on no node.
        if !new.node.is_empty() {
            let there = self.by_node.get(&new.node).map(|held| held.to_vec()).unwrap_or_default();
            let there = there.into_iter().chain([new.clone()]).collect();
            self.by_node.insert(new.node.clone(), there);
        }
        self.by_name.insert(new.name.clone(), new.clone());
        self.workloads.insert(new.uid.clone(), new);
    }

    /// Replaces, adds and (`None`) removes services. No two of them have one address and port: sources settle that before.
    pub fn change_services(&mut self, changes: Vec<(ServiceName, Option<Arc<Service>>)>) {
        for (name, _) in &changes {
            if let Some(old) = self.services.get(name).cloned() {
                for (frontend, _) in frontends(&old) {
                    if self.by_frontend.get(&frontend).is_some_and(|(holder, _)| holder.name == *name) {
                        self.by_frontend.remove(&frontend);
                    }
                }
                self.services.remove(name);
            }
        }
        for new in changes.into_iter().filter_map(|(_, new)| new) {
            for (frontend, index) in frontends(&new) {
                self.by_frontend.insert(frontend, (new.clone(), index));
            }
            self.services.insert(new.name.clone(), new);
        }
    }

    pub(super) fn numbered(self, version: u64) -> Self {
        Self { version, history: History::default(), ..self }
    }

    pub(super) fn following(self, last: &Self, changed: Changed) -> Self {
        Self { version: last.version + 1, history: last.history.followed_by(changed), ..self }
    }

    /// What changed after the publication with this version; `None`: anything may have, look at everything.
    pub fn changed_since(&self, version: u64) -> Option<Changed> {
        self.history.last(self.version.checked_sub(version)?)
    }

    /// Whether what has changed since `version` is about a node: its pods, the mesh's settings, or pods that `is_known` knows
    /// to have been there. True when nobody knows any more.
    pub fn changed_on(&self, node: &str, version: u64, is_known: impl Fn(&WorkloadUid) -> bool) -> bool {
        let is_there = |uid: &WorkloadUid| self.workload(uid).is_some_and(|workload| *workload.node == *node);
        self.changed_since(version).is_none_or(|changed| {
            changed.config || changed.workloads.iter().any(|uid| is_there(uid) || is_known(uid))
        })
    }

    /// By UID.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// By one of its addresses (canonical).
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        match self.by_ip.get(&ip)? {
            Claim::One(workload) => Some(workload),
            Claim::Contested(_) => None,
        }
    }

    /// By namespace and name.
    pub fn workload_by_name(&self, name: &WorkloadName) -> Option<&Arc<Workload>> {
        self.by_name.get(name)
    }

    /// Every workload, in no order. For views and whole passes: there may be tens of thousands.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Workloads of one node, in no order.
    pub fn workloads_on(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_node.get(node).into_iter().flat_map(|there| there.iter())
    }

    /// By namespace and name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// Every service, in no order. For views and whole passes.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// What the dialled address stands for.
    pub fn resolve(&self, dialled: OriginalDst) -> Destination {
        if let Some((service, index)) = self.by_frontend.get(&(dialled.ip(), dialled.port())) {
            return Destination::Service(service.clone(), *index);
        }
        match self.workload_by_ip(dialled.ip()) {
            Some(workload) => Destination::Workload(workload.clone()),
            None => Destination::External,
        }
    }
}

/// The addresses that lead to this workload and nobody else.
fn own_addresses(workload: &Workload) -> &[IpAddr] {
    if workload.host_network { &[] } else { &workload.addresses }
}

/// Where a service is dialled, each with the port's place.
fn frontends(service: &Service) -> impl Iterator<Item = ((IpAddr, u16), usize)> {
    let ports = service.ports.iter().enumerate().filter(|(_, port)| !port.udp);
    ports.flat_map(|(index, port)| service.vips.iter().map(move |vip| ((*vip, port.port), index)))
}
