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
mod follower;
mod parse;
mod schedule;
mod socket;
mod statistics;

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use self::{follower::Flow, socket::Requests};
pub use self::{follower::Follower, statistics::Sampler};
use super::{NetdevEvent, NetdevTable};

/// The kernel needs about 4 KiB of it for a link message: some 2000 changes between two reads.
const RECEIVE_BUFFER: usize = 8 << 20;

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
    follower: Follower,
    stopped: PipeReader,
}

/// Ends the run of its [`Monitor`] when it is dropped.
#[derive(Debug)]
pub struct StopGuard {
    _pipe: PipeWriter,
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
        let follower = Follower::open(bytes)?;
        let (stopped, pipe) = io::pipe().map_err(socket_error("make a pipe"))?;
        Ok((Self { follower, stopped }, StopGuard { _pipe: pipe }))
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
            if self.follower.resync_if_due(&mut send)? == Flow::Stop {
                return Ok(());
            }
            let wait = self.follower.wait(Instant::now());
            if self.wait(wait).map_err(socket_error("wait for rtnetlink"))? == Flow::Stop
                || self.follower.hear(&mut send)? == Flow::Stop
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
            PollFd::new(self.follower.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, time) {
            // Nothing is ever written: what wakes us is that the other end is gone.
            Ok(_) if polled[0].any().unwrap_or(true) => Ok(Flow::Stop),
            Ok(_) | Err(Errno::EINTR) => Ok(Flow::GoOn),
            Err(error) => Err(error.into()),
        }
    }
}

fn socket_error(doing: &'static str) -> impl FnOnce(io::Error) -> MonitorError {
    move |source| MonitorError::Socket { doing, source }
}
