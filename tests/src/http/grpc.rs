//! gRPC as the public interoperability list has it (grpc.testing.TestService): the messages, written out by hand, and the
//! server.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::Grpc;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::server::{Body, Server};

/// The service's path.
pub const SERVICE: &str = "/grpc.testing.TestService";

/// Sent back as initial metadata.
pub const ECHO_INITIAL: &str = "x-grpc-test-echo-initial";

/// Sent back as trailing metadata.
pub const ECHO_TRAILING: &str = "x-grpc-test-echo-trailing-bin";

/// `Empty`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Empty {}

/// `Payload`: bytes that mean nothing.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Payload {
    /// The bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub body: Vec<u8>,
}

/// `EchoStatus`: the status that the server shall end with.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct EchoStatus {
    /// Its number.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// Its words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `SimpleRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SimpleRequest {
    /// How large the answer's payload shall be, in bytes.
    #[prost(int32, tag = "2")]
    pub response_size: i32,
    /// The request's own.
    #[prost(message, optional, tag = "3")]
    pub payload: Option<Payload>,
    /// How to end.
    #[prost(message, optional, tag = "7")]
    pub response_status: Option<EchoStatus>,
}

/// `SimpleResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SimpleResponse {
    /// As large as was asked for.
    #[prost(message, optional, tag = "1")]
    pub payload: Option<Payload>,
    /// The pod that answers.
    #[prost(string, tag = "6")]
    pub hostname: String,
}

/// `StreamingInputCallRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InputRequest {
    /// One of many.
    #[prost(message, optional, tag = "1")]
    pub payload: Option<Payload>,
}

/// `StreamingInputCallResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InputResponse {
    /// Of all payloads together, in bytes.
    #[prost(int32, tag = "1")]
    pub aggregated_payload_size: i32,
}

/// `ResponseParameters`: one answer that the server shall send.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResponseParameters {
    /// Payload, in bytes.
    #[prost(int32, tag = "1")]
    pub size: i32,
    /// Pause before it, in microseconds.
    #[prost(int32, tag = "2")]
    pub interval_us: i32,
}

/// `StreamingOutputCallRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OutputRequest {
    /// The answers to send.
    #[prost(message, repeated, tag = "2")]
    pub response_parameters: Vec<ResponseParameters>,
    /// The request's own.
    #[prost(message, optional, tag = "3")]
    pub payload: Option<Payload>,
    /// How to end.
    #[prost(message, optional, tag = "7")]
    pub response_status: Option<EchoStatus>,
}

/// `StreamingOutputCallResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OutputResponse {
    /// As large as was asked for.
    #[prost(message, optional, tag = "1")]
    pub payload: Option<Payload>,
}

/// A payload of so many zero bytes, as the list has it.
pub fn payload(bytes: usize) -> Payload {
    Payload { body: vec![0; bytes] }
}

type Answers = ReceiverStream<Result<OutputResponse, Status>>;

/// Serves one call.
pub async fn serve(server: &Server, request: Request<Incoming>) -> Response<Body> {
    let initial = request.headers().get(ECHO_INITIAL).cloned();
    let trailing = request.headers().get(ECHO_TRAILING).cloned();
    let mut response = call(server, request).await.map(tonic_body);
    if let Some(initial) = initial {
        response.headers_mut().insert(ECHO_INITIAL, initial);
    }
    response.headers_mut().insert("x-server", server.pod.parse().expect("a pod's name is a header value"));
    match trailing {
        Some(value) => response.map(|body| {
            body.map_frame(move |frame| match frame.into_trailers() {
                Ok(mut trailers) => {
                    trailers.insert(HeaderName::from_static(ECHO_TRAILING), value.clone());
                    Frame::<Bytes>::trailers(trailers)
                }
                Err(frame) => frame,
            })
            .boxed_unsync()
        }),
        None => response,
    }
}

fn tonic_body(body: tonic::body::Body) -> Body {
    body.map_err(std::io::Error::other).boxed_unsync()
}

async fn call(server: &Server, request: Request<Incoming>) -> Response<tonic::body::Body> {
    let path = request.uri().path().to_owned();
    let method = path.strip_prefix(SERVICE).and_then(|rest| rest.strip_prefix('/'));
    let pod = server.pod.clone();
    match method {
        Some("EmptyCall") => {
            let answer = service_fn(|_: tonic::Request<Empty>| async { Ok(tonic::Response::new(Empty {})) });
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        Some("UnaryCall") => {
            let answer = service_fn(move |asked| unary(pod.clone(), asked));
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        Some("StreamingInputCall") => {
            Grpc::new(ProstCodec::default()).client_streaming(service_fn(input), request).await
        }
        Some("StreamingOutputCall") => {
            Grpc::new(ProstCodec::default()).server_streaming(service_fn(output), request).await
        }
        Some("FullDuplexCall") => {
            let tell = std::sync::Arc::clone(&server.tell);
            let answer = service_fn(move |asked: tonic::Request<Streaming<OutputRequest>>| {
                let tell = std::sync::Arc::clone(&tell);
                async move {
                    Ok(tonic::Response::new(duplex(asked.into_inner(), move |how| {
                        tell(json!({ "duplex": how }))
                    })))
                }
            });
            Grpc::new(ProstCodec::default()).streaming(answer, request).await
        }
        _ => Status::new(Code::Unimplemented, format!("no {path} here")).into_http(),
    }
}

fn status_of(asked: Option<EchoStatus>) -> Result<(), Status> {
    match asked {
        Some(status) if status.code != 0 => Err(Status::new(Code::from(status.code), status.message)),
        _ => Ok(()),
    }
}

type Unary = Pin<Box<dyn Future<Output = Result<tonic::Response<SimpleResponse>, Status>> + Send>>;

fn unary(pod: String, asked: tonic::Request<SimpleRequest>) -> Unary {
    Box::pin(async move {
        let asked = asked.into_inner();
        status_of(asked.response_status)?;
        let size = usize::try_from(asked.response_size).unwrap_or(0);
        Ok(tonic::Response::new(SimpleResponse { payload: Some(payload(size)), hostname: pod }))
    })
}

async fn input(
    asked: tonic::Request<Streaming<InputRequest>>,
) -> Result<tonic::Response<InputResponse>, Status> {
    let (mut stream, mut total) = (asked.into_inner(), 0);
    while let Some(message) = stream.next().await {
        total += message?.payload.map_or(0, |payload| payload.body.len());
    }
    let aggregated_payload_size = i32::try_from(total).map_err(|_large| Status::out_of_range("too much"))?;
    Ok(tonic::Response::new(InputResponse { aggregated_payload_size }))
}

async fn output(asked: tonic::Request<OutputRequest>) -> Result<tonic::Response<Answers>, Status> {
    let (to_stream, answers) = mpsc::channel(1);
    tokio::spawn(async move { answer(&asked.into_inner(), &to_stream).await });
    Ok(tonic::Response::new(ReceiverStream::new(answers)))
}

/// Answers each request as it comes; tells how the stream of requests ended.
fn duplex(mut asked: Streaming<OutputRequest>, tell: impl Fn(String) + Send + 'static) -> Answers {
    let (to_stream, answers) = mpsc::channel(1);
    tokio::spawn(async move {
        let how = loop {
            match asked.next().await {
                None => break "end".to_owned(),
                Some(Err(status)) => break format!("{:?}", status.code()),
                Some(Ok(request)) => {
                    if answer(&request, &to_stream).await.is_none() {
                        break "nobody reads".to_owned();
                    }
                }
            }
        };
        tell(how);
    });
    ReceiverStream::new(answers)
}

/// Sends what one request asks for; `None` when nobody reads any more, or the call has its status.
async fn answer(request: &OutputRequest, to: &mpsc::Sender<Result<OutputResponse, Status>>) -> Option<()> {
    if let Err(status) = status_of(request.response_status.clone()) {
        let _ = to.send(Err(status)).await;
        return None;
    }
    for wanted in &request.response_parameters {
        let pause = Duration::from_micros(u64::try_from(wanted.interval_us).unwrap_or(0));
        tokio::time::sleep(pause).await;
        let payload = Some(payload(usize::try_from(wanted.size).unwrap_or(0)));
        to.send(Ok(OutputResponse { payload })).await.ok()?;
    }
    Some(())
}

/// The gRPC status of headers or trailers.
pub fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
