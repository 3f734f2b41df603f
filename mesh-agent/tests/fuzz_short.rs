//! A short run of every fuzz target (`mesh-agent/fuzz`): a few thousand inputs each, made from good ones by seeded
//! mutation, so that the same inputs are tried each time. The long runs are `cargo xtask fuzz`.

use std::panic::{AssertUnwindSafe, catch_unwind};

#[path = "../fuzz/promises/judgement.rs"]
mod judgement;
#[path = "../fuzz/promises/paths.rs"]
mod paths;
#[path = "../fuzz/promises/routing.rs"]
mod routing;
#[path = "../fuzz/promises/sniffing.rs"]
mod sniffing;
#[path = "../fuzz/promises/tunnel.rs"]
mod tunnel;

/// Inputs of each target.
const INPUTS: usize = 5000;

/// Runs a promise on mutations of good inputs; `words` are put in now and then.
#[track_caller]
fn run(seed: u64, corpus: &[&[u8]], words: &[&[u8]], check: fn(&[u8])) {
    let mut random = fastrand::Rng::with_seed(seed);
    for input in corpus {
        check(input);
    }
    for number in 0..INPUTS {
        let mut input = corpus[random.usize(..corpus.len())].to_vec();
        for _ in 0..random.usize(1..8) {
            mutate(&mut input, corpus, words, &mut random);
        }
        let kept = catch_unwind(AssertUnwindSafe(|| check(&input)));
        assert!(
            kept.is_ok(),
            "input {number} of seed {seed} breaks a promise: b\"{}\"",
            input.escape_ascii()
        );
    }
}

fn mutate(input: &mut Vec<u8>, corpus: &[&[u8]], words: &[&[u8]], random: &mut fastrand::Rng) {
    let at = random.usize(..=input.len());
    match random.u8(..7) {
        0 if at < input.len() => input[at] = random.u8(..),
        1 if at < input.len() => input[at] ^= 1 << random.u8(..8),
        2 => {
            let end = random.usize(at..=input.len());
            input.drain(at..end);
        }
        3 => {
            let end = random.usize(at..=input.len());
            let again = input[at..end].to_vec();
            input.splice(at..at, again);
        }
        4 if !words.is_empty() => {
            let word = words[random.usize(..words.len())];
            input.splice(at..at, word.iter().copied());
        }
        5 => {
            let other = corpus[random.usize(..corpus.len())];
            let from = random.usize(..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input.insert(at, random.u8(..)),
    }
    // Doubling doubles on; what is long says nothing new.
    input.truncate(20_000);
}

#[test]
fn sniffing_keeps_its_promises() {
    let long = [b"GET /", &[b'a'; 9000][..]].concat();
    let corpus: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nOPTIONS * HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01],
        b"SSH-2.0-OpenSSH\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        &long,
    ];
    let words: &[&[u8]] =
        &[b"GET ", b" HTTP/1.1\r\n", b"\r\n", b"\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b" ", b"\0"];
    run(1, corpus, words, sniffing::check);
}

/// Pieces of targets that servers read in different ways.
const WORDS: &[&[u8]] = &[
    b"/",
    b"//",
    b"/./",
    b"/../",
    b"..",
    b"%2e",
    b"%2E%2e",
    b"%2f",
    b"%5c",
    b"\\",
    b";",
    b";x=y",
    b"%25",
    b"%252f",
    b"%00",
    b"%",
    b"?",
    b"#",
    b"/admin",
    b"/public",
    b"%61dmin",
    b"http://a",
    b"*",
    b"%c0%af",
    b"\xc3\xa9",
    b"\n",
    b"\nDELETE\n",
];

const TARGETS: &[&[u8]] = &[
    b"/",
    b"/admin",
    b"/public/x?q=1",
    b"/public/../admin",
    b"/public/%2e%2e/admin",
    b"/a/b;c/d%20e",
    b"*",
    b"http://host.example/admin/x",
    b"host:443\nCONNECT",
    b"/admin/x\nPOST\nvalue",
];

#[test]
fn paths_keep_their_promises() {
    run(2, TARGETS, WORDS, paths::check);
}

#[test]
fn judgement_keeps_its_promises() {
    run(3, TARGETS, WORDS, judgement::check);
}

#[test]
fn routing_keeps_its_promises() {
    let mut random = fastrand::Rng::with_seed(4);
    let made: Vec<Vec<u8>> = (0..200).map(|length| (0..length).map(|_| random.u8(..)).collect()).collect();
    let corpus: Vec<&[u8]> = made.iter().map(Vec::as_slice).collect();
    run(4, &corpus, &[], routing::check);
}

#[test]
fn tunnel_frames_keep_their_promises() {
    let mut random = fastrand::Rng::with_seed(5);
    let made: Vec<Vec<u8>> = (0..128)
        .map(|number: u8| {
            // How it is cut, then frames: type, flags, reserved, length, payload (docs/tunnel.md).
            let mut bytes = vec![1 + number % 9];
            for _ in 0..=number % 4 {
                let length = random.u8(..40);
                bytes.extend([random.u8(1..9), 0, 0, 0, 0, 0, 0, length]);
                bytes.extend((0..length).map(|_| random.u8(..)));
            }
            bytes
        })
        .collect();
    let corpus: Vec<&[u8]> = made.iter().map(Vec::as_slice).collect();
    run(5, &corpus, &[], tunnel::check);
}
