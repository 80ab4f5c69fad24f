//! What the kernel announces by rtnetlink: the only user of it beside the datapath's clsact.
//!
//! Level-triggered: an announcement only says sooner what a complete dump would say as well. Where one may be missing,
//! unreadable, or less than the whole truth, a dump follows, and one every few minutes in any case.
//!
//! - Link messages become [`NetdevEvent::New`] and [`NetdevEvent::Gone`], where they say something new.
//! - Addresses and routes have no event of their own: a burst of them ends in one [`NetdevEvent::All`].
//! - A netdev that is moved to another network namespace is gone from this one.
//! - The alias of a netdev that is down changes unannounced; it is told when the netdev comes up.
//! - Default routes whose nexthops are objects of their own (`ip nexthop`) are seen as long as
//!   `net.ipv4.nexthop_compat_mode` is 1, the kernel's default.

mod driver;
mod dump;
mod follow;
mod parse;
mod schedule;
mod socket;
mod statistics;

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

pub use self::statistics::Sampler;
use self::{
    follow::{Change, follow},
    schedule::Schedule,
    socket::{Heard, Requests, Subscription},
};
use super::{NetdevEvent, NetdevTable};

/// The kernel needs about 4 KiB of it for a link message: some 2000 changes between two reads.
const RECEIVE_BUFFER: usize = 8 << 20;

/// More than the receive buffer can hold; keeps a flood from putting off a dump for ever.
const MOST_DISCARDED: usize = 100_000;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// A socket could not be made or used.
    #[error("{doing}")]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A dump was refused or broke off.
    #[error("dump the {what} of this network namespace")]
    Dump {
        /// Netdevs, addresses or routes.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No dump was a picture of one moment.
    #[error("the {what} of this network namespace changed during each of {attempts} dumps; try again")]
    Unsteady {
        /// Netdevs, addresses or routes.
        what: &'static str,
        /// How many were taken.
        attempts: u32,
    },
}

/// Takes one complete dump of the calling thread's network namespace.
///
/// # Errors
///
/// When the kernel refuses, or netdevs come and go faster than they can be listed.
pub fn dump() -> Result<NetdevTable, MonitorError> {
    dump::table(&mut Requests::open().map_err(socket_error("open a netlink socket"))?)
}

/// Follows one network namespace.
#[derive(Debug)]
pub struct Monitor {
    subscription: Subscription,
    requests: Requests,
    stopped: PipeReader,
    schedule: Schedule,
    /// What the receiver knows; `None` before the first dump.
    table: Option<NetdevTable>,
}

/// Ends the run of its [`Monitor`] when it is dropped.
#[derive(Debug)]
pub struct StopGuard {
    _pipe: PipeWriter,
}

/// Why [`Monitor::run`] goes on or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    /// Told to stop, or the receiver is gone.
    Stop,
}

impl Monitor {
    /// Subscribes to the calling thread's network namespace. The result may run on any thread.
    ///
    /// # Errors
    ///
    /// When a socket can't be made.
    pub fn new() -> Result<(Self, StopGuard), MonitorError> {
        Self::with_receive_buffer(RECEIVE_BUFFER)
    }

    /// As [`Monitor::new`] with another size of the socket's receive buffer, in bytes: what is announced beyond that
    /// while `send` of [`Monitor::run`] is busy ends in an overrun.
    ///
    /// # Errors
    ///
    /// As [`Monitor::new`].
    pub fn with_receive_buffer(bytes: usize) -> Result<(Self, StopGuard), MonitorError> {
        // Subscribed before the first dump, so nothing is missed between the two.
        let subscription = Subscription::open(bytes).map_err(socket_error("subscribe to rtnetlink"))?;
        let requests = Requests::open().map_err(socket_error("open a netlink socket"))?;
        let (stopped, pipe) = io::pipe().map_err(socket_error("make a pipe"))?;
        let schedule = Schedule::new(Instant::now());
        Ok((Self { subscription, requests, stopped, schedule, table: None }, StopGuard { _pipe: pipe }))
    }

    /// Sends a complete dump, then every change, until the [`StopGuard`] is dropped or `send` returns false.
    ///
    /// The first event is [`NetdevEvent::All`]. `NetdevTable::apply` of all events, in order, gives what a dump would
    /// give once the kernel has been quiet for a moment. A dump that fails is tried again, ever more slowly.
    ///
    /// # Errors
    ///
    /// When the socket breaks; nothing will be heard any more.
    pub fn run(&mut self, mut send: impl FnMut(NetdevEvent) -> bool) -> Result<(), MonitorError> {
        loop {
            if self.schedule.is_due(Instant::now()) && self.resync(&mut send)? == Flow::Stop {
                return Ok(());
            }
            let wait = self.schedule.wait(Instant::now());
            if self.wait(wait).map_err(socket_error("wait for rtnetlink"))? == Flow::Stop
                || self.hear(&mut send)? == Flow::Stop
            {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to hear, or for `time`.
    fn wait(&self, time: Duration) -> io::Result<Flow> {
        // Rounded up, so that the time has come when the wait is over.
        let time = PollTimeout::try_from(time.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        let mut polled = [
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.subscription.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, time) {
            // Nothing is ever written: what wakes us is that the other end is gone.
            Ok(_) if polled[0].any().unwrap_or(true) => Ok(Flow::Stop),
            Ok(_) | Err(Errno::EINTR) => Ok(Flow::GoOn),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one datagram, if there is one.
    fn hear(&mut self, send: &mut impl FnMut(NetdevEvent) -> bool) -> Result<Flow, MonitorError> {
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

/// Whether what was thrown away was all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Discarded {
    Heard,
    Overrun,
}

const fn sent(is_received: bool) -> Flow {
    if is_received { Flow::GoOn } else { Flow::Stop }
}

fn socket_error(doing: &'static str) -> impl FnOnce(io::Error) -> MonitorError {
    move |source| MonitorError::Socket { doing, source }
}
