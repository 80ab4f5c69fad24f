//! What can go wrong while a lab is built or used.

use std::{io, time::Duration};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a part of the lab could not be made or did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// What was being done, to which object.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A command ended with another status than 0.
    #[error("{command}: {message}")]
    Command {
        /// The command line.
        command: String,
        /// What it wrote to its standard error, or its status.
        message: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// A netdev that should be there is not.
    #[error("there is no netdev {netdev} in namespace {netns}")]
    NoNetdev {
        /// Its name.
        netdev: String,
        /// Where it was looked for.
        netns: String,
    },
}

/// Says what was being done when a system call failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Io { doing: what(), source: error.into() })
    }
}
