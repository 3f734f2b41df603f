//! Whatever happens to mesh, policies, routes, habits and pods, in whatever order: the tables that followed are those
//! made from nothing, nothing is left unwritten, and numbers neither leak nor change their meaning.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::capture::habit::Seen;
use crate::lifecycle::clock;
use crate::model::{MeshConfig, Service};
use crate::registry::{self, Changed};
use meshes::{any_pod, any_service, policy, routes};
use told::{told, told_plain, verdicts_told};

mod meshes;
mod naive;
mod told;

const NODE: &str = "n1";

fn uid(n: u8) -> WorkloadUid {
    WorkloadUid(format!("u{n}").into())
}

fn service_name(n: u8) -> ServiceName {
    ServiceName { namespace: "shop".into(), name: format!("s{n}").into() }
}

/// What can happen.
#[derive(Clone, Debug)]
enum Happening {
    Pod(u8, Option<Box<Workload>>),
    Service(u8, Option<Service>),
    /// Service addresses change hands.
    Swap(u8, u8),
    Policy(bool, Option<u16>, u8),
    NoPolicy,
    Route(u8, u16),
    NoRoute,
    Catch(u8, u8),
    Release(u8),
    Habit(u8),
    SpliceByDefault(bool),
    /// Everything is published as a whole.
    Whole,
    /// Nothing.
    Nothing,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        6 => (0..6u8).prop_flat_map(|n| any_pod(n).prop_map(move |pod| Pod(n, Some(Box::new(pod))))),
        1 => (0..6u8).prop_map(|n| Pod(n, None)),
        5 => (0..4u8).prop_flat_map(|n| any_service(n).prop_map(move |service| Service(n, Some(service)))),
        1 => (0..4u8).prop_map(|n| Service(n, None)),
        1 => (0..4u8, 0..4u8).prop_map(|(a, b)| Swap(a, b)),
        2 => (any::<bool>(), proptest::option::of(80..83u16), 0..6u8).prop_map(|(deny, port, account)| Policy(deny, port, account)),
        1 => Just(NoPolicy),
        1 => (0..4u8, 80..83u16).prop_map(|(service, port)| Route(service, port)),
        1 => Just(NoRoute),
        4 => (0..6u8, 0..3u8).prop_map(|(pod, slot)| Catch(pod, slot)),
        2 => (0..6u8).prop_map(Release),
        1 => (0..2u8).prop_map(Habit),
        1 => any::<bool>().prop_map(SpliceByDefault),
        1 => Just(Whole),
        1 => Just(Nothing),
    ]
}

/// The world as it is, and the plan that follows it.
struct World {
    writer: registry::Writer,
    registry: registry::Registry,
    pods: BTreeMap<u8, Workload>,
    services: BTreeMap<u8, Service>,
    policies: Arc<PolicySet>,
    routes: Arc<RouteTable>,
    caught: BTreeMap<u8, Caught>,
    habits: Habits,
    splice_by_default: bool,
    plan: Plan,
    kernel: Kernel,
    /// What numbers of pods have meant so far.
    meant: HashMap<u32, String>,
}

/// What has been written.
#[derive(Default)]
struct Kernel {
    addresses: HashMap<Address, Local>,
    backends: HashMap<BackendKey, Backend>,
    frontends: HashMap<FrontendKey, Frontend>,
    verdicts: HashMap<VerdictKey, Verdict>,
    open: HashMap<u32, u64>,
}

fn write<K: std::hash::Hash + Eq + Copy, V: PartialEq + Copy>(
    table: &mut Tracked<K, V>,
    kernel: &mut HashMap<K, V>,
) {
    for (key, value) in table.to_put() {
        kernel.insert(key, value);
        table.written(&key);
    }
    for key in table.to_remove() {
        assert!(kernel.remove(&key).is_some(), "only what is there is removed");
        table.written(&key);
    }
}

impl World {
    fn new() -> Self {
        let (writer, registry) = registry::new();
        Self {
            writer,
            registry,
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            policies: Arc::default(),
            routes: Arc::default(),
            caught: BTreeMap::new(),
            habits: Habits::default(),
            splice_by_default: true,
            plan: Plan::new(Numbers::new(1)),
            kernel: Kernel::default(),
            meant: HashMap::new(),
        }
    }

    fn publish(&self, pods: &[u8], services: &[u8]) {
        let mut snapshot = (*self.registry.snapshot()).clone();
        let mut changed = Changed::default();
        let pods: Vec<_> = pods.iter().map(|n| (uid(*n), self.pods.get(n).cloned().map(Arc::new))).collect();
        changed.workloads.extend(pods.iter().map(|(uid, _)| uid.clone()));
        snapshot.change_workloads(pods);
        let services: Vec<_> = services
            .iter()
            .map(|n| (service_name(*n), self.services.get(n).cloned().map(Arc::new)))
            .collect();
        changed.services.extend(services.iter().map(|(name, _)| name.clone()));
        snapshot.change_services(services);
        self.writer.publish_change(snapshot, changed);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Pod(n, pod) => {
                match pod {
                    Some(pod) => drop(self.pods.insert(n, *pod)),
                    None => drop(self.pods.remove(&n)),
                }
                self.publish(&[n], &[]);
            }
            Happening::Service(n, service) => {
                match service {
                    Some(mut service) => {
                        // No two services have one address: discovery settles that.
                        let others = self.services.iter().filter(|(other, _)| **other != n);
                        let taken: Vec<IpAddr> = others.flat_map(|(_, other)| other.vips.clone()).collect();
                        service.vips.retain(|vip| !taken.contains(vip));
                        self.services.insert(n, service);
                    }
                    None => drop(self.services.remove(&n)),
                }
                self.publish(&[], &[n]);
            }
            Happening::Swap(a, b) => {
                let vips = |n: &u8| self.services.get(n).map(|service| service.vips.clone());
                let (Some(of_a), Some(of_b)) = (vips(&a), vips(&b)) else { return };
                self.services.entry(a).and_modify(|service| service.vips = of_b);
                self.services.entry(b).and_modify(|service| service.vips = of_a);
                self.publish(&[], &[a, b]);
            }
            Happening::Policy(deny, port, account) => self.policies = policy(deny, port, account),
            Happening::NoPolicy => self.policies = Arc::default(),
            Happening::Route(service, port) => self.routes = routes(service, port),
            Happening::NoRoute => self.routes = Arc::default(),
            Happening::Catch(n, slot) => {
                let caught = Caught {
                    uid: uid(n),
                    netns_cookie: u64::from(n) + 100,
                    slot: u32::from(slot) * 8,
                    outbound_ports: vec![15001, 15002],
                    cgroup_id: (slot != 0).then_some(u64::from(n) + 200),
                };
                self.caught.insert(n, caught);
            }
            Happening::Release(n) => drop(self.caught.remove(&n)),
            Happening::Habit(n) => {
                let key = PortKey { owner: ("shop".into(), format!("o{n}").into()), port: 80 };
                for _ in 0..40 {
                    self.habits.note(key.clone(), Seen { sends: 1, bytes: 1, demoted: false }, clock::now());
                }
            }
            Happening::SpliceByDefault(is) => self.splice_by_default = is,
            Happening::Whole => {
                let pods = self.pods.values().cloned().collect();
                let services = self.services.values().cloned().collect();
                self.writer.publish(Snapshot::new(MeshConfig::default(), pods, services));
            }
            Happening::Nothing => {}
        }
    }

    fn follow(&mut self) {
        let snapshot = self.registry.snapshot();
        let caught: Vec<_> = self.caught.values().cloned().collect();
        let inputs = Inputs {
            snapshot: &snapshot,
            policies: &self.policies,
            routes: &self.routes,
            caught: &caught,
            waiting: &[],
            habits: &self.habits,
            node: NODE,
            splice_by_default: self.splice_by_default,
            all_services: false,
        };
        let before = verdicts_told(&self.plan);
        let judged = self.plan.follow(&inputs);
        assert!(judged || before == verdicts_told(&self.plan), "verdicts changed, and nobody was told");
        let mut numbers = naive::Numbers::default();
        let plain = naive::compile(&inputs, &mut numbers);
        assert_eq!(told(&self.plan), told_plain(&plain, &numbers));
        self.write();
        self.count();
    }

    /// The kernel has what is wanted once what is behind has been written.
    fn write(&mut self) {
        let tables = self.plan.tables();
        write(&mut tables.verdicts, &mut self.kernel.verdicts);
        write(&mut tables.open, &mut self.kernel.open);
        write(&mut tables.backends, &mut self.kernel.backends);
        write(&mut tables.frontends, &mut self.kernel.frontends);
        write(&mut tables.addresses, &mut self.kernel.addresses);
        assert_eq!(
            tables.verdicts.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(),
            self.kernel.verdicts
        );
        assert_eq!(tables.open.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(), self.kernel.open);
        assert_eq!(
            tables.backends.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(),
            self.kernel.backends
        );
        assert_eq!(
            tables.frontends.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(),
            self.kernel.frontends
        );
        assert_eq!(
            tables.addresses.iter().map(|(k, v)| (*k, *v)).collect::<HashMap<_, _>>(),
            self.kernel.addresses
        );
    }

    /// Numbers in use are those of pods of the mesh, of what is in the tables, and of policies that were named lately.
    fn count(&mut self) {
        let enrolled = self.pods.values().filter(|pod| pod.enrolled).count();
        let tables = &self.plan.tables;
        let numbered = tables.open.len() + tables.frontends.len();
        // Six policies by name and the default's label.
        let numbers = self.plan.numbers();
        assert!(
            numbers.len() <= enrolled + numbered + 7,
            "{} numbers for {enrolled} and {numbered}",
            numbers.len()
        );
        for (_, local) in tables.addresses.iter() {
            let name = numbers.name(local.id).expect("a name").to_owned();
            let meant = self.meant.entry(local.id).or_insert_with(|| name.clone());
            assert_eq!(*meant, name, "a number changed its meaning");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn tables_that_followed_every_change_are_those_made_from_nothing(
        steps in proptest::collection::vec(proptest::collection::vec(happening(), 1..4), 1..30),
    ) {
        let mut world = World::new();
        world.follow();
        for step in steps {
            step.into_iter().for_each(|happening| world.happen(happening));
            world.follow();
        }
    }
}
