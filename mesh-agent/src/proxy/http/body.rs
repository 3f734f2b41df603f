//! Bodies on their way: counted, copied to mirrors, kept for another try while they are small, and stopped in time.
//!
//! Beside station 12. Both directions stream: a frame is taken from one side only when the other asks for it, so a slow
//! reader slows its writer and nothing else. Nothing here reads what the bytes say.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::model::Ending;
use crate::proxy::open::CloseSignal;
use crate::telemetry::grpc_status;

/// What a body says when it breaks off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Most bytes of a request that are kept so that it can be sent again.
pub const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Bytes by which a mirror may lag behind before it is given up.
pub const MIRROR_LAG_BYTES_MAX: usize = 64 * 1024;

/// A piece of a body that can be had more than once.
#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Piece {
    fn of(frame: Frame<Bytes>) -> Option<Self> {
        match frame.into_data() {
            Ok(data) => Some(Self::Data(data)),
            Err(frame) => frame.into_trailers().ok().map(Self::Trailers),
        }
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }
}

/// The client's body, from which every try and every mirror drinks.
#[derive(Debug)]
pub struct Source {
    incoming: Incoming,
    kept: Vec<Piece>,
    kept_bytes: usize,
    keeping: bool,
    mirrors: Vec<Tap>,
    bytes: u64,
    ended: bool,
    broken: bool,
}

impl Source {
    /// A body that has not been read. An empty one costs no allocation.
    pub fn new(incoming: Incoming) -> Option<Rc<RefCell<Self>>> {
        if incoming.is_end_stream() {
            return None;
        }
        Some(Rc::new(RefCell::new(Self {
            incoming,
            kept: Vec::new(),
            kept_bytes: 0,
            keeping: true,
            mirrors: Vec::new(),
            bytes: 0,
            ended: false,
            broken: false,
        })))
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the client broke it off, or sent what cannot be read.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether a new try would see the whole body.
    pub fn may_be_sent_again(&self) -> bool {
        self.keeping
    }

    /// From here on nothing is kept.
    pub fn stop_keeping(&mut self) {
        self.keeping = false;
    }

    /// A copy of the body, as it is read by others.
    pub fn mirror(&mut self) -> Mirrored {
        let (sender, receiver) = mpsc::unbounded_channel();
        let lag = Rc::new(Cell::new(0));
        self.mirrors.push(Tap { sender, lag: lag.clone() });
        Mirrored { receiver, lag }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(context)) else {
                self.end();
                return Poll::Ready(None);
            };
            let piece = match frame {
                Ok(frame) => Piece::of(frame),
                Err(error) => {
                    self.mirrors.clear();
                    self.broken = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            };
            let Some(piece) = piece else { continue };
            self.bytes += piece.bytes() as u64;
            self.mirrors.retain(|tap| tap.give(&piece));
            self.keep(&piece);
            if matches!(piece, Piece::Trailers(_)) || self.incoming.is_end_stream() {
                self.end();
            }
            return Poll::Ready(Some(Ok(piece)));
        }
    }

    fn end(&mut self) {
        self.ended = true;
        for tap in self.mirrors.drain(..) {
            // A mirror that is gone misses nothing.
            let _ = tap.sender.send(None);
        }
    }

    fn keep(&mut self, piece: &Piece) {
        self.keeping = self.keeping && self.kept_bytes + piece.bytes() <= KEPT_BYTES_MAX;
        if self.keeping {
            self.kept_bytes += piece.bytes();
            self.kept.push(piece.clone());
        }
    }
}

/// The body of one try.
pub struct RequestBody {
    /// `None`: empty.
    source: Option<Rc<RefCell<Source>>>,
    /// Pieces taken.
    at: usize,
    /// Holds the body back until the server asks for it (`Expect: 100-continue`).
    gate: Option<Pin<Box<dyn Future<Output = ()>>>>,
    mirrored: Option<Mirrored>,
}

impl RequestBody {
    /// No body.
    pub fn empty() -> Self {
        Self { source: None, at: 0, gate: None, mirrored: None }
    }

    /// The source's body from its beginning.
    pub fn of(source: Option<Rc<RefCell<Source>>>) -> Self {
        Self { source, ..Self::empty() }
    }

    /// The same, not before `gate` is over.
    pub fn gated(self, gate: Pin<Box<dyn Future<Output = ()>>>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// A mirror's body.
    pub fn mirrored(mirrored: Mirrored) -> Self {
        Self { mirrored: Some(mirrored), ..Self::empty() }
    }
}

impl std::fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestBody").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            ready!(gate.as_mut().poll(context));
            this.gate = None;
        }
        if let Some(mirrored) = &mut this.mirrored {
            return mirrored.poll_piece(context).map(|piece| piece.map(|piece| piece.map(Piece::frame)));
        }
        let Some(source) = &this.source else { return Poll::Ready(None) };
        let mut source = source.borrow_mut();
        let piece = match source.kept.get(this.at) {
            Some(kept) if source.keeping => kept.clone(),
            _ => match ready!(source.poll_piece(context)) {
                Some(piece) => piece?,
                None => return Poll::Ready(None),
            },
        };
        this.at += 1;
        if !source.keeping {
            source.kept = Vec::new();
        }
        Poll::Ready(Some(Ok(piece.frame())))
    }

    fn is_end_stream(&self) -> bool {
        match (&self.source, &self.mirrored) {
            (Some(source), _) => {
                let source = source.borrow();
                source.ended && (!source.keeping || self.at >= source.kept.len())
            }
            (None, Some(_)) => false,
            (None, None) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, &self.mirrored) {
            (Some(source), _) if self.at == 0 && source.borrow().kept.is_empty() => {
                source.borrow().incoming.size_hint()
            }
            (None, None) => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

#[derive(Debug)]
struct Tap {
    sender: mpsc::UnboundedSender<Option<Piece>>,
    lag: Rc<Cell<usize>>,
}

impl Tap {
    /// False: the mirror is gone or too slow.
    fn give(&self, piece: &Piece) -> bool {
        self.lag.set(self.lag.get() + piece.bytes());
        self.lag.get() <= MIRROR_LAG_BYTES_MAX && self.sender.send(Some(piece.clone())).is_ok()
    }
}

/// A copy of a body. It ends early, with an error, when it lags too far behind.
#[derive(Debug)]
pub struct Mirrored {
    receiver: mpsc::UnboundedReceiver<Option<Piece>>,
    lag: Rc<Cell<usize>>,
}

impl Mirrored {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, BoxError>>> {
        match ready!(self.receiver.poll_recv(context)) {
            Some(Some(piece)) => {
                self.lag.set(self.lag.get().saturating_sub(piece.bytes()));
                Poll::Ready(Some(Ok(piece)))
            }
            Some(None) => {
                self.receiver.close();
                Poll::Ready(None)
            }
            None if self.receiver.is_closed() && self.lag.get() == 0 => Poll::Ready(None),
            None => Poll::Ready(Some(Err("the mirrored request broke off".into()))),
        }
    }
}

/// What follows a response to its end.
pub trait Watch: std::fmt::Debug {
    /// The whole body has been handed over; `grpc_status` is that of its trailers.
    fn ended(self: Box<Self>, bytes: u64, grpc_status: Option<u16>);
    /// It broke off. Dropping the watch means that the client went away.
    fn broke(self: Box<Self>, bytes: u64, ending: Ending);
}

/// The body of a response.
#[derive(Debug)]
pub enum ResponseBody {
    /// Our own words, or none.
    Own(Option<Bytes>),
    /// The server's.
    Upstream(Box<Streaming>),
}

/// A server's body on its way to the client.
#[derive(Debug)]
pub struct Streaming {
    /// The server's body.
    pub incoming: Incoming,
    /// Told how it ends; `None` once it has been.
    pub watch: Option<Box<dyn Watch>>,
    /// When it must be over.
    pub deadline: Option<Pin<Box<Sleep>>>,
    /// Raised when it must end before.
    pub close: Option<Rc<CloseSignal>>,
    /// Bytes handed over.
    pub bytes: u64,
    /// A gRPC call: when its time is over, its trailers say so.
    pub is_grpc: bool,
    /// Nothing follows any more.
    pub is_over: bool,
}

impl ResponseBody {
    /// No body.
    pub fn empty() -> Self {
        Self::Own(None)
    }
}

impl Streaming {
    fn poll_limits(&mut self, context: &mut Context<'_>) -> Result<(), BoxError> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            self.broke(Ending::RequestTimeout);
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        if let Some(ending) = self.close.as_ref().and_then(|close| close.poll(context)) {
            self.broke(ending);
            return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
        }
        Ok(())
    }

    /// What a gRPC client is told when its call is cut off; for others there are no words after the head.
    fn last_words(&self) -> Option<HeaderMap> {
        let is_late = self.deadline.as_ref().is_some_and(|deadline| deadline.is_elapsed());
        if !self.is_grpc {
            return None;
        }
        let (status, message) =
            if is_late { (4, "the server did not answer in time") } else { (14, "the call was cut off") };
        Some(HeaderMap::from_iter([
            (HeaderName::from_static("grpc-status"), HeaderValue::from(status)),
            (HeaderName::from_static("grpc-message"), HeaderValue::from_static(message)),
        ]))
    }

    fn ended(&mut self, grpc_status: Option<u16>) {
        if let Some(watch) = self.watch.take() {
            watch.ended(self.bytes, grpc_status);
        }
    }

    fn broke(&mut self, ending: Ending) {
        if let Some(watch) = self.watch.take() {
            watch.broke(self.bytes, ending);
        }
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len() as u64;
            // Who sends a body of known length does not ask again after its last byte.
            if self.incoming.is_end_stream() {
                self.ended(None);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.ended(grpc_status(trailers));
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.ended(None);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let streaming = match self.get_mut() {
            Self::Own(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Upstream(streaming) => streaming,
        };
        if streaming.is_over {
            return Poll::Ready(None);
        }
        if let Err(error) = streaming.poll_limits(context) {
            streaming.is_over = true;
            return Poll::Ready(Some(match streaming.last_words() {
                Some(trailers) => Ok(Frame::trailers(trailers)),
                None => Err(error),
            }));
        }
        match ready!(Pin::new(&mut streaming.incoming).poll_frame(context)) {
            Some(Ok(frame)) => {
                streaming.note(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                streaming.broke(Ending::ServerReset);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                streaming.ended(None);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_none(),
            Self::Upstream(streaming) => streaming.is_over || streaming.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Upstream(streaming) => streaming.incoming.size_hint(),
        }
    }
}
