//! Many short connections, several at once: each sends a few messages, checks their echo, and closes, one end first or
//! the other.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use crate::order::{HEADER_BYTES, Order};
use crate::patient::{Patient, prepare};
use crate::report::{Report, error_name, now};
use crate::writer::piece_length;
use crate::{dial, pattern};

/// The longest message of a short connection, in bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Exchanges of one connection: enough for a connection to be worth something.
const TURNS: u64 = 6;

/// Runs all connections.
pub fn client(target: SocketAddr, order: &Order) -> Report {
    let started = now();
    let next = AtomicU32::new(0);
    let bytes = AtomicU64::new(0);
    let mut report = Report::new(&order.id, "client");
    let outcomes: Vec<(u32, Option<String>)> = thread::scope(|scope| {
        let worker = || {
            let mut good = 0;
            let mut first_error = None;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= order.count {
                    return (good, first_error);
                }
                match one(target, order, number) {
                    Ok(count) => {
                        good += 1;
                        bytes.fetch_add(count, Ordering::Relaxed);
                    }
                    Err(error) => {
                        first_error
                            .get_or_insert_with(|| format!("connection {number}: {}", error_name(&error)));
                    }
                }
            }
        };
        let workers: Vec<_> = (0..order.at_once).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect()
    });
    for (good, error) in outcomes {
        report.connections += good;
        report.error = report.error.or(error);
    }
    let bytes = bytes.into_inner();
    report.read = bytes;
    report.written = bytes + u64::from(report.connections) * HEADER_BYTES as u64;
    report.seconds = started.elapsed().as_secs_f64();
    report
}

/// One connection; how many bytes went each way.
fn one(target: SocketAddr, order: &Order, number: u32) -> io::Result<u64> {
    let seed = order.seed.wrapping_add(u64::from(number));
    let mut message = vec![0; piece_length(&mut fastrand::Rng::with_seed(seed), MESSAGE_BYTES_MAX, u64::MAX)];
    pattern::fill(seed, 0, &mut message);
    let stream = dial::dial(target, order)?;
    let raw = &stream;
    let mut stream = Patient::new(raw, order);
    stream.write_all(&message)?;
    let mut echo = vec![0; message.len()];
    for turn in 1.. {
        if turn == TURNS && number.is_multiple_of(2) {
            // The client finishes first.
            raw.shutdown(Shutdown::Write)?;
        }
        stream.read_exact(&mut echo)?;
        if echo != message {
            return Err(io::Error::other("the echo is not what was sent"));
        }
        if turn == TURNS {
            break;
        }
        stream.write_all(&message)?;
    }
    if number.is_multiple_of(2) && stream.read(&mut [0])? != 0 {
        return Err(io::Error::other("something follows the echo"));
    }
    Ok(message.len() as u64 * TURNS)
}

/// Echoes until the client has finished.
pub fn server(stream: TcpStream, order: &Order) {
    if prepare(&stream, order).is_err() {
        return;
    }
    let mut stream = Patient::new(&stream, order);
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
