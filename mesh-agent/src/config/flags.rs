//! Every flag of `mesh-agent`, as clap reads it. Each may also come from the environment as `WEFT_` and its name.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::control::ca::SecretRef;
use crate::discovery::Access;

/// Weft's long-running process.
#[derive(Debug, Parser)]
#[command(
    name = "mesh-agent",
    version,
    about = "Weft's long-running process: a node's agent, or the control plane"
)]
pub struct MeshAgent {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this node: catch its pods, hold their identities, carry their connections
    Node(Box<NodeFlags>),
    /// Run the control plane: sign identities for the nodes of the mesh
    Control(Box<ControlFlags>),
    /// Exit with 0 once the agent that was given --started-file FILE has made it, with 1 before: for kubelet's startup probe
    Started {
        /// The file
        file: PathBuf,
    },
}

/// Flags of `mesh-agent node`.
#[derive(Debug, Args)]
#[command(after_help = NODE_EXAMPLES)]
pub struct NodeFlags {
    /// Name of this node, as pods carry it in spec.nodeName
    #[arg(long, env = "WEFT_NODE", value_name = "NAME")]
    pub node: String,

    /// Where the mesh's objects come from.
    #[command(flatten)]
    pub source: SourceFlags,

    /// Directory with one file per running pod that names its network namespace and control group, watched for changes
    /// [default: pods are found by their control groups, as kubelet makes them]
    #[arg(long, env = "WEFT_SANDBOX_DIR", value_name = "DIR")]
    pub sandbox_dir: Option<PathBuf>,

    /// Control group (v2) below which this node's pods live [default: found, unless --sandbox-dir is given]
    #[arg(long, env = "WEFT_CGROUP", value_name = "PATH")]
    pub cgroup: Option<PathBuf>,

    /// Directory on a bpffs for this node's maps and links [default: /sys/fs/bpf/weft/NAME]
    #[arg(long, env = "WEFT_PIN_DIR", value_name = "PATH")]
    pub pin_dir: Option<PathBuf>,

    /// The kernel programs [default: weft.bpf.o beside this executable, else /usr/lib/weft/weft.bpf.o]
    #[arg(long, env = "WEFT_BPF_OBJECT", value_name = "PATH")]
    pub bpf_object: Option<PathBuf>,

    /// The certificate authority
    #[arg(long, env = "WEFT_CA_ADDRESS", value_name = "URL", required_unless_present = "uninstall")]
    pub ca_address: Option<String>,

    /// Name in the certificate authority's own certificate [default: the host of --ca-address]
    #[arg(long, env = "WEFT_CA_SERVER_NAME", value_name = "NAME")]
    pub ca_server_name: Option<String>,

    /// Trust roots of the mesh, PEM, watched for changes
    #[arg(long, env = "WEFT_CA_ROOTS", value_name = "FILE", required_unless_present = "uninstall")]
    pub ca_roots: Option<PathBuf>,

    /// Token by which the certificate authority knows this node, read anew for each request
    #[arg(
        long,
        visible_alias = "token-file",
        env = "WEFT_JOIN_TOKEN_FILE",
        value_name = "FILE",
        required_unless_present = "uninstall"
    )]
    pub join_token_file: Option<PathBuf>,

    /// Whose dialled service addresses the agent translates: enrolled pods' only, or (without kube-proxy) everybody's
    #[arg(long, env = "WEFT_SERVICE_VIPS", value_name = "WHOSE", value_enum, default_value_t = ServiceVipsFlag::Enrolled)]
    pub service_vips: ServiceVipsFlag,

    /// Where access records go: a file, - for standard output, or off
    #[arg(long, env = "WEFT_ACCESS_LOG", value_name = "FILE|-|off", default_value = "off")]
    pub access_log: String,

    /// Threads that carry connections [default: the CPUs this process may use]
    #[arg(long, env = "WEFT_WORKERS", value_name = "N")]
    pub workers: Option<NonZeroUsize>,

    /// The same-node fast path: on where the kernel passes its probes, or off
    #[arg(long, env = "WEFT_SPLICE", value_name = "WHEN", value_enum, default_value_t = SpliceFlag::Auto)]
    pub splice: SpliceFlag,

    /// How long connections that an agent has accepted may go on once the next agent of this node has taken over
    #[arg(long, env = "WEFT_DRAIN_DEADLINE", value_name = "TIME", default_value = "30s")]
    pub drain_deadline: String,

    /// File that is made once this agent is ready, or once nothing is missing for that but the end of the agent before;
    /// `mesh-agent started FILE` looks for it
    #[arg(long, env = "WEFT_STARTED_FILE", value_name = "FILE")]
    pub started_file: Option<PathBuf>,

    /// Take every program, map and link of this node's agent out of the kernel, and end
    #[arg(long)]
    pub uninstall: bool,

    /// Flags that every long-running process has.
    #[command(flatten)]
    pub process: ProcessFlags,
}

/// Flags of `mesh-agent control`.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, after_help = CONTROL_EXAMPLES)]
pub struct ControlFlags {
    /// Where the mesh's objects come from.
    #[command(flatten)]
    pub source: SourceFlags,

    /// Directory of the certificate authority's keys, made at first start; nobody else may read it
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// In a cluster, instead of --state-dir: the Secret of the certificate authority's keys, made at first start
    #[arg(long, env = "WEFT_CA_SECRET", value_name = "NAMESPACE/NAME")]
    pub ca_secret: Option<SecretRef>,

    /// In a cluster, instead of --ca-secret: a Secret with an intermediate that another authority issues (cert-manager)
    #[arg(long, env = "WEFT_INTERMEDIATE_SECRET", value_name = "NAMESPACE/NAME")]
    pub intermediate_secret: Option<SecretRef>,

    /// Address of the certificate service
    #[arg(long, env = "WEFT_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,

    /// Further names or addresses by which agents reach the certificate service; may be repeated
    #[arg(long = "server-name", env = "WEFT_SERVER_NAMES", value_name = "NAME", value_delimiter = ',')]
    pub server_names: Vec<String>,

    /// Directory with one file per node, named after it, that holds its join token
    #[arg(long, env = "WEFT_JOIN_TOKENS_DIR", value_name = "DIR")]
    pub join_tokens_dir: Option<PathBuf>,

    /// In a cluster, instead of --join-tokens-dir: agents show the token of their pod, and the API server judges it
    #[arg(long, env = "WEFT_TOKEN_REVIEW", value_parser = FalseyValueParser::new())]
    pub token_review: bool,

    /// The audience for which agents' tokens must have been made
    #[arg(long, env = "WEFT_TOKEN_AUDIENCE", value_name = "NAME", default_value = "weft-control")]
    pub token_audience: String,

    /// The service account that agents run as
    #[arg(
        long,
        env = "WEFT_AGENT_SERVICE_ACCOUNT",
        value_name = "NAMESPACE/NAME",
        default_value = "weft-system/weft-agent"
    )]
    pub agent_service_account: String,

    /// Where to publish the trust roots, PEM; agents read it as --ca-roots
    #[arg(long, env = "WEFT_TRUST_BUNDLE_OUT", value_name = "FILE")]
    pub trust_bundle_out: Option<PathBuf>,

    /// Flags that every long-running process has.
    #[command(flatten)]
    pub process: ProcessFlags,

    /// Something else than running.
    #[command(subcommand)]
    pub command: Option<ControlCommand>,
}

/// What `mesh-agent control` does besides running.
#[derive(Debug, Subcommand)]
pub enum ControlCommand {
    /// Exchange the root of trust, one stage at a time, under traffic
    ///
    /// begin: publish a second root beside the first. switch: sign under the second. finish: publish the second alone.
    /// A control plane that runs on the same keys follows by itself.
    RotateRoot(RotateRootFlags),
}

/// Flags of `mesh-agent control rotate-root`.
#[derive(Debug, Args)]
pub struct RotateRootFlags {
    /// Which stage to carry out
    #[arg(value_enum)]
    pub stage: StageFlag,

    /// Directory of the certificate authority's keys
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR", required_unless_present = "ca_secret")]
    pub state_dir: Option<PathBuf>,

    /// In a cluster: the Secret of the certificate authority's keys
    #[arg(long, env = "WEFT_CA_SECRET", value_name = "NAMESPACE/NAME", conflicts_with = "state_dir")]
    pub ca_secret: Option<SecretRef>,

    /// How the API is reached.
    #[command(flatten)]
    pub access: AccessFlags,

    /// Longest lifetime of a certificate; `finish` waits this long after `switch`
    #[arg(long, env = "WEFT_CERTIFICATE_TTL", value_name = "TIME", default_value = "24h")]
    pub certificate_ttl: String,

    /// Do not wait for certificates of the stage before to run out
    #[arg(long)]
    pub now: bool,
}

/// How the Kubernetes API is reached.
#[derive(Debug, Clone, Default, Args)]
pub struct AccessFlags {
    /// Kubeconfig of the cluster [default: the service account of the pod that this process runs in]
    #[arg(long, env = "WEFT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of --kubeconfig [default: its current one]
    #[arg(long, env = "WEFT_CONTEXT", value_name = "NAME", requires = "kubeconfig")]
    pub context: Option<String>,
}

impl AccessFlags {
    /// As discovery and control take it.
    pub fn access(&self) -> Access {
        Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }
}

/// Where the mesh's objects come from: one of the two.
#[derive(Debug, Default, Args)]
pub struct SourceFlags {
    /// Directory of Kubernetes objects in YAML, watched for changes
    #[arg(long, env = "WEFT_CONFIG_DIR", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,

    /// Read the objects from the Kubernetes API instead: as the pod that this is, unless --kubeconfig is given
    #[arg(long, env = "WEFT_KUBERNETES", value_parser = FalseyValueParser::new())]
    pub kubernetes: bool,

    /// How the API is reached.
    #[command(flatten)]
    pub access: AccessFlags,
}

/// Flags that every long-running process has.
#[derive(Debug, Args)]
pub struct ProcessFlags {
    /// Address of readiness, metrics and the other read-only windows; a socket inherited as descriptor 3
    /// (LISTEN_FDS=1) comes before it
    #[arg(long, env = "WEFT_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:15020")]
    pub admin_listen: SocketAddr,

    /// What to log: a level, or directives such as info,mesh_agent::proxy=debug
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// Shape of a log line
    #[arg(long, env = "WEFT_LOG_FORMAT", value_name = "SHAPE", value_enum, default_value_t = LogFormatFlag::Text)]
    pub log_format: LogFormatFlag,
}

/// Values of `--service-vips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServiceVipsFlag {
    /// Of enrolled pods.
    Enrolled,
    /// Of every pod.
    All,
}

/// Values of `--splice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SpliceFlag {
    /// Where the probes pass.
    Auto,
    /// Never.
    Off,
}

/// Values of `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormatFlag {
    /// For eyes.
    Text,
    /// For machines.
    Json,
}

/// Stages of a root rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StageFlag {
    /// Publish a second root.
    Begin,
    /// Sign under it.
    Switch,
    /// Publish it alone.
    Finish,
}

const NODE_EXAMPLES: &str = "\
Examples:
  mesh-agent node --node n1 --config-dir world/ --sandbox-dir /run/weft/sandboxes \\
    --cgroup /sys/fs/cgroup/kubepods.slice --ca-address https://10.0.0.1:15012 \\
    --ca-roots roots.pem --join-token-file token
  mesh-agent node --node n1 --kubernetes --sandbox-dir /run/weft/sandboxes ...
  mesh-agent node --node n1 --uninstall

Every flag may come from the environment instead, for example WEFT_NODE=n1.";

const CONTROL_EXAMPLES: &str = "\
Examples:
  mesh-agent control --config-dir world/ --state-dir /var/lib/weft --join-tokens-dir tokens/ \\
    --trust-bundle-out roots.pem
  mesh-agent control --kubernetes --token-review --ca-secret weft-system/weft-ca
  mesh-agent control rotate-root begin --state-dir /var/lib/weft
  mesh-agent control rotate-root begin --ca-secret weft-system/weft-ca --kubeconfig ~/.kube/config";
