//! Ctrl-C ends a bench between two steps, so that everything it made is removed on the ordinary way out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::{clock, shell};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP only set a mark. Call before other threads exist: they inherit the blocked signals.
pub fn watch() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            shell::say(format!("{signal}: stopping after this step, then removing the labs"));
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Fails once a signal has come.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps, unless a signal comes.
pub fn sleep(length: Duration) -> Result<()> {
    let end = clock::now() + length;
    while clock::now() < end {
        check()?;
        thread::sleep(Duration::from_millis(20).min(length));
    }
    Ok(())
}
