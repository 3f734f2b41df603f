//! Clients for people and scripts: one call, a plain answer, a telling exit code.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::errno::Errno;

/// `app get`.
#[derive(Args)]
pub struct GetOptions {
    /// `http://HOST[:PORT][/PATH]`.
    url: String,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 5)]
    timeout_s: u64,
}

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

/// Prints status and body of a GET.
pub fn get(options: &GetOptions) -> Result<ExitCode> {
    let (host, path) = split_url(&options.url)?;
    let target = if has_port(host) { host.to_owned() } else { format!("{host}:80") };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = match exchange(&target, request.as_bytes(), Duration::from_secs(options.timeout_s), false) {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("{}", error_name(&error));
            return Ok(ExitCode::FAILURE);
        }
    };
    let head_end =
        answer.windows(4).position(|four| four == b"\r\n\r\n").context("the answer is not HTTP")?;
    let head = String::from_utf8_lossy(&answer[..head_end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse::<u16>().ok())
        .context("the answer has no status")?;
    println!("{status}");
    let mut out = std::io::stdout();
    out.write_all(&answer[head_end + 4..])?;
    if !answer.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    Ok(if (200..300).contains(&status) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what a server answers to a text.
pub fn call(options: &CallOptions) -> ExitCode {
    match exchange(&options.target, options.send.as_bytes(), Duration::from_secs(options.timeout_s), true) {
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

/// Sends bytes and reads until the server closes. With `finish` the server is told that nothing more comes.
fn exchange(target: &str, bytes: &[u8], patience: Duration, finish: bool) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    stream.write_all(bytes)?;
    if finish {
        stream.shutdown(std::net::Shutdown::Write)?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Tries the target's addresses in the resolver's order; the first failure is told when all fail.
fn connect(target: &str, patience: Duration) -> std::io::Result<TcpStream> {
    let mut first_error = None;
    for address in target.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => return Ok(stream),
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

fn split_url(url: &str) -> Result<(&str, &str)> {
    let Some(rest) = url.strip_prefix("http://") else { bail!("`{url}`: only http:// URLs are fetched") };
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if host.is_empty() {
        bail!("`{url}` names no host");
    }
    Ok((host, path))
}

fn has_port(host: &str) -> bool {
    host.parse::<SocketAddr>().is_ok()
        || host
            .rsplit_once(':')
            .is_some_and(|(name, port)| !name.contains(':') && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_into_host_and_path() {
        assert_eq!(split_url("http://orders").unwrap(), ("orders", "/"));
        assert_eq!(split_url("http://orders:80/a?b=c").unwrap(), ("orders:80", "/a?b=c"));
        assert!(split_url("https://orders").is_err());
        assert!(split_url("http:///x").is_err());
    }

    #[test]
    fn a_port_is_told_from_the_colons_of_an_ipv6_address() {
        for (host, expected) in
            [("a", false), ("a:1", true), ("[::1]", false), ("[::1]:80", true), ("1.2.3.4", false)]
        {
            assert_eq!(has_port(host), expected, "{host}");
        }
    }

    #[test]
    fn errors_have_the_names_that_people_know() {
        assert_eq!(error_name(&std::io::Error::from_raw_os_error(111)), "ECONNREFUSED");
        assert_eq!(error_name(&std::io::Error::from_raw_os_error(104)), "ECONNRESET");
    }
}
