//! The cluster's certificates, keys and tokens: who the API server is, and who its callers are.
//!
//! Made by openssl, for some days, of keys that leave the cluster's directory in no other way than to its own programs.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::names::{API_SERVICE_IP, CONTROL_IP, node_name};
use crate::setup;

/// Names under which the API server is called.
const API_NAMES: &str = "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
                         DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1";

/// How long certificates are valid. A cluster lives for minutes; a clock may be off by more.
const DAYS: &str = "30";

/// The directory of the certificates, with what is in it.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
}

/// A caller that the API server knows by a token.
struct Caller {
    file: String,
    user: String,
    groups: &'static str,
}

impl Pki {
    /// Makes all of it.
    pub fn make(dir: &Path, nodes: u8, url: &str) -> Result<Self> {
        setup::require_openssl()?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let pki = Self { dir: dir.to_owned() };
        pki.key("ca.key")?;
        pki.openssl(&[
            "req",
            "-x509",
            "-new",
            "-key",
            "ca.key",
            "-days",
            DAYS,
            "-subj",
            "/CN=weft-cluster",
            "-out",
            "ca.crt",
        ])?;
        let names = format!("subjectAltName={API_NAMES},IP:{CONTROL_IP},IP:{API_SERVICE_IP}");
        pki.leaf("apiserver", "/CN=kube-apiserver", &names)?;
        pki.leaf(
            "kubelet-client",
            "/O=system:masters/CN=apiserver-kubelet-client",
            "extendedKeyUsage=clientAuth",
        )?;
        pki.key("accounts.key")?;
        pki.openssl(&["pkey", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"])?;
        pki.callers(nodes, url)?;
        Ok(pki)
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What a caller with this name uses.
    pub fn kubeconfig(&self, caller: &str) -> PathBuf {
        self.dir.join(format!("{caller}.kubeconfig"))
    }

    fn key(&self, file: &str) -> Result<()> {
        self.openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", file])
    }

    fn leaf(&self, name: &str, subject: &str, extensions: &str) -> Result<()> {
        let file = |extension: &str| format!("{name}.{extension}");
        self.key(&file("key"))?;
        self.openssl(&["req", "-new", "-key", &file("key"), "-subj", subject, "-out", &file("csr")])?;
        fs::write(self.path(&file("ext")), extensions)?;
        let (csr, ext, crt) = (file("csr"), file("ext"), file("crt"));
        let sign = ["x509", "-req", "-in", &csr, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        self.openssl(&[&sign[..], &["-days", DAYS, "-extfile", &ext, "-out", &crt]].concat())
    }

    /// Tokens, the file by which the API server knows them, and a kubeconfig for each.
    fn callers(&self, nodes: u8, url: &str) -> Result<()> {
        let caller =
            |file: &str, user: &str, groups| Caller { file: file.to_owned(), user: user.to_owned(), groups };
        let mut callers = vec![
            caller("admin", "admin", "system:masters"),
            caller("proxy", "system:kube-proxy", "system:node-proxier"),
        ];
        callers.extend((1..=nodes).map(node_name).map(|node| {
            let user = format!("system:node:{node}");
            Caller { file: node, user, groups: "system:nodes" }
        }));
        let mut known = String::new();
        for caller in callers {
            let token = random_token()?;
            known += &format!("{token},{},{},\"{}\"\n", caller.user, caller.file, caller.groups);
            self.write_kubeconfig(&caller.file, url, &token)?;
        }
        Ok(fs::write(self.path("tokens.csv"), known)?)
    }

    fn write_kubeconfig(&self, caller: &str, url: &str, token: &str) -> Result<()> {
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "clusters": [{"name": "cluster", "cluster": {
                "server": url, "certificate-authority": self.path("ca.crt"),
            }}],
            "users": [{"name": caller, "user": {"token": token}}],
            "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": caller}}],
        });
        Ok(fs::write(self.kubeconfig(caller), serde_json::to_vec_pretty(&document)?)?)
    }

    fn openssl(&self, words: &[&str]) -> Result<()> {
        let output = Command::new("openssl").args(words).current_dir(&self.dir).output();
        let output = output.context("cannot start openssl")?;
        if !output.status.success() {
            bail!("openssl {} failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

fn random_token() -> Result<String> {
    let mut random = [0u8; 24];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
