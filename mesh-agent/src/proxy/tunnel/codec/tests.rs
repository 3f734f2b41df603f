//! Round trips, arbitrary splits, garbage, and every named refusal.

use proptest::prelude::*;

use super::*;

fn open(port: u16, trace: bool) -> Open {
    Open {
        destination: EndpointAddr::new(SocketAddr::new([10, 244, 2, 7].into(), port)),
        client: ClientAddr::new("[fd00::1:5]:43210".parse().unwrap()),
        dialled: OriginalDst::new("10.96.0.20:80".parse().unwrap()),
        protocol: Protocol::Http1,
        trace: trace.then_some(TraceContext { trace_id: [7; 16], parent_id: [9; 8], flags: 1 }),
    }
}

/// A frame as a test can own it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Frame {
    Data(Vec<u8>),
    Control(Event<'static>),
}

fn put(out: &mut Vec<u8>, frame: &Frame) {
    match frame {
        Frame::Data(bytes) => put_data(out, bytes),
        Frame::Control(Event::Open(open)) => put_open(out, open),
        Frame::Control(Event::Fin) => put_empty(out, Kind::Fin),
        Frame::Control(Event::Done) => put_empty(out, Kind::Done),
        Frame::Control(Event::Reset { reason, text }) => put_reset(out, *reason, text),
        Frame::Control(Event::Pause(position)) => put_position(out, Kind::Pause, position),
        Frame::Control(Event::Resume(position)) => put_position(out, Kind::Resume, position),
        Frame::Control(Event::Ping { ping, nonce }) => put_ping(out, *ping, *nonce),
        Frame::Control(Event::Data(_)) => unreachable!("data is owned"),
    }
}

/// Decodes pieces; neighbouring DATA is joined, since pieces of a frame are not told apart.
fn decode(pieces: &[&[u8]]) -> Result<(Vec<Frame>, bool), Malformed> {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let (used, event) = decoder.next(rest)?;
            assert!(used > 0 && used <= rest.len());
            rest = &rest[used..];
            match (event, frames.last_mut()) {
                (None, _) => {}
                (Some(Event::Data(bytes)), Some(Frame::Data(last))) => last.extend_from_slice(bytes),
                (Some(Event::Data(bytes)), _) => frames.push(Frame::Data(bytes.to_vec())),
                (Some(Event::Open(open)), _) => frames.push(Frame::Control(Event::Open(open))),
                (Some(Event::Fin), _) => frames.push(Frame::Control(Event::Fin)),
                (Some(Event::Done), _) => frames.push(Frame::Control(Event::Done)),
                (Some(Event::Reset { reason, text }), _) => {
                    frames.push(Frame::Control(Event::Reset { reason, text }));
                }
                (Some(Event::Pause(position)), _) => frames.push(Frame::Control(Event::Pause(position))),
                (Some(Event::Resume(position)), _) => frames.push(Frame::Control(Event::Resume(position))),
                (Some(Event::Ping { ping, nonce }), _) => {
                    frames.push(Frame::Control(Event::Ping { ping, nonce }));
                }
            }
        }
    }
    Ok((frames, decoder.at_boundary()))
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let position = (any::<[u8; 16]>(), any::<u64>(), any::<u64>()).prop_map(
        |(stream_id, sent_bytes, received_bytes)| Position { stream_id, sent_bytes, received_bytes },
    );
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..600).prop_map(Frame::Data),
        Just(Frame::Data(vec![5; PAYLOAD_BYTES_MAX])),
        (any::<u16>(), any::<bool>())
            .prop_map(|(port, trace)| Frame::Control(Event::Open(Box::new(open(port, trace))))),
        Just(Frame::Control(Event::Fin)),
        Just(Frame::Control(Event::Done)),
        (1u32..40, "[a-zé]{0,60}").prop_map(|(code, text)| {
            Frame::Control(Event::Reset { reason: ResetReason::from_code(code), text: text.into() })
        }),
        position.clone().prop_map(|position| Frame::Control(Event::Pause(position))),
        position.prop_map(|position| Frame::Control(Event::Resume(position))),
        (0..3_usize, any::<[u8; 8]>()).prop_map(|(index, nonce)| {
            let ping = [Ping::Question, Ping::Answer, Ping::Leaving][index];
            Frame::Control(Event::Ping { ping, nonce })
        }),
    ]
}

proptest! {
    #[test]
    fn frames_survive_any_split(
        frames in prop::collection::vec(any_frame(), 1..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut wire = Vec::new();
        let mut expected: Vec<Frame> = Vec::new();
        for frame in &frames {
            put(&mut wire, frame);
            match (frame, expected.last_mut()) {
                (Frame::Data(bytes), Some(Frame::Data(last))) => last.extend_from_slice(bytes),
                (frame, _) => expected.push(frame.clone()),
            }
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
        cuts.extend([0, wire.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
        prop_assert_eq!(decode(&pieces), Ok((expected, true)));
    }

    #[test]
    fn garbage_never_panics(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let _ = decode(&pieces);
    }

    /// Garbage that begins like a frame reaches further than plain garbage does.
    #[test]
    fn damaged_frames_never_panic(frame in any_frame(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut wire = Vec::new();
        put(&mut wire, &frame);
        let at = at.index(wire.len());
        wire[at] = value;
        let _ = decode(&[&wire]);
    }
}

#[test]
fn data_is_borrowed_from_the_input() {
    let mut wire = Vec::new();
    put_data(&mut wire, b"hello");
    let (used, event) = Decoder::default().next(&wire).unwrap();
    assert_eq!(used, wire.len());
    let Some(Event::Data(bytes)) = event else { panic!("{event:?}") };
    assert_eq!(bytes.as_ptr(), wire[HEADER_BYTES..].as_ptr());
}

#[test]
fn every_refusal_has_its_name() {
    let dialled = [3, 0, 6, 10, 0, 0, 1, 0, 80];
    let mut no_client = vec![1, 0, 0, 0, 0, 0, 0, 18, 1, 0, 6, 10, 0, 0, 1, 0, 80];
    no_client.extend_from_slice(&dialled);
    let mut twice = vec![1, 0, 0, 0, 0, 0, 0, 18];
    twice.extend_from_slice(&[dialled, dialled].concat());
    let table: [(&[u8], Malformed); 14] = [
        (&[0, 0, 0, 0, 0, 0, 0, 0], Malformed::UnknownType(0)),
        (&[9, 0, 0, 0, 0, 0, 0, 0], Malformed::UnknownType(9)),
        (&[2, 1, 0, 0, 0, 0, 0, 1], Malformed::Flags { kind: Kind::Data, flags: 1 }),
        (&[8, 3, 0, 0, 0, 0, 0, 8], Malformed::Flags { kind: Kind::Ping, flags: 3 }),
        (&[2, 0, 1, 2, 0, 0, 0, 1], Malformed::Reserved(0x0102)),
        (&[2, 0, 0, 0, 0, 0, 0x3f, 0xf9], Malformed::TooLong(16377)),
        (&[2, 0, 0, 0, 0, 0, 0, 0], Malformed::Length { kind: Kind::Data, length: 0 }),
        (&[3, 0, 0, 0, 0, 0, 0, 1], Malformed::Length { kind: Kind::Fin, length: 1 }),
        (&[4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0xff], Malformed::Text),
        (&[1, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0, 1, 0], Malformed::UnknownField(0x7f)),
        (&[1, 0, 0, 0, 0, 0, 0, 4, 1, 0, 9, 0], Malformed::FieldLength(1)),
        (&[1, 0, 0, 0, 0, 0, 0, 4, 0x80, 0, 1, 0], Malformed::FieldLength(0x80)),
        (&no_client, Malformed::Missing("client")),
        (&twice, Malformed::Twice(3)),
    ];
    for (wire, expected) in table {
        assert_eq!(decode(&[wire]), Err(expected), "{wire:?}");
    }
}

#[test]
fn a_field_that_may_be_skipped_is_skipped() {
    let mut wire = Vec::new();
    put_open(&mut wire, &open(80, false));
    wire.extend_from_slice(&[0xfe, 0, 2, 1, 2]);
    wire[7] += 5;
    assert_eq!(decode(&[&wire]), Ok((vec![Frame::Control(Event::Open(Box::new(open(80, false))))], true)));
}

#[test]
fn reset_text_is_cut_at_a_character() {
    let mut wire = Vec::new();
    put_reset(&mut wire, ResetReason::Protocol, &"é".repeat(200));
    let (frames, _) = decode(&[&wire]).unwrap();
    let [Frame::Control(Event::Reset { text, .. })] = frames.as_slice() else { panic!("{frames:?}") };
    assert_eq!(text.len(), 254);
}
