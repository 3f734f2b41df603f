//! What the programs of a node are told: containerd, its network plugins, kubelet and kube-proxy.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::Plan;
use crate::cluster::cache::Build;
use crate::cluster::images::PAUSE_IMAGE;
use crate::cluster::names::{DNS_SERVICE_IP, POD_RANGE};

/// Where containerd answers.
const RUNTIME_SOCKET: &str = "/run/containerd/containerd.sock";

/// A program of a node, which its first process keeps running.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name, and that of its log.
    pub name: &'static str,
    /// Program and arguments.
    pub words: Vec<String>,
}

/// Writes the files and says what is to be run, in this order.
pub fn write(plan: &Plan) -> Result<[Program; 3]> {
    let file = |name: &str| plan.dir.join(name);
    fs::create_dir_all("/etc/cni/net.d")?;
    fs::write("/etc/cni/net.d/10-bridge.conflist", network(plan))?;
    fs::write(file("containerd.toml"), runtime())?;
    fs::write(file("kubelet.yaml"), kubelet(plan))?;
    // Names outside the cluster lead nowhere.
    fs::write(file("resolv.conf"), "")?;
    let build = Build { dir: plan.build_dir.clone() };
    let built = |name: &str| build.program(name).display().to_string();
    let option = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    let runtime = vec![
        "/usr/bin/containerd".to_owned(),
        "--config".to_owned(),
        file("containerd.toml").display().to_string(),
    ];
    let kubelet = vec![
        built("kubelet"),
        option("config", file("kubelet.yaml")),
        option("kubeconfig", plan.kubelet_kubeconfig.clone()),
        format!("--hostname-override={}", plan.name),
        format!("--node-ip={}", plan.ip),
        "--container-runtime=remote".to_owned(),
        format!("--container-runtime-endpoint=unix://{RUNTIME_SOCKET}"),
        format!("--pod-infra-container-image={PAUSE_IMAGE}"),
        "--network-plugin=cni".to_owned(),
    ];
    let proxy = vec![
        built("kube-proxy"),
        option("kubeconfig", plan.proxy_kubeconfig.clone()),
        format!("--hostname-override={}", plan.name),
        "--proxy-mode=iptables".to_owned(),
        format!("--cluster-cidr={POD_RANGE}"),
        // Those would be set for the whole machine.
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-tcp-timeout-established=0s".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
        // EndpointSlices of the version that it knows are not served; it reads Endpoints.
        "--feature-gates=EndpointSliceProxying=false".to_owned(),
    ];
    Ok([
        Program { name: "containerd", words: runtime },
        Program { name: "kubelet", words: kubelet },
        Program { name: "kube-proxy", words: proxy },
    ])
}

/// Pods on a bridge, reached from elsewhere by routes, without address translation.
fn network(plan: &Plan) -> String {
    let range = &plan.pod_range;
    format!(
        r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[
 {{"type":"bridge","bridge":"pods","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{{"type":"host-local","dataDir":"/run/cni-ipam","ranges":[[{{"subnet":"{range}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
 {{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}
"#
    )
}

/// Programs here may lack the right to make themselves less likely to be ended when memory is short; runc then fails where
/// it is asked to lower that mark, so it is not asked.
fn runtime() -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "/usr/sbin/runc"
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet(plan: &Plan) -> String {
    let (cgroup, ca, resolv) =
        (plan.cgroup.display(), plan.client_ca.display(), plan.dir.join("resolv.conf").display().to_string());
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupDriver: cgroupfs\ncgroupRoot: /{cgroup}\n\
         authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {ca}}}}}\n\
         authorization: {{mode: Webhook}}\naddress: {}\nresolvConf: {resolv}\nclusterDNS: [\"{DNS_SERVICE_IP}\"]\nclusterDomain: cluster.local\n\
         evictionHard: {{nodefs.available: \"1%\", imagefs.available: \"1%\", memory.available: 100Mi}}\n\
         imageGCHighThresholdPercent: 100\nenforceNodeAllocatable: [none]\nfailSwapOn: false\nserializeImagePulls: true\n\
         nodeStatusUpdateFrequency: 1s\nnodeLeaseDurationSeconds: 8\n",
        plan.ip
    )
}
