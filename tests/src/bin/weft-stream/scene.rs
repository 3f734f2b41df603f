//! What the two ends of a connection do, by mode: each function is one end's part, side by side with the other's.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use nix::poll::PollFlags;
use socket2::SockRef;

use crate::order::{HEADER_BYTES, Mode, Order};
use crate::patient::{Patient, prepare, wait};
use crate::reader::Reader;
use crate::report::{Report, error_name, now, sleep};
use crate::writer::{Writer, piece_length};
use crate::{dial, pattern};

/// A writer that could write nothing for this long counts as blocked.
const BLOCKED_AFTER: Duration = Duration::from_millis(300);

/// An end's place in a connection.
struct End<'a> {
    stream: &'a TcpStream,
    order: &'a Order,
    report: &'a mut Report,
    /// Seed and length of what this end sends, and of what comes.
    out: (u64, u64),
    into: (u64, u64),
    /// Bytes between the streams' bytes, by which the ends wait for each other.
    said: u64,
    heard: u64,
}

/// Connects and plays the client.
pub fn client(target: SocketAddr, order: &Order) -> Report {
    let mut report = Report::new(&order.id, "client");
    let stream = match dial::dial(target, order) {
        Ok(stream) => stream,
        Err(error) => {
            report.fail("connect", &error);
            return report;
        }
    };
    note_addresses(&stream, &mut report);
    let started = now();
    let out = (order.up_seed(), order.up);
    let into = (order.down_seed(), order.down);
    let mut end = End { stream: &stream, order, report: &mut report, out, into, said: 0, heard: 0 };
    match order.mode {
        Mode::Duplex => end.write_and_read(),
        Mode::Slow => end.write_to_sleeper(),
        Mode::HalfClient => end.write_then_read(),
        Mode::HalfServer => end.read_then_write(),
        Mode::ResetClient => end.write_then_reset(stream.try_clone()),
        Mode::ResetServer | Mode::UnreadServer => end.write_then_look(),
        Mode::UnreadClient => end.read_half_then_close(),
        Mode::NeverRead => end.write_until_refused(),
        Mode::PingPong => end.call_and_hear(),
        Mode::Pending => end.call_and_count(),
        Mode::Churn => end.report.error = Some("churn is not one connection".to_owned()),
    }
    let (said, heard) = (end.said, end.heard);
    drop(stream);
    report.written += said + HEADER_BYTES as u64;
    report.read += heard;
    report.seconds = started.elapsed().as_secs_f64();
    report
}

/// Plays the server on an accepted connection whose header has been read.
pub fn server(stream: TcpStream, order: &Order) -> Report {
    let mut report = Report::new(&order.id, "server");
    note_addresses(&stream, &mut report);
    let started = now();
    if let Err(error) = prepare(&stream, order) {
        report.fail("prepare", &error);
        return report;
    }
    let out = (order.down_seed(), order.down);
    let into = (order.up_seed(), order.up);
    let mut end = End { stream: &stream, order, report: &mut report, out, into, said: 0, heard: 0 };
    match order.mode {
        Mode::Duplex => end.write_and_read(),
        Mode::Slow => end.sleep_then_read(),
        Mode::HalfClient => end.read_then_write(),
        Mode::HalfServer => end.write_then_read(),
        Mode::ResetClient | Mode::UnreadClient => end.read_or_write_then_look(),
        Mode::ResetServer => end.read_then_reset(),
        Mode::UnreadServer => end.read_half_then_close(),
        Mode::NeverRead => sleep(order.hold),
        Mode::PingPong => end.echo(),
        Mode::Pending => end.count_and_answer(),
        Mode::Churn => {}
    }
    let (said, heard) = (end.said, end.heard);
    drop(stream);
    report.written += said;
    report.read += heard + HEADER_BYTES as u64;
    report.seconds = started.elapsed().as_secs_f64();
    report
}

fn note_addresses(stream: &TcpStream, report: &mut Report) {
    report.local = stream.local_addr().ok().map(|address| address.to_string());
    report.peer = stream.peer_addr().ok().map(|address| address.to_string());
}

impl<'a> End<'a> {
    /// Both directions at once.
    fn write_and_read(&mut self) {
        let (stream, order, (seed, total)) = (self.stream, self.order, self.out);
        thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let mut writer = Writer::new(stream, order, seed);
                let done = writer.run(total).and_then(|()| stream.shutdown(Shutdown::Write));
                (writer.written, writer.completions, done)
            });
            self.read_all();
            let (written, completions, done) = writing.join().expect("the writer does not panic");
            self.report.written += written;
            self.report.completions = completions;
            if let Err(error) = done {
                self.report.fail("write", &error);
            }
        });
    }

    fn write_then_read(&mut self) {
        self.write_all();
        self.finish();
        self.read_all();
    }

    fn read_then_write(&mut self) {
        self.read_all();
        self.write_all();
        self.finish();
    }

    /// The reader sleeps; what fits before the writer is blocked is noted, then everything goes through.
    fn write_to_sleeper(&mut self) {
        let mut writer = Writer::new(self.stream, self.order, self.out.0);
        let done = writer.run_until_blocked(self.out.1, BLOCKED_AFTER);
        self.report.blocked_at = (writer.written < self.out.1).then_some(writer.written);
        let done = done.and_then(|()| writer.run(self.out.1));
        self.report.written += writer.written;
        self.note("write", done);
        self.finish();
        self.read_all();
    }

    fn sleep_then_read(&mut self) {
        sleep(self.order.hold);
        self.read_then_write();
    }

    /// Writes all, waits for one byte that says that all is read, and resets.
    fn write_then_reset(&mut self, stream: io::Result<TcpStream>) {
        self.write_all();
        let heard = self.hear();
        self.note("hear", heard);
        let reset = stream.and_then(|stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
        self.note("linger", reset);
    }

    /// The other end of both ways in which the *client* ends abruptly.
    fn read_or_write_then_look(&mut self) {
        if self.order.mode == Mode::ResetClient {
            self.read_to(self.into.1);
            self.say();
        } else {
            self.write_all();
            self.say();
        }
        self.look();
    }

    fn read_then_reset(&mut self) {
        self.read_to(self.into.1);
        self.say();
        // The client has the byte when it says so.
        let heard = self.hear();
        self.note("hear", heard);
        let reset = SockRef::from(self.stream).set_linger(Some(Duration::ZERO));
        self.note("linger", reset);
    }

    /// The other end of both ways in which the *server* ends abruptly.
    fn write_then_look(&mut self) {
        self.write_all();
        if self.order.mode == Mode::ResetServer {
            let heard = self.hear();
            self.note("hear", heard);
            self.say();
        }
        self.look();
    }

    /// Reads half; when the rest is surely here, closes.
    fn read_half_then_close(&mut self) {
        self.read_to(self.into.1 / 2);
        sleep(Duration::from_millis(100));
    }

    /// What an abrupt ending looks like here: waits for it, and tries to read past it.
    fn look(&mut self) {
        let mut byte = [0; 1];
        self.report.saw = Some(match self.patient().read(&mut byte) {
            Ok(0) => "end".to_owned(),
            Ok(_) => "a byte".to_owned(),
            Err(error) => error_name(&error),
        });
    }

    /// Writes to one that never reads, until it is refused.
    fn write_until_refused(&mut self) {
        let mut writer = Writer::new(self.stream, self.order, self.out.0);
        let done = writer.run(u64::MAX);
        self.report.written += writer.written;
        self.report.saw = done.err().map(|error| error_name(&error));
    }

    /// Random messages and their echo.
    fn call_and_hear(&mut self) {
        let mut random = Rng::with_seed(self.out.0);
        let mut offset = 0;
        let mut buffer = Vec::new();
        let mut scratch = Vec::new();
        for _ in 0..self.order.count {
            buffer.resize(piece_length(&mut random, self.order.chunk_max, u64::MAX), 0);
            pattern::fill(self.out.0, offset, &mut buffer);
            let mut stream = self.patient();
            let done = stream.write_all(&buffer).and_then(|()| stream.read_exact(&mut buffer));
            if done.is_err() {
                return self.note("exchange", done);
            }
            let wrong = pattern::first_mismatch(self.out.0, offset, &buffer, &mut scratch);
            self.report.mismatch = self.report.mismatch.or(wrong);
            offset += buffer.len() as u64;
            self.report.written += buffer.len() as u64;
            self.report.read += buffer.len() as u64;
        }
    }

    fn echo(&mut self) {
        let mut stream = self.patient();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    self.report.read += count as u64;
                    if let Err(error) = stream.write_all(&buffer[..count]) {
                        return self.report.fail("echo", &error);
                    }
                    self.report.written += count as u64;
                }
                Err(error) => return self.report.fail("echo", &error),
            }
        }
    }

    /// Sends messages whose lengths the other end knows too; each is acknowledged with one byte.
    fn call_and_count(&mut self) {
        for _ in 0..self.order.count {
            let length = self.next_length();
            let mut message = vec![0; length];
            pattern::fill(self.out.0, self.report.written, &mut message);
            let mut stream = self.patient();
            if let Err(error) = stream.write_all(&message) {
                return self.report.fail("write", &error);
            }
            self.report.written += length as u64;
            let heard = self.hear();
            if heard.is_err() {
                return self.note("hear", heard);
            }
        }
    }

    fn count_and_answer(&mut self) {
        for _ in 0..self.order.count {
            // The sender draws from the bytes' seed as well.
            let length = message_length(self.into.0, self.report.read);
            if let Err(error) = await_pending(self.stream, length) {
                return self.report.fail("FIONREAD", &error);
            }
            self.read_to(self.report.read + length as u64);
            self.say();
            if self.report.error.is_some() {
                return;
            }
        }
    }

    fn next_length(&self) -> usize {
        message_length(self.out.0, self.report.written)
    }

    fn write_all(&mut self) {
        let mut writer = Writer::new(self.stream, self.order, self.out.0);
        let done = writer.run(self.out.1);
        self.report.written += writer.written;
        self.report.completions = writer.completions;
        self.note("write", done);
    }

    fn finish(&mut self) {
        let done = self.stream.shutdown(Shutdown::Write);
        self.note("shutdown", done);
    }

    fn read_all(&mut self) {
        let total = self.into.1;
        self.read_with(|reader| reader.run(total));
    }

    fn read_to(&mut self, total: u64) {
        self.read_with(|reader| reader.run_to(total));
    }

    fn read_with(&mut self, run: impl FnOnce(&mut Reader<'_>) -> io::Result<()>) {
        let mut reader = match Reader::new(self.stream, self.order, self.into.0) {
            Ok(reader) => reader,
            Err(error) => return self.report.fail("read", &error),
        };
        reader.skip(self.report.read);
        let before = reader.read;
        let done = run(&mut reader);
        self.report.read += reader.read - before;
        self.report.mismatch = self.report.mismatch.or(reader.mismatch);
        self.note("read", done);
    }

    /// One byte, to let the other end go on.
    fn say(&mut self) {
        let mut stream = self.patient();
        let done = stream.write_all(&[1]);
        self.said += u64::from(done.is_ok());
        self.note("say", done);
    }

    fn hear(&mut self) -> io::Result<()> {
        let mut stream = self.patient();
        stream.read_exact(&mut [0])?;
        self.heard += 1;
        Ok(())
    }

    fn patient(&self) -> Patient<'a> {
        Patient::new(self.stream, self.order)
    }

    fn note(&mut self, doing: &str, done: io::Result<()>) {
        if let Err(error) = done {
            self.report.fail(doing, &error);
        }
    }
}

/// The length of the message at `offset`; both ends know it.
fn message_length(seed: u64, offset: u64) -> usize {
    piece_length(&mut Rng::with_seed(seed ^ offset), 16 << 10, u64::MAX)
}

/// Waits until FIONREAD tells `length`; a little too little is normal while segments arrive, for good it is not.
fn await_pending(stream: &TcpStream, length: usize) -> io::Result<()> {
    let limit = now() + Duration::from_secs(2);
    loop {
        wait(stream, PollFlags::POLLIN, Duration::from_secs(2))?;
        let pending = rustix::io::ioctl_fionread(stream)?;
        if pending == length as u64 {
            return Ok(());
        }
        if pending > length as u64 || now() > limit {
            return Err(io::Error::other(format!("FIONREAD tells {pending} where {length} bytes wait")));
        }
        thread::yield_now();
    }
}
