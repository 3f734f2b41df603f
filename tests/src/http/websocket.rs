//! What the server does with a connection that is no longer HTTP: WebSocket (RFC 6455) sends each message back, anything
//! else (`Upgrade: bytes`, CONNECT) sends each byte back and ends when the other side ends.

use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{self, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::server::{Body, Tell, plain};

/// Answers a request to switch, and switches.
pub fn upgrade(mut request: Request<Incoming>, tell: Tell) -> Response<Body> {
    let is_connect = request.method() == Method::CONNECT;
    let wanted =
        request.headers().get("upgrade").cloned().unwrap_or_else(|| HeaderValue::from_static("bytes"));
    let is_websocket = wanted.as_bytes().eq_ignore_ascii_case(b"websocket");
    let key = request.headers().get("sec-websocket-key").cloned();
    let protocol = request.headers().get("sec-websocket-protocol").cloned();
    let switched = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(stream) = switched.await else { return };
        let ending = if is_websocket { messages(stream).await } else { bytes(stream).await };
        tell(json!({ "upgraded": if is_websocket { "websocket" } else { "bytes" }, "ending": ending }));
    });
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, Default::default());
    if is_connect {
        *response.status_mut() = StatusCode::OK;
        return response;
    }
    let headers = response.headers_mut();
    headers.insert("connection", HeaderValue::from_static("upgrade"));
    headers.insert("upgrade", wanted);
    if let Some(key) = key {
        let accept = derive_accept_key(key.as_bytes());
        headers.insert("sec-websocket-accept", accept.parse().expect("base64 is a header value"));
    }
    if let Some(first) = protocol.as_ref().and_then(|value| value.to_str().ok()?.split(',').next()) {
        headers.insert("sec-websocket-protocol", first.trim().parse().expect("it was one before"));
    }
    response
}

/// Sends messages back until a close; gives what ended it.
async fn messages(stream: Upgraded) -> String {
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await;
    loop {
        match socket.next().await {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                if let Err(error) = socket.send(message).await {
                    return error.to_string();
                }
            }
            Some(Ok(Message::Close(frame))) => {
                // The answer to it leaves with the next read.
                while let Some(Ok(_)) = socket.next().await {}
                return frame.map_or_else(|| "close".to_owned(), |frame| format!("close {}", frame.code));
            }
            // Pings are answered by the library.
            Some(Ok(_)) => {}
            Some(Err(error)) => return error.to_string(),
            None => return "end".to_owned(),
        }
    }
}

/// Sends bytes back until the end, then ends too.
async fn bytes(stream: Upgraded) -> String {
    let (mut from, mut to) = io::split(TokioIo::new(stream));
    let copied = io::copy(&mut from, &mut to).await;
    let ended = to.shutdown().await;
    match copied.and_then(|bytes| ended.map(|()| bytes)) {
        Ok(bytes) => format!("end after {bytes}"),
        Err(error) => error.to_string(),
    }
}
