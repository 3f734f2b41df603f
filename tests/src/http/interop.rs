//! The cases of the public gRPC interoperability list that something between client and server can break.
//!
//! Left out: those about credentials, compression and the client's own retries and backends, which a proxy never sees.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, stream};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::grpc::{
    ECHO_INITIAL, ECHO_TRAILING, EchoStatus, Empty, InputRequest, InputResponse, OutputRequest,
    OutputResponse, ResponseParameters, SERVICE, SimpleRequest, SimpleResponse, payload,
};

/// All cases, by their names on the list.
pub const CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "rpc_soak",
];

/// Sizes that the list prescribes, in bytes.
const LARGE_REQUEST: usize = 271_828;
const LARGE_RESPONSE: i32 = 314_159;
const REQUESTS: [usize; 4] = [27_182, 8, 1828, 45_904];
const RESPONSES: [i32; 4] = [31_415, 9, 2653, 58_979];

/// Runs a case on a channel.
///
/// # Errors
/// What was not as the list has it.
pub async fn run(channel: Channel, case: &str) -> Result<()> {
    let mut client = Client(Grpc::new(channel).max_decoding_message_size(16 << 20));
    match case {
        "empty_unary" => client.empty_unary().await,
        "large_unary" => client.large_unary().await,
        "client_streaming" => client.client_streaming().await,
        "server_streaming" => client.server_streaming().await,
        "ping_pong" => client.ping_pong().await,
        "empty_stream" => client.empty_stream().await,
        "custom_metadata" => client.custom_metadata().await,
        "status_code_and_message" => client.status("test status message").await,
        "special_status_message" => {
            client
                .status("\t\ntest with whitespace\r\nand Unicode BMP \u{263a} and non-BMP \u{1f608}\t\n")
                .await
        }
        "unimplemented_method" => client.unimplemented(&format!("{SERVICE}/UnimplementedCall")).await,
        "unimplemented_service" => {
            client.unimplemented("/grpc.testing.UnimplementedService/UnimplementedCall").await
        }
        "cancel_after_begin" => client.cancel_after_begin().await,
        "cancel_after_first_response" => client.cancel_after_first_response().await,
        "timeout_on_sleeping_server" => client.timeout_on_sleeping_server().await,
        "rpc_soak" => client.soak(100).await,
        _ => bail!("no such case: {case}"),
    }
}

struct Client(Grpc<Channel>);

fn path(method: &str) -> PathAndQuery {
    let text = if method.starts_with('/') { method.to_owned() } else { format!("{SERVICE}/{method}") };
    text.parse().expect("a method is a path")
}

fn ask(sizes: &[i32], own: Option<usize>) -> OutputRequest {
    let response_parameters =
        sizes.iter().map(|size| ResponseParameters { size: *size, interval_us: 0 }).collect();
    OutputRequest { response_parameters, payload: own.map(payload), response_status: None }
}

fn size_of(message: &OutputResponse) -> usize {
    message.payload.as_ref().map_or(0, |payload| payload.body.len())
}

impl Client {
    async fn unary<M, A>(&mut self, method: &str, request: Request<M>) -> Result<Response<A>, Status>
    where
        M: Message + 'static,
        A: Message + Default + 'static,
    {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        self.0.unary(request, path(method), ProstCodec::<M, A>::default()).await
    }

    async fn duplex(
        &mut self,
        request: Request<ReceiverStream<OutputRequest>>,
    ) -> Result<Response<Streaming<OutputResponse>>, Status> {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        self.0.streaming(request, path("FullDuplexCall"), ProstCodec::default()).await
    }

    async fn empty_unary(&mut self) -> Result<()> {
        let answer: Response<Empty> = self.unary("EmptyCall", Request::new(Empty {})).await?;
        ensure!(answer.into_inner() == Empty {}, "not empty");
        Ok(())
    }

    async fn large(&mut self) -> Result<Response<SimpleResponse>> {
        let request = SimpleRequest {
            response_size: LARGE_RESPONSE,
            payload: Some(payload(LARGE_REQUEST)),
            response_status: None,
        };
        Ok(self.unary("UnaryCall", Request::new(request)).await?)
    }

    async fn large_unary(&mut self) -> Result<()> {
        let body = self.large().await?.into_inner().payload.context("no payload")?.body;
        ensure!(
            body.len() == LARGE_RESPONSE as usize && body.iter().all(|byte| *byte == 0),
            "{} bytes",
            body.len()
        );
        Ok(())
    }

    async fn soak(&mut self, calls: usize) -> Result<()> {
        for number in 0..calls {
            self.large_unary().await.with_context(|| format!("call {number}"))?;
        }
        Ok(())
    }

    async fn client_streaming(&mut self) -> Result<()> {
        self.0.ready().await?;
        let requests = stream::iter(REQUESTS.map(|size| InputRequest { payload: Some(payload(size)) }));
        let codec = ProstCodec::<InputRequest, InputResponse>::default();
        let answer =
            self.0.client_streaming(Request::new(requests), path("StreamingInputCall"), codec).await?;
        let total = answer.into_inner().aggregated_payload_size;
        ensure!(total == 74_922, "the server added up {total}");
        Ok(())
    }

    async fn server_streaming(&mut self) -> Result<()> {
        self.0.ready().await?;
        let codec = ProstCodec::<OutputRequest, OutputResponse>::default();
        let request = Request::new(ask(&RESPONSES, None));
        let answer = self.0.server_streaming(request, path("StreamingOutputCall"), codec).await?;
        let sizes: Vec<_> =
            answer.into_inner().map(|message| message.map(|m| size_of(&m) as i32)).collect().await;
        let sizes: Vec<i32> = sizes.into_iter().collect::<Result<_, _>>()?;
        ensure!(sizes == RESPONSES, "{sizes:?}");
        Ok(())
    }

    async fn ping_pong(&mut self) -> Result<()> {
        let (to_server, requests) = mpsc::channel(1);
        // The server may answer with its headers only after the first request.
        to_server.send(ask(&[RESPONSES[0]], Some(REQUESTS[0]))).await?;
        let mut answers = self.duplex(Request::new(ReceiverStream::new(requests))).await?.into_inner();
        for turn in 0..REQUESTS.len() {
            if turn > 0 {
                to_server.send(ask(&[RESPONSES[turn]], Some(REQUESTS[turn]))).await?;
            }
            let answer = answers.next().await.context("the stream ended early")??;
            ensure!(size_of(&answer) as i32 == RESPONSES[turn], "turn {turn}: {}", size_of(&answer));
        }
        drop(to_server);
        ensure!(answers.next().await.is_none(), "more than was asked for");
        Ok(())
    }

    async fn empty_stream(&mut self) -> Result<()> {
        let (to_server, requests) = mpsc::channel(1);
        drop(to_server);
        let mut answers = self.duplex(Request::new(ReceiverStream::new(requests))).await?.into_inner();
        ensure!(answers.next().await.is_none(), "nothing was asked for");
        Ok(())
    }

    async fn custom_metadata(&mut self) -> Result<()> {
        let initial = MetadataValue::from_static("test_initial_metadata_value");
        let trailing = MetadataValue::from_bytes(&[0xab, 0xab, 0xab]);
        let mut request = Request::new(SimpleRequest {
            response_size: LARGE_RESPONSE,
            payload: Some(payload(LARGE_REQUEST)),
            response_status: None,
        });
        request.metadata_mut().insert(ECHO_INITIAL, initial.clone());
        request.metadata_mut().insert_bin(ECHO_TRAILING, trailing.clone());
        // The library joins a single answer's initial and trailing metadata.
        let answer: Response<SimpleResponse> = self.unary("UnaryCall", request).await?;
        ensure!(
            answer.metadata().get(ECHO_INITIAL) == Some(&initial),
            "unary, initial: {:?}",
            answer.metadata()
        );
        let came = answer.metadata().get_bin(ECHO_TRAILING).and_then(|value| value.to_bytes().ok());
        ensure!(came.as_deref() == Some(&[0xab; 3][..]), "unary, trailing: {:?}", answer.metadata());

        let (to_server, requests) = mpsc::channel(1);
        to_server.send(ask(&[LARGE_RESPONSE], Some(LARGE_REQUEST))).await?;
        drop(to_server);
        let mut request = Request::new(ReceiverStream::new(requests));
        request.metadata_mut().insert(ECHO_INITIAL, initial.clone());
        request.metadata_mut().insert_bin(ECHO_TRAILING, trailing);
        let answer = self.duplex(request).await?;
        ensure!(
            answer.metadata().get(ECHO_INITIAL) == Some(&initial),
            "stream, initial: {:?}",
            answer.metadata()
        );
        let mut answers = answer.into_inner();
        ensure!(
            size_of(&answers.message().await?.context("an answer")?) as i32 == LARGE_RESPONSE,
            "its size"
        );
        ensure!(answers.message().await?.is_none(), "one answer");
        let trailers = answers.trailers().await?.context("no trailers")?;
        let came = trailers.get_bin(ECHO_TRAILING).and_then(|value| value.to_bytes().ok());
        ensure!(came.as_deref() == Some(&[0xab; 3][..]), "stream, trailing: {trailers:?}");
        Ok(())
    }

    async fn status(&mut self, words: &str) -> Result<()> {
        let status = Some(EchoStatus { code: 2, message: words.to_owned() });
        let request = SimpleRequest { response_status: status.clone(), ..SimpleRequest::default() };
        let refused = self.unary::<_, SimpleResponse>("UnaryCall", Request::new(request)).await;
        let refused = refused.err().context("unary: it went well")?;
        ensure!(refused.code() == Code::Unknown && refused.message() == words, "unary: {refused:?}");
        let (to_server, requests) = mpsc::channel(1);
        to_server.send(OutputRequest { response_status: status, ..OutputRequest::default() }).await?;
        let ended = match self.duplex(Request::new(ReceiverStream::new(requests))).await {
            Ok(answers) => answers.into_inner().message().await.err().context("stream: it went well")?,
            Err(status) => status,
        };
        ensure!(ended.code() == Code::Unknown && ended.message() == words, "stream: {ended:?}");
        Ok(())
    }

    async fn unimplemented(&mut self, method: &str) -> Result<()> {
        let refused = self.unary::<_, Empty>(method, Request::new(Empty {})).await;
        let refused = refused.err().context("it went well")?;
        ensure!(refused.code() == Code::Unimplemented, "{refused:?}");
        Ok(())
    }

    /// Gives up a call with the request's stream open; a call after it goes well.
    async fn cancel_after_begin(&mut self) -> Result<()> {
        let (to_server, requests) = mpsc::channel::<InputRequest>(1);
        self.0.ready().await?;
        let codec = ProstCodec::<InputRequest, InputResponse>::default();
        let request = Request::new(ReceiverStream::new(requests));
        let call = self.0.client_streaming(request, path("StreamingInputCall"), codec);
        let given_up = tokio::time::timeout(Duration::from_millis(100), call).await;
        ensure!(given_up.is_err(), "the server answered although the stream is open: {given_up:?}");
        drop(to_server);
        self.empty_unary().await.context("after the cancelled call")
    }

    async fn cancel_after_first_response(&mut self) -> Result<()> {
        let (to_server, requests) = mpsc::channel(1);
        let mut many = ask(&[RESPONSES[0]], Some(REQUESTS[0]));
        let later = ResponseParameters { size: 1, interval_us: 50_000 };
        many.response_parameters.resize(1000, later);
        to_server.send(many).await?;
        let mut answers = self.duplex(Request::new(ReceiverStream::new(requests))).await?.into_inner();
        let first = answers.message().await?.context("no answer")?;
        ensure!(size_of(&first) as i32 == RESPONSES[0], "its size");
        // The library sends RST_STREAM when both halves are gone.
        drop((answers, to_server));
        self.empty_unary().await.context("after the cancelled call")
    }

    async fn timeout_on_sleeping_server(&mut self) -> Result<()> {
        let (to_server, requests) = mpsc::channel(1);
        let mut slow = ask(&[], Some(REQUESTS[0]));
        slow.response_parameters.push(ResponseParameters { size: 1, interval_us: 2_000_000 });
        to_server.send(slow).await?;
        let mut request = Request::new(ReceiverStream::new(requests));
        request.set_timeout(Duration::from_millis(50));
        // The library's own timer covers the wait for the headers; for the rest this one stands in.
        let call = async {
            let answers = self.duplex(request).await?;
            match tokio::time::timeout(Duration::from_millis(50), answers.into_inner().message()).await {
                Ok(came) => came.map(drop),
                Err(_) => Err(Status::deadline_exceeded("the client's own timer")),
            }
        };
        let ended = call.await.err().context("it went well")?;
        let is_timeout = matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled);
        ensure!(is_timeout, "{ended:?}");
        self.empty_unary().await.context("after the call that timed out")
    }
}
