//! Act 2: what travels between nodes. The demo watches the node's link while a call with a marker goes over it, and then
//! while an unmeshed client makes the same call.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::call::answer;
use super::capture::{Capture, Segment, contains};
use super::evidence::record;
use super::report::Report;
use super::stage::Stage;

/// The port between agents.
const TUNNEL_PORT: u16 = 15008;

/// The port on which the pods serve.
const POD_PORT: u16 = 8080;

/// A node's link to the others, as the lab names it.
const LINK: &str = "uplink";

/// A TLS record of application data begins so (RFC 8446 section 5.1): its type, and the version that all of TLS 1.3 claims.
const TLS_RECORD: [u8; 3] = [0x17, 0x03, 0x03];

/// What was seen on the link.
#[derive(Default)]
struct Seen {
    packets: usize,
    tunnel_packets: usize,
    tunnel_bytes: usize,
    pod_port_packets: usize,
    marker_packets: usize,
    /// The beginning of the first TLS record of the tunnel.
    tls_record: Vec<u8>,
    /// The first line in the clear that holds the marker.
    clear_line: String,
}

/// Shows the act.
pub fn show(stage: &Stage, report: &mut Report) -> Result<()> {
    report.act(
        "Between nodes there is only mutual TLS",
        "The demo captures the packets on node-1's link while web calls orders-2 on node-2. A word in the request must \
         not be found in them; when a client outside the mesh makes the same call, it must.",
    );
    let mut capture = Capture::start(&stage.lab()?.node("node-1")?.netns, LINK)?;
    meshed(stage, report, &mut capture)?;
    unmeshed(stage, report, &mut capture)
}

fn meshed(stage: &Stage, report: &mut Report, capture: &mut Capture) -> Result<()> {
    let marker = marker()?;
    let url = format!("http://orders-2:{POD_PORT}/{marker}");
    capture.take()?;
    let (typed, ran) = stage.in_pod("shop/web", &["xtask", "app", "get", &url])?;
    let seen = Seen::of(&capture.take()?, &marker);
    report.ran(&typed, &ran);
    report.shown(&tcpdump(stage)?, &seen.summary(), None);
    let answer = answer(&ran).unwrap_or(Value::Null);
    let arrived = answer["path"] == format!("/{marker}");
    report.fact(arrived, "the server received the word");
    let counts = (seen.tunnel_packets, seen.tunnel_bytes);
    report
        .fact(counts.0 > 0, format!("{} packets on port {TUNNEL_PORT} carried {} bytes", counts.0, counts.1));
    let is_tls = seen.tls_record.starts_with(&TLS_RECORD);
    report.fact(is_tls, "they carry TLS records of application data, which begin with 17 03 03");
    report.fact(seen.packets > 0 && seen.marker_packets == 0, "the word is in no packet");
    report.fact(seen.pod_port_packets == 0, format!("no packet goes from pod to pod on port {POD_PORT}"));
    report.value("meshed", seen.document());
    identities(stage, report, answer["client"].as_str().unwrap_or_default())
}

/// Who the two ends are, as the destination's agent verified it.
fn identities(stage: &Stage, report: &mut Report, client: &str) -> Result<()> {
    let lab = stage.lab()?;
    let agent = stage.agent("node-2")?;
    let record = record(agent, &format!("the call from {client}"), |record| {
        record.text("/source/address") == client && record.text("/path") == "tunnel"
    })?;
    let log = agent.access_log.display();
    report.shown(&format!("tail -n 1 {log}"), &record.line, None);
    for (end, pod) in [("source", "shop/web"), ("destination", "shop/orders-2")] {
        let account = &lab.pod(pod)?.service_account;
        let identity = record.text(&format!("/{end}/identity")).to_owned();
        let is_expected =
            identity.starts_with("spiffe://") && identity.ends_with(&format!("/ns/shop/sa/{account}"));
        report.fact(is_expected, format!("{end}: {identity}"));
        report.value(end, json!(identity));
    }
    let (version, exchange) = (record.text("/tls/version"), record.text("/tls/key_exchange"));
    report.fact(version == "TLSv1.3", format!("{version}, keys agreed on by {exchange}"));
    report.value("record", record.fields.clone());
    Ok(())
}

fn unmeshed(stage: &Stage, report: &mut Report, capture: &mut Capture) -> Result<()> {
    let marker = marker()?;
    let ip = stage.lab()?.pod("shop/orders-2")?.ips.first().context("orders-2 has no address")?.to_string();
    let url = format!("http://{ip}:{POD_PORT}/{marker}");
    capture.take()?;
    let (typed, ran) = stage.in_pod("outside/curl", &["xtask", "app", "get", &url])?;
    let seen = Seen::of(&capture.take()?, &marker);
    report.ran(&typed, &ran);
    report.shown(&tcpdump(stage)?, &seen.summary(), None);
    let text = format!(
        "in contrast, outside the mesh the word is read off the wire, in {} packets",
        seen.marker_packets
    );
    report.fact(seen.marker_packets > 0, text);
    report.value("unmeshed", seen.document());
    Ok(())
}

impl Seen {
    fn of(packets: &[Vec<u8>], marker: &str) -> Self {
        let mut seen = Self { packets: packets.len(), ..Self::default() };
        for packet in packets {
            let has_marker = contains(packet, marker.as_bytes());
            seen.marker_packets += usize::from(has_marker);
            let Some(segment) = Segment::parse(packet) else { continue };
            seen.pod_port_packets += usize::from(segment.has_port(POD_PORT));
            if segment.has_port(TUNNEL_PORT) {
                seen.tunnel_packets += 1;
                seen.tunnel_bytes += segment.payload.len();
                if seen.tls_record.is_empty() && segment.payload.starts_with(&TLS_RECORD) {
                    seen.tls_record = segment.payload.iter().take(24).copied().collect();
                }
            }
            if has_marker && seen.clear_line.is_empty() {
                let text = String::from_utf8_lossy(segment.payload);
                let line = text.lines().find(|line| line.contains(marker));
                seen.clear_line = line.unwrap_or_default().to_owned();
            }
        }
        seen
    }

    fn hex(&self) -> String {
        let bytes: Vec<String> = self.tls_record.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ")
    }

    fn summary(&self) -> String {
        let mut lines = vec![format!(
            "{} packets: {} on port {TUNNEL_PORT} with {} bytes, {} on port {POD_PORT}; with the word: {}",
            self.packets, self.tunnel_packets, self.tunnel_bytes, self.pod_port_packets, self.marker_packets
        )];
        if !self.tls_record.is_empty() {
            lines.push(format!("first record on port {TUNNEL_PORT}: {} ...", self.hex()));
        }
        if !self.clear_line.is_empty() {
            lines.push(format!("in the clear: {}", self.clear_line));
        }
        lines.join("\n")
    }

    fn document(&self) -> Value {
        json!({
            "packets": self.packets, "tunnelPackets": self.tunnel_packets, "tunnelBytes": self.tunnel_bytes,
            "podPortPackets": self.pod_port_packets, "packetsWithMarker": self.marker_packets,
            "tlsRecord": self.hex(), "clearLine": self.clear_line,
        })
    }
}

/// What a person would look with; the demo itself needs no tcpdump.
fn tcpdump(stage: &Stage) -> Result<String> {
    let netns = &stage.lab()?.node("node-1")?.netns;
    let name = netns.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("ip netns exec {name} tcpdump -nXi {LINK} tcp      # captured by the demo itself"))
}

/// A word that is nowhere else.
fn marker() -> Result<String> {
    let mut random = [0u8; 4];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(format!("weft-demo-{:08x}", u32::from_be_bytes(random)))
}
