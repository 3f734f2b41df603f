//! Every command of `meshctl`, as clap reads it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Asks a Weft agent what it knows and does.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, about = "Asks a Weft agent what it knows and does", after_help = EXAMPLES)]
pub struct Meshctl {
    /// The agent's admin address
    #[arg(
        long,
        global = true,
        env = "WEFT_AGENT",
        value_name = "URL",
        default_value = "http://127.0.0.1:15020"
    )]
    pub agent: String,

    /// A cluster instead of an address.
    #[command(flatten)]
    pub cluster: ClusterFlags,

    /// How to print the answer
    #[arg(short, long, global = true, value_name = "SHAPE", value_enum, default_value_t = Output::Table)]
    pub output: Output,

    /// Only this namespace; also the namespace of names that have none
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// What to ask.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, and which pod of it. Its API server is asked with the rights of whoever asks.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterFlags {
    /// Ask the cluster of the current kubeconfig instead of an address; the flags below mean this too
    #[arg(long = "cluster", global = true)]
    pub current: bool,

    /// The kubeconfig [default: as for kubectl]
    #[arg(long, global = true, env = "WEFT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The kubeconfig's context [default: its current one]
    #[arg(long, global = true, env = "WEFT_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,

    /// The agent of this node [default: the control plane]
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "pod")]
    pub node: Option<String>,

    /// A pod of weft-system
    #[arg(long, global = true, value_name = "NAME")]
    pub pod: Option<String>,
}

impl ClusterFlags {
    /// Whether the command line speaks of a cluster.
    pub fn is_asked(&self) -> bool {
        self.current
            || self.kubeconfig.is_some()
            || self.context.is_some()
            || self.node.is_some()
            || self.pod.is_some()
    }
}

/// How to print an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// As the agent says it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// What to ask.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the versions of meshctl and of the agent
    Version(VersionFlags),
    /// Put Weft into a cluster, or bring it up to this version
    Install(InstallFlags),
    /// Take Weft out of a cluster and out of its nodes' kernels; pods run on without it
    Uninstall(UninstallFlags),
    /// Find out whether all is well with an agent, a whole mesh or a cluster to be, and what is not
    Check(CheckFlags),
    /// Show the agent's state in a few lines
    Status,
    /// List the pods that the mesh knows
    #[command(visible_alias = "pods")]
    Workloads,
    /// List services and their endpoints
    Services,
    /// List authorization policies
    Policies,
    /// List routes and what became of them
    Routes,
    /// List the certificates that the agent holds
    #[command(visible_alias = "certs")]
    Certificates,
    /// List open connections
    Connections,
    /// List objects that were refused, and why
    Problems,
    /// Print the agent's metrics
    Metrics(MetricsFlags),
    /// Ask about policies
    Policy {
        /// What to ask about them.
        #[command(subcommand)]
        command: PolicyCommand,
    },
}

/// Flags of `meshctl install`.
#[derive(Debug, Args)]
#[command(after_help = INSTALL_EXAMPLES)]
pub struct InstallFlags {
    /// Which variant: kind, debug or strict
    #[arg(long, value_name = "NAME")]
    pub overlay: Option<String>,

    /// Change one thing: image, imagePullPolicy, cgroupRoot or controlReplicas; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,

    /// Print the objects instead of applying them
    #[arg(long)]
    pub dry_run: bool,

    /// Take over fields that somebody else has set
    #[arg(long)]
    pub force_conflicts: bool,

    /// Wait until all agents and control planes are ready
    #[arg(long)]
    pub wait: bool,

    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub timeout: String,
}

/// Flags of `meshctl uninstall`.
#[derive(Debug, Args)]
pub struct UninstallFlags {
    /// Also delete our kinds, and with them every policy
    #[arg(long)]
    pub crds: bool,

    /// How long to wait for the nodes
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub timeout: String,
}

/// Flags of `meshctl check`. Without any: the agent at --agent; with --cluster, the whole mesh.
#[derive(Debug, Args)]
pub struct CheckFlags {
    /// Before an installation: the cluster, and our rights in it
    #[arg(long)]
    pub pre: bool,

    /// This machine as a node: its kernel, control groups and hooks of others. Asks no cluster; needs root
    #[arg(long, conflicts_with = "pre")]
    pub host: bool,
}

/// Flags of `meshctl version`.
#[derive(Debug, Args)]
pub struct VersionFlags {
    /// Do not ask the agent
    #[arg(long)]
    pub client: bool,
}

/// Flags of `meshctl metrics`.
#[derive(Debug, Args)]
pub struct MetricsFlags {
    /// Only families whose name contains this
    #[arg(value_name = "PART")]
    pub part: Option<String>,
}

/// What to ask about policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say whether a connection or a request would pass, and which rule decides
    Explain(ExplainFlags),
}

/// Flags of `meshctl policy explain`.
#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_EXAMPLES)]
pub struct ExplainFlags {
    /// Who dials: a pod, or an IP address for a client outside the mesh
    #[arg(long, value_name = "NAMESPACE/POD|IP")]
    pub from: String,

    /// Whom it dials: a pod or a service (pod/ or svc/ in front says which, where both have the name)
    #[arg(long, value_name = "NAMESPACE/NAME:PORT")]
    pub to: String,

    /// Judge a request with this method (GET unless given)
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,

    /// Judge a request to this path, with its query or without (/ unless given)
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,

    /// Judge a request with this header; may be given several times
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,

    /// Judge a request for this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// Answer from this directory of objects instead of asking an agent
    #[arg(long, value_name = "DIR")]
    pub world: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  meshctl status
  meshctl workloads -n shop -o wide
  meshctl routes -o wide
  meshctl policy explain --from shop/web --to shop/orders:80
  meshctl connections -o json | jq '.[] | select(.path == \"splice\")'
  meshctl metrics certificate
  meshctl install --wait
  meshctl check --cluster
  meshctl connections --node worker-1
  WEFT_AGENT=http://10.0.0.7:15020 meshctl check

Exit codes: 0 healthy or allowed, 1 unhealthy or denied, 2 no answer.";

const INSTALL_EXAMPLES: &str = "\
Examples:
  meshctl install --dry-run | less
  meshctl install --wait
  meshctl install --overlay strict --context production
  meshctl install --set image=registry.example.org/weft:0.1.0

Exit codes: 0 applied (and ready, with --wait), 1 not ready in time, 2 not applied.";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  meshctl policy explain --from shop/web --to shop/orders:80
  meshctl policy explain --from 192.0.2.7 --to pod/shop/orders-0:8080
  meshctl policy explain --from shop/web --to shop/orders:80 --method POST --path /orders/7
  meshctl policy explain --from shop/web --to svc/shop/orders:80 --world deploy/shop

Exit codes: 0 allowed, 1 denied, 2 no answer.";
