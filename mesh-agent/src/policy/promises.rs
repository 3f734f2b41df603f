//! What paths and judgement promise, as functions from any bytes that panic when a promise is broken. The fuzz targets
//! and the property tests run them; the agent does not.
//!
//! The oracle is a server as lenient as servers get ([`most_lenient`]), written without the code that it checks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderValue, Method};

use crate::model::{
    Action, AuthorizationPolicy, DefaultInbound, FailureMode, HttpMatch, MeshConfig, PathPattern, PolicyName,
    RequestPath, Rule, SpiffeId, Workload, WorkloadName, WorkloadUid,
};

use super::{Facts, PolicySet, Request};

/// A request target has one normal form, which is its own, holds nothing that a server could resolve further, and is
/// among its readings.
///
/// # Panics
/// The promise is broken.
pub fn of_paths(bytes: &[u8]) {
    let target = String::from_utf8_lossy(bytes);
    let Ok(path) = RequestPath::parse(&target) else { return };
    let normal = path.as_str();
    let again = RequestPath::parse(normal).expect("a normal form has a normal form");
    assert_eq!(again.as_str(), normal, "the normal form of a normal form");
    assert!(again.is_as_written(), "a normal form is as written");
    if path.is_authority() || path.is_asterisk() {
        return;
    }
    assert!(normal.starts_with('/'), "{normal}");
    assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")), "{normal}");
    assert!(
        normal.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'?' | b'#')),
        "{normal}"
    );
    let readings = path.readings();
    assert!(readings.iter().next().is_none_or(|first| first == path.comparable()), "{normal}: {readings:?}");
    if path.is_as_written() {
        assert_eq!(target.split('?').next(), Some(normal));
    }
}

/// A request that policy lets through is, to the most lenient server, not what is denied and is what is allowed.
/// `bytes` are the target, and behind a line feed the method, and behind another the value of a header.
///
/// # Panics
/// The promise is broken.
pub fn of_judgement(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let target = String::from_utf8_lossy(part());
    let Ok(path) = RequestPath::parse(&target) else { return };
    let method = Method::from_bytes(part()).unwrap_or(Method::GET);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(part()) {
        headers.append("x-any", value);
    }
    let request = Request { method: &method, path: &path, headers: &headers, host: None };
    let admits = |set: &PolicySet| {
        let facts = Facts {
            identity: None,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            destination: &WORLD.pod,
            port: 80,
            node_probe: false,
            request: Some(request),
        };
        let answer = set.evaluate(&facts);
        assert_eq!(set.explain(&facts).admitted, answer.is_ok(), "explained as judged");
        answer.is_ok()
    };
    let (past_deny, past_allow, past_both) = (admits(&WORLD.deny), admits(&WORLD.allow), admits(&WORLD.both));
    assert_eq!(past_both, past_deny && past_allow, "{target:?}: DENY and ALLOW are asked independently");
    if path.is_authority() {
        assert!(!past_deny && !past_allow, "a request without a path");
        return;
    }
    let served = most_lenient(path.as_str());
    let below = |prefix: &str| served == prefix || served.starts_with(&format!("{prefix}/"));
    assert!(!past_deny || !below("/admin"), "{target:?} is served as {served:?} past DENY /admin");
    assert!(!past_allow || below("/public"), "{target:?} is served as {served:?} past ALLOW /public");
}

/// What a server finds that decodes until nothing is left to decode, ignores case, parameters, empty segments and all
/// behind a delimiter, and then resolves dots.
fn most_lenient(path: &str) -> String {
    let mut text = path.as_bytes().to_vec();
    loop {
        let decoded = decode_once(&text);
        if decoded == text {
            break;
        }
        text = decoded;
    }
    let text = String::from_utf8_lossy(&text).to_ascii_lowercase().replace('\\', "/");
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let mut kept = Vec::new();
    for segment in text.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(kept.pop()),
            name => kept.push(name),
        }
    }
    format!("/{}", kept.join("/"))
}

fn decode_once(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(text.get(at + 1)), digit(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.extend(u8::try_from(high * 16 + low));
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

struct World {
    pod: Workload,
    deny: PolicySet,
    allow: PolicySet,
    both: PolicySet,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let (deny, allow) = (below(Action::Deny, "/admin"), below(Action::Allow, "/public"));
    let set = |policies: &[&Arc<AuthorizationPolicy>]| {
        let policies = policies.iter().map(|policy| Arc::clone(policy)).collect();
        PolicySet::new(policies, DefaultInbound::Permissive, MeshConfig::default().trust_domain)
    };
    World { pod: pod(), deny: set(&[&deny]), allow: set(&[&allow]), both: set(&[&deny, &allow]) }
});

fn below(action: Action, prefix: &str) -> Arc<AuthorizationPolicy> {
    let paths = Some(vec![PathPattern::prefix(prefix).expect("a path in normal form")]);
    Arc::new(AuthorizationPolicy {
        name: PolicyName { namespace: "fuzz".into(), name: action.label().into() },
        cluster_wide: false,
        selectors: Vec::new(),
        action,
        rules: vec![Rule {
            http: Some(vec![HttpMatch { paths, ..HttpMatch::default() }]),
            ..Rule::default()
        }],
        unusable: None,
    })
}

fn pod() -> Workload {
    Workload {
        uid: WorkloadUid("fuzz".into()),
        name: WorkloadName { namespace: "fuzz".into(), name: "pod".into() },
        owner: "pod".into(),
        node: "node".into(),
        zone: None,
        addresses: Vec::new(),
        service_account: "default".into(),
        identity: SpiffeId::of_service_account(&MeshConfig::default().trust_domain, "fuzz", "default"),
        labels: Default::default(),
        ports: Vec::new(),
        enrolled: true,
        splice: None,
        forward_client_cert: false,
        skip_outbound_ports: BTreeSet::new(),
        skip_inbound_ports: BTreeSet::new(),
        probe_ports: BTreeSet::new(),
        manifest_hash: None,
        failure_mode: FailureMode::default(),
        host_network: false,
        ready: true,
        terminating: false,
    }
}
