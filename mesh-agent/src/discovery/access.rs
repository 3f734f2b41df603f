//! How is the Kubernetes API reached? One way for everything in this process that speaks to it.
//!
//! Nothing is retried behind the callers' backs: each of them has its own idea of how long to wait, and when to say so.

use std::path::PathBuf;
use std::time::Duration;

use http::Request;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::util::option_layer;
use tower::{BoxError, ServiceExt};

/// How long a connection to the API server may take to be made.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Silence after which the kernel asks whether the other end still lives, and how often. With three questions a dead
/// connection is known after half a minute, where a watch alone would wait for its end.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long what was sent may go without acknowledgement.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the API server is and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A kubeconfig file; none: the service account of the pod that this process runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; none: the current one.
    pub context: Option<String>,
}

/// Why there is no way to the API.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {} cannot be used: {fault}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// This process does not run in a pod.
    #[error("this process has no service account of a pod to reach the Kubernetes API with: {0}")]
    NotInAPod(String),
    /// What was read makes no client.
    #[error("no client of the Kubernetes API can be made of what is configured: {0}")]
    Client(String),
}

impl Access {
    /// A client. Nothing is sent yet; an API server that is away shows with the first request.
    ///
    /// # Errors
    /// The kubeconfig or the pod's service account cannot be used.
    pub async fn client(&self) -> Result<Client, Unreachable> {
        of_config(&self.config().await?).map_err(|error| Unreachable::Client(error.to_string()))
    }

    async fn config(&self) -> Result<Config, Unreachable> {
        let Some(path) = &self.kubeconfig else {
            return Config::incluster().map_err(|error| Unreachable::NotInAPod(error.to_string()));
        };
        let fault = |error: &dyn std::error::Error| Unreachable::Kubeconfig {
            path: path.clone(),
            fault: error.to_string(),
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(|error| fault(&error))?;
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| fault(&error))
    }
}

/// kube's own stack would repeat what the server answers with 429, 503 and 504 by its own clock, and log each failure as
/// an error of its own.
fn of_config(config: &Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIME_MAX));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(connector)?;
    let hyper: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceExt::<Request<Body>>::map_err(hyper, BoxError::from);
    Ok(ClientBuilder::new(service, config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?)
        .with_layer(&option_layer(config.auth_layer()?))
        .with_layer(&config.base_uri_layer())
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
current-context: one
clusters:
- {name: here, cluster: {server: \"http://127.0.0.1:1\"}}
contexts:
- {name: one, context: {cluster: here, user: me}}
users:
- {name: me, user: {token: t}}
";

    fn access(text: &str, context: Option<&str>) -> (tempfile::TempDir, Access) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, text).expect("written");
        (dir, Access { kubeconfig: Some(path), context: context.map(str::to_owned) })
    }

    #[tokio::test]
    async fn a_kubeconfig_is_read_and_an_unusable_one_is_named() {
        for context in [None, Some("one")] {
            let (_dir, access) = access(KUBECONFIG, context);
            access.client().await.expect("a client");
        }
        for (text, context) in [(KUBECONFIG, Some("two")), ("{", None)] {
            let (_dir, access) = access(text, context);
            let said = access.client().await.err().expect("no client").to_string();
            assert!(said.contains("kubeconfig"), "{said}");
        }
        let absent = Access { kubeconfig: Some("/nonexistent/kubeconfig".into()), context: None };
        let said = absent.client().await.err().expect("no client").to_string();
        assert!(said.contains("/nonexistent/kubeconfig"), "{said}");
    }
}
