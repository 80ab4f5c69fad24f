//! What a connection waits for, since when, and how long it may.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{sync::Notify, time::Instant};

use super::{Limits, counts::Cut, stream::Peer};

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client has sent nothing yet, or part of a request's head.
    Head,
    /// An answer is out; the client may ask again.
    Idle,
    /// A body is read.
    Body,
    /// A request waits for its turn.
    Waiting,
    /// An answer is made.
    Answering,
    /// An answer goes out. `all` once nothing of it is left to hand to the connection.
    Sending {
        /// Whether the whole body is with the connection.
        all: bool,
    },
    /// The last answer is out, and what the client sends after it is thrown away.
    Leaving,
}

/// What a connection waits for, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    pub(super) phase: Phase,
    /// When the phase began.
    pub(super) since: Instant,
    /// When something last moved.
    pub(super) moved: Instant,
}

/// Memory of an answer. Answers that share it are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held {
    /// Where it is.
    at: usize,
    /// How many bytes it has.
    pub(super) bytes: usize,
}

impl Held {
    pub(super) fn of(body: &Bytes) -> Self {
        Self { at: body.as_ptr().addr(), bytes: body.len() }
    }
}

/// One connection, as its task, its bytes and the one who lets others in see it.
#[derive(Debug)]
pub(super) struct Watch {
    peer: Peer,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// When the client last sent or took something.
    moved: Instant,
    /// The answer's body, until all of it is with the kernel.
    unsent: Option<Held>,
    cut: Option<Cut>,
}

impl Watch {
    pub(super) fn new(peer: Peer) -> Self {
        let now = Instant::now();
        let state = State { phase: Phase::Head, since: now, moved: now, unsent: None, cut: None };
        Self { peer, state: Mutex::new(state), changed: Notify::new() }
    }

    pub(super) const fn peer(&self) -> Peer {
        self.peer
    }

    /// Begins a phase.
    pub(super) fn enter(&self, phase: Phase) {
        let mut state = self.state();
        state.phase = phase;
        state.since = Instant::now();
        drop(state);
        self.changed.notify_one();
    }

    /// Notes that bytes came.
    pub(super) fn read(&self) {
        let mut state = self.state();
        state.moved = Instant::now();
        if state.phase == Phase::Idle {
            drop(state);
            self.enter(Phase::Head);
        }
    }

    /// Notes that the kernel took bytes.
    pub(super) fn wrote(&self) {
        self.state().moved = Instant::now();
    }

    /// Notes that all that was handed over is with the kernel.
    pub(super) fn flushed(&self) {
        let mut state = self.state();
        if state.phase == (Phase::Sending { all: true }) {
            state.unsent = None;
            drop(state);
            self.enter(Phase::Idle);
        }
    }

    /// Notes an answer that has to go out.
    pub(super) fn hold(&self, held: Held) {
        self.state().unsent = Some(held);
    }

    /// Ends the connection for a reason.
    pub(super) fn cut(&self, reason: Cut) {
        self.state().cut.get_or_insert(reason);
        self.changed.notify_one();
    }

    /// Returns whether the connection is ended by this side.
    #[cfg(test)]
    pub(super) fn is_cut(&self) -> bool {
        self.state().cut.is_some()
    }

    /// Returns whether the connection ends in the midst of an answer: what the kernel has of it is of no use.
    pub(super) fn breaks_off(&self) -> bool {
        let state = self.state();
        state.cut.is_some() && matches!(state.phase, Phase::Sending { .. })
    }

    /// Returns what the connection waits for.
    pub(super) fn waits(&self) -> Waits {
        let state = self.state();
        let moved = if matches!(state.phase, Phase::Sending { .. }) {
            // It may have taken long to make what is sent.
            state.moved.max(state.since)
        } else {
            state.moved
        };
        Waits { phase: state.phase, since: state.since, moved }
    }

    /// Returns the answer that goes out.
    pub(super) fn unsent(&self) -> Option<Held> {
        self.state().unsent
    }

    /// Waits until the connection has had its time, and returns why it must end. One task at a time may wait.
    pub(super) async fn overdue(&self, limits: &Limits) -> Cut {
        loop {
            match self.end(limits) {
                Some((at, reason)) if at <= Instant::now() => return reason,
                Some((at, _)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// Returns when the phase has to be over, and what it is then.
    fn end(&self, limits: &Limits) -> Option<(Instant, Cut)> {
        let state = self.state();
        if let Some(reason) = state.cut {
            return Some((state.since, reason));
        }
        match state.phase {
            Phase::Head => Some((state.since + limits.head_timeout, Cut::Head)),
            Phase::Idle => Some((state.since + limits.idle_timeout, Cut::Idle)),
            // Whoever reads the body or makes the answer has a deadline, and an answer that says so.
            Phase::Body | Phase::Waiting | Phase::Answering => None,
            Phase::Sending { .. } => {
                let stalled = state.moved.max(state.since) + limits.stall_timeout;
                let whole = state.since + limits.send_timeout;
                Some(if stalled <= whole { (stalled, Cut::Stalled) } else { (whole, Cut::Slow) })
            }
            Phase::Leaving => Some((state.since + limits.leave_timeout, Cut::Idle)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer's body, that tells when nothing of it is left to hand to the connection.
#[derive(Debug)]
pub(super) struct Outgoing {
    body: Full<Bytes>,
    watch: Arc<Watch>,
}

impl Outgoing {
    pub(super) fn new(body: Bytes, watch: Arc<Watch>) -> Self {
        watch.enter(Phase::Sending { all: false });
        Self { body: Full::new(body), watch }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut state = self.watch.state();
        if let Phase::Sending { all } = &mut state.phase {
            *all = true;
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
