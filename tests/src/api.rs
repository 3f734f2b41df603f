//! A small Kubernetes API server: what agents, control and the installer are tested against, with faults on order.
//!
//! It answers as a real one does as far as the tests know of it (`tests/tests/api_server.rs` runs against both); it has no
//! admission, no schemas, no roles and no controllers. Plain HTTP on a loopback address.
//!
//! Reading order: [`resource`] (which kinds are served), [`store`] (objects, revisions, events), [`state`] (all that is known),
//! [`write`] with [`owners`], [`apply`] and [`patch`] (how objects change), [`selector`], [`list`] and [`watch`] (how they are
//! read), [`review`] (tokens), [`faults`] (what goes wrong on order, and what was asked), [`request`], [`serve`],
//! [`discovery`] and [`orders`] (HTTP), [`refusal`] (how it says no). This file is the handle.
//! [`sync`] is a client: it brings a directory of objects into a server, this one or another; [`stage`] is where tests of the API
//! play.

pub mod resource;

pub mod store;

pub mod state;

pub mod write;

pub mod owners;

pub mod apply;

pub mod patch;

pub mod selector;

pub mod list;

pub mod watch;

pub mod review;

pub mod faults;

pub mod inner;

pub mod request;

pub mod serve;

pub mod discovery;

pub mod orders;

pub mod refusal;

pub mod sync;

pub mod stage;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::wait::eventually;
use faults::{Fault, Seen};
use inner::Inner;
use resource::{Kept, Resource};
use review::Token;
use store::Key;
use write::Target;

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct ApiServer {
    inner: Arc<Inner>,
    address: SocketAddr,
    /// Absent when it is being dropped.
    runtime: Option<Runtime>,
}

impl ApiServer {
    /// Starts a server on a free port of the loopback address.
    ///
    /// # Panics
    /// No port is free.
    pub fn start() -> Self {
        Self::listen("127.0.0.1:0").expect("a port of the loopback address is free")
    }

    /// Starts a server that also serves the kinds of the Gateway API and of the mesh, without their definitions.
    pub fn with_mesh_kinds() -> Self {
        let server = Self::start();
        server.serve_mesh_kinds();
        server
    }

    /// Starts a server on an address.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn listen(address: &str) -> io::Result<Self> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        // A runtime of its own: what a test does to its own does not reach the server.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("api-server")
            .enable_all()
            .build()?;
        let inner = Arc::new(Inner::new());
        inner.is_listening.send_replace(true);
        runtime.spawn(keep_listening(Arc::clone(&inner), address, listener));
        Ok(Self { inner, address, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for a user's token, or for the administrator, who needs none.
    pub fn kubeconfig(&self, token: Option<&str>) -> String {
        kubeconfig(&self.url(), token)
    }

    /// Serves the kinds of the Gateway API and of the mesh, without their definitions.
    pub fn serve_mesh_kinds(&self) {
        resource::of_a_mesh().into_iter().for_each(|resource| self.serve(resource));
    }

    /// Serves a kind without a definition.
    pub fn serve(&self, resource: Resource) {
        self.inner.state.lock().serve(resource);
    }

    /// Gives a user a token. Requests without a token stay those of the administrator until [`ApiServer::need_token`].
    pub fn add_token(&self, token: &str, user: Token) {
        self.inner.state.lock().tokens.insert(token.to_owned(), user);
    }

    /// New objects keep the UID and the time that they name: for tests whose files name them.
    pub fn keep_as_given(&self) {
        self.inner.set_as_given(true);
    }

    /// Refuses requests without a token.
    pub fn need_token(&self) {
        self.inner.set_needs_token(true);
    }

    /// Orders a fault, for running watches too.
    pub fn order(&self, fault: Fault) {
        self.inner.order(fault);
    }

    /// What is ordered and not yet done.
    pub fn ordered(&self) -> Vec<Fault> {
        self.inner.faults.lock().ordered().to_vec()
    }

    /// Takes all orders back.
    pub fn clear(&self) {
        self.inner.clear();
    }

    /// How often watches have bookmarks.
    pub fn set_bookmarks_every(&self, every: Duration) {
        self.inner.set_bookmarks_every(every);
    }

    /// Forgets all that happened so far: a watch or a list that starts from before is told 410.
    pub fn forget(&self) {
        self.inner.state.lock().store.forget();
    }

    /// Closes all connections and the listener: who comes is refused.
    pub fn down(&self) {
        self.inner.is_open.send_replace(false);
        eventually("the server is down", || (!*self.inner.is_listening.borrow()).then_some(()));
    }

    /// Listens again, on the same port.
    pub fn up(&self) {
        self.inner.is_open.send_replace(true);
        eventually("the server is up", || self.inner.is_listening.borrow().then_some(()));
    }

    /// How many requests came, by verb and plural: `("watch", "pods")`.
    pub fn counts(&self) -> BTreeMap<(String, String), u64> {
        self.inner.faults.lock().counts()
    }

    /// How many requests with a verb came for a kind.
    pub fn count(&self, verb: &str, plural: &str) -> u64 {
        self.counts().get(&(verb.to_owned(), plural.to_owned())).copied().unwrap_or_default()
    }

    /// The requests that came since a moment.
    pub fn requests_since(&self, since: Instant) -> Vec<Seen> {
        self.inner.faults.lock().requests_since(since)
    }

    /// The revision now.
    pub fn revision(&self) -> u64 {
        self.inner.state.lock().store.revision()
    }

    /// An object as it is kept, past HTTP: `object("", "pods", "ns/name")`, `object("", "nodes", "name")`.
    pub fn object(&self, group: &str, plural: &str, name: &str) -> Option<Value> {
        let key = key(name);
        self.inner.state.lock().store.get(&Kept::new(group, plural), &key).map(|stored| stored.object.clone())
    }

    /// Puts an object as it is, past HTTP and all rules but those of metadata, its status too; its namespace is made when
    /// missing. For tests that need many objects.
    ///
    /// # Panics
    /// Its kind is not served, or it has no name.
    pub fn put(&self, object: Value) {
        let mut state = self.inner.state.lock();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let resource = state.resources().find(|r| r.api_version() == api_version && r.kind == kind).cloned();
        let resource = resource.unwrap_or_else(|| panic!("{api_version} {kind} is not served"));
        let namespace = Some(text(&object["metadata"]["namespace"])).filter(|_| resource.namespaced);
        let target = |resource: Arc<Resource>, namespace: Option<String>, name: String, is_status| Target {
            resource,
            namespace,
            name,
            is_status,
            manager: "tests".to_owned(),
            is_dry: false,
            is_as_given: true,
        };
        if let Some(namespace) = namespace.clone().filter(|namespace| state.namespace(namespace).is_none()) {
            let namespaces = state.resource("", "v1", "namespaces").expect("namespaces are served");
            let made = serde_json::json!({ "metadata": { "name": namespace } });
            state.create(&target(namespaces, None, namespace, false), made).expect("a namespace can be made");
        }
        let name = text(&object["metadata"]["name"]);
        let whole = target(Arc::clone(&resource), namespace.clone(), name.clone(), false);
        let mut bare = object.clone();
        bare["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
        let written = match state.named(&whole) {
            Ok(old) => {
                bare["metadata"]["resourceVersion"] = old.revision.to_string().into();
                state.update(&whole, bare)
            }
            Err(_) => state.create(&whole, bare),
        };
        let written = written.unwrap_or_else(|refusal| panic!("{kind} {name}: {refusal}"));
        if resource.status && !object["status"].is_null() {
            let mut status = object;
            status["metadata"]["resourceVersion"] = written.revision.to_string().into();
            let written = state.update(&target(resource, namespace, name.clone(), true), status);
            written.unwrap_or_else(|refusal| panic!("the status of {kind} {name}: {refusal}"));
        }
        drop(state);
        self.inner.wake();
    }

    /// Deletes an object at once, past HTTP; says whether it was there.
    pub fn delete(&self, group: &str, plural: &str, name: &str) -> bool {
        let removed = self.inner.state.lock().store.remove(&Kept::new(group, plural), &key(name));
        self.inner.wake();
        removed.is_some()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// `NAMESPACE/NAME`, or `NAME`.
fn key(name: &str) -> Key {
    match name.split_once('/') {
        Some((namespace, name)) => Key::new(Some(namespace), name),
        None => Key::new(None, name),
    }
}

/// A kubeconfig.
pub fn kubeconfig(url: &str, token: Option<&str>) -> String {
    let user = token.map_or_else(|| "{}".to_owned(), |token| format!("{{token: {token}}}"));
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: small\nclusters:\n- name: small\n  cluster: {{server: \"{url}\"}}\nusers:\n- \
         name: user\n  user: {user}\ncontexts:\n- name: small\n  context: {{cluster: small, user: user}}\n"
    )
}

/// Takes connections whenever the server is open.
async fn keep_listening(inner: Arc<Inner>, address: SocketAddr, first: StdListener) {
    let mut is_open = inner.is_open.subscribe();
    let mut listener = TcpListener::from_std(first).ok();
    loop {
        if let Some(listener) = listener.take() {
            inner.is_listening.send_replace(true);
            tokio::select! {
                () = accept(&inner, &listener) => {}
                _ = is_open.wait_for(|is_open| !is_open) => {}
            }
        }
        inner.is_listening.send_replace(false);
        if is_open.wait_for(|is_open| *is_open).await.is_err() {
            return;
        }
        // Somebody else's connection may have the port for a moment.
        listener = TcpListener::bind(address).await.ok();
        if listener.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn accept(inner: &Arc<Inner>, listener: &TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let inner = Arc::clone(inner);
        tokio::spawn(async move {
            let mut is_open = inner.is_open.subscribe();
            tokio::select! {
                () = serve_connection(Arc::clone(&inner), stream) => {}
                _ = is_open.wait_for(|is_open| !is_open) => {}
            }
        });
    }
}

async fn serve_connection(inner: Arc<Inner>, stream: TcpStream) {
    let service = service_fn(move |request| {
        let inner = Arc::clone(&inner);
        async move { Ok::<_, Infallible>(serve::answer(inner, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    // A client that goes in the middle of something is none of the server's business.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}
