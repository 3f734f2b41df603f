//! Nodes and pods on one machine, with real agents and real kernel programs: what the demo, the tests and the benches
//! stand on.
//!
//! Reading order: [`world`] (what is asked for), [`names`] (what things are called), [`network`], [`cgroup`] and [`hosts`]
//! (what is made), [`pods`], [`api`] and [`agents`] (what is started), [`exec`] (how a process gets into a pod), [`state`] and
//! [`status`] (what is remembered and shown), [`down`] (how all of it goes). This file holds the commands and, in [`up`] and
//! [`apply`], the order of the steps.

pub mod world;

pub mod names;

pub mod network;

pub mod cgroup;

pub mod hosts;

pub mod pods;

pub mod api;

pub mod agents;

pub mod exec;

pub mod state;

pub mod status;

pub mod down;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use nix::sys::signal::Signal;

use crate::shell::{self, say};
use names::Names;
use state::{Enrolment, Lab, Node, Phase, Service, name_option};
use world::plan::{Given, Plan};
use world::{complete, plan};

/// The name of a lab that nobody named.
pub const DEFAULT_NAME: &str = "weft";

/// The world that is used when none is given, below the workspace.
const DEFAULT_WORLD: &str = "deploy/worlds/shop";

/// Commands of the lab.
#[derive(Subcommand)]
pub enum Command {
    /// Make a lab from a world (a directory of Kubernetes YAML) and start it.
    Up(UpOptions),
    /// Take a changed world into a running lab: start, end and change pods.
    Apply(ApplyOptions),
    /// Bring the world directory of a lab with `--source kubernetes` into its API; says in JSON which revision each kind has.
    ///
    /// For files edited in the running lab's `world`; `lab apply` does it by itself.
    Sync(SyncOptions),
    /// Start a node's agent (or control) anew; pods go on.
    Restart(RestartOptions),
    /// Run a command in a pod; input, output and exit code are the command's own.
    ///
    /// The host's files are seen, but for names: services and pods resolve as cluster DNS would resolve them there. Where
    /// the command never ran, the exit code is 125 (the lab failed), 126 (it cannot be run) or 127 (it is not there).
    Exec(exec::Options),
    /// Show a lab.
    Status(StatusOptions),
    /// Remove a lab and everything it made.
    Down(DownOptions),
}

/// `lab up`.
#[derive(Args)]
pub struct UpOptions {
    /// The lab's name; labs of different names run side by side.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// The world; default deploy/worlds/shop.
    #[arg(long, value_name = "DIR")]
    world: Option<PathBuf>,
    /// How many nodes; default those that the world names, and at least 2.
    #[arg(long)]
    nodes: Option<usize>,
    /// What agents and control read objects from: the world's files, or the Kubernetes API of a small server that holds the
    /// same objects.
    #[arg(long, value_enum, default_value_t = Source::Files)]
    source: Source,
    /// Keep node-1 and all its processes on CPU 0, node-2 on CPU 1, and so on.
    #[arg(long)]
    pin_cpus: bool,
    /// Nodes and pods only: no control, no agents (then service addresses lead nowhere).
    #[arg(long)]
    no_mesh: bool,
    /// One more argument for every node's agent; may be given several times.
    #[arg(long = "agent-arg", value_name = "ARG", allow_hyphen_values = true)]
    agent_args: Vec<String>,
    /// One more argument for control; may be given several times.
    #[arg(long = "control-arg", value_name = "ARG", allow_hyphen_values = true)]
    control_args: Vec<String>,
    /// How agents find pods: by sandbox files, or by control groups that are laid out as kubelet's.
    #[arg(long, value_enum, default_value_t)]
    enrolment: Enrolment,
    /// Leave everything as it is when a step fails, to look at it.
    #[arg(long)]
    keep_on_failure: bool,
    /// Print the lab as JSON.
    #[arg(long)]
    json: bool,
}

/// What the mesh reads objects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// The world's directory.
    Files,
    /// The Kubernetes API.
    Kubernetes,
}

/// `lab sync`.
#[derive(Args)]
pub struct SyncOptions {
    /// The lab.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

/// `lab apply`.
#[derive(Args)]
pub struct ApplyOptions {
    /// The lab.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// The world; default the directory that the lab was made from.
    #[arg(long, value_name = "DIR")]
    world: Option<PathBuf>,
    /// Print the lab as JSON.
    #[arg(long)]
    json: bool,
}

/// `lab restart`.
#[derive(Args)]
pub struct RestartOptions {
    /// The lab.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// A node's name, or `control`.
    what: String,
    /// End the running one with SIGKILL instead of SIGTERM.
    #[arg(long)]
    kill: bool,
    /// Start a node's new agent first, and ask the old one to end once the new one is ready to take over. The old one may go
    /// on for a while to finish its connections.
    #[arg(long, conflicts_with = "kill")]
    beside: bool,
    /// Print the lab as JSON.
    #[arg(long)]
    json: bool,
}

/// `lab status`.
#[derive(Args)]
pub struct StatusOptions {
    /// The lab.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Print the lab as JSON.
    #[arg(long)]
    json: bool,
}

/// `lab down`.
#[derive(Args)]
pub struct DownOptions {
    /// The lab.
    #[arg(long, default_value = DEFAULT_NAME, conflicts_with = "all")]
    name: String,
    /// Remove every lab.
    #[arg(long)]
    all: bool,
}

/// Runs a command.
pub fn run(command: Command) -> Result<ExitCode> {
    shell::require_root("the lab makes network namespaces and cgroups")?;
    match command {
        Command::Up(options) => status::print(&up(&options)?, options.json)?,
        Command::Apply(options) => {
            let lab = apply(&Names::new(&options.name)?, options.world)?;
            status::print(&lab, options.json)?;
        }
        Command::Sync(options) => {
            let names = Names::new(&options.name)?;
            let lab = Lab::load_up(&names)?;
            let _lock = state::lock(&lab.dir)?;
            println!("{}", serde_json::to_string(&api::sync(&lab, &names)?)?);
        }
        Command::Restart(options) => {
            let lab = restart(&options)?;
            status::print(&lab, options.json)?;
        }
        Command::Exec(options) => return Ok(exec::run(&options)),
        Command::Status(options) => status::run(&Names::new(&options.name)?, options.json)?,
        Command::Down(options) if options.all => {
            names::existing_labs().iter().try_for_each(|lab| down::run(&Names::new(lab)?))?;
        }
        Command::Down(options) => down::run(&Names::new(&options.name)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes a lab; on failure nothing of it stays, unless asked for.
fn up(options: &UpOptions) -> Result<Lab> {
    let names = Names::new(&options.name)?;
    let source = options.world.clone().unwrap_or_else(|| shell::workspace_dir().join(DEFAULT_WORLD));
    let source =
        fs::canonicalize(&source).with_context(|| format!("there is no world {}", source.display()))?;
    let files = world::read(&source)?;
    let plan = plan::plan(&files, options.nodes, &Given::default(), &mut new_uid)?;
    let agent = if options.no_mesh { None } else { Some(agents::find_agent()?) };
    if options.source == Source::Kubernetes {
        api::find()?;
    }
    let run_dir = claim(&names)?;
    let _lock = state::lock(&run_dir)?;
    let mut lab = describe(&names, options, source, &plan)?;
    let made = make(&mut lab, &names, &files, &plan, agent.as_deref(), options.source);
    if let Err(error) = made {
        if options.keep_on_failure {
            let option = name_option(&names);
            return Err(error
                .context(format!("lab {} is half up; `cargo xtask lab down{option}` ends it", names.lab())));
        }
        down::remove_everything(&names).context("and then the lab could not be removed again")?;
        return Err(error);
    }
    Ok(lab)
}

/// Takes the lab's name by making its directory.
fn claim(names: &Names) -> Result<PathBuf> {
    let run_dir = names.run_dir();
    let parent = run_dir.parent().context("a run directory has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    match fs::create_dir(&run_dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => bail!(
            "a lab named {0} is up, wholly or in part: see `cargo xtask lab status{1}`, end it with `cargo xtask lab down{1}`, \
             or choose another --name",
            names.lab(),
            name_option(names)
        ),
        made => made.with_context(|| format!("cannot make {}", run_dir.display()))?,
    }
    Ok(run_dir)
}

/// The lab as it shall be.
fn describe(names: &Names, options: &UpOptions, source: PathBuf, plan: &Plan) -> Result<Lab> {
    let dir = names.run_dir();
    let cgroup = cgroup::root()?.join(names.cgroup());
    let cpus = std::thread::available_parallelism()?.get();
    let agent_uids: Vec<String> = plan.nodes.iter().map(|_| new_uid()).collect::<Result<_>>()?;
    let node = |(index, name): (usize, &String)| Node {
        name: name.clone(),
        netns: network::netns_path(&names.node_netns(name)),
        ip: plan::node_ips(index + 1)[0],
        ips: plan::node_ips(index + 1).to_vec(),
        pods_cgroup: options.enrolment.pods_root(&cgroup.join(name)),
        agent_cgroup: match options.enrolment {
            Enrolment::Files => cgroup.join(name).join("agent"),
            // A pod among the others, as that of a DaemonSet is.
            groups => groups.container(
                &groups.pod(&cgroup.join(name), &agent_uids[index], "besteffort"),
                &agent_uids[index],
            ),
        },
        cgroup: cgroup.join(name),
        cpus: options.pin_cpus.then(|| vec![index % cpus]),
        agent: None,
    };
    let mut lab = Lab {
        name: names.lab().to_owned(),
        phase: Phase::Starting,
        world: dir.join("world"),
        dir,
        source,
        pin_cpus: options.pin_cpus,
        enrolment: options.enrolment,
        agent_args: options.agent_args.clone(),
        control_args: options.control_args.clone(),
        nodes: plan.nodes.iter().enumerate().map(node).collect(),
        api: None,
        control: None,
        pods: Vec::new(),
        services: Vec::new(),
        world_files: Vec::new(),
        given: plan.given(),
    };
    lab.pods = describe_pods(names, &lab, plan)?;
    lab.services = describe_services(plan);
    Ok(lab)
}

fn describe_pods(names: &Names, lab: &Lab, plan: &Plan) -> Result<Vec<state::Pod>> {
    let describe = |pod: &plan::PlannedPod| Ok(pods::describe(names, lab, lab.node(&pod.node)?, pod));
    let pods: Vec<state::Pod> = plan.pods.iter().map(describe).collect::<Result<_>>()?;
    let mut taken: BTreeSet<PathBuf> = lab.nodes.iter().map(|node| node.netns.clone()).collect();
    taken.insert(network::netns_path(&names.fabric_netns()));
    for (pod, planned) in pods.iter().zip(&plan.pods) {
        if !planned.host_network && !taken.insert(pod.netns.clone()) {
            bail!(
                "{}/{}: another pod or node also makes {}; rename one",
                pod.namespace,
                pod.name,
                pod.netns.display()
            );
        }
    }
    Ok(pods)
}

fn describe_services(plan: &Plan) -> Vec<Service> {
    let service = |service: &plan::PlannedService| Service {
        name: service.name.clone(),
        namespace: service.namespace.clone(),
        cluster_ip: service.cluster_ips.first().map_or_else(|| "None".to_owned(), ToString::to_string),
        cluster_ips: service.cluster_ips.clone(),
        ports: service.ports.clone(),
    };
    plan.services.iter().map(service).collect()
}

/// Makes what was described, in the order in which one thing needs another: pods' commands come last.
fn make(
    lab: &mut Lab,
    names: &Names,
    files: &[world::File],
    plan: &Plan,
    agent: Option<&Path>,
    source: Source,
) -> Result<()> {
    for dir in ["world", "logs", "names", "sandboxes"] {
        fs::create_dir(lab.dir.join(dir))?;
    }
    lab.save()?;
    say(format!("lab {}: {} nodes, {} pods", lab.name, lab.nodes.len(), lab.pods.len()));
    for node in &lab.nodes {
        cgroup::create(&node.pods_cgroup())?;
        cgroup::create(&node.agent_cgroup())?;
        fs::create_dir(pods::sandbox_dir(&lab.dir, &node.name))?;
    }
    network::create_nodes(names, &plan.nodes)?;
    pods::create(lab, &lab.pods.iter().collect::<Vec<_>>())?;
    if source == Source::Kubernetes {
        say("starting the API server");
        api::start(lab, names)?;
    }
    write_world(lab, names, files, plan)?;
    for pod in &lab.pods {
        pods::announce(lab, pod)?;
    }
    if let Some(agent) = agent {
        say("starting control and agents");
        agents::start(lab, names, agent)?;
    }
    let mut pods = std::mem::take(&mut lab.pods);
    pods::start(lab, &mut pods.iter_mut().collect::<Vec<_>>())?;
    lab.pods = pods;
    lab.phase = Phase::Up;
    lab.save()
}

/// Writes the completed world and the name files, and brings it into the API where there is one.
fn write_world(lab: &mut Lab, names: &Names, files: &[world::File], plan: &Plan) -> Result<()> {
    let completed = complete::complete(files, plan)?;
    pods::write_names(&lab.dir, plan)?;
    world::write(&lab.world, &completed)?;
    let now: Vec<String> = completed.into_iter().map(|(name, _)| name).collect();
    for gone in lab.world_files.iter().filter(|name| !now.contains(name)) {
        let _ = fs::remove_file(lab.world.join(gone));
    }
    lab.world_files = now;
    api::sync(lab, names)?;
    Ok(())
}

/// Takes a changed world into a running lab.
fn apply(names: &Names, world_dir: Option<PathBuf>) -> Result<Lab> {
    let mut lab = Lab::load_up(names)?;
    let _lock = state::lock(&lab.dir)?;
    let source = world_dir.unwrap_or_else(|| lab.source.clone());
    let source =
        fs::canonicalize(&source).with_context(|| format!("there is no world {}", source.display()))?;
    let files = world::read(&source)?;
    let plan = plan::plan(&files, Some(lab.nodes.len()), &lab.given, &mut new_uid)
        .context("the lab keeps its nodes; to change them, end it and make it anew")?;
    let old = std::mem::take(&mut lab.pods);
    let mut wanted = describe_pods(names, &lab, &plan)?;
    let unchanged = unchanged_pods(&lab.given, &plan);
    // Should a step fail, the lab is not what its state says: only `lab down` is left then.
    Lab { phase: Phase::Starting, pods: old.clone(), ..lab.clone() }.save()?;
    for pod in old.iter().filter(|pod| !unchanged.contains(&pod.uid)) {
        say(format!("ending {}/{}", pod.namespace, pod.name));
        pods::remove(&lab, pod)?;
    }
    let new: Vec<&state::Pod> = wanted.iter().filter(|pod| !unchanged.contains(&pod.uid)).collect();
    pods::create(&lab, &new)?;
    write_world(&mut lab, names, &files, &plan)?;
    let mut starting = Vec::new();
    for pod in &mut wanted {
        if unchanged.contains(&pod.uid) {
            pod.pid = old.iter().find(|old| old.uid == pod.uid).and_then(|old| old.pid);
        } else {
            say(format!("starting {}/{}", pod.namespace, pod.name));
            pods::announce(&lab, pod)?;
            starting.push(pod);
        }
    }
    pods::start(&lab, &mut starting)?;
    lab.pods = wanted;
    lab.services = describe_services(&plan);
    lab.given = plan.given();
    lab.source = source;
    lab.save()?;
    status::refresh(&mut lab);
    Ok(lab)
}

/// Starts a process of the mesh anew.
fn restart(options: &RestartOptions) -> Result<Lab> {
    let names = Names::new(&options.name)?;
    let mut lab = Lab::load_up(&names)?;
    let _lock = state::lock(&lab.dir)?;
    if options.beside {
        agents::replace(&mut lab, &names, &options.what)?;
    } else {
        let signal = if options.kill { Signal::SIGKILL } else { Signal::SIGTERM };
        agents::restart(&mut lab, &names, &options.what, signal)?;
    }
    status::refresh(&mut lab);
    Ok(lab)
}

/// UIDs of the pods that go on as they are.
fn unchanged_pods(given: &Given, plan: &Plan) -> BTreeSet<String> {
    let unchanged = |pod: &&plan::PlannedPod| {
        let before = given.pods.get(&plan::key(&pod.namespace, &pod.name));
        before.is_some_and(|before| before.uid == pod.uid && before.fingerprint == pod.fingerprint)
    };
    plan.pods.iter().filter(unchanged).map(|pod| pod.uid.clone()).collect()
}

/// A UID that was never used before.
fn new_uid() -> Result<String> {
    let text =
        fs::read_to_string("/proc/sys/kernel/random/uuid").context("the kernel gives no random UID")?;
    Ok(text.trim().to_owned())
}
