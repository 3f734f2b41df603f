//! The client over real sockets: kubeconfigs, a server that is not there, and one that hangs up.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::*;
use crate::discovery::Access;

/// What a server was asked: first line and headers.
type Heard = Arc<Mutex<Vec<String>>>;

fn kubeconfig(address: SocketAddr) -> (tempfile::TempDir, Access) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: red\n\
         clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
         users: [{{name: r, user: {{token: red-token}}}}, {{name: b, user: {{token: blue-token}}}}]\n\
         contexts: [{{name: red, context: {{cluster: c, user: r}}}}, {{name: blue, context: {{cluster: c, user: b}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    (dir, Access { kubeconfig: Some(path), context: None })
}

/// Serves empty lists and silent watches; the first watch of pods breaks off in the middle of its second line.
fn serve(listener: TcpListener) -> Heard {
    let heard = Heard::default();
    let all = heard.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let heard = all.clone();
            thread::spawn(move || while answer(&stream, &heard).is_some() {});
        }
    });
    heard
}

fn answer(mut stream: &TcpStream, heard: &Heard) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let first_of_pods =
        head.contains("/pods?watch") && !heard.lock().iter().any(|old| old.contains("/pods?watch"));
    heard.lock().push(head.clone());
    if !head.contains("watch=1") {
        let body = json!({"metadata": {"resourceVersion": "7"}, "items": null}).to_string();
        let length = body.len();
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").ok();
    }
    write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
    if first_of_pods {
        let line = json!({"type": "ADDED", "object": pod("a", "10.0.0.1", 8)}).to_string() + "\n{\"type\":";
        write!(stream, "{:x}\r\n{line}\r\n", line.len()).ok()?;
        return stream.shutdown(std::net::Shutdown::Both).ok();
    }
    thread::sleep(Duration::from_secs(60));
    None
}

#[tokio::test]
async fn a_server_that_comes_late_and_hangs_up_is_waited_for_and_asked_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (_dir, access) = kubeconfig(address);
    let running = run_with(&Script::default(), &access.client().await.unwrap());
    running.until("a failure", |running| running.state("Pod").1.is_some()).await;
    let (reason, message) = running.state("Pod").1.unwrap();
    assert_eq!(reason, "unreachable");
    assert!(message.contains("Connection refused"), "{message}");

    let heard = serve(TcpListener::bind(address).unwrap());
    running.until_pods(&["a"]).await;
    let again = |heard: &Heard| {
        heard.lock().iter().any(|head| head.contains("/pods?watch") && head.contains("resourceVersion=8"))
    };
    running.until("another watch", |_| again(&heard)).await;
    assert!(running.has_metric("weft_discovery_failures_total{kind=\"Pod\",reason=\"cut\"} 1"));
    let heard = heard.lock();
    assert!(heard.iter().all(|head| head.to_lowercase().contains("authorization: bearer red-token")));
    let nodes: Vec<_> = heard.iter().filter(|head| head.contains("/nodes?")).collect();
    assert!(nodes.iter().all(|head| head.contains("as=PartialObjectMetadata")), "{nodes:?}");
}

#[tokio::test]
async fn the_context_that_was_named_is_used_and_one_that_is_missing_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_dir, access) = kubeconfig(listener.local_addr().unwrap());
    let heard = serve(listener);
    let blue = Access { context: Some("blue".to_owned()), ..access.clone() };
    let running = run_with(&Script::default(), &blue.client().await.unwrap());
    running.until("a question", |_| !heard.lock().is_empty()).await;
    assert!(heard.lock()[0].to_lowercase().contains("authorization: bearer blue-token"));
    let green = Access { context: Some("green".to_owned()), ..access };
    let error = green.client().await.err().expect("there is no such context");
    assert!(error.to_string().starts_with("the kubeconfig "), "{error}");
}
