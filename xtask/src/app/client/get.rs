//! HTTP/1.1 requests: one, shown with its answer, or many on one connection, summed up.

use std::collections::BTreeMap;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::response::Response;
use super::{connect, error_name};

/// `app get`.
#[derive(Args)]
pub struct GetOptions {
    /// `http://HOST[:PORT][/PATH]`.
    url: String,
    /// The request's method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// A request header, `NAME:VALUE`; `Host` and `Connection` replace what is sent otherwise.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// The request's body.
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// Show status line and headers of the answer too.
    #[arg(short = 'i', long)]
    head: bool,
    /// Send so many requests, on one connection as long as the server keeps it, and show a summary (JSON) instead of answers:
    /// `requests`, then how often each status, each pod and each error was seen.
    #[arg(long, value_name = "N", conflicts_with = "head")]
    count: Option<u64>,
    /// With --count: a connection for each request.
    #[arg(long, requires = "count")]
    no_keep_alive: bool,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 5)]
    timeout_s: u64,
}

/// How many requests went how.
#[derive(Debug, Default, Serialize)]
struct Summary {
    requests: u64,
    statuses: BTreeMap<String, u64>,
    pods: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    errors: BTreeMap<String, u64>,
}

/// Sends what the options say. Exit code 0 when all statuses are 200 to 299; redirects are shown, not followed.
pub fn get(options: &GetOptions) -> Result<ExitCode> {
    let (host, path) = split_url(&options.url)?;
    let target = if has_port(host) { host.to_owned() } else { format!("{host}:80") };
    let patience = Duration::from_secs(options.timeout_s);
    let keeps_alive = options.count.is_some() && !options.no_keep_alive;
    let request = request(options, host, path, keeps_alive)?;
    let mut line = Line { target, patience, request, method: options.method.clone(), open: None };
    match options.count {
        Some(count) => many(&mut line, count),
        None => one(&mut line, options.head),
    }
}

fn one(line: &mut Line, head: bool) -> Result<ExitCode> {
    let response = match line.exchange() {
        Ok(response) => response,
        Err(error) => {
            eprintln!("{}", error_name(&error));
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut out = std::io::stdout();
    if head {
        writeln!(out, "{}", response.head.replace("\r\n", "\n"))?;
    } else {
        writeln!(out, "{}", response.status)?;
    }
    out.write_all(&response.body)?;
    if !response.body.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    Ok(if response.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn many(line: &mut Line, count: u64) -> Result<ExitCode> {
    let mut summary = Summary { requests: count, ..Summary::default() };
    let mut succeeded = 0;
    for _ in 0..count {
        let response = match line.exchange() {
            Ok(response) => response,
            Err(error) => {
                *summary.errors.entry(error_name(&error)).or_default() += 1;
                continue;
            }
        };
        succeeded += u64::from(response.is_success());
        *summary.statuses.entry(response.status.to_string()).or_default() += 1;
        let answer: Option<Value> = serde_json::from_slice(&response.body).ok();
        if let Some(pod) = answer.as_ref().and_then(|answer| answer["pod"].as_str()) {
            *summary.pods.entry(pod.to_owned()).or_default() += 1;
        }
    }
    println!("{}", serde_json::to_string(&summary)?);
    Ok(if succeeded == count { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where requests go: the open connection, or a new one.
struct Line {
    target: String,
    patience: Duration,
    request: Vec<u8>,
    method: String,
    open: Option<BufReader<TcpStream>>,
}

impl Line {
    fn exchange(&mut self) -> std::io::Result<Response> {
        let mut reader = match self.open.take() {
            Some(reader) => reader,
            None => BufReader::new(connect(&self.target, self.patience)?),
        };
        reader.get_mut().write_all(&self.request)?;
        let response = Response::read(&mut reader, &self.method)?;
        if response.keeps_alive {
            self.open = Some(reader);
        }
        Ok(response)
    }
}

fn request(options: &GetOptions, host: &str, path: &str, keeps_alive: bool) -> Result<Vec<u8>> {
    ensure!(!options.method.is_empty(), "--method is empty");
    let mut headers = Vec::new();
    for header in &options.headers {
        let (name, value) = header.split_once(':').with_context(|| format!("`{header}` is no NAME:VALUE"))?;
        headers.push((name.trim(), value.trim()));
    }
    let is_given = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let mut own = Vec::new();
    if !is_given("host") {
        own.push(("Host", host.to_owned()));
    }
    if !keeps_alive && !is_given("connection") {
        own.push(("Connection", "close".to_owned()));
    }
    if let Some(data) = &options.data {
        own.push(("Content-Length", data.len().to_string()));
    }
    let mut request = format!("{} {path} HTTP/1.1\r\n", options.method);
    let given = headers.iter().map(|(name, value)| (*name, *value));
    for (name, value) in own.iter().map(|(name, value)| (*name, value.as_str())).chain(given) {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request.push_str("\r\n");
    request.push_str(options.data.as_deref().unwrap_or_default());
    Ok(request.into_bytes())
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
    fn given_headers_stand_for_the_ones_that_are_sent_otherwise() {
        let options = GetOptions {
            url: String::new(),
            method: "PUT".into(),
            headers: vec!["host: other".into(), "x-a:1".into()],
            data: Some("ab".into()),
            head: false,
            count: None,
            no_keep_alive: false,
            timeout_s: 1,
        };
        let text = String::from_utf8(request(&options, "h", "/p", false).unwrap()).unwrap();
        let expected =
            "PUT /p HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\nhost: other\r\nx-a: 1\r\n\r\nab";
        assert_eq!(text, expected);
    }
}
