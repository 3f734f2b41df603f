//! Worlds: the Kubernetes objects that a test starts from, with little to write for what is the same everywhere.

use std::fmt::Write as _;

/// Objects, by the file they are written to.
#[derive(Clone, Debug, Default)]
pub struct World {
    files: Vec<(String, String)>,
    base: String,
    accounts: Vec<String>,
}

impl World {
    /// No objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// A namespace whose pods are in the mesh.
    #[must_use]
    pub fn meshed(self, namespace: &str) -> Self {
        self.object(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels: {{weft.dev/mesh: enabled}}\n"
        ))
    }

    /// A namespace whose pods are in the mesh and run unencrypted while their agent is away.
    #[must_use]
    pub fn meshed_plain_when_down(self, namespace: &str) -> Self {
        self.object(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels: {{weft.dev/mesh: enabled}}\n  \
             annotations: {{weft.dev/agent-down: plain}}\n"
        ))
    }

    /// A namespace whose pods are not in the mesh.
    #[must_use]
    pub fn unmeshed(self, namespace: &str) -> Self {
        self.object(&format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n"))
    }

    /// A pod without a command, `NAMESPACE/NAME`, with the label `app: NAME` and a service account of its own name.
    #[must_use]
    pub fn pod(self, namespaced: &str, node: &str) -> Self {
        let name = namespaced.split('/').nth(1).expect("a pod is NAMESPACE/NAME").to_owned();
        self.pod_like(namespaced, node, &name, "")
    }

    /// A pod of the app (label and service account) `app`, with more metadata in flow style: `annotations: {a: b}`.
    #[must_use]
    pub fn pod_like(mut self, namespaced: &str, node: &str, app: &str, metadata: &str) -> Self {
        let (namespace, name) = namespaced.split_once('/').expect("a pod is NAMESPACE/NAME");
        let account = format!("{namespace}/{app}");
        if !self.accounts.contains(&account) {
            self.accounts.push(account);
            self = self.object(&format!(
                "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {app}\n  namespace: {namespace}\n"
            ));
        }
        let more = if metadata.is_empty() { String::new() } else { format!("  {metadata}\n") };
        self.object(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels:\n    app: {app}\n{more}\
             spec:\n  nodeName: {node}\n  serviceAccountName: {app}\n"
        ))
    }

    /// A service `NAMESPACE/NAME` in front of the pods of the app `app`; `more` is put below `spec`.
    #[must_use]
    pub fn service(self, namespaced: &str, app: &str, port: u16, target: u16, more: &str) -> Self {
        let (namespace, name) = namespaced.split_once('/').expect("a service is NAMESPACE/NAME");
        let more = if more.is_empty() { String::new() } else { format!("  {more}\n") };
        self.object(&format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{more}  selector:\n    \
             app: {app}\n  ports:\n  - {{name: main, port: {port}, targetPort: {target}}}\n"
        ))
    }

    /// Any object or objects, as YAML.
    #[must_use]
    pub fn object(mut self, yaml: &str) -> Self {
        if !self.base.is_empty() {
            self.base.push_str("---\n");
        }
        self.base.push_str(yaml);
        if !yaml.ends_with('\n') {
            self.base.push('\n');
        }
        self
    }

    /// A file of its own, which a test can change later with [`Lab::apply`](crate::Lab::apply).
    #[must_use]
    pub fn file(mut self, name: &str, yaml: &str) -> Self {
        self.files.push((name.to_owned(), yaml.to_owned()));
        self
    }

    /// All files with their texts.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let base = (!self.base.is_empty()).then_some(("world.yaml", self.base.as_str()));
        base.into_iter().chain(self.files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }
}

/// An AuthorizationPolicy `NAMESPACE/NAME` for the pods of `app` (every pod when empty); `rules` in flow style, one string
/// for each rule: `{sources: [{type: AnyAuthenticated}]}`.
pub fn policy(namespaced: &str, app: &str, action: &str, rules: &[&str]) -> String {
    let (namespace, name) = namespaced.split_once('/').expect("a policy is NAMESPACE/NAME");
    let selector = if app.is_empty() { "{}".to_owned() } else { format!("{{matchLabels: {{app: {app}}}}}") };
    let mut yaml = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         targetRefs: [{{kind: Pod, selector: {selector}}}]\n  action: {action}\n  rules:\n"
    );
    for rule in rules {
        let _ = writeln!(yaml, "  - {rule}");
    }
    yaml
}
