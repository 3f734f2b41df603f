//! Connections that stop being HTTP: WebSocket (RFC 6455), any other `Upgrade`, CONNECT. After the switch every byte passes
//! as it is, on every path.
//!
//! The cases of WebSocket are our own, from RFC 6455: the suite that everybody uses for it (Autobahn's) needs Python 2.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use mesh_tests::http::{Hand, Path, Stage, raw, routes};
use mesh_tests::wire::pattern;
use mesh_tests::{Ask, Web};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{self, Error, Message, WebSocket};

const SHORT: Duration = Duration::from_millis(400);

/// Opens a WebSocket.
#[track_caller]
fn open(web: &Web, path: &Path) -> WebSocket<TcpStream> {
    let mut request = "ws://socket.example/chat?room=1".into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "weft.test, other".parse().unwrap());
    let (socket, response) = tungstenite::client(request, web.dial(path.to).unwrap())
        .unwrap_or_else(|error| panic!("{}: no WebSocket: {error}", path.name));
    assert_eq!(response.status(), 101, "{}", path.name);
    assert_eq!(response.headers()["sec-websocket-protocol"], "weft.test", "{}", path.name);
    socket
}

/// Sends a message and expects it back.
#[track_caller]
fn echo(path: &Path, socket: &mut WebSocket<TcpStream>, message: Message) {
    let length = message.len();
    socket.send(message.clone()).unwrap_or_else(|error| panic!("{}: {length}: {error}", path.name));
    let back = read(path, socket);
    assert!(back == message, "{}: {length} bytes went, {} came", path.name, back.len());
}

#[track_caller]
fn read(path: &Path, socket: &mut WebSocket<TcpStream>) -> Message {
    socket.read().unwrap_or_else(|error| panic!("{}: {error}", path.name))
}

fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    pattern(length as u64)(&mut bytes);
    bytes
}

#[test]
fn messages_of_every_kind_and_length_come_back() {
    let stage = Stage::up();
    for path in stage.paths() {
        let mut socket = open(&stage.web, &path);
        // Where the length takes another form (section 5.2), and around what a proxy may read at once.
        for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537, 16_384, 1 << 20] {
            echo(&path, &mut socket, Message::binary(bytes(length)));
            echo(&path, &mut socket, Message::text("x".repeat(length)));
        }
        for text in
            ["\u{0}", "Hello-\u{b5}@\u{df}\u{f6}\u{e4}\u{fc}\u{e0}\u{e1}-UTF-8!!", "\u{10ffff}\u{feff}"]
        {
            echo(&path, &mut socket, Message::text(text));
        }
        for payload in [&b""[..], b"ping", &[0xff; 125]] {
            socket.send(Message::Ping(payload.to_vec().into())).unwrap();
            assert_eq!(read(&path, &mut socket), Message::Pong(payload.to_vec().into()), "{}", path.name);
        }
        // A pong that nobody asked for is passed over (section 5.5.3).
        socket.send(Message::Pong(b"unasked"[..].into())).unwrap();
        // A message in fragments, with a ping in the middle (section 5.4).
        let part = |bytes: &'static [u8], kind, last| Frame::message(bytes, kind, last);
        for frame in [
            part(b"one ", OpCode::Data(Data::Text), false),
            part(b"", OpCode::Data(Data::Continue), false),
            Frame::ping(&b"between"[..]),
            part(b"two", OpCode::Data(Data::Continue), true),
        ] {
            socket.send(Message::Frame(frame)).unwrap();
        }
        assert_eq!(read(&path, &mut socket), Message::Pong(b"between"[..].into()), "{}", path.name);
        assert_eq!(read(&path, &mut socket), Message::text("one two"), "{}", path.name);
        // Many at once, before anything is read.
        for number in 0..500 {
            socket.write(Message::text(number.to_string())).unwrap();
        }
        socket.flush().unwrap();
        for number in 0..500 {
            assert_eq!(read(&path, &mut socket), Message::text(number.to_string()), "{}", path.name);
        }
        let seen = stage.server(&path).requests().pop().unwrap();
        assert_eq!(
            (&seen["target"], &seen["host"]),
            (&"/chat?room=1".into(), &"socket.example".into()),
            "{}",
            path.name
        );
    }
    stage.lab.down();
}

#[test]
fn closing_is_heard_with_its_code_on_both_sides() {
    let stage = Stage::up();
    for path in stage.paths() {
        let server = stage.server(&path);
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
            server.forget();
            let mut socket = open(&stage.web, &path);
            echo(&path, &mut socket, Message::text("before"));
            let frame = CloseFrame { code: CloseCode::from(code), reason: "enough \u{263a}".into() };
            socket.close(Some(frame)).unwrap();
            let Message::Close(Some(back)) = read(&path, &mut socket) else {
                panic!("{}: {code}: no close frame", path.name)
            };
            assert_eq!(u16::from(back.code), code, "{}", path.name);
            let end = socket.read().expect_err("the server closes the connection");
            assert!(matches!(end, Error::ConnectionClosed), "{}: {code}: {end}", path.name);
            server.tells(&format!("close {code}"), |line| line["ending"] == format!("close {code}"));
        }
        // Without a close frame: the end of the connection is heard, nothing is made up.
        server.forget();
        let mut socket = open(&stage.web, &path);
        echo(&path, &mut socket, Message::text("before"));
        drop(socket);
        let told = server.tells("the end", |line| line["ending"].is_string());
        assert!(!told["ending"].as_str().unwrap().starts_with("close"), "{}: {told}", path.name);
        // What breaks the protocol reaches the server, which answers it with 1002 (section 7.4.1).
        let long_ping = [&[0x89u8, 0xfe, 0, 126, 0, 0, 0, 0][..], &[b'x'; 126]].concat();
        for broken in [&[0xf1u8, 0x81, 0, 0, 0, 0, b'x'][..], &[0x83, 0x80, 0, 0, 0, 0], &long_ping] {
            let mut socket = open(&stage.web, &path);
            socket.get_mut().write_all(broken).unwrap();
            match socket.read() {
                Ok(Message::Close(Some(frame))) => {
                    assert_eq!(frame.code, CloseCode::Protocol, "{}", path.name)
                }
                Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => panic!("{}: {broken:x?}: {other:?}", path.name),
            }
        }
    }
    stage.lab.down();
}

#[test]
fn each_direction_of_a_switched_connection_ends_by_itself() {
    let stage = Stage::up();
    for path in stage.paths() {
        for head in [
            "GET /bytes HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: bytes\r\n\r\n",
            "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n",
        ] {
            let expected = if head.starts_with("GET") { 101 } else { 200 };
            let mut stream = stage.web.dial(path.to).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            let answer = read_head(&path, &mut stream);
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{}: {answer}", path.name);
            if expected == 101 {
                assert!(answer.to_lowercase().contains("\r\nupgrade: bytes\r\n"), "{}: {answer}", path.name);
            }
            // Bytes that look like HTTP are bytes now.
            let sent = [b"GET / HTTP/1.1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".to_vec(), bytes(300_000)].concat();
            let mut writer = stream.try_clone().unwrap();
            let written = sent.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&written).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let heard = raw::hear(&mut stream, 10 * SHORT).unwrap();
            writing.join().unwrap();
            assert_eq!(heard.ending, "end", "{}: {head}", path.name);
            assert!(heard.bytes == sent, "{}: {} of {} bytes", path.name, heard.bytes.len(), sent.len());
            stage
                .server(&path)
                .tells("the whole", |line| line["ending"] == format!("end after {}", sent.len()));
        }
    }
    stage.lab.down();
}

/// Reads up to the empty line, and no further.
#[track_caller]
fn read_head(path: &Path, stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0u8];
        stream.read_exact(&mut byte).unwrap_or_else(|error| {
            panic!("{}: {error} after {}", path.name, String::from_utf8_lossy(&head))
        });
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn a_server_may_speak_at_once_after_it_has_switched_and_may_refuse_to_switch() {
    let stage = Stage::up();
    for (path, pod) in stage.routed().iter().zip(routes::SERVERS) {
        let listener = Hand::start(&stage.lab, pod).listen(9191).unwrap();
        let origin = thread::spawn(move || {
            let mut heard = Vec::new();
            for answer in [
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: bytes\r\n\r\nat once",
                "HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno",
            ] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0u8; 4096];
                let n = stream.read(&mut request).unwrap();
                heard.push(String::from_utf8_lossy(&request[..n]).to_lowercase());
                stream.write_all(answer.as_bytes()).unwrap();
                let mut rest = Vec::new();
                // A connection that did not switch may be kept for the next request.
                stream.set_read_timeout(Some(3 * SHORT)).unwrap();
                let _ = stream.read_to_end(&mut rest);
                heard.push(String::from_utf8_lossy(&rest).into_owned());
            }
            heard
        });
        let service = format!("{}:9191", path.server);
        stage.lab.apply("origin.yaml", &routes::everything_to("origin", &service, &service));
        let to = stage.lab.vip(&format!("echo/{}", path.server), 9191);
        let request = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: bytes\r\n\r\n";
        let mut stream = stage.web.dial(to).unwrap();
        stream.write_all(request).unwrap();
        assert!(read_head(path, &mut stream).contains(" 101 "), "{}", path.name);
        let mut first = [0u8; 7];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"at once", "{}", path.name);
        stream.write_all(b"and back").unwrap();
        drop(stream);

        let mut stream = stage.web.dial(to).unwrap();
        stream.write_all(request).unwrap();
        let answer = raw::read_answer(&mut stream, false).unwrap();
        assert_eq!((answer.status, &answer.body[..]), (426, &b"no"[..]), "{}", path.name);
        drop(stream);
        let heard = origin.join().unwrap();
        assert!(
            heard[0].contains("\r\nupgrade: bytes\r\n") && heard[0].contains("\r\nconnection:"),
            "{}",
            heard[0]
        );
        assert_eq!(heard[1], "and back", "{}", path.name);
        stage.lab.apply("origin.yaml", "");
    }
    stage.lab.down();
}

#[test]
fn a_switched_connection_without_traffic_stays_open() {
    let stage = Stage::up();
    let mut sockets: Vec<_> = stage.paths().into_iter().map(|path| (path, open(&stage.web, &path))).collect();
    thread::sleep(Duration::from_secs(8));
    for (path, socket) in &mut sockets {
        echo(path, socket, Message::text("still here"));
        assert_eq!(stage.web.ask(path.to, Ask::get("/")).status, 200, "{}", path.name);
    }
    stage.lab.down();
}
