//! Arbitrary bytes as weft/1: never a panic, never more consumed than given, and the cuts change nothing.

use mesh_agent::proxy::tunnel::{Decoder, Event, Malformed, Role, Session};

/// What a decoder said, with neighbouring DATA joined: where a frame is cut must not show.
#[derive(Debug, PartialEq, Default)]
struct Heard {
    events: Vec<String>,
    data: Vec<u8>,
    fault: Option<Malformed>,
}

fn hear<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Heard {
    let (mut decoder, mut heard) = (Decoder::default(), Heard::default());
    let mut session = Session::new(Role::Acceptor);
    for mut rest in pieces {
        while !rest.is_empty() {
            match decoder.next(rest) {
                Ok((used, event)) => {
                    assert!(used > 0 && used <= rest.len());
                    rest = &rest[used..];
                    if let Some(event) = &event {
                        let _ = session.receive(event.kind());
                    }
                    match event {
                        Some(Event::Data(bytes)) => heard.data.extend_from_slice(bytes),
                        Some(other) => heard.events.push(format!("{} {other:?}", heard.data.len())),
                        None => {}
                    }
                }
                Err(fault) => {
                    heard.fault = Some(fault);
                    return heard;
                }
            }
        }
    }
    heard
}

/// The first byte says how the others are cut.
///
/// # Panics
/// A promise is broken.
pub(crate) fn check(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let whole = hear(std::iter::once(bytes));
    let pieces = hear(bytes.chunks(usize::from(*cut).max(1)));
    assert_eq!(whole, pieces);
}
