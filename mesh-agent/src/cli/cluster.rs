//! A cluster, reached as kubectl reaches it: by the kubeconfig, with the rights of whoever asks.
//!
//! Agents' windows are on their nodes' loopback. They are reached through the API server, by a port-forward into the
//! agent's pod (docs/decisions/0015), so no port of a node need be open and the cluster's own rights say who may look.

use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;

use super::Error;
use super::flags::ClusterFlags;

/// Namespace of the mesh's own parts.
pub(super) const NAMESPACE: &str = "weft-system";
/// Selects the agents' pods.
pub(super) const AGENTS: &str = "app.kubernetes.io/name=weft,app.kubernetes.io/component=agent";
/// Selects the control plane's pods.
pub(super) const CONTROLS: &str = "app.kubernetes.io/name=weft,app.kubernetes.io/component=control";
/// Where every process of ours shows its windows.
const WINDOWS: u16 = 15020;
/// How long the API server may take to let us in. A person waits.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// A cluster, and the runtime on which its connections live.
#[derive(Clone)]
pub(super) struct Cluster {
    runtime: Rc<Runtime>,
    /// For questions to the API server.
    pub(super) client: Client,
}

impl Cluster {
    /// By the flags, or as kubectl finds it: `KUBECONFIG`, `~/.kube/config`, else the service account of a pod.
    pub(super) fn connect(flags: &ClusterFlags) -> Result<Self, Error> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
        let unusable = |cause: &dyn std::error::Error| Error::Kubeconfig(cause.to_string());
        let client = runtime.block_on(async {
            let options =
                KubeConfigOptions { context: flags.context.clone(), ..KubeConfigOptions::default() };
            let mut config = match &flags.kubeconfig {
                Some(path) => {
                    let kubeconfig =
                        kube::config::Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
                    Config::from_custom_kubeconfig(kubeconfig, &options)
                        .await
                        .map_err(|error| unusable(&error))?
                }
                None if flags.context.is_some() => {
                    Config::from_kubeconfig(&options).await.map_err(|error| unusable(&error))?
                }
                None => Config::infer().await.map_err(|error| unusable(&error))?,
            };
            config.connect_timeout = Some(CONNECT_TIME_MAX);
            Client::try_from(config).map_err(|error| unusable(&error))
        })?;
        Ok(Self { runtime: Rc::new(runtime), client })
    }

    /// Waits for an answer of the API server.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The mesh's own pods that a selector selects, by name.
    pub(super) async fn pods(&self, selector: &str) -> Result<Vec<Pod>, Error> {
        let list = Api::<Pod>::namespaced(self.client.clone(), NAMESPACE)
            .list(&ListParams::default().labels(selector))
            .await
            .map_err(|error| Error::Api { what: format!("the pods of {NAMESPACE}"), why: why(&error) })?;
        let mut pods = list.items;
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Ok(pods)
    }

    /// The pod that flags name; without a name, one of the control plane, which knows the whole mesh.
    pub(super) fn asked(&self, flags: &ClusterFlags) -> Result<String, Error> {
        if let Some(pod) = &flags.pod {
            return Ok(pod.clone());
        }
        let missing = |what: String| Error::NoPod { what, namespace: NAMESPACE };
        let (selector, what) = match &flags.node {
            Some(node) => (AGENTS, format!("agent on node {node}")),
            None => (CONTROLS, "control plane".to_owned()),
        };
        let mut pods = self.wait(self.pods(selector))?;
        pods.retain(|pod| flags.node.is_none() || node_of(pod) == flags.node.as_deref());
        // One that is ready knows more.
        pods.sort_by_key(|pod| !is_ready(pod));
        pods.into_iter().find_map(|pod| pod.metadata.name).ok_or_else(|| missing(what))
    }

    /// A connection to the windows of a pod, through the API server and the pod's kubelet.
    pub(super) async fn windows(&self, pod: &str) -> Result<Windows, Error> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), NAMESPACE);
        let mut forwarder = pods.portforward(pod, &[WINDOWS]).await.map_err(|error| Error::Api {
            what: format!("a port-forward to {NAMESPACE}/{pod}"),
            why: why(&error),
        })?;
        let stream = forwarder.take_stream(WINDOWS).expect("asked for just now");
        Ok(Windows { stream: Box::new(stream), _forwarder: forwarder })
    }
}

/// An open connection. The forwarder lives as long as what it forwards.
pub(super) struct Windows {
    pub(super) stream: Box<dyn Duplex>,
    pub(super) _forwarder: kube::api::Portforwarder,
}

/// What a connection can do.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for T {}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

/// Where a pod runs.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Whether the kubelet calls a pod ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What the API server, or the way to it, says is wrong.
pub(super) fn why(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        // Each layer repeats what is below it.
        let said = next.to_string();
        if !text.contains(&said) {
            text.push_str(&format!(": {said}"));
        }
        cause = next.source();
    }
    text
}
