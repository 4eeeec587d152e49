//! The body of a request on its way: with the client until somebody takes it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::answer::Refusal;

/// How long a client may take to send a body that is held.
const HOLD_MAX: Duration = Duration::from_secs(15);

/// Shared by the attempts to send a body: whoever reads first has it.
type Slot = Arc<Mutex<Option<Incoming>>>;

/// The body of one request.
pub(super) enum Payload {
    /// In memory: may be sent any number of times.
    Held {
        /// All of it.
        bytes: Bytes,
        /// What it takes of the room there is for bodies.
        _room: Option<OwnedSemaphorePermit>,
    },
    /// With the client: may be sent as long as nobody has begun to read it.
    Streamed(Slot),
}

impl Payload {
    /// As it comes from the client.
    pub fn new(body: Incoming) -> Self {
        match body.is_end_stream() {
            true => Payload::Held { bytes: Bytes::new(), _room: None },
            false => Payload::Streamed(Arc::new(Mutex::new(Some(body)))),
        }
    }

    /// Reads it into memory where it is known to be at most `max` bytes and `room` has as much.
    ///
    /// # Errors
    /// Where the client does not send it.
    pub async fn hold(&mut self, max: u64, room: &Arc<Semaphore>) -> Result<(), Refusal> {
        let Payload::Streamed(slot) = self else { return Ok(()) };
        let Some(body) = take(slot) else { return Ok(()) };
        let small = body.size_hint().exact().filter(|size| *size <= max);
        let Some(size) = small.and_then(|size| u32::try_from(size).ok()) else {
            *lock(slot) = Some(body);
            return Ok(());
        };
        let Ok(permit) = room.clone().try_acquire_many_owned(size) else {
            *lock(slot) = Some(body);
            return Ok(());
        };
        let late = "the body did not arrive in time";
        let refuse = |why: String| Refusal::unsent(StatusCode::REQUEST_TIMEOUT, "client-body", why);
        let whole = tokio::time::timeout(HOLD_MAX, body.collect()).await;
        let whole = whole.map_err(|_| refuse(late.into()))?;
        let whole = whole.map_err(|error| refuse(format!("the body broke off: {error}")))?;
        *self = Payload::Held { bytes: whole.to_bytes(), _room: Some(permit) };
        Ok(())
    }

    /// Whether it can (still) be sent as a whole.
    pub fn is_whole(&self) -> bool {
        match self {
            Payload::Held { .. } => true,
            Payload::Streamed(slot) => lock(slot).is_some(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        matches!(self, Payload::Held { bytes, .. } if bytes.is_empty())
    }

    /// It as the body of one attempt, whose steps `progress` notes.
    pub fn outgoing(&self, progress: &Progress) -> Outgoing {
        let source = match self {
            Payload::Held { bytes, .. } => {
                Source::Bytes(Some(bytes.clone()).filter(|bytes| !bytes.is_empty()))
            }
            Payload::Streamed(slot) => Source::Slot(slot.clone()),
        };
        Outgoing { source, progress: progress.clone() }
    }
}

fn lock(slot: &Slot) -> std::sync::MutexGuard<'_, Option<Incoming>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(slot: &Slot) -> Option<Incoming> {
    lock(slot).take()
}

/// When a body last moved.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    /// It moves now.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn moved(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until it has not moved for `limit`.
    pub async fn stalled(&self, limit: Duration) {
        loop {
            let due = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

enum Source {
    Bytes(Option<Bytes>),
    Slot(Slot),
    Taken(Incoming),
    /// Another attempt has it.
    Gone,
}

/// A body as one attempt sends it.
pub(super) struct Outgoing {
    source: Source,
    progress: Progress,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Source::Slot(slot) = &self.source {
            self.source = take(slot).map_or(Source::Gone, Source::Taken);
        }
        let frame = match &mut self.source {
            Source::Bytes(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Taken(body) => ready!(Pin::new(body).poll_frame(cx)),
            Source::Slot(_) | Source::Gone => None,
        };
        self.progress.moved();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Bytes(bytes) => bytes.is_none(),
            Source::Slot(slot) => lock(slot).as_ref().is_none_or(Body::is_end_stream),
            Source::Taken(body) => body.is_end_stream(),
            Source::Gone => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Slot(slot) => lock(slot).as_ref().map(Body::size_hint).unwrap_or_default(),
            Source::Taken(body) => body.size_hint(),
            Source::Gone => SizeHint::with_exact(0),
        }
    }
}
