//! What the room's tests stand on: a certificate authority, pods without namespaces, sockets on 127.0.0.1.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::carrier::{Carrier, Counted};
use super::tunnel::{ALPN, Role};
use super::{Credentials, Handles, Leaving, Settings, Workers, start_workers, tls};
use crate::capture::{Caller, Callers, ListenerChange, Origin, OriginTable, Pod, SocketSource};
use crate::identity::tls::{certified, client_config, server_config};
use crate::identity::trust::Trust;
use crate::identity::verify::Verifier;
use crate::lifecycle::{Shutdown, Trigger};
use crate::model::{
    ClientAddr, Endpoint, EndpointAddr, EndpointState, FailureMode, MeshConfig, OriginalDst, Service,
    ServiceName, ServicePort, SpiffeId, TrafficDistribution, Workload, WorkloadName, WorkloadUid,
};
use crate::telemetry::{self, Telemetry};
use crate::{policy, registry, route};

/// A CA for `cluster.local`.
#[derive(Debug)]
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    verifier: Arc<Verifier>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("roots.pem");
        std::fs::write(&path, root.pem()).unwrap();
        let trust = Trust::load(vec![("cluster.local".parse().unwrap(), path)]).unwrap();
        Self { issuer: Issuer::new(params, key), verifier: Arc::new(Verifier::new(Arc::new(trust))) }
    }

    /// Configurations that speak as `id`.
    pub(crate) fn issue(&self, id: &SpiffeId) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let certified = certified(vec![leaf.der().clone()], key).unwrap();
        (
            client_config(certified.clone(), self.verifier.clone()).unwrap(),
            server_config(certified, self.verifier.clone()).unwrap(),
        )
    }
}

/// `spiffe://cluster.local/ns/default/sa/NAME`.
pub(crate) fn id(name: &str) -> SpiffeId {
    SpiffeId::of_service_account(&"cluster.local".parse().unwrap(), "default", name)
}

/// Two ends of one TCP connection.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// Two ends of one tunnel, after the handshake.
pub(crate) async fn tunnel_pair(ca: &TestCa) -> (Carrier, Carrier) {
    let (near, far) = tcp_pair().await;
    let (client, _) = ca.issue(&id("client"));
    let (_, server) = ca.issue(&id("server"));
    let name = rustls::pki_types::ServerName::IpAddress(far.local_addr().unwrap().ip().into());
    let (near_tls, far_tls) = tokio::join!(
        async {
            let mut established = tls::connect(&near, client, name, ALPN).await.unwrap();
            // The last flight normally travels with the first frame.
            let unsent = std::mem::take(&mut established.unsent);
            assert_eq!(near.try_write(&unsent).unwrap(), unsent.len());
            established
        },
        async { tls::accept(&far, server, ALPN).await.unwrap() }
    );
    let counted = || Counted::new(&Telemetry::without_access_log());
    (
        Carrier::new(near, near_tls, Role::Opener, counted()),
        Carrier::new(far, far_tls, Role::Acceptor, counted()),
    )
}

/// Origins in memory, and who was shown to applications.
#[derive(Debug, Default)]
pub(crate) struct MemoryOrigins {
    origins: Mutex<HashMap<SocketAddr, Origin>>,
    shown: Mutex<HashMap<SocketAddr, ClientAddr>>,
}

impl MemoryOrigins {
    pub(crate) fn shown(&self, agent: SocketAddr) -> Option<ClientAddr> {
        self.shown.lock().get(&agent).copied()
    }

    pub(crate) fn shown_len(&self) -> usize {
        self.shown.lock().len()
    }
}

impl OriginTable for MemoryOrigins {
    fn take(&self, _pod: &Pod, client: SocketAddr) -> Option<Origin> {
        self.origins.lock().remove(&client)
    }

    fn show_client(&self, _pod: &Pod, agent: SocketAddr, client: ClientAddr) -> io::Result<()> {
        match self.shown.lock().entry(agent) {
            Entry::Occupied(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Entry::Vacant(free) => {
                free.insert(client);
                Ok(())
            }
        }
    }

    fn forget_client(&self, _pod: &Pod, agent: SocketAddr) {
        self.shown.lock().remove(&agent);
    }
}

/// Everybody who dials is this one.
#[derive(Debug)]
pub(crate) struct OneCaller(pub(crate) Caller);

impl Callers for OneCaller {
    fn of(&self, _client: SocketAddr, _server: SocketAddr) -> Caller {
        self.0
    }
}

#[derive(Debug)]
struct PlainSockets;

impl SocketSource for PlainSockets {
    fn tcp_socket(&self, v6: bool) -> io::Result<Socket> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    }
}

/// For dialling, for accepting.
type Configs = (Arc<ClientConfig>, Arc<ServerConfig>);

/// Certificates of a [`TestCa`], made when they are first asked for; `impostors` show somebody else's.
#[derive(Debug)]
pub(crate) struct TestCredentials {
    ca: TestCa,
    held: Mutex<HashMap<SpiffeId, Configs>>,
    pub(crate) impostors: Mutex<HashMap<SpiffeId, SpiffeId>>,
}

impl TestCredentials {
    fn held(&self, id: &SpiffeId) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let shown = self.impostors.lock().get(id).unwrap_or(id).clone();
        self.held.lock().entry(id.clone()).or_insert_with(|| self.ca.issue(&shown)).clone()
    }

    /// What a peer without an agent of ours would speak with.
    pub(crate) fn pair(&self, id: &SpiffeId) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        self.held(id)
    }

    /// Servers get a new configuration, clients keep theirs.
    pub(crate) fn rotate_server(&self) {
        for (id, pair) in self.held.lock().iter_mut() {
            pair.1 = self.ca.issue(id).1;
        }
    }

    /// The next configurations are new ones.
    pub(crate) fn rotate(&self) {
        self.held.lock().clear();
    }
}

impl Credentials for TestCredentials {
    fn client_config(&self, id: &SpiffeId) -> Option<Arc<ClientConfig>> {
        Some(self.held(id).0)
    }
    fn server_config(&self, id: &SpiffeId) -> Option<Arc<ServerConfig>> {
        Some(self.held(id).1)
    }
}

/// A mesh of pods on loopback addresses of their own, each on a worker of its own.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) handles: Handles,
    pub(crate) origins: Arc<MemoryOrigins>,
    pub(crate) credentials: Arc<TestCredentials>,
    pub(crate) registry: registry::Writer,
    pub(crate) policies: policy::Writer,
    pub(crate) routes: route::Writer,
    workloads: Vec<Workload>,
    services: Vec<Service>,
    base: [u8; 2],
    records: tempfile::TempDir,
    shutdown: (Trigger, Shutdown),
    pub(crate) drain: (Trigger, Shutdown),
    changes: Vec<(Arc<Pod>, mpsc::UnboundedSender<ListenerChange>)>,
    pub(crate) workers: Vec<Workers>,
}

impl World {
    pub(crate) fn new() -> Self {
        // Tests run beside each other, in one process or in many.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id().wrapping_mul(31).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let base = [(number >> 8) as u8, number as u8];
        let records = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::start(&telemetry::Settings {
            access_log: telemetry::Sink::File(records.path().join("access.log")),
            ..telemetry::Settings::default()
        })
        .unwrap();
        let (registry, registry_handle) = registry::new();
        let (policies, policies_handle) = policy::new();
        let (routes, routes_handle) = route::new();
        let origins = Arc::new(MemoryOrigins::default());
        let credentials = Arc::new(TestCredentials {
            ca: TestCa::new(),
            held: Mutex::default(),
            impostors: Mutex::default(),
        });
        let handles = Handles {
            registry: registry_handle,
            policies: policies_handle,
            routes: routes_handle,
            credentials: credentials.clone(),
            origins: origins.clone(),
            callers: Arc::new(OneCaller(Caller::Other)),
            telemetry,
        };
        Self {
            settings: Settings::default(),
            handles,
            origins,
            credentials,
            registry,
            policies,
            routes,
            workloads: Vec::new(),
            services: Vec::new(),
            base,
            records,
            shutdown: crate::lifecycle::shutdown::channel(),
            drain: crate::lifecycle::shutdown::channel(),
            changes: Vec::new(),
            workers: Vec::new(),
        }
    }

    pub(crate) fn ip(&self, host: u8) -> IpAddr {
        IpAddr::from([127, self.base[0] | 1, self.base[1], host])
    }

    /// Adds a pod that is known but not served; its address ends in `host`.
    pub(crate) fn add_workload(&mut self, name: &str, host: u8, enrolled: bool) -> Arc<Pod> {
        let workload = Workload {
            uid: WorkloadUid(format!("uid-{name}").into()),
            name: WorkloadName { namespace: "default".into(), name: name.into() },
            owner: name.into(),
            node: format!("node-{host}").into(),
            zone: None,
            addresses: vec![self.ip(host)],
            service_account: name.into(),
            identity: id(name),
            labels: Arc::new(BTreeMap::from([("app".to_owned(), name.to_owned())])),
            ports: Vec::new(),
            enrolled,
            splice: None,
            forward_client_cert: false,
            skip_outbound_ports: BTreeSet::new(),
            skip_inbound_ports: BTreeSet::new(),
            probe_ports: BTreeSet::new(),
            manifest_hash: None,
            failure_mode: FailureMode::Closed,
            host_network: false,
            ready: true,
            terminating: false,
        };
        self.workloads.push(workload.clone());
        self.publish();
        Arc::new(Pod::new(Arc::new(workload), Box::new(PlainSockets), u64::from(host)))
    }

    /// Adds a pod and a worker that serves it. Returns the address of its outbound listener.
    pub(crate) fn add_pod(&mut self, name: &str, host: u8) -> SocketAddr {
        let pod = self.add_workload(name, host, true);
        let outbound = std::net::TcpListener::bind((self.ip(host), 0)).unwrap();
        let inbound = std::net::TcpListener::bind((self.ip(host), super::tunnel::PORT)).unwrap();
        outbound.set_nonblocking(true).unwrap();
        inbound.set_nonblocking(true).unwrap();
        let address = outbound.local_addr().unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(ListenerChange::Added { pod: pod.clone(), outbound, inbound }).unwrap();
        let leaving = Leaving { draining: self.drain.1.clone(), stopping: self.shutdown.1.clone() };
        let workers = start_workers(self.settings, &self.handles, vec![receiver], &leaving).unwrap();
        self.workers.push(workers);
        self.changes.push((pod, sender));
        address
    }

    /// Takes a pod away from its worker.
    pub(crate) fn remove_pod(&mut self, name: &str) {
        for (pod, sender) in &self.changes {
            if pod.workload().owner.as_ref() == name {
                sender.send(ListenerChange::Removed { pod: pod.clone() }).unwrap();
            }
        }
    }

    /// A service on `vip:80` in front of these addresses.
    pub(crate) fn add_service(&mut self, name: &str, vip: IpAddr, endpoints: &[SocketAddr]) {
        let endpoint = |address: &SocketAddr| Endpoint {
            address: *address,
            workload: None,
            node: None,
            zone: None,
            state: EndpointState::Ready,
        };
        self.services.push(Service {
            name: ServiceName { namespace: "default".into(), name: name.into() },
            vips: vec![vip],
            ports: vec![ServicePort {
                name: None,
                port: 80,
                udp: false,
                app_protocol: None,
                endpoints: endpoints.iter().map(endpoint).collect(),
            }],
            traffic_distribution: TrafficDistribution::Any,
        });
        self.publish();
    }

    fn publish(&self) {
        self.registry.publish(registry::Snapshot::new(
            MeshConfig::default(),
            self.workloads.clone(),
            self.services.clone(),
        ));
    }

    /// As an application in the pod with this outbound listener: dials `destination`, and is caught.
    pub(crate) async fn dial(&self, listener: SocketAddr, destination: SocketAddr) -> TcpStream {
        self.dial_drawn(listener, destination, None).await
    }

    /// Like [`World::dial`], with the kernel's hint.
    pub(crate) async fn dial_drawn(
        &self,
        listener: SocketAddr,
        destination: SocketAddr,
        drawn: Option<SocketAddr>,
    ) -> TcpStream {
        self.try_dial(listener, destination, drawn).await.unwrap()
    }

    /// Like [`World::dial_drawn`], for connections that may be reset before the dialler has looked.
    pub(crate) async fn try_dial(
        &self,
        listener: SocketAddr,
        destination: SocketAddr,
        drawn: Option<SocketAddr>,
    ) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_nodelay(true).unwrap();
        socket.bind(SocketAddr::new(listener.ip(), 0)).unwrap();
        let origin = Origin { dialled: OriginalDst::new(destination), drawn: drawn.map(EndpointAddr::new) };
        self.origins.origins.lock().insert(socket.local_addr().unwrap(), origin);
        socket.connect(listener).await
    }

    /// The access records so far, once there are `count` of them.
    pub(crate) async fn records(&self, count: usize) -> Vec<serde_json::Value> {
        let path = self.records.path().join("access.log");
        for _ in 0..400 {
            self.handles.telemetry.flush_access_log();
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            // The writer may be in the middle of a line.
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let records: Vec<_> = whole.map(|line| serde_json::from_str(line).unwrap()).collect();
            if records.len() >= count {
                return records;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no {count} records: {:?}", std::fs::read_to_string(&path));
    }

    /// The value of the first metric line that begins with `prefix`.
    pub(crate) fn metric(&self, prefix: &str) -> Option<f64> {
        let text = self.handles.telemetry.scrape(telemetry::Format::OpenMetrics);
        let line = text.lines().find(|line| line.starts_with(prefix))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.0.fire();
        for workers in self.workers.drain(..) {
            workers.join();
        }
    }
}
