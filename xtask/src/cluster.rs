//! A real Kubernetes on this machine: an API server alone for tests that talk to one, or two nodes with pods.
//!
//! Reading order: [`cache`], [`packages`] and [`kubernetes`] (what is built, from Debian's sources, once per machine); [`names`]
//! and [`state`] (what a cluster is); [`pki`], [`network`], [`control_plane`], [`node`] and [`images`] (what is made, in this
//! order); [`kinds`] (what this old Kubernetes has to be taught); [`status`] and [`down`]. This file holds the commands, and in
//! [`up`] the order of the steps. tests/README.md says what stands in for what a newer Kubernetes has.

pub mod cache;

pub mod packages;

pub mod kubernetes;

pub mod names;

pub mod state;

pub mod pki;

pub mod network;

pub mod control_plane;

pub mod node;

pub mod images;

pub mod kinds;

pub mod status;

pub mod down;

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

use crate::lab::exec::Entry;
use crate::lab::{cgroup, network as namespaces};
use crate::shell::{self, say};
use cache::Extent;
use control_plane::{API_SERVER, BRIDGE, Ports};
use names::{CONTROL_IP, Names};
use pki::Pki;
use state::{Cluster, lock};

/// The name of a cluster that nobody named.
pub const DEFAULT_NAME: &str = "weft";

/// Commands of the cluster.
#[derive(Subcommand)]
pub enum Command {
    /// Build Kubernetes 1.20 from Debian's source package into a cache outside the checkout, once; print where it is.
    Build(BuildOptions),
    /// Start a cluster; build first what is missing.
    Up(UpOptions),
    /// Show a cluster.
    Status(StatusOptions),
    /// kubectl, as somebody who may do everything.
    Kubectl(KubectlOptions),
    /// Run a command on a node, as root outside of all pods.
    Exec(ExecOptions),
    /// Import an image archive on every node, and on nodes that are started later.
    LoadImage(LoadImageOptions),
    /// Cut a node's power, or start it again.
    Node(PartOptions),
    /// End the API server at once, or start it again.
    ApiServer(SwitchOptions),
    /// Remove a cluster and everything it made.
    Down(NameOption),
}

/// `cluster build`.
#[derive(Args)]
pub struct BuildOptions {
    /// Only what an API server needs.
    #[arg(long)]
    api_server_only: bool,
}

/// Which cluster.
#[derive(Args)]
pub struct NameOption {
    /// The cluster's name; clusters of different names run side by side.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

/// `cluster up`.
#[derive(Args)]
pub struct UpOptions {
    #[command(flatten)]
    name: NameOption,
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Only etcd and the API server, on this machine's loopback.
    #[arg(long, conflicts_with = "nodes")]
    api_server_only: bool,
    /// Leave everything as it is when a step fails, to look at it.
    #[arg(long)]
    keep_on_failure: bool,
    /// Print the cluster as JSON.
    #[arg(long)]
    json: bool,
}

/// `cluster status`.
#[derive(Args)]
pub struct StatusOptions {
    #[command(flatten)]
    name: NameOption,
    /// Print the cluster as JSON.
    #[arg(long)]
    json: bool,
}

/// `cluster kubectl`.
#[derive(Args)]
pub struct KubectlOptions {
    #[command(flatten)]
    name: NameOption,
    /// Arguments.
    #[arg(last = true, required = true)]
    arguments: Vec<OsString>,
}

/// `cluster exec`.
#[derive(Args)]
pub struct ExecOptions {
    #[command(flatten)]
    name: NameOption,
    /// The node's name or number.
    node: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// `cluster load-image`.
#[derive(Args)]
pub struct LoadImageOptions {
    #[command(flatten)]
    name: NameOption,
    /// An OCI archive, as `cargo xtask image` writes it.
    archive: PathBuf,
}

/// What to do with a part of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// End it at once.
    Stop,
    /// Start it.
    Start,
}

/// `cluster api-server`.
#[derive(Args)]
pub struct SwitchOptions {
    #[command(flatten)]
    name: NameOption,
    /// What to do.
    switch: Switch,
}

/// `cluster node`.
#[derive(Args)]
pub struct PartOptions {
    #[command(flatten)]
    name: NameOption,
    /// What to do.
    switch: Switch,
    /// The node's name or number.
    node: String,
}

/// Runs a command.
pub fn run(command: Command) -> Result<ExitCode> {
    if let Command::Build(options) = command {
        let extent = if options.api_server_only { Extent::ApiServer } else { Extent::Cluster };
        println!("{}", kubernetes::build(extent)?.dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    shell::require_root("a cluster makes namespaces, mounts and control groups")?;
    match command {
        Command::Build(_) => {}
        Command::Up(options) => status::print(&up(&options)?, options.json)?,
        Command::Status(options) => status::print(&load(&options.name)?, options.json)?,
        Command::Kubectl(options) => {
            let mut kubectl = control_plane::kubectl(&load(&options.name)?);
            return Err(kubectl.args(options.arguments).exec()).context("cannot run kubectl");
        }
        Command::Exec(options) => {
            let mut cluster = load(&options.name)?;
            let mut command = node::command(cluster.node(&options.node)?, &options.command)?;
            return Err(command.exec()).context("cannot run nsenter (package util-linux)");
        }
        Command::LoadImage(options) => load_image(&mut load(&options.name)?, &options.archive)?,
        Command::Node(options) => switch_node(&options)?,
        Command::ApiServer(options) => switch_api_server(&options)?,
        Command::Down(options) => down::run(&Names::new(&options.name)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn load(option: &NameOption) -> Result<Cluster> {
    Cluster::load(&Names::new(&option.name)?)
}

/// Makes a cluster; on failure nothing of it stays, unless asked for.
pub fn up(options: &UpOptions) -> Result<Cluster> {
    let names = Names::new(&options.name.name)?;
    let extent = if options.api_server_only { Extent::ApiServer } else { Extent::Cluster };
    let build = kubernetes::build(extent)?;
    if extent == Extent::Cluster {
        build_test_programs()?;
    }
    let dir = claim(&names)?;
    let _lock = lock(&dir)?;
    let nodes = if extent == Extent::Cluster { options.nodes } else { 0 };
    match make(&names, extent, nodes, dir, build.dir) {
        Ok(cluster) => Ok(cluster),
        Err(error) if options.keep_on_failure => {
            let down = format!("`cargo xtask cluster down{}` ends it", names.option());
            Err(error.context(format!("cluster {} is half up; {down}", names.cluster())))
        }
        Err(error) => {
            down::remove_everything(&names).context("and then the cluster could not be removed again")?;
            Err(error)
        }
    }
}

/// Takes the name.
fn claim(names: &Names) -> Result<PathBuf> {
    let dir = names.run_dir();
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::create_dir(&dir) {
        Ok(()) => Ok(dir),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => bail!(
            "there is a cluster {} already: `cargo xtask cluster down{}` ends it",
            names.cluster(),
            names.option()
        ),
        Err(e) => Err(e).with_context(|| format!("cannot make {}", dir.display())),
    }
}

/// The steps.
fn make(names: &Names, extent: Extent, nodes: u8, dir: PathBuf, build_dir: PathBuf) -> Result<Cluster> {
    fs::create_dir_all(dir.join("logs"))?;
    let (ports, host, netns) = match extent {
        Extent::Cluster => {
            (Ports::usual(), CONTROL_IP.to_string(), namespaces::netns_path(&names.control_netns()))
        }
        Extent::ApiServer => (Ports::free()?, "127.0.0.1".to_owned(), "/proc/self/ns/net".into()),
    };
    let url = format!("https://{host}:{}", ports.api);
    let pki = Pki::make(&dir.join("pki"), nodes, &url)?;
    let mut cluster = Cluster {
        name: names.cluster().to_owned(),
        complete: false,
        dir,
        build_dir,
        url,
        kubeconfig: pki.kubeconfig("admin"),
        netns: netns.clone(),
        daemons: Vec::new(),
        nodes: Vec::new(),
    };
    if extent == Extent::Cluster {
        network::create(names, nodes)?;
        images::write(&cluster.build(), &cluster.dir.join("images"))?;
    }
    let cgroup = cgroup::root()?.join(names.cgroup()).join("control");
    cgroup::create(&cgroup)?;
    let entry = Entry { cgroup, netns, cpus: None, pod: None };
    cluster.daemons = control_plane::describe(&cluster, extent, ports, &pki, &entry)?;
    say("starting the control plane");
    control_plane::start(&mut cluster)?;
    kinds::teach(&cluster, extent)?;
    if extent == Extent::ApiServer {
        // A server that has been there from the store's first revision on remembers all of them; tests want one with a past
        // that it does not know.
        cluster.daemon(API_SERVER)?.kill()?;
        control_plane::start(&mut cluster)?;
    }
    for number in 1..=nodes {
        say(format!("starting {}", names::node_name(number)));
        let mut node = node::describe(&cluster, names, number, &pki)?;
        node::start(&mut node)?;
        cluster.nodes.push(node);
        cluster.save()?;
    }
    status::wait_nodes_ready(&cluster)?;
    cluster.complete = true;
    cluster.save()?;
    Ok(cluster)
}

/// The programs of the tests' image, and the bridge.
fn build_test_programs() -> Result<()> {
    let dir = shell::executable_dir()?;
    if [BRIDGE, "weft-probe", "weft-http"].iter().all(|program| dir.join(program).exists()) {
        return Ok(());
    }
    say("building the tests' programs");
    shell::run(shell::cargo().args(["build", "--release", "--package", "mesh-tests", "--bins"]))?;
    ensure!(
        dir.join(BRIDGE).exists(),
        "{BRIDGE} is not in {}: use `cargo xtask`, which builds and runs in one profile",
        dir.display()
    );
    Ok(())
}

fn load_image(cluster: &mut Cluster, archive: &Path) -> Result<()> {
    let _lock = lock(&cluster.dir)?;
    ensure!(cluster.extent() == Extent::Cluster, "this cluster has no nodes");
    let name = archive.file_name().context("the archive has no name")?;
    let kept = cluster.dir.join("images").join(name);
    fs::copy(archive, &kept).with_context(|| format!("cannot read {}", archive.display()))?;
    for node in cluster.nodes.iter().filter(|node| node::init_process(node).is_ok()) {
        say(format!("importing {} on {}", archive.display(), node.name));
        node::import(node, &kept)?;
    }
    Ok(())
}

fn switch_node(options: &PartOptions) -> Result<()> {
    let mut cluster = load(&options.name)?;
    let _lock = lock(&cluster.dir)?;
    let node = cluster.node(&options.node)?;
    match options.switch {
        Switch::Start => node::start(node)?,
        Switch::Stop => node::stop(node)?,
    }
    cluster.save()
}

fn switch_api_server(options: &SwitchOptions) -> Result<()> {
    let mut cluster = load(&options.name)?;
    let _lock = lock(&cluster.dir)?;
    let daemon = cluster.daemon(API_SERVER)?;
    match options.switch {
        Switch::Start => {
            daemon.start()?;
            control_plane::wait_ready(&mut cluster)?;
        }
        Switch::Stop => daemon.kill()?,
    }
    cluster.save()
}

/// A cluster that a command of this program made for itself.
#[derive(Debug)]
pub struct Running {
    names: Names,
    cluster: Cluster,
}

impl Running {
    /// An API server alone.
    pub fn api_server(name: &str) -> Result<Self> {
        Self::up(name, true)
    }

    /// Two nodes.
    pub fn nodes(name: &str) -> Result<Self> {
        Self::up(name, false)
    }

    fn up(name: &str, api_server_only: bool) -> Result<Self> {
        let names = Names::new(name)?;
        // What an earlier run left that was killed.
        down::remove_everything(&names)?;
        let name = NameOption { name: name.to_owned() };
        let options = UpOptions { name, nodes: 2, api_server_only, keep_on_failure: false, json: false };
        Ok(Self { cluster: up(&options)?, names })
    }

    /// Who reads this may do everything there.
    pub fn kubeconfig(&self) -> &Path {
        &self.cluster.kubeconfig
    }

    /// Imports an image archive on every node.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        load_image(&mut self.cluster.clone(), archive)
    }

    /// Ends it.
    pub fn down(self) -> Result<()> {
        down::run(&self.names)
    }
}
