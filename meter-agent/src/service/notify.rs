//! What the service manager is told (`sd_notify(3)`): ready, reloading, stopping, a line of status, and that the agent works.
//!
//! Nothing is told where nobody asked: `NOTIFY_SOCKET` and `WATCHDOG_USEC` come from the service manager.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    datapath::{Class, kernel::Work},
    publish::SnapshotReader,
    snapshot::{Health, Snapshot},
};

/// How often the snapshot is looked at while something is to be told as soon as it is true.
const SOON: Duration = Duration::from_millis(100);
/// How often it is looked at else.
const PERIOD: Duration = Duration::from_secs(1);

/// The way to the service manager. It is told the rest by a task of its own, which begins with [`Herald::start`].
#[derive(Debug)]
pub(super) struct Herald {
    reloads: mpsc::UnboundedSender<()>,
}

impl Herald {
    /// Begins to tell what snapshots say. To be called on the runtime.
    pub(super) fn start(reader: SnapshotReader, work: Work) -> Self {
        let (reloads, reloaded) = mpsc::unbounded_channel();
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            let watchdog = sd_notify::watchdog_enabled();
            tokio::spawn(tell_all(reader, reloaded, watchdog, move || work.steps(), |state| tell(&[state])));
        }
        Self { reloads }
    }

    /// Says that the configuration is being read again.
    pub(super) fn reloading(&self) {
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now());
        tell(&states);
    }

    /// Takes note that the agent has been sent what was read; that it is ready is said when it has acted on it.
    pub(super) fn reloaded(&self) {
        if self.reloads.send(()).is_err() {
            tracing::trace!("no service manager waits for the reload");
        }
    }

    /// Says that the agent ends.
    pub(super) fn stopping(&self, counts_on: bool) {
        let status = if counts_on { "ending; the hooks count on" } else { "ending, with all counters" };
        tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(error = %error, "the service manager can't be told");
    }
}

async fn tell_all(
    reader: SnapshotReader,
    mut reloaded: mpsc::UnboundedReceiver<()>,
    watchdog: Option<Duration>,
    steps: impl Fn() -> u64,
    tell: impl Fn(NotifyState<'_>),
) {
    let mut teller = Teller::default();
    let mut fed = Instant::now();
    let mut seen = steps();
    loop {
        let pause = if teller.is_waiting() { SOON } else { PERIOD };
        // Fed at a quarter of the time that is given, one that comes late is still early enough.
        let pause = watchdog.map_or(pause, |limit| pause.min(limit / 4));
        tokio::select! {
            Some(()) = reloaded.recv() => teller.reload(),
            () = sleep(pause) => {}
        }
        let is_hungry = watchdog.is_some_and(|limit| fed.elapsed() >= limit / 4);
        // A reading that is asked for now, after what it is to show has been sent, takes a turn of the agent.
        let answer = if is_hungry || teller.is_reloading { reader.answer().await } else { None };
        let is_answer = answer.is_some();
        let snapshot = answer.unwrap_or_else(|| reader.latest());
        let has_worked = snapshot.generation > teller.generation;
        for words in teller.look(&snapshot, is_answer) {
            tell(words.state());
        }
        // A turn may be long, but not without a step.
        let done = steps();
        if is_hungry && (has_worked || done != seen) {
            (seen, fed) = (done, Instant::now());
            tell(NotifyState::Watchdog);
        }
    }
}

/// One thing to tell.
#[derive(Debug, PartialEq, Eq)]
enum Words {
    Ready,
    Status(String),
}

impl Words {
    fn state(&self) -> NotifyState<'_> {
        match self {
            Self::Ready => NotifyState::Ready,
            Self::Status(text) => NotifyState::Status(text),
        }
    }
}

/// What has been told, and so what is left to tell.
#[derive(Debug, Default)]
struct Teller {
    generation: u64,
    is_ready: bool,
    is_reloading: bool,
    status: String,
}

impl Teller {
    fn is_waiting(&self) -> bool {
        !self.is_ready || self.is_reloading
    }

    fn reload(&mut self) {
        self.is_reloading = true;
    }

    /// Looks at a snapshot and returns what it makes to tell. A reload is over only by one that answers a question which was
    /// asked after it: others are from before, whoever asked for them.
    fn look(&mut self, snapshot: &Snapshot, is_answer: bool) -> Vec<Words> {
        let mut words = Vec::new();
        let is_new = snapshot.generation > self.generation;
        self.generation = snapshot.generation;
        if !self.is_ready && snapshot.health.ready {
            self.is_ready = true;
            words.push(Words::Ready);
        } else if self.is_reloading && is_answer && snapshot.health.settled {
            self.is_reloading = false;
            words.push(Words::Ready);
        }
        if is_new {
            let status = status(snapshot);
            if status != self.status {
                words.push(Words::Status(status.clone()));
                self.status = status;
            }
        }
        words
    }
}

/// What `systemctl status` shows.
fn status(snapshot: &Snapshot) -> String {
    let Health { ready, attach_pending, config_reload_ok, user_meters_in_force, .. } = snapshot.health;
    let is_unpinned = snapshot.health.unpinned.is_some();
    let metered = |class: Class| {
        let is_one = |role: &str| role == class.name();
        snapshot.netdevs.iter().filter(|netdev| netdev.ingress.is_some() && is_one(&netdev.role)).count()
    };
    let mut text = if ready { "metering " } else { "starting; metering " }.to_owned();
    text += &format!(
        "{} ports, {} uplinks, {} tunnel netdevs",
        metered(Class::Port),
        metered(Class::Uplink),
        metered(Class::Tunnel)
    );
    if attach_pending > 0 {
        text += &format!("; {attach_pending} not attached, see meter-agent ls");
    }
    if is_unpinned {
        text += "; counters are not pinned and end with the agent, see the log";
    }
    if !user_meters_in_force {
        text += "; user-defined meters are refused, see the log";
    }
    if !config_reload_ok {
        text += "; the configuration on disk is wrong and not in force";
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        time::Duration,
    };

    use arc_swap::ArcSwap;
    use sd_notify::NotifyState;
    use tokio::{sync::mpsc, time::sleep};

    use super::{Health, Snapshot, SnapshotReader, Teller, Words, status, tell_all};
    use crate::snapshot::NetdevStatus;

    fn snapshot(generation: u64, ready: bool, settled: bool) -> Snapshot {
        let health = Health {
            ready,
            settled,
            config_reload_ok: true,
            user_meters_in_force: true,
            ..Health::default()
        };
        Snapshot { generation, health, ..Snapshot::default() }
    }

    const NONE: &str = "metering 0 ports, 0 uplinks, 0 tunnel netdevs";

    #[test]
    fn ready_is_told_once_everything_was_reconciled_and_a_status_when_it_changes() {
        let mut teller = Teller::default();
        let starting = Words::Status(format!("starting; {NONE}"));
        assert_eq!(teller.look(&snapshot(0, false, false), false), []);
        assert_eq!(teller.look(&snapshot(1, false, false), false), [starting]);
        assert!(teller.is_waiting());
        assert_eq!(
            teller.look(&snapshot(2, true, true), false),
            [Words::Ready, Words::Status(NONE.to_owned())]
        );
        assert!(!teller.is_waiting());
        assert_eq!(teller.look(&snapshot(3, true, true), false), []);
    }

    #[test]
    fn reload_is_over_when_a_later_reading_finds_nothing_left_to_do() {
        let mut teller = Teller::default();
        teller.look(&snapshot(4, true, true), false);
        teller.reload();
        // The agent did not answer: these are from before.
        assert_eq!(teller.look(&snapshot(4, true, true), false), []);
        assert_eq!(teller.look(&snapshot(5, true, true), false), []);
        assert_eq!(teller.look(&snapshot(6, true, false), true), []);
        assert_eq!(teller.look(&snapshot(7, true, true), true), [Words::Ready]);
        assert_eq!(teller.look(&snapshot(8, true, true), true), []);
    }

    #[tokio::test(start_paused = true)]
    async fn reload_is_not_over_by_what_others_asked_for_before_it() {
        let latest = Arc::new(ArcSwap::from_pointee(snapshot(1, true, true)));
        let wishes = Arc::new(Mutex::new(Vec::new()));
        let reader = SnapshotReader::new(Arc::clone(&latest), {
            let wishes = Arc::clone(&wishes);
            move |wish| wishes.lock().unwrap().push(wish)
        });
        let told = Arc::new(Mutex::new(0_u32));
        let count = Arc::clone(&told);
        let (reloads, reloaded) = mpsc::unbounded_channel();
        let tell = move |state: NotifyState<'_>| {
            *count.lock().unwrap() += u32::from(matches!(state, NotifyState::Ready));
        };
        let task = tokio::spawn(tell_all(reader, reloaded, None, || 0, tell));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(*told.lock().unwrap(), 1, "the start");
        reloads.send(()).unwrap();
        // The agent is busy with the reload for a minute, and had published before.
        latest.store(Arc::new(snapshot(2, true, true)));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(*told.lock().unwrap(), 1);
        for wish in wishes.lock().unwrap().drain(..) {
            drop(wish.send(Arc::new(snapshot(3, true, true))));
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(*told.lock().unwrap(), 2);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn watchdog_is_fed_while_the_agent_answers_and_not_a_time_longer() {
        let answers = Arc::new(AtomicBool::new(true));
        let latest = Arc::new(ArcSwap::from_pointee(snapshot(1, true, true)));
        let reader = SnapshotReader::new(Arc::clone(&latest), {
            let answers = Arc::clone(&answers);
            move |wish| {
                if answers.load(Ordering::Relaxed) {
                    latest.store(Arc::new(snapshot(latest.load().generation + 1, true, true)));
                    drop(wish.send(latest.load_full()));
                } else {
                    // An agent that hangs keeps the wish.
                    std::mem::forget(wish);
                }
            }
        });
        let fed = Arc::new(Mutex::new(0_u32));
        let count = Arc::clone(&fed);
        let (_reloads, reloaded) = mpsc::unbounded_channel();
        let steps = Arc::new(AtomicU64::new(0));
        let works = Arc::clone(&steps);
        let watchdog = Some(Duration::from_secs(8));
        let task = tokio::spawn(tell_all(
            reader,
            reloaded,
            watchdog,
            move || works.load(Ordering::Relaxed),
            move |state| {
                *count.lock().unwrap() += u32::from(matches!(state, NotifyState::Watchdog));
            },
        ));
        sleep(Duration::from_secs(41)).await;
        let while_it_answers = *fed.lock().unwrap();
        assert!((13..=20).contains(&while_it_answers), "{while_it_answers} times in 41 s");
        answers.store(false, Ordering::Relaxed);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(*fed.lock().unwrap(), while_it_answers);
        // A turn that takes minutes and goes on, and one that stands still.
        for _ in 0..40 {
            steps.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_secs(3)).await;
        }
        let while_it_works = *fed.lock().unwrap() - while_it_answers;
        assert!((20..=40).contains(&while_it_works), "{while_it_works} times in 120 s");
        sleep(Duration::from_secs(60)).await;
        assert!(*fed.lock().unwrap() - while_it_answers - while_it_works <= 1, "once, for the last step");
        task.abort();
    }

    #[test]
    fn status_counts_what_is_metered_and_says_what_is_wrong() {
        let netdev = |role: &str, ingress: Option<&str>| NetdevStatus {
            ifindex: 1,
            netns: String::new(),
            netdev: "tap0".to_owned(),
            kind: "tap".to_owned(),
            role: role.to_owned(),
            port: None,
            device: None,
            source: None,
            ingress: ingress.map(ToOwned::to_owned),
            egress: None,
            reason: String::new(),
        };
        let mut snapshot = snapshot(1, true, true);
        snapshot.netdevs = vec![
            netdev("port", Some("tcx")),
            netdev("port", Some("clsact")),
            netdev("port", None),
            netdev("uplink", Some("xdp")),
            netdev("-", None),
        ];
        assert_eq!(status(&snapshot), "metering 2 ports, 1 uplinks, 0 tunnel netdevs");
        snapshot.health.attach_pending = 1;
        snapshot.health.config_reload_ok = false;
        snapshot.health.user_meters_in_force = false;
        snapshot.health.unpinned = Some("/p is on another file system".to_owned());
        assert_eq!(
            status(&snapshot),
            "metering 2 ports, 1 uplinks, 0 tunnel netdevs; 1 not attached, see meter-agent ls; counters \
             are not pinned and end with the agent, see the log; user-defined meters are refused, see the log; the configuration on disk is wrong and not in force"
        );
    }
}
