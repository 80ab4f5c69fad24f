//! Whose turn it is at work that takes a CPU: so many at a time, and of each peer only some of them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::stream::Peer;

/// Turns at one kind of work.
#[derive(Debug)]
pub(super) struct Turns {
    max_of_peer: usize,
    all: Arc<Semaphore>,
    of: Mutex<HashMap<Peer, Arc<Semaphore>>>,
    /// Peers' requests that wait, for no turn of their own peer.
    waiting: AtomicUsize,
}

/// The right to do the work, for as long as it is kept.
pub(super) type Turn = [Option<OwnedSemaphorePermit>; 2];

/// One that waits, until it doesn't, in whichever way.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    pub(super) fn new(max: usize, max_of_peer: usize) -> Self {
        Self {
            max_of_peer: max_of_peer.max(1),
            all: Arc::new(Semaphore::new(max.max(1))),
            of: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for one's turn: a peer has only so many of them.
    pub(super) async fn turn(&self, peer: Peer) -> Turn {
        let own = {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for are as good as new.
            of.retain(|_, turns| Arc::strong_count(turns) > 1);
            Arc::clone(of.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(self.max_of_peer))))
        };
        // They are never closed.
        let own = own.acquire_owned().await.ok();
        let _waiting = Waiting::new(&self.waiting);
        let all = Arc::clone(&self.all).acquire_owned().await.ok();
        [own, all]
    }

    /// Returns whether somebody waits whose peer has not all its turns.
    pub(super) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Peer, Turns};

    const ONE: Peer = Peer::V4([10, 0, 0, 1]);
    const TWO: Peer = Peer::V4([10, 0, 0, 2]);

    async fn waits(turns: &Turns, peer: Peer) -> bool {
        tokio::time::timeout(Duration::from_secs(1), turns.turn(peer)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn turns_of_a_peer_leave_some_for_others() {
        let turns = Turns::new(16, 2);
        let own = [turns.turn(ONE).await, turns.turn(ONE).await];
        assert!(waits(&turns, ONE).await);
        drop(turns.turn(TWO).await);
        drop(own);
        drop(turns.turn(ONE).await);
        assert_eq!(turns.of.lock().unwrap().len(), 1, "none is kept for a peer that is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_wanted_while_another_peer_waits() {
        let turns = Turns::new(2, 2);
        let own = [turns.turn(ONE).await, turns.turn(ONE).await];
        tokio::select! {
            biased;
            _ = turns.turn(ONE) => panic!("a peer has two"),
            wanted = async { turns.are_wanted() } => assert!(!wanted, "by a peer that has all of its own"),
        }
        tokio::select! {
            biased;
            _ = turns.turn(TWO) => panic!("there are two"),
            wanted = async { turns.are_wanted() } => assert!(wanted),
        }
        assert!(!turns.are_wanted(), "nobody waits any more");
        drop(own);
    }
}
