//! Where links are kept: pinned, so that they outlive the agent, or held by it where nothing can be pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{pins, sys, unpinned};
use crate::netdev::NetdevId;

/// The links, by the names of their hooks.
#[derive(Debug)]
pub(super) enum Links {
    /// Pinned in this directory.
    Pinned(PathBuf),
    /// Held by descriptors.
    Held(Held),
}

/// Links that go with the process.
#[derive(Debug)]
pub(super) struct Held {
    links: Mutex<BTreeMap<String, OwnedFd>>,
    /// The netdevs whose clsact qdisc is ours: nothing else tells the next agent.
    qdiscs: Mutex<BTreeSet<NetdevId>>,
    /// What stands for the pin path in the names of filters.
    mark: String,
}

impl Links {
    /// Makes those of an agent that can't pin at this path.
    pub(super) fn held(pin_path: &Path) -> Self {
        let mark = unpinned::mark(pin_path);
        Self::Held(Held { links: Mutex::default(), qdiscs: Mutex::default(), mark })
    }

    /// Returns a link. What is pinned in its place and is none is set aside.
    ///
    /// # Errors
    ///
    /// What can't be set aside.
    pub(super) fn open(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Pinned(directory) => open_pinned(&directory.join(name)),
            Self::Held(held) => held.links().get(name).map(OwnedFd::try_clone).transpose(),
        }
    }

    /// Keeps a link.
    pub(super) fn keep(&self, name: &str, link: &OwnedFd) -> io::Result<()> {
        match self {
            Self::Pinned(directory) => sys::pin(link.as_fd(), &directory.join(name)),
            Self::Held(held) => {
                held.links().insert(name.to_owned(), link.try_clone()?);
                Ok(())
            }
        }
    }

    /// Detaches a link and lets it go.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match self {
            Self::Pinned(directory) => remove_link(&directory.join(name)),
            Self::Held(held) => {
                let link = held.links().remove(name).ok_or(io::ErrorKind::NotFound)?;
                if let Err(error) = sys::detach_link(link.as_fd()) {
                    // It goes with its last descriptor then.
                    tracing::debug!(name, error = %error, "link not detached");
                }
                Ok(())
            }
        }
    }

    /// Returns where a link is kept, for messages.
    pub(super) fn place(&self, name: &str) -> String {
        match self {
            Self::Pinned(directory) => directory.join(name).display().to_string(),
            Self::Held(_) => format!("the link {name} of this process"),
        }
    }

    /// Says whether the clsact qdisc of a netdev is ours.
    pub(super) fn set_qdisc(&self, id: NetdevId, ours: bool) {
        if let Self::Held(held) = self {
            let mut qdiscs = held.qdiscs.lock().unwrap_or_else(PoisonError::into_inner);
            if ours {
                qdiscs.insert(id)
            } else {
                qdiscs.remove(&id)
            };
        }
    }

    /// Returns the name of our filter on a netdev, which runs this program.
    pub(super) fn filter_name(&self, id: NetdevId, program: &str) -> String {
        match self {
            Self::Pinned(_) => program.to_owned(),
            Self::Held(held) => {
                let qdiscs = held.qdiscs.lock().unwrap_or_else(PoisonError::into_inner);
                unpinned::filter_name(program, qdiscs.contains(&id), &held.mark)
            }
        }
    }
}

impl Held {
    fn links(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    match sys::open_pin(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Ok(link) if sys::is_link(link.as_fd()) => Ok(Some(link)),
        other => {
            let found = other.map_or_else(|error| error.to_string(), |_| "no link".to_owned());
            let aside = pins::set_aside(path).map_err(|error| {
                let path = path.display();
                io::Error::new(
                    error.kind(),
                    format!("{path} is not a link of ours ({found}), and not set aside: {error}"),
                )
            })?;
            tracing::error!(pin = %path.display(), found, aside = %aside.display(), "not our link; set aside");
            Ok(None)
        }
    }
}

/// Detaches a pinned link and removes the pin.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    match sys::open_pin(path).and_then(|link| sys::detach_link(link.as_fd())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        // It goes with its pin then.
        Err(error) => tracing::debug!(path = %path.display(), error = %error, "link not detached"),
        Ok(()) => {}
    }
    fs::remove_file(path)
}
