//! Which contexts are valid, and what the server gets to see.

use super::*;

const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn context() -> TraceContext {
    TraceContext {
        trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes(),
        span_id: 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes(),
        sampled: true,
    }
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_str(value).expect("a header value"));
    }
    headers
}

#[test]
fn valid_traceparents_are_read() {
    let unsampled = TraceContext { sampled: false, ..context() };
    let later = |version_and_tail: (&str, &str)| {
        format!("{}{}{}", version_and_tail.0, &VALID[2..], version_and_tail.1)
    };
    for (text, expected) in [
        (VALID.to_owned(), context()),
        (VALID.replace("-01", "-00"), unsampled),
        // Flags of later levels are passed over.
        (VALID.replace("-01", "-03"), context()),
        (VALID.replace("-01", "-fe"), unsampled),
        // Later versions keep what version 00 has, and may have more behind a dash.
        (later(("01", "")), context()),
        (later(("fe", "-what-the-future-brings")), context()),
        (later(("cc", "-")), context()),
    ] {
        assert_eq!(TraceContext::parse(text.as_bytes()), Some(expected), "{text}");
    }
}

#[test]
fn invalid_traceparents_are_refused() {
    let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
    let zero_span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
    for text in [
        "",
        "00",
        &VALID[..54],
        // Version 00 has nothing behind its flags.
        &format!("{VALID}-"),
        &format!("{VALID}-00"),
        &format!("{VALID} "),
        &format!(" {VALID}"),
        // Later versions only behind a dash.
        &format!("01{}.", &VALID[2..]),
        &format!("01{}0", &VALID[2..]),
        &format!("ff{}", &VALID[2..]),
        &format!("0x{}", &VALID[2..]),
        &VALID.to_uppercase(),
        &VALID.replace("4bf9", "4BF9"),
        &VALID.replace("4bf9", "4bg9"),
        &VALID.replace("-01", "-0g"),
        &VALID.replace("-01", "_01"),
        &VALID.replace("-00f0", "_00f0"),
        &VALID.replace("00-4", "00_4"),
        &zero_trace,
        &zero_span,
    ] {
        assert_eq!(TraceContext::parse(text.as_bytes()), None, "{text:?}");
    }
}

#[test]
fn one_changed_byte_is_refused_or_read_as_what_it_says() {
    for at in 0..VALID.len() {
        for byte in 0..=u8::MAX {
            let mut text = VALID.as_bytes().to_vec();
            text[at] = byte;
            let Some(read) = TraceContext::parse(&text) else { continue };
            // Of what is read, ids are written back as they stood.
            let written = read.to_header();
            assert_eq!(written.as_bytes()[3..52], text[3..52], "{}", text.escape_ascii());
            assert!(text[0..2] != *b"ff" && text.iter().all(u8::is_ascii));
        }
    }
}

#[test]
fn written_context_is_read_back() {
    let mut rng = Rng::with_seed(7);
    assert_eq!(context().to_header(), VALID);
    for _ in 0..1000 {
        let sampled = rng.bool();
        let context = TraceContext::generate(&mut rng, sampled);
        assert_eq!(TraceContext::parse(context.to_header().as_bytes()), Some(context));
        let child = context.child(&mut rng);
        assert_eq!((child.trace_id, child.sampled), (context.trace_id, sampled));
        assert_ne!(child.span_id, context.span_id);
    }
}

#[test]
fn valid_context_goes_on_as_it_came() {
    for traceparent in [VALID, &VALID.replace("-01", "-02"), &format!("cc{}-more", &VALID[2..])] {
        let before =
            headers(&[("traceparent", traceparent), ("tracestate", "a=1,b=2"), ("tracestate", "c=3")]);
        let mut after = before.clone();
        let carried = TraceContext::carry(&mut after, Sampling::ALWAYS, &mut Rng::with_seed(1));
        assert_eq!(carried, TraceContext::parse(traceparent.as_bytes()));
        assert_eq!(after, before);
    }
}

#[test]
fn invalid_context_is_dropped_with_its_state() {
    let malformed = VALID.to_uppercase();
    for lines in [
        &[("traceparent", malformed.as_str()), ("tracestate", "a=1")][..],
        &[("traceparent", VALID), ("traceparent", VALID), ("tracestate", "a=1")],
        &[("tracestate", "a=1"), ("tracestate", "b=2")],
    ] {
        let mut after = headers(lines);
        assert_eq!(TraceContext::carry(&mut after, Sampling::NEVER, &mut Rng::with_seed(1)), None);
        assert!(after.is_empty(), "{after:?}");

        let mut after = headers(lines);
        let begun = TraceContext::carry(&mut after, Sampling::ALWAYS, &mut Rng::with_seed(1));
        let begun = begun.expect("sampling says so");
        assert!(begun.sampled && begun.trace_id != context().trace_id);
        assert_eq!(TraceContext::of(&after), Some(begun));
        assert_eq!(after.len(), 1, "{after:?}");
    }
}

#[test]
fn requests_without_a_trace_begin_one_as_often_as_sampling_says() {
    let mut rng = Rng::with_seed(42);
    let mut begun = |per_10_000: u16| {
        let sampling = Sampling { per_10_000 };
        let carried = |_: &usize| TraceContext::carry(&mut HeaderMap::new(), sampling, &mut rng).is_some();
        (0..20_000).filter(carried).count()
    };
    assert_eq!(begun(0), 0);
    assert_eq!(begun(10_000), 20_000);
    assert_eq!(begun(u16::MAX), 20_000);
    // 2,000 expected; 300 are seven standard deviations.
    assert!((1_700..2_300).contains(&begun(1_000)));
}

#[test]
fn sampling_is_what_the_mesh_is_configured_with() {
    let config = MeshConfig { trace_sampling_permyriad: 7, ..MeshConfig::default() };
    assert_eq!(Sampling::of(&config), Sampling { per_10_000: 7 });
    assert_eq!(Sampling::of(&MeshConfig::default()), Sampling::NEVER);
}
