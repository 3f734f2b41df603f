//! Which routes hold for a service port and a client? Consumer routes of the client's namespace if there are any, else
//! producer routes; never both (GEP-1294).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::{RequestRouter, TcpRouter, TlsRouter};
use crate::model::{Route, RouteKind, ServiceName};

/// Routes that hold for one port of one service.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The service.
    pub service: ServiceName,
    /// Its port, as dialled.
    pub port: u16,
    /// The client namespace for which they hold; `None`: producer routes, for everybody.
    pub consumer: Option<Arc<str>>,
    /// The routes, of one kind, in no order. Of several kinds only the one that wins counts.
    pub routes: Vec<Arc<Route>>,
}

/// The routes of one port and layer, compiled for their kind.
pub enum PortRoutes {
    /// HTTPRoutes or GRPCRoutes.
    Requests(RequestRouter),
    /// TLSRoutes.
    Tls(TlsRouter),
    /// TCPRoutes.
    Tcp(TcpRouter),
}

/// One attachment, told to people.
#[derive(Clone, Copy, Debug)]
pub struct Attached<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// Its port.
    pub port: u16,
    /// The client namespace for which it holds; `None`: everybody without consumer routes.
    pub consumer: Option<&'a Arc<str>>,
    /// The routes, all of one kind.
    pub routes: &'a [Arc<Route>],
}

/// All routes, compiled. Immutable.
#[derive(Debug, Default)]
pub struct RouteTable {
    services: HashMap<ServiceName, HashMap<u16, Layers>>,
}

#[derive(Debug, Default)]
struct Layers {
    producer: Option<Layer>,
    consumers: HashMap<Arc<str>, Layer>,
}

/// Routes and what was made of them.
#[derive(Clone, Debug)]
struct Layer {
    routes: Arc<[Arc<Route>]>,
    compiled: Arc<PortRoutes>,
}

/// Compiled layers by the routes that they were made of, which are alive as long as the layers are.
type Known = HashMap<Vec<*const Route>, Layer>;

impl RouteTable {
    /// Compiles a table. Attachments to the same port and layer count as one.
    pub fn new(attachments: Vec<Attachment>) -> Self {
        Self::compile(attachments, Known::new())
    }

    /// Compiles the table that follows this one: where the routes of a port are the very same objects (`Arc::ptr_eq`),
    /// what was compiled is taken over, so that a change costs what changed.
    pub fn succeeded_by(&self, attachments: Vec<Attachment>) -> Self {
        let known = self.layers().map(|(.., layer)| (identity(&layer.routes), layer.clone())).collect();
        Self::compile(attachments, known)
    }

    fn compile(attachments: Vec<Attachment>, mut known: Known) -> Self {
        let mut grouped = HashMap::<_, Vec<Arc<Route>>>::new();
        for Attachment { service, port, consumer, routes } in attachments {
            grouped.entry((service, port, consumer)).or_default().extend(routes);
        }
        let mut table = Self::default();
        for ((service, port, consumer), routes) in grouped {
            let Some(layer) = Layer::of(routes, &mut known) else {
                continue;
            };
            let layers = table.services.entry(service).or_default().entry(port).or_default();
            match consumer {
                Some(namespace) => drop(layers.consumers.insert(namespace, layer)),
                None => layers.producer = Some(layer),
            }
        }
        table
    }

    /// Whether some client of this port has routes.
    pub fn is_attached(&self, service: &ServiceName, port: u16) -> bool {
        self.port(service, port).is_some()
    }

    /// The routes that hold for a client in this namespace. `None`: none, and its connections go to the service itself.
    pub fn for_client(
        &self,
        service: &ServiceName,
        port: u16,
        client_namespace: &str,
    ) -> Option<&Arc<PortRoutes>> {
        let layers = self.port(service, port)?;
        let layer = layers.consumers.get(client_namespace).or(layers.producer.as_ref())?;
        Some(&layer.compiled)
    }

    /// Everything in the table, in no order.
    pub fn attached(&self) -> impl Iterator<Item = Attached<'_>> {
        self.layers().map(|(service, port, consumer, layer)| Attached {
            service,
            port,
            consumer,
            routes: &layer.routes,
        })
    }

    fn port(&self, service: &ServiceName, port: u16) -> Option<&Layers> {
        self.services.get(service)?.get(&port)
    }

    fn layers(&self) -> impl Iterator<Item = (&ServiceName, u16, Option<&Arc<str>>, &Layer)> {
        let ports = self
            .services
            .iter()
            .flat_map(|(service, ports)| ports.iter().map(move |(port, layers)| (service, *port, layers)));
        ports.flat_map(|(service, port, layers)| {
            let producer = layers.producer.iter().map(|layer| (None, layer));
            let consumers = layers.consumers.iter().map(|(namespace, layer)| (Some(namespace), layer));
            producer.chain(consumers).map(move |(consumer, layer)| (service, port, consumer, layer))
        })
    }
}

impl Layer {
    /// Compiles routes, unless that has been done. `None`: there are no routes.
    fn of(mut routes: Vec<Arc<Route>>, known: &mut Known) -> Option<Self> {
        let kind = routes.iter().map(|route| route.name.kind).min()?;
        routes.retain(|route| route.name.kind == kind);
        routes.sort_by(|a, b| (a.rank, &a.name).cmp(&(b.rank, &b.name)));
        routes.dedup_by(|a, b| a.name == b.name);
        let layer = known.entry(identity(&routes)).or_insert_with(|| Self {
            compiled: Arc::new(PortRoutes::new(kind, &routes)),
            routes: routes.into(),
        });
        Some(layer.clone())
    }
}

fn identity(routes: &[Arc<Route>]) -> Vec<*const Route> {
    routes.iter().map(Arc::as_ptr).collect()
}

impl PortRoutes {
    fn new(kind: RouteKind, routes: &[Arc<Route>]) -> Self {
        match kind {
            RouteKind::Grpc | RouteKind::Http => Self::Requests(RequestRouter::new(routes)),
            RouteKind::Tls => Self::Tls(TlsRouter::new(routes)),
            RouteKind::Tcp => Self::Tcp(TcpRouter::new(routes)),
        }
    }
}

/// Its kind only: a router can hold thousands of rules.
impl fmt::Debug for PortRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests(_) => "Requests",
            Self::Tls(_) => "Tls",
            Self::Tcp(_) => "Tcp",
        })
    }
}
