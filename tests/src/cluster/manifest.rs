//! What tests apply, as YAML.

use std::fmt::Write;

/// The image of the test programs (`cargo xtask cluster up` writes it).
pub const TEST_IMAGE: &str = "weft.dev/test:1";

/// The port that servers of tests listen on.
pub const PORT: u16 = 8080;

/// A namespace. `labels` are lines of YAML.
pub fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{{labels}}}\n")
}

/// A pod with one container of the tests' image.
#[derive(Clone, Debug)]
pub struct Pod {
    namespace: String,
    name: String,
    node: Option<String>,
    command: String,
    labels: String,
    more: String,
}

impl Pod {
    /// A pod that waits for probes. Its label `app` is its name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: None,
            command: "[/bin/sleep, \"86400\"]".to_owned(),
            labels: String::new(),
            more: String::new(),
        }
    }

    /// On this node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// A server of HTTP on [`PORT`], ready when the kubelet's requests say so, and started anew when they do not.
    #[must_use]
    pub fn http(mut self) -> Self {
        self.command = format!("[/bin/xtask, app, http, --port, \"{PORT}\"]");
        let probe = format!("{{httpGet: {{path: /, port: {PORT}}}, periodSeconds: 1, failureThreshold: 3}}");
        let _ = write!(
            self.more,
            "    ports: [{{containerPort: {PORT}, name: http, protocol: TCP}}]\n    readinessProbe: {probe}\n    livenessProbe: {probe}\n"
        );
        self
    }

    /// A server on [`PORT`] that sends back what comes. It is the pod's own program: unlike a probe, it goes on when the API
    /// server is away, over which a probe gets its orders.
    #[must_use]
    pub fn echo(mut self) -> Self {
        self.command = format!("[/bin/xtask, app, echo, --port, \"{PORT}\"]");
        self
    }

    /// One more label, as YAML.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        let _ = write!(self.labels, ", {label}");
        self
    }

    /// The document.
    pub fn yaml(&self) -> String {
        let Self { namespace, name, command, labels, more, .. } = self;
        let node = self.node.as_ref().map_or_else(String::new, |node| format!("  nodeName: {node}\n"));
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{app: {name}{labels}}}\n\
             spec:\n  terminationGracePeriodSeconds: 1\n{node}  containers:\n  - name: main\n    image: {TEST_IMAGE}\n\
             \x20   imagePullPolicy: Never\n    command: {command}\n    env:\n\
             \x20   - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}\n{more}"
        )
    }
}

/// A Service on port 80 for the pods with this label `app`, on [`PORT`].
pub fn service(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  selector: {{app: {name}}}\n\
         \x20 ports: [{{name: main, port: 80, protocol: TCP, targetPort: {PORT}}}]\n"
    )
}

/// Documents as one text.
pub fn documents(all: &[String]) -> String {
    all.join("---\n")
}
