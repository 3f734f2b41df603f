//! HTTP for tests, as a server and as a client in a pod. It uses sockets as any program would and knows nothing of the mesh.
//!
//! ```text
//! weft-http serve PORT...              HTTP/1, HTTP/2, gRPC, WebSocket on each; tells of each request as a line of JSON
//! weft-http get ADDRESS:PORT TARGET [--http2] [--host HOST] [--method METHOD] [--header NAME:VALUE]... [--count N]
//!                                      prints each answer as a line of JSON; exit code 1 when one did not come
//! weft-http interop ADDRESS:PORT [CASE...]
//!                                      gRPC interoperability cases, a line of JSON each; exit code 1 when one failed
//! weft-http hand                       makes sockets for a test (`mesh_tests::http::hand`)
//! ```

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::http::answer::joined;
use mesh_tests::http::server::Server;
use mesh_tests::http::{hand, interop};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tonic::transport::Endpoint;

/// How long a case or an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all went well.
fn run(words: &[&str]) -> Result<bool> {
    match words {
        ["serve", ports @ ..] if !ports.is_empty() => serve(ports),
        ["get", to, target, options @ ..] => Runtime::new()?.block_on(get(to.parse()?, target, options)),
        ["interop", to, cases @ ..] => Runtime::new()?.block_on(run_cases(to.parse()?, cases)),
        ["hand"] => hand::serve().map(|()| true).context("hand"),
        _ => bail!("serve, get, interop or hand?"),
    }
}

fn tell(line: &Value) {
    let mut out = std::io::stdout().lock();
    // Nobody may be there to hear it any more.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn serve(ports: &[&str]) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let server = Arc::new(Server::new(Arc::new(|line| tell(&line))));
        let mut listening = Vec::new();
        let mut running = Vec::new();
        for port in ports {
            let port: u16 = port.parse().with_context(|| format!("a port: {port}"))?;
            let listener = hand::listen(SocketAddr::from((IpAddr::from([0u16; 8]), port)))?;
            listener.set_nonblocking(true)?;
            running.push(tokio::spawn(Arc::clone(&server).serve(TcpListener::from_std(listener)?)));
            listening.push(port);
        }
        tell(&json!({ "listening": listening }));
        for one in running {
            one.await?;
        }
        Ok(true)
    })
}

/// What `get` asks for.
struct Get<'a> {
    target: &'a str,
    host: String,
    method: http::Method,
    headers: Vec<(&'a str, &'a str)>,
    is_http2: bool,
    count: usize,
}

impl<'a> Get<'a> {
    fn read(to: SocketAddr, target: &'a str, options: &[&'a str]) -> Result<Self> {
        let method = http::Method::GET;
        let mut get =
            Self { target, host: to.to_string(), method, headers: Vec::new(), is_http2: false, count: 1 };
        let mut options = options.iter();
        while let Some(option) = options.next() {
            let mut value = || options.next().copied().with_context(|| format!("{option} what?"));
            match *option {
                "--http2" => get.is_http2 = true,
                "--host" => get.host = value()?.to_owned(),
                "--method" => get.method = value()?.parse()?,
                "--header" => {
                    let (name, value) = value()?.split_once(':').context("--header NAME:VALUE")?;
                    get.headers.push((name, value.trim()));
                }
                "--count" => get.count = value()?.parse()?,
                _ => bail!("what is {option}?"),
            }
        }
        Ok(get)
    }

    async fn send(&self, to: SocketAddr) -> Result<Value> {
        let target = if self.is_http2 {
            format!("http://{}{}", self.host, self.target)
        } else {
            self.target.to_owned()
        };
        let mut request = http::Request::builder().method(self.method.clone()).uri(target);
        if !self.is_http2 {
            request = request.header("host", &self.host);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let io = TokioIo::new(TcpStream::connect(to).await.context("connect")?);
        let response = if self.is_http2 {
            let (mut sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("the body broke off")?.to_bytes();
        let body: Value = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body).into_owned()));
        let headers: serde_json::Map<_, _> = head
            .headers
            .keys()
            .map(|name| (name.to_string(), Value::from(joined(&head.headers, name.as_str()))))
            .collect();
        Ok(json!({ "status": head.status.as_u16(), "headers": headers, "body": body }))
    }
}

async fn get(to: SocketAddr, target: &str, options: &[&str]) -> Result<bool> {
    let get = Get::read(to, target, options)?;
    let mut all_came = true;
    for _ in 0..get.count {
        let answer = tokio::time::timeout(PATIENCE, get.send(to))
            .await
            .context("no answer in time")
            .and_then(|came| came);
        all_came &= answer.is_ok();
        tell(&answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })));
    }
    Ok(all_came)
}

async fn run_cases(to: SocketAddr, cases: &[&str]) -> Result<bool> {
    let cases = if cases.is_empty() { interop::CASES } else { cases };
    let endpoint = Endpoint::from_shared(format!("http://{to}"))?;
    let mut all_well = true;
    for case in cases {
        let ran = async { interop::run(endpoint.connect().await?, case).await };
        let ran = tokio::time::timeout(PATIENCE, ran).await.context("not done in time").and_then(|ran| ran);
        all_well &= ran.is_ok();
        tell(
            &json!({ "case": case, "ok": ran.is_ok(), "error": ran.err().map(|error| format!("{error:#}")) }),
        );
    }
    Ok(all_well)
}
