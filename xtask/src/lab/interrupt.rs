//! Ctrl-C and SIGTERM as something to wait for.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use std::os::fd::AsFd as _;

/// Keeps Ctrl-C, SIGTERM and a hang-up from ending the process, so that it can put everything away first.
#[derive(Debug)]
pub(super) struct Interrupt {
    signals: SignalFd,
    happened: bool,
}

impl Interrupt {
    /// Blocks the signals for this thread and for those that it starts later.
    pub(super) fn new() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).context("make a signalfd")?;
        Ok(Self { signals, happened: false })
    }

    /// Returns whether a signal has come.
    pub(super) const fn happened(&self) -> bool {
        self.happened
    }

    /// Waits for a signal for at most this time; returns whether one has come, now or earlier.
    pub(super) fn within(&mut self, time: Duration) -> Result<bool> {
        let deadline = Instant::now() + time;
        while !self.happened {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if deadline <= Instant::now() => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("wait for a signal"),
            }
            self.happened = self.signals.read_signal().context("read a signal")?.is_some();
        }
        Ok(self.happened)
    }
}
