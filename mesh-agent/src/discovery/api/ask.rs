//! One question to the API and its answer: a page of a list, or a watch line by line. Asks once; who asks again is `feed`.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;

use super::failure::{Failure, Reason};
use crate::lifecycle::clock;

/// How long the API may think before it answers, and how long a list may pause. A list of the largest clusters takes
/// seconds a page; a minute is what API servers give a request that is no watch.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Most bytes of one line of a watch. An object of the API has at most a few MB, since its storage takes no more.
const LINE_LEN_MAX: usize = 16 << 20;

/// Most bytes of an error's body that are read.
const ERROR_LEN_MAX: usize = 64 << 10;

/// Asks, and returns an answer of status 200.
async fn get(client: &Client, uri: &str, accept: &str) -> Result<Response<Body>, Failure> {
    let request = Request::get(uri).header(ACCEPT, accept).body(Body::empty());
    let request = request.map_err(|error| Failure::new(Reason::Unreadable, error.to_string()))?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.send(request)).await;
    let answer = answer
        .map_err(|_elapsed| stalled("the API does not answer"))?
        .map_err(|error| Failure::before_answer(&error))?;
    if answer.status() == StatusCode::OK {
        return Ok(answer);
    }
    let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let status = answer.status();
    let body = collect(answer.into_body(), ERROR_LEN_MAX).await.unwrap_or_default();
    Err(Failure::of_answer(status, seconds, &body))
}

/// A whole answer.
pub(super) async fn whole(client: &Client, uri: &str, accept: &str) -> Result<Bytes, Failure> {
    let answer = get(client, uri, accept).await?;
    collect(answer.into_body(), usize::MAX).await
}

/// Reads a body to its end or its limit.
async fn collect(mut body: Body, len_max: usize) -> Result<Bytes, Failure> {
    let mut whole = Vec::new();
    while whole.len() < len_max {
        let frame = tokio::time::timeout(ANSWER_TIMEOUT, body.frame()).await;
        let Some(frame) = frame.map_err(|_elapsed| stalled("the API's answer stopped coming"))? else {
            break;
        };
        let frame = frame.map_err(|error| Failure::within_answer(&error))?;
        whole.extend(frame.into_data().unwrap_or_default());
    }
    Ok(whole.into())
}

fn stalled(message: &str) -> Failure {
    Failure::new(Reason::Stalled, message)
}

/// An open watch.
pub(super) struct Lines {
    body: Body,
    /// What has come and was not handed out, and how much of it is known to hold no line's end.
    waiting: BytesMut,
    searched: usize,
    deadline: Instant,
}

impl Lines {
    /// Opens a watch that is to be over by `deadline`.
    pub(super) async fn open(
        client: &Client,
        uri: &str,
        accept: &str,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let answer = get(client, uri, accept).await?;
        Ok(Self { body: answer.into_body(), waiting: BytesMut::new(), searched: 0, deadline })
    }

    /// The next line; `None` when the API has ended the watch after a whole line. Half a line is no line.
    pub(super) async fn next(&mut self) -> Result<Option<BytesMut>, Failure> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Some(line));
            }
            if self.waiting.len() > LINE_LEN_MAX {
                let message = format!("a line of the watch is longer than {LINE_LEN_MAX} bytes");
                return Err(Failure::new(Reason::Unreadable, message));
            }
            let left = self.deadline.saturating_duration_since(clock::now());
            let frame = tokio::time::timeout(left, self.body.frame()).await;
            match frame.map_err(|_elapsed| stalled("the watch did not end when it should have"))? {
                Some(Ok(frame)) => self.waiting.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(Failure::within_answer(&error)),
                None if self.waiting.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => return Err(Failure::new(Reason::Cut, "the watch ended in the middle of a line")),
            }
        }
    }

    fn take_line(&mut self) -> Option<BytesMut> {
        let end = memchr::memchr(b'\n', &self.waiting[self.searched..]).map(|found| self.searched + found);
        let Some(end) = end else {
            self.searched = self.waiting.len();
            return None;
        };
        self.searched = 0;
        Some(self.waiting.split_to(end + 1))
    }
}
