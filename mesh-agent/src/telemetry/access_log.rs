//! Where access records go: a thread of its own that writes them in batches.
//!
//! The data path only ever tries to put a record into a bounded queue. When the disk stands still the queue fills,
//! further records are dropped and counted, and connections go on. The file is opened anew when somebody moved it away
//! (another inode stands at its path, or none) and on request (SIGHUP), so any log rotation works.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::{AccessRecord, Error, RequestRecord};

/// How long records gather once some have been written. A writer that waits is woken by every record, which costs the worker
/// a system call and often a switch of threads; one that sleeps is not.
const BATCH_EVERY: Duration = Duration::from_millis(20);

/// Most records written with one system call: about 400 KiB of text, and the longest that a rotation goes unnoticed.
const BATCH_LEN_MAX: usize = 512;

/// Where access records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to this file; created with mode 0640.
    File(PathBuf),
}

/// The near end of the queue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<Message>>,
    dropped: Counter,
}

#[derive(Debug)]
enum Message {
    Connection(Box<AccessRecord>),
    Request(Box<RequestRecord>),
    Reopen,
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Opens the sink and starts the writer. The thread ends, with everything written, when the last clone is dropped.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or the thread not be started.
    pub fn start(sink: &Sink, queue_len_max: usize, dropped: Counter) -> Result<Self, Error> {
        let target = match sink {
            Sink::Off => return Ok(Self { queue: None, dropped }),
            Sink::Stdout => Target::Stdout,
            Sink::File(path) => {
                let file = open(path).map_err(|source| Error::AccessLog { path: path.clone(), source })?;
                Target::File { path: path.clone(), file }
            }
        };
        let (sender, receiver) = mpsc::sync_channel(queue_len_max);
        let writer =
            Writer { target, dropped: dropped.clone(), batch: Vec::new(), torn: false, failing: false };
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(Error::Thread)?;
        Ok(Self { queue: Some(sender), dropped })
    }

    /// Whether records go anywhere.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a connection's record, or drops and counts it. Never blocks.
    pub fn record(&self, record: AccessRecord) {
        self.queue_or_drop(|| Message::Connection(Box::new(record)));
    }

    /// Queues a request's record, or drops and counts it. Never blocks.
    pub fn record_request(&self, record: RequestRecord) {
        self.queue_or_drop(|| Message::Request(Box::new(record)));
    }

    fn queue_or_drop(&self, message: impl FnOnce() -> Message) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(message()).is_err() {
            self.dropped.inc();
        }
    }

    /// Makes the writer open the file anew. Blocks while the queue is full, as [`AccessLog::flush`] does.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            // The writer only ends after all senders are gone, so an error cannot happen while `self` lives.
            let _ = queue.send(Message::Reopen);
        }
    }

    /// Returns once every record queued before is written or counted as dropped.
    pub fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, wait) = mpsc::sync_channel(1);
        if queue.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

/// Where the thread writes to.
#[derive(Debug)]
enum Target {
    Stdout,
    File { path: PathBuf, file: File },
}

#[derive(Debug)]
struct Writer {
    target: Target,
    dropped: Counter,
    batch: Vec<u8>,
    /// The last write failed half way: the next one starts a new line.
    torn: bool,
    /// The last write failed: the log has been told, once.
    failing: bool,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Message>) {
        while let Ok(first) = queue.recv() {
            let mut next = Some(first);
            let mut records = 0_u64;
            let mut flushed = Vec::new();
            while let Some(message) = next {
                match message {
                    Message::Connection(record) => {
                        record.write_line(&mut self.batch);
                        records += 1;
                    }
                    Message::Request(record) => {
                        record.write_line(&mut self.batch);
                        records += 1;
                    }
                    Message::Reopen => {
                        self.write_batch(records);
                        records = 0;
                        self.reopen();
                    }
                    Message::Flush(done) => flushed.push(done),
                }
                next = if records < BATCH_LEN_MAX as u64 { queue.try_recv().ok() } else { None };
            }
            self.write_batch(records);
            let is_awaited = !flushed.is_empty();
            for done in flushed {
                // Nobody waits any more: nothing to tell.
                let _ = done.try_send(());
            }
            if records > 0 && !is_awaited {
                thread::sleep(BATCH_EVERY);
            }
        }
    }

    fn write_batch(&mut self, records: u64) {
        if records == 0 {
            return;
        }
        self.follow_rotation();
        if std::mem::take(&mut self.torn) {
            self.batch.insert(0, b'\n');
        }
        let written = match &mut self.target {
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&self.batch).and_then(|()| out.flush())
            }
            Target::File { file, .. } => file.write_all(&self.batch),
        };
        self.batch.clear();
        match written {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.dropped.inc_by(records);
                self.torn = true;
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, records, "access records cannot be written; they are dropped and counted");
                }
            }
        }
    }

    /// Opens the file anew when another one, or none, stands at its path.
    fn follow_rotation(&mut self) {
        let moved_away = match &self.target {
            Target::Stdout => false,
            Target::File { path, file } => !is_same_file(path, file),
        };
        if moved_away {
            self.reopen();
        }
    }

    fn reopen(&mut self) {
        let Target::File { path, file } = &mut self.target else { return };
        match open(path) {
            Ok(new) => {
                *file = new;
                self.torn = false;
            }
            // The old file is still open: records go there, which is better than nowhere.
            Err(error) => tracing::warn!(%error, path = %path.display(), "the access log cannot be reopened"),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn is_same_file(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(ours)) => there.ino() == ours.ino() && there.dev() == ours.dev(),
        _ => false,
    }
}
