//! One network namespace as it is heard: what is announced, and the dumps in between.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    MonitorError, driver, dump,
    follow::{Change, follow},
    parse,
    schedule::Schedule,
    socket::{self, Heard, Requests, Subscription},
    socket_error,
};
use crate::netdev::{NetdevEvent, NetdevTable};

/// More than the receive buffer can hold; keeps a flood from putting off a dump for ever.
const MOST_DISCARDED: usize = 100_000;

/// Hears of one network namespace, and says so whenever it is asked to.
///
/// Its sockets keep the namespace alive.
#[derive(Debug)]
pub struct Follower {
    subscription: Subscription,
    requests: Requests,
    schedule: Schedule,
    /// What the receiver knows; `None` before the first dump.
    table: Option<NetdevTable>,
}

/// Whether to go on or to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    GoOn,
    /// Told to stop, or the receiver is gone.
    Stop,
}

impl Follower {
    /// Subscribes to the calling thread's network namespace, with a receive buffer of so many bytes. The result may be
    /// used on any thread.
    ///
    /// # Errors
    ///
    /// When a socket can't be made.
    pub fn open(receive_buffer: usize) -> Result<Self, MonitorError> {
        // Subscribed before the first dump, so nothing is missed between the two.
        let subscription =
            Subscription::open(receive_buffer).map_err(socket_error("subscribe to rtnetlink"))?;
        let requests = Requests::open().map_err(socket_error("open a netlink socket"))?;
        Ok(Self { subscription, requests, schedule: Schedule::new(Instant::now()), table: None })
    }

    /// Returns how long nothing is to be done, unless something is heard.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Duration {
        self.schedule.wait(now)
    }

    /// Takes what has been heard, and a dump where one is due; returns whether the receiver is still there.
    ///
    /// # Errors
    ///
    /// When the socket breaks; nothing will be heard any more.
    pub fn turn(&mut self, mut send: impl FnMut(NetdevEvent) -> bool) -> Result<bool, MonitorError> {
        let is_open = self.resync_if_due(&mut send)? == Flow::GoOn && self.hear(&mut send)? == Flow::GoOn;
        Ok(is_open)
    }

    pub(super) fn resync_if_due(
        &mut self,
        send: &mut impl FnMut(NetdevEvent) -> bool,
    ) -> Result<Flow, MonitorError> {
        if self.schedule.is_due(Instant::now()) { self.resync(send) } else { Ok(Flow::GoOn) }
    }

    /// Takes one datagram, if there is one.
    pub(super) fn hear(&mut self, send: &mut impl FnMut(NetdevEvent) -> bool) -> Result<Flow, MonitorError> {
        let Self { subscription, schedule, table, .. } = self;
        let datagram = match subscription.hear().map_err(socket_error("receive from rtnetlink"))? {
            Heard::Nothing => return Ok(Flow::GoOn),
            Heard::Lost => {
                schedule.doubt(Instant::now());
                return Ok(sent(send(NetdevEvent::Overrun)));
            }
            Heard::Datagram(datagram) => datagram,
        };
        // Until the first dump has succeeded there is nothing to change.
        let Some(table) = table else { return Ok(Flow::GoOn) };
        for message in socket::messages(datagram) {
            let change = parse::message(message.message_type(), message.payload())
                .map(|message| follow(table, message, |link| driver::complete(Path::new(driver::SYS), link)))
                .unwrap_or_else(|error| {
                    tracing::debug!(error = %error, "netlink message skipped");
                    Change { event: None, doubt: true }
                });
            if change.doubt {
                schedule.doubt(Instant::now());
            }
            if let Some(event) = change.event {
                tracing::debug!(event = ?event, "netdev changed");
                if !send(event) {
                    return Ok(Flow::Stop);
                }
            }
        }
        Ok(Flow::GoOn)
    }

    /// Takes a complete dump and sends it.
    fn resync(&mut self, send: &mut impl FnMut(NetdevEvent) -> bool) -> Result<Flow, MonitorError> {
        if self.discard()? == Discarded::Overrun && !send(NetdevEvent::Overrun) {
            return Ok(Flow::Stop);
        }
        let dumped = dump::table(&mut self.requests);
        let now = Instant::now();
        match dumped {
            Ok(table) => {
                let failures = self.schedule.succeeded(now);
                if failures > 0 {
                    tracing::info!(attempt = failures + 1, "netdevs are known again");
                }
                self.table = Some(table.clone());
                Ok(sent(send(NetdevEvent::All(table))))
            }
            Err(error) => {
                if self.schedule.failed(now) == 1 {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(error = %error, cause, "netdevs can't be listed; will retry");
                }
                Ok(Flow::GoOn)
            }
        }
    }

    /// Throws away what was announced until now: a dump that starts after that knows all of it.
    fn discard(&mut self) -> Result<Discarded, MonitorError> {
        let mut discarded = Discarded::Heard;
        for _ in 0..MOST_DISCARDED {
            match self.subscription.hear().map_err(socket_error("receive from rtnetlink"))? {
                Heard::Nothing => break,
                Heard::Datagram(_) => {}
                Heard::Lost => discarded = Discarded::Overrun,
            }
        }
        Ok(discarded)
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.subscription.as_fd()
    }
}

/// Whether what was thrown away was all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Discarded {
    Heard,
    Overrun,
}

const fn sent(is_received: bool) -> Flow {
    if is_received { Flow::GoOn } else { Flow::Stop }
}
