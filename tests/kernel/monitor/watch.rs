//! A monitor at work in a namespace, and what a receiver makes of its events.

use std::{
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::netns::Netns;
use meter_agent::netdev::{
    NetdevEvent, NetdevTable,
    monitor::{self, Monitor, MonitorError, StopGuard},
};

/// How long the kernel and the monitor have for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Shared by those who watch. A module that is loaded makes netdevs such as `gre0` in every namespace, and the kernel
/// announces them before it gives them their MTU, which it doesn't announce.
static MODULES: RwLock<()> = RwLock::new(());

/// Keeps modules from being loaded while anybody watches, and anybody from watching as long as this is held.
pub(crate) fn load_modules() -> RwLockWriteGuard<'static, ()> {
    MODULES.write().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what a dump of the namespace says now.
pub(crate) fn dump(netns: &Netns) -> NetdevTable {
    netns.run_in(monitor::dump).unwrap().unwrap()
}

/// Returns the number of a netdev.
pub(crate) fn ifindex(netns: &Netns, name: &str) -> u32 {
    dump(netns).by_name(name).unwrap().ifindex
}

/// A monitor at work, and what a receiver makes of its events.
pub(crate) struct Watch<'a> {
    netns: &'a Netns,
    events: Receiver<NetdevEvent>,
    pub(crate) log: Vec<NetdevEvent>,
    pub(crate) table: NetdevTable,
    guard: Option<StopGuard>,
    thread: Option<JoinHandle<Result<(), MonitorError>>>,
    _modules: RwLockReadGuard<'static, ()>,
}

impl<'a> Watch<'a> {
    /// The receiver takes each event at once.
    pub(crate) fn new(netns: &'a Netns) -> Self {
        let (send, events) = mpsc::channel();
        let (monitor, guard) = netns.run_in(Monitor::new).unwrap().unwrap();
        Self::start(netns, monitor, guard, events, move |event| send.send(event).is_ok())
    }

    /// The receiver holds the monitor up at each event until the test takes it.
    pub(crate) fn held_back(netns: &'a Netns, receive_buffer: usize) -> Self {
        let (send, events) = mpsc::sync_channel(0);
        let opened = netns.run_in(|| Monitor::with_receive_buffer(receive_buffer)).unwrap();
        let (monitor, guard) = opened.unwrap();
        Self::start(netns, monitor, guard, events, move |event| send.send(event).is_ok())
    }

    fn start(
        netns: &'a Netns,
        mut monitor: Monitor,
        guard: StopGuard,
        events: Receiver<NetdevEvent>,
        send: impl FnMut(NetdevEvent) -> bool + Send + 'static,
    ) -> Self {
        let modules = MODULES.read().unwrap_or_else(PoisonError::into_inner);
        let thread = Some(thread::spawn(move || monitor.run(send)));
        let (log, table) = (Vec::new(), NetdevTable::default());
        let mut watch = Self { netns, events, log, table, guard: Some(guard), thread, _modules: modules };
        watch.until("the first dump", |watch| !watch.log.is_empty());
        assert_eq!(watch.log, [NetdevEvent::All(dump(netns))]);
        watch.log.clear();
        watch
    }

    /// Takes events until this holds, and none is left.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.events.recv_timeout(Duration::from_millis(20)) {
                Ok(event) => {
                    self.table.apply(event.clone());
                    self.log.push(event);
                }
                Err(RecvTimeoutError::Timeout) if holds(self) => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(error) => panic!("{what}: {error}"),
            }
            assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}; events: {:#?}", self.log);
        }
    }

    /// Takes events until the table is what a dump says, and returns them.
    pub(crate) fn settle(&mut self, what: &str) -> Vec<NetdevEvent> {
        self.until(what, |watch| watch.table == dump(watch.netns));
        std::mem::take(&mut self.log)
    }

    /// Runs lines of `ip -batch`, and returns the events until the table is what a dump says.
    pub(crate) fn ip(&mut self, batch: &str) -> Vec<NetdevEvent> {
        self.netns.ip(batch).unwrap();
        self.settle(batch)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        drop(self.guard.take());
        let ended = self.thread.take().unwrap().join();
        ended.unwrap().unwrap();
    }
}

/// Returns the netdevs that are gone, in the order of the events.
pub(crate) fn gone(events: &[NetdevEvent]) -> Vec<u32> {
    let gone = |event: &NetdevEvent| match event {
        NetdevEvent::Gone(ifindex) => Some(*ifindex),
        _ => None,
    };
    events.iter().filter_map(gone).collect()
}

/// Returns whether a dump is among the events.
pub(crate) fn has_dump(events: &[NetdevEvent]) -> bool {
    events.iter().any(|event| matches!(event, NetdevEvent::All(_)))
}
