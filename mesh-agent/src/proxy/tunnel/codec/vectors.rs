//! `docs/tunnel.md` and the code say the same: vectors, reasons, limits.

use super::*;
use crate::proxy::tunnel::{ALPN, PORT};

const DOC: &str = include_str!("../../../../../docs/tunnel.md");

fn vectors() -> Vec<(&'static str, Vec<u8>)> {
    let mut open = Open {
        destination: EndpointAddr::new("10.244.2.7:8080".parse().unwrap()),
        client: ClientAddr::new("[fd00::1:5]:43210".parse().unwrap()),
        dialled: OriginalDst::new("10.96.0.20:80".parse().unwrap()),
        protocol: Protocol::Http1,
        trace: None,
    };
    let position =
        Position { stream_id: std::array::from_fn(|at| at as u8), sent_bytes: 1000, received_bytes: 2000 };
    let nonce = [1, 2, 3, 4, 5, 6, 7, 8];
    let frame = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        out
    };
    let plain_open = frame(&|out| put_open(out, &open));
    open.trace = Some(TraceContext { trace_id: [7; 16], parent_id: [9; 8], flags: 1 });
    vec![
        ("OPEN", plain_open),
        ("OPEN with trace context", frame(&|out| put_open(out, &open))),
        ("DATA \"ping\"", frame(&|out| put_data(out, b"ping"))),
        ("FIN", frame(&|out| put_empty(out, Kind::Fin))),
        ("RESET connect_refused", frame(&|out| put_reset(out, ResetReason::ConnectRefused, ""))),
        ("RESET application \"gone\"", frame(&|out| put_reset(out, ResetReason::Application, "gone"))),
        ("DONE", frame(&|out| put_empty(out, Kind::Done))),
        ("PAUSE", frame(&|out| put_position(out, Kind::Pause, &position))),
        ("RESUME", frame(&|out| put_position(out, Kind::Resume, &position))),
        ("PING", frame(&|out| put_ping(out, Ping::Question, nonce))),
        ("PING answer", frame(&|out| put_ping(out, Ping::Answer, nonce))),
        ("PING leaving", frame(&|out| put_ping(out, Ping::Leaving, nonce))),
    ]
}

/// The rows of the table under a heading, cells trimmed.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let section =
        DOC.split("\n## ").find(|section| section.starts_with(heading)).expect("the section exists");
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn vectors_are_those_of_the_specification() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let ours: Vec<_> =
        vectors().iter().map(|(name, bytes)| vec![(*name).to_owned(), format!("`{}`", hex(bytes))]).collect();
    assert_eq!(table("8. Test vectors"), ours);
}

#[test]
fn vectors_decode_to_one_frame_each() {
    for (name, bytes) in vectors() {
        let mut decoder = Decoder::default();
        let (used, event) = decoder.next(&bytes).unwrap();
        assert_eq!((used, decoder.at_boundary()), (bytes.len(), true), "{name}");
        assert_eq!(event.unwrap().kind() as u8, bytes[0], "{name}");
    }
}

#[test]
fn reasons_and_frame_types_are_those_of_the_specification() {
    let reasons: Vec<_> =
        table("5. Reasons").iter().map(|row| (row[0].parse::<u32>().unwrap(), row[1])).collect();
    assert_eq!(reasons, RESET_REASONS.map(|(_, code, name)| (code, name)));
    let mut types = 0;
    for row in table("2. Frames") {
        // The drawing of the header is no row.
        let Ok(value) = row[0].parse() else { continue };
        let kind = Kind::from_wire(value).expect("a known type");
        assert_eq!(format!("{kind:?}").to_uppercase(), row[1]);
        types += 1;
    }
    assert_eq!(types, 8);
}

#[test]
fn numbers_are_those_of_the_specification() {
    assert!(DOC.contains(&format!("payload of a frame | {PAYLOAD_BYTES_MAX} bytes")));
    assert!(DOC.contains(&format!("text of RESET | {RESET_TEXT_BYTES_MAX} bytes")));
    assert!(DOC.contains(&format!("ALPN `{}`", String::from_utf8_lossy(ALPN))));
    assert!(DOC.contains(&format!("TCP to port {PORT}")));
    let settings = crate::proxy::Settings::default();
    assert!(DOC.contains(&format!("per pair of pods and worker | {}", settings.idle_tunnels_per_pair_max)));
    assert!(DOC.contains(&format!("idle time at the opener | {} s", settings.idle_tunnel_max.as_secs())));
}
