//! Command lines, good and bad.

use std::fs;
use std::path::Path;

use super::*;
use crate::control::ca::{SecretRef, Stage};
use crate::control::cluster::Keys;
use crate::control::review::Expected;
use crate::discovery;
use crate::discovery::Access;
use crate::telemetry::Sink;
use crate::telemetry::log::LogFormat;

/// A directory with all that an agent's flags point at.
fn node_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for sub in ["world", "sandboxes", "cgroup"] {
        fs::create_dir(dir.path().join(sub)).expect("created");
    }
    for file in ["roots.pem", "token", "weft.bpf.o", "cgroup/cgroup.procs"] {
        fs::write(dir.path().join(file), "x").expect("written");
    }
    dir
}

fn node_line(dir: &Path) -> Vec<String> {
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    [
        ("--node", "n1".to_owned()),
        ("--config-dir", path("world")),
        ("--sandbox-dir", path("sandboxes")),
        ("--cgroup", path("cgroup")),
        ("--bpf-object", path("weft.bpf.o")),
        ("--ca-address", "https://[fd00::1]:15012".to_owned()),
        ("--ca-roots", path("roots.pem")),
        ("--join-token-file", path("token")),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

fn read_node(line: Vec<String>) -> Result<Task, Error> {
    read(["mesh-agent".to_owned(), "node".to_owned()].into_iter().chain(line))
}

fn node_settings(line: Vec<String>) -> NodeSettings {
    match read_node(line).expect("a good command line") {
        Task::Node(settings) => *settings,
        other => panic!("not a node: {other:?}"),
    }
}

fn with(mut line: Vec<String>, flag: &str, value: &str) -> Vec<String> {
    match line.iter().position(|word| word == flag) {
        Some(at) => line[at + 1] = value.to_owned(),
        None => line.extend([flag.to_owned(), value.to_owned()]),
    }
    line
}

#[test]
fn node_flags_become_settings() {
    let dir = node_dir();
    let settings = node_settings(node_line(dir.path()));
    assert_eq!(settings.node, "n1");
    assert_eq!(settings.kernel.pin_dir, Path::new("/sys/fs/bpf/weft/n1"));
    assert_eq!(settings.kernel.object, dir.path().join("weft.bpf.o"));
    assert_eq!(settings.service_vips, ServiceVips::Enrolled);
    assert_eq!(settings.splice, SpliceMode::Auto);
    assert_eq!(settings.telemetry.access_log, Sink::Off);
    assert_eq!(settings.admin.listen.to_string(), "127.0.0.1:15020");
    assert_eq!(settings.log.format, LogFormat::Text);
    assert!(settings.workers.get() >= 1);
    let mesh = crate::model::MeshConfig::default();
    let identity = settings.ca.identity(&mesh);
    assert_eq!((identity.trust_domain, identity.certificate_ttl), (mesh.trust_domain, mesh.certificate_ttl));
}

#[test]
fn node_flags_are_read_as_written() {
    let dir = node_dir();
    let line = node_line(dir.path());
    let line = with(line, "--service-vips", "all");
    let line = with(line, "--splice", "off");
    let line = with(line, "--access-log", "-");
    let line = with(line, "--workers", "3");
    let line = with(line, "--admin-listen", "[::1]:9");
    let line = with(line, "--log-format", "json");
    let line = with(line, "--pin-dir", "/sys/fs/bpf/lab");
    let settings = node_settings(line);
    assert_eq!(settings.service_vips, ServiceVips::All);
    assert_eq!(settings.splice, SpliceMode::Off);
    assert_eq!(settings.telemetry.access_log, Sink::Stdout);
    assert_eq!(settings.workers.get(), 3);
    assert_eq!(settings.admin.listen.to_string(), "[::1]:9");
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(settings.kernel.pin_dir, Path::new("/sys/fs/bpf/lab"));
}

#[test]
fn values_that_cannot_work_are_refused_by_flag() {
    let dir = node_dir();
    for (flag, value, expected) in [
        ("--node", "N1", "not a node's name"),
        ("--node", "../n1", "not a node's name"),
        ("--config-dir", "/nowhere", "/nowhere cannot be used"),
        ("--sandbox-dir", "/dev/null", "is not a directory"),
        ("--cgroup", "/tmp", "is not a control group (v2)"),
        ("--pin-dir", "weft", "is not absolute"),
        ("--bpf-object", "/nowhere/weft.bpf.o", "cargo xtask build-ebpf"),
        ("--ca-address", "10.0.0.1:15012", "write https://HOST:PORT"),
        ("--ca-address", "http://10.0.0.1:15012", "write https://HOST:PORT"),
        ("--ca-address", "https://10.0.0.1", "write https://HOST:PORT"),
        ("--ca-address", "https://10.0.0.1:15012/path", "write https://HOST:PORT"),
        ("--ca-roots", "/nowhere/roots.pem", "--trust-bundle-out"),
        ("--join-token-file", "/tmp", "is a directory"),
        ("--log", "info,=x=", "is not a log filter"),
        ("--workers", "17", "at most 16"),
    ] {
        let error = read_node(with(node_line(dir.path()), flag, value)).expect_err(value);
        let text = error.to_string();
        assert!(text.starts_with(&format!("error: {flag}: ")) && text.contains(expected), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(error.exit_code(), EXIT_USAGE);
    }
}

#[test]
fn without_sandbox_files_pods_and_their_control_group_are_found() {
    let dir = node_dir();
    let without = |flags: &[&str]| {
        let mut line = node_line(dir.path());
        for flag in flags {
            let at = line.iter().position(|word| word == flag).expect("it is there");
            line.drain(at..at + 2);
        }
        line
    };
    let settings = node_settings(without(&["--sandbox-dir", "--cgroup"]));
    assert_eq!((settings.sandbox_dir, settings.kernel.cgroup), (None, None));
    let settings = node_settings(without(&["--sandbox-dir"]));
    assert_eq!(settings.kernel.cgroup.as_deref(), Some(&*dir.path().join("cgroup")));
    let text = read_node(without(&["--cgroup"])).expect_err("refused").to_string();
    assert!(text.contains("--cgroup") && text.contains("sandbox files do not tell"), "{text}");
}

#[test]
fn objects_come_from_exactly_one_source() {
    let dir = node_dir();
    let kubeconfig = dir.path().join("token");
    let file = kubeconfig.to_str().expect("UTF-8");
    let without: Vec<String> = {
        let mut line = node_line(dir.path());
        let at = line.iter().position(|word| word == "--config-dir").expect("it is there");
        line.drain(at..at + 2);
        line
    };
    let plus = |line: &[String], words: &[&str]| -> Vec<String> {
        line.iter().cloned().chain(words.iter().map(|word| (*word).to_owned())).collect()
    };
    let in_cluster = node_settings(plus(&without, &["--kubernetes"])).objects;
    assert_eq!(in_cluster, discovery::Settings::Kubernetes(Access::default()));
    let words = ["--kubernetes", "--kubeconfig", file, "--context", "blue"];
    let access = Access { kubeconfig: Some(kubeconfig.clone()), context: Some("blue".to_owned()) };
    assert_eq!(node_settings(plus(&without, &words)).objects, discovery::Settings::Kubernetes(access));
    let both = plus(&node_line(dir.path()), &["--kubernetes"]);
    for (line, expected) in [
        (without.clone(), "error: --config-dir: missing"),
        (both, "error: --kubernetes: does not go with --config-dir"),
        (plus(&node_line(dir.path()), &["--kubeconfig", file]), "error: --kubeconfig: means nothing without"),
        (
            plus(&without, &["--kubernetes", "--kubeconfig", "/nowhere"]),
            "error: --kubeconfig: /nowhere cannot",
        ),
    ] {
        let text = read_node(line).expect_err(expected).to_string();
        assert!(text.starts_with(expected) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn all_refusals_come_at_once() {
    let dir = node_dir();
    let line = with(with(node_line(dir.path()), "--config-dir", "/nowhere"), "--ca-roots", "/nowhere");
    let Err(Error::Invalid(all)) = read_node(line) else { panic!("refused") };
    assert_eq!(all.iter().map(|one| one.flag).collect::<Vec<_>>(), ["--config-dir", "--ca-roots"]);
}

#[test]
fn missing_and_unknown_flags_are_usage_errors() {
    for (line, expected) in [
        (&["node", "--node", "n1"][..], "--ca-address"),
        (&["node", "--node", "n1"], "--join-token-file"),
        (&["node", "--node", "n1", "--kubernetes", "--context", "blue"], "--kubeconfig"),
        (&["node", "--uninstall"], "--node"),
        (&["control"], "--state-dir"),
        (&["control", "rotate-root"], "STAGE"),
        (&["control", "rotate-root", "undo", "--state-dir", "/tmp"], "begin, switch, finish"),
        (&["node", "--node", "n1", "--frobnicate"], "--frobnicate"),
        (&["node", "--node", "n1", "--workers", "0"], "--workers"),
        (&["fly"], "fly"),
    ] {
        let error = read(["mesh-agent"].iter().chain(line)).expect_err(expected);
        assert!(error.to_string().contains(expected), "{line:?}: {error}");
        assert_eq!(error.exit_code(), EXIT_USAGE);
        assert!(error.is_failure());
    }
}

#[test]
fn help_and_version_are_no_failures() {
    for (line, expected) in [
        (&["--version"][..], env!("CARGO_PKG_VERSION")),
        (&["--help"], "control"),
        (&["node", "--help"], "Examples:"),
        (&["control", "--help"], "rotate-root"),
    ] {
        let answer = read(["mesh-agent"].iter().chain(line)).expect_err("a text to print");
        assert!(answer.to_string().contains(expected), "{answer}");
        assert_eq!(answer.exit_code(), 0);
    }
}

#[test]
fn every_flag_has_its_name_in_the_environment() {
    use clap::CommandFactory;
    let command = MeshAgent::command();
    let mut commands: Vec<&clap::Command> = command.get_subcommands().collect();
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands());
        for argument in command.get_arguments() {
            let Some(long) = argument.get_long() else { continue };
            if matches!(long, "help" | "version" | "uninstall" | "now") {
                continue;
            }
            let expected = format!("WEFT_{}", long.to_uppercase().replace('-', "_"));
            let found = argument.get_env().map(|name| name.to_string_lossy().into_owned());
            let plural = format!("{expected}S");
            assert!(found == Some(expected.clone()) || found == Some(plural), "--{long}: {found:?}");
            assert!(argument.get_help().is_some(), "--{long} has no help");
        }
    }
}

#[test]
fn uninstall_needs_no_more_than_the_node() {
    let task = read(["mesh-agent", "node", "--node", "n1", "--uninstall"]).expect("enough");
    let Task::Uninstall(settings) = task else { panic!("not an uninstall: {task:?}") };
    assert_eq!(settings.pin_dir, Path::new("/sys/fs/bpf/weft/n1"));
}

#[test]
fn control_flags_become_settings() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    for sub in ["world", "tokens"] {
        fs::create_dir(dir.path().join(sub)).expect("created");
    }
    let line = [
        "mesh-agent".to_owned(),
        "control".to_owned(),
        "--config-dir".to_owned(),
        path("world"),
        "--state-dir".to_owned(),
        path("state"),
        "--join-tokens-dir".to_owned(),
        path("tokens"),
        "--trust-bundle-out".to_owned(),
        path("roots.pem"),
        "--listen".to_owned(),
        "10.0.0.1:15012".to_owned(),
        "--server-name=control.example,10.0.0.9".to_owned(),
    ];
    let Ok(Task::Control(settings)) = read(line) else { panic!("a good command line") };
    let expected = ControlMode::Standalone {
        state_dir: dir.path().join("state"),
        join_tokens_dir: dir.path().join("tokens"),
        trust_bundle_out: Some(dir.path().join("roots.pem")),
    };
    assert_eq!(settings.mode, expected, "the state directory is made at first start");
    assert_eq!(settings.server_names, ["control.example", "10.0.0.9"]);
    assert_eq!(settings.listen.to_string(), "10.0.0.1:15012");
    assert_eq!(settings.objects, discovery::Settings::Directory(dir.path().join("world")));
}

#[test]
fn control_in_a_cluster_needs_a_secret_and_token_review() {
    let read_control = |flags: &[&str]| read(["mesh-agent", "control", "--kubernetes"].iter().chain(flags));
    let secret = |name: &str| SecretRef { namespace: "weft-system".to_owned(), name: name.to_owned() };
    for (flag, keys) in [
        ("--ca-secret=weft-system/weft-ca", Keys::Own(secret("weft-ca"))),
        ("--intermediate-secret=weft-system/issued", Keys::Issued(secret("issued"))),
    ] {
        let Ok(Task::Control(settings)) = read_control(&[flag, "--token-review"]) else { panic!("{flag}") };
        let expected = Expected {
            audience: "weft-control".to_owned(),
            namespace: "weft-system".to_owned(),
            account: "weft-agent".to_owned(),
        };
        assert_eq!(settings.mode, ControlMode::Cluster { access: Access::default(), keys, expected });
    }
    for (flags, expected) in [
        (&["--token-review"][..], "--token-review: does not go with --state-dir"),
        (&["--ca-secret=a/b"], "--token-review: missing"),
        (&["--ca-secret=a/b", "--token-review", "--join-tokens-dir=/tmp"], "--join-tokens-dir: does not go"),
        (&["--ca-secret=a/b", "--token-review", "--state-dir=/tmp"], "--state-dir: does not go"),
        (
            &["--ca-secret=a/b", "--intermediate-secret=a/c", "--token-review"],
            "--intermediate-secret: does not go",
        ),
        (&["--ca-secret=a/b", "--token-review", "--agent-service-account=x"], "--agent-service-account"),
        (&["--ca-secret=weft-ca", "--token-review"], "write NAMESPACE/NAME"),
        (&[], "--join-tokens-dir: missing"),
    ] {
        let said = read_control(flags).expect_err(expected).to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn rotation_in_a_secret_waits_until_kubelets_have_brought_the_bundle() {
    let line = ["mesh-agent", "control", "rotate-root", "switch", "--ca-secret", "weft-system/weft-ca"];
    let Ok(Task::RotateRoot(settings)) = read(line) else { panic!("a good command line") };
    assert_eq!(settings.patience(), std::time::Duration::from_secs(120));
    assert!(matches!(settings.keys, RotatedKeys::Secret(..)));
    assert!(read(line.into_iter().chain(["--state-dir", "/tmp"])).is_err(), "one place of keys");
}

#[test]
fn rotation_takes_a_stage_and_a_directory() {
    let line =
        ["mesh-agent", "control", "rotate-root", "switch", "--state-dir", "/tmp", "--certificate-ttl", "90s"];
    let Ok(Task::RotateRoot(settings)) = read(line) else { panic!("a good command line") };
    assert_eq!(settings.stage, Stage::Switch);
    assert_eq!(settings.certificate_ttl, std::time::Duration::from_secs(90));
    assert_eq!(settings.patience(), std::time::Duration::from_secs(60));
    let now = read(line.into_iter().chain(["--now"])).expect("a good command line");
    let Task::RotateRoot(now) = now else { panic!("not a rotation: {now:?}") };
    assert_eq!(now.patience(), std::time::Duration::ZERO);
    for ttl in ["soon", "0s", "-5s"] {
        let ttl = format!("--certificate-ttl={ttl}");
        let error = read(["mesh-agent", "control", "rotate-root", "finish", "--state-dir", "/tmp", &ttl]);
        assert!(error.expect_err("no length").to_string().contains("--certificate-ttl"));
    }
}
