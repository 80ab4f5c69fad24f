//! A thread that carries frames from one tap to another.

use std::{
    io::{self, ErrorKind, PipeReader, PipeWriter},
    os::fd::AsFd as _,
    sync::Arc,
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    error::{Doing as _, Result},
    tap::{MAX_READ, Tap},
};

/// Frames that are carried between two looks at the stop signal.
const BATCH: usize = 256;

/// Carries frames until it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts to carry; `observe` sees each frame and whether the other tap took it.
    pub(crate) fn start(
        name: &str,
        from: Arc<Tap>,
        to: Arc<Tap>,
        observe: impl FnMut(&[u8], io::Result<()>) + Send + 'static,
    ) -> Result<Self> {
        let (stopped, stop) = io::pipe().doing(|| "make a pipe".to_owned())?;
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || carry(&from, &to, &stopped, observe))
            .doing(|| format!("start thread {name}"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Closing the pipe's other end wakes the thread.
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("a relay thread panicked");
        }
    }
}

fn carry(from: &Tap, to: &Tap, stopped: &PipeReader, mut observe: impl FnMut(&[u8], io::Result<()>)) {
    let mut buffer = vec![0; MAX_READ];
    loop {
        let mut ready =
            [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                eprintln!("{}: poll: {error}", from.name());
                return;
            }
        }
        if ready[1].any().unwrap_or(true) {
            return;
        }
        for _ in 0..BATCH {
            match from.read(&mut buffer) {
                Ok(length) => observe(&buffer[..length], to.write(&buffer[..length])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The netdev is gone with its namespace.
                Err(_) => return,
            }
        }
    }
}
