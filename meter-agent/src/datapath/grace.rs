//! Waiting for programs that run: after it nobody uses what was taken away from them before.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use super::sys;

/// An array of maps that nobody reads.
///
/// Whoever replaces an entry of one waits until every program has ended that may have read the old entry, so until every
/// program has that began before: user space has no other call for it.
/// <https://elixir.bootlin.com/linux/v5.10/source/kernel/bpf/syscall.c#L150>
#[derive(Debug)]
pub(super) struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    pub(super) fn new() -> io::Result<Self> {
        let inner = sys::create_array("meter_grace_in", 8, 0)?;
        let outer = sys::create_array_of_maps("meter_grace", inner.as_fd())?;
        Ok(Self { outer, inner })
    }

    /// Returns once every program has ended that runs now.
    pub(super) fn wait(&self) -> io::Result<()> {
        sys::set_inner_map(self.outer.as_fd(), 0, self.inner.as_fd())
    }
}
