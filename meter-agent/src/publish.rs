//! How readers get the newest snapshot: the one place where the agent's thread and the servers meet.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use crate::snapshot::{SharedSnapshot, Snapshot};

/// A reader's wish for a snapshot that is taken after the wish; answered by sending it.
pub type Refresh = oneshot::Sender<SharedSnapshot>;

/// How long a reader waits for the agent before it takes what was published last.
const PATIENCE: Duration = Duration::from_secs(2);

/// A reader's access to the totals. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotReader {
    latest: Arc<ArcSwap<Snapshot>>,
    ask: Arc<dyn Fn(Refresh) + Send + Sync>,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader").field("generation", &self.latest.load().generation).finish()
    }
}

impl SnapshotReader {
    /// Makes a reader of `latest`; `ask` hands a wish to whoever fills it.
    pub fn new(latest: Arc<ArcSwap<Snapshot>>, ask: impl Fn(Refresh) + Send + Sync + 'static) -> Self {
        Self { latest, ask: Arc::new(ask) }
    }

    /// Makes a reader that always returns this snapshot.
    #[must_use]
    pub fn fixed(snapshot: Snapshot) -> Self {
        Self::new(Arc::new(ArcSwap::from_pointee(snapshot)), drop)
    }

    /// Returns a snapshot whose totals were read after this call, so that a frame counted before it is in.
    ///
    /// The agent answers all wishes that wait with one reading. Where it can't in time, the last snapshot is
    /// returned; its generation tells.
    pub async fn fresh(&self) -> SharedSnapshot {
        self.answer().await.unwrap_or_else(|| self.latest())
    }

    /// Returns a snapshot whose totals were read after this call; `None` where the agent can't in time.
    pub async fn answer(&self) -> Option<SharedSnapshot> {
        let (answer, answered) = oneshot::channel();
        (self.ask)(answer);
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
    }

    /// Returns what was published last.
    #[must_use]
    pub fn latest(&self) -> SharedSnapshot {
        self.latest.load_full()
    }
}
