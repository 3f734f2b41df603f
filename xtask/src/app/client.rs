//! Clients for people and scripts: a plain answer, a telling exit code.
//!
//! Files: [`get`] (HTTP/1.1 requests) with [`response`] (reading the answers); this one has `call`, one exchange over TCP.

pub mod get;

pub mod response;

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use nix::errno::Errno;

/// `app call`.
#[derive(Args)]
pub struct CallOptions {
    /// `HOST:PORT`.
    target: String,
    /// What to send.
    #[arg(long)]
    send: String,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 5)]
    timeout_s: u64,
}

/// Prints what a server answers to a text.
pub fn call(options: &CallOptions) -> ExitCode {
    match exchange(&options.target, options.send.as_bytes(), Duration::from_secs(options.timeout_s)) {
        Ok(answer) => {
            println!("{}", String::from_utf8_lossy(&answer));
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", error_name(&error));
            ExitCode::FAILURE
        }
    }
}

/// Sends bytes, tells the server that nothing more comes, and reads until it closes.
fn exchange(target: &str, bytes: &[u8], patience: Duration) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(target, patience)?;
    stream.write_all(bytes)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Tries the target's addresses in the resolver's order; the first failure is told when all fail.
fn connect(target: &str, patience: Duration) -> std::io::Result<TcpStream> {
    let mut first_error = None;
    for address in target.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| std::io::Error::other("the name has no address")))
}

/// The name by which a kernel's error is known, or the error's text.
fn error_name(error: &std::io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) => format!("{errno:?}"),
        // The standard library reports its own connect timeout without an error number.
        None if error.kind() == std::io::ErrorKind::TimedOut => "ETIMEDOUT".to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_names_that_people_know() {
        assert_eq!(error_name(&std::io::Error::from_raw_os_error(111)), "ECONNREFUSED");
        assert_eq!(error_name(&std::io::Error::from_raw_os_error(104)), "ECONNRESET");
    }
}
