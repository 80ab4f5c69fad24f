//! Which named network namespaces there are, and what happens in them: the netdevs of routers, DHCP servers, containers.
//!
//! A name in the directory is a mount of nsfs. Level-triggered: inotify only says sooner what the next look would say as
//! well. One thread hears all namespaces; a namespace is entered by a thread that ends with it.
//!
//! - A name may be there before anything is mounted on it: it is looked at again soon.
//! - Two names may lead to one namespace, and a name to the agent's own: a namespace is followed once, and its own never.
//! - A name may lead to another namespace than it did: the old one is gone, and the new one is here.
//! - Sockets keep a namespace alive that has lost its name. So they are closed before the name's end is told.

mod choose;
mod dump;
mod find;
mod look;

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

pub use self::{choose::Selection, dump::dump, find::find, look::open};
use self::{
    choose::{Choice, choose},
    look::{Seen, look},
};
use super::{NetdevEvent, monitor::Follower};

/// Where iproute2, Neutron and container engines name namespaces.
pub const DIRECTORY: &str = "/run/netns";

/// Bytes of a namespace's receive buffer at most: some 250 changes between two reads.
const RECEIVE_BUFFER: usize = 1 << 20;
/// How often everything is looked at without a sign.
const PERIOD: Duration = Duration::from_secs(5);
/// How soon it is looked at again where a name has nothing mounted on it, doubled each time up to [`PERIOD`].
const SOON: Duration = Duration::from_millis(10);
/// A name that may not be opened is said to be so only once it waits for this long.
const PATIENCE: Duration = Duration::from_secs(1);

/// What tells a namespace from all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The device of nsfs.
    pub device: u64,
    /// Its inode there; another namespace may have it later.
    pub inode: u64,
    /// `SO_NETNS_COOKIE`, which no other has until the host reboots; 0 before Linux 5.14.
    pub cookie: u64,
}

/// A namespace that can be entered. Whoever has it keeps the namespace alive.
#[derive(Clone)]
pub struct Entrance(Arc<OwnedFd>);

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entrance").field(&self.0.as_raw_fd()).finish()
    }
}

impl Entrance {
    /// Returns what `work` returns in the namespace.
    ///
    /// On a thread that ends with it: none can be left behind in another namespace.
    ///
    /// # Errors
    ///
    /// When the namespace can't be entered: that takes CAP_SYS_ADMIN.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let entered = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?;
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Returns the calling thread's own namespace.
    ///
    /// # Errors
    ///
    /// Without `/proc`.
    pub fn own() -> io::Result<Self> {
        Ok(Self(Arc::new(std::fs::File::open("/proc/thread-self/ns/net")?.into())))
    }
}

/// What happens to the namespaces.
#[derive(Debug)]
pub enum NamespaceEvent {
    /// A namespace is followed from now on, or has another name now.
    Here {
        /// Which.
        identity: Identity,
        /// Its name.
        name: String,
        /// The way in.
        entrance: Entrance,
    },
    /// Something happened in it.
    Netdev(Identity, NetdevEvent),
    /// It has lost its name.
    Gone(Identity),
    /// All names have been looked at; those that should be followed and can't be, with the reason.
    Looked(BTreeMap<String, String>),
    /// The names could not be looked at, and why: what was followed is followed still.
    NotLooked(String),
}

/// A namespace that is followed.
#[derive(Debug)]
struct Followed {
    name: String,
    identity: Identity,
    follower: Follower,
}

/// Follows the named namespaces.
#[derive(Debug)]
pub struct Watcher {
    directory: PathBuf,
    selection: Selection,
    /// The agent's own namespace: device and inode.
    own: (u64, u64),
    followed: BTreeMap<(u64, u64), Followed>,
    inotify: Option<Inotify>,
    /// What was said of each name that can't be followed.
    failed: BTreeMap<String, String>,
    /// What was said of the directory, where it can't be looked at.
    unseen: Option<String>,
    next_look: Instant,
    soon: Duration,
}

impl Watcher {
    /// Makes one for the namespaces that have names in this directory, which need not be there yet. The calling thread's
    /// own namespace is not followed.
    ///
    /// # Errors
    ///
    /// Without `/proc`.
    pub fn new(directory: PathBuf, selection: Selection) -> io::Result<Self> {
        let own = look::number(&Entrance::own()?.0)?;
        Ok(Self {
            directory,
            selection,
            own,
            followed: BTreeMap::new(),
            inotify: None,
            failed: BTreeMap::new(),
            unseen: None,
            next_look: Instant::now(),
            soon: SOON,
        })
    }

    /// Sends everything that happens, until `send` returns false.
    ///
    /// # Errors
    ///
    /// When nothing can be waited for.
    pub fn run(&mut self, mut send: impl FnMut(NamespaceEvent) -> bool) -> io::Result<()> {
        loop {
            if self.next_look <= Instant::now() && !self.look(&mut send) {
                return Ok(());
            }
            self.wait()?;
            if self.was_told() {
                self.next_look = Instant::now();
                self.soon = SOON;
                continue;
            }
            if !self.hear(&mut send) {
                return Ok(());
            }
        }
    }

    /// Looks at all names; returns whether the receiver is there.
    fn look(&mut self, send: &mut impl FnMut(NamespaceEvent) -> bool) -> bool {
        self.watch();
        let looked = look(&self.directory, &self.selection);
        let Seen { namespaces, unmounted, denied, mut failed } = match looked {
            Ok(seen) => seen,
            Err(error) => {
                let why = format!("look at {}: {error}", self.directory.display());
                if self.unseen.as_ref() != Some(&why) {
                    tracing::error!(error = why, "namespaces not looked at; will retry");
                }
                self.unseen = Some(why.clone());
                self.next_look = Instant::now() + PERIOD;
                return send(NamespaceEvent::NotLooked(why));
            }
        };
        self.unseen = None;
        let names = namespaces.iter().map(|(name, (number, _))| (name.clone(), *number)).collect();
        let known = self.followed.iter().map(|(number, known)| (*number, known.name.clone())).collect();
        let unseen = denied.keys().chain(failed.keys()).cloned().collect();
        let Choice { gone, here, refused } = choose(&names, &unseen, &known, self.own);
        for number in gone {
            let Some(Followed { name, identity, follower }) = self.followed.remove(&number) else { continue };
            drop(follower);
            tracing::info!(netns = name, "namespace gone");
            if !send(NamespaceEvent::Gone(identity)) {
                return false;
            }
        }
        failed.extend(refused);
        if self.soon >= PATIENCE {
            failed.extend(denied);
        }
        for (number, name) in here {
            let Some((_, entrance)) = namespaces.get(&name) else { continue };
            match self.follow(number, &name, entrance) {
                Ok(identity) => {
                    let entrance = entrance.clone();
                    if !send(NamespaceEvent::Here { identity, name, entrance }) {
                        return false;
                    }
                }
                Err(why) => drop(failed.insert(name, why)),
            }
        }
        for (name, why) in failed.iter().filter(|(name, why)| self.failed.get(*name) != Some(*why)) {
            tracing::error!(netns = name, error = why, "namespace not followed; will retry");
        }
        self.failed.clone_from(&failed);
        self.next_look = Instant::now() + PERIOD;
        if unmounted {
            self.next_look = Instant::now() + self.soon;
            self.soon = (self.soon * 2).min(PERIOD);
        } else {
            self.soon = SOON;
        }
        send(NamespaceEvent::Looked(failed))
    }

    /// Begins to follow a namespace, or takes its new name over.
    fn follow(&mut self, number: (u64, u64), name: &str, entrance: &Entrance) -> Result<Identity, String> {
        if let Some(known) = self.followed.get_mut(&number) {
            tracing::info!(netns = name, before = known.name, "namespace has another name");
            name.clone_into(&mut known.name);
            return Ok(known.identity);
        }
        let entered = entrance.enter(|| -> Result<_, String> {
            let follower =
                Follower::open(RECEIVE_BUFFER).map_err(|error| format!("{error}: {}", cause(&error)))?;
            let cookie = look::cookie().map_err(|error| format!("ask for its cookie: {error}"))?;
            Ok((cookie, follower))
        });
        let (cookie, follower) = entered.map_err(|error| not_entered(&error))??;
        let identity = Identity { device: number.0, inode: number.1, cookie };
        tracing::info!(netns = name, inode = identity.inode, "namespace followed");
        self.followed.insert(number, Followed { name: name.to_owned(), identity, follower });
        Ok(identity)
    }

    /// Has the kernel tell of names that come and go, where it does not yet. Without that every look is a periodic one.
    fn watch(&mut self) {
        if self.inotify.is_some() {
            return;
        }
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let watched = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).and_then(|inotify| {
            inotify.add_watch(&self.directory, flags)?;
            Ok(inotify)
        });
        match watched {
            Ok(inotify) => self.inotify = Some(inotify),
            // It comes with the first name.
            Err(Errno::ENOENT) => {}
            Err(error) => {
                tracing::debug!(error = %error, "no inotify; names are looked at every few seconds")
            }
        }
    }

    /// Waits until there is something to hear, or to do.
    fn wait(&self) -> io::Result<()> {
        let now = Instant::now();
        let waits = self.followed.values().map(|followed| followed.follower.wait(now));
        let wait = waits.chain([self.next_look.saturating_duration_since(now)]).min().unwrap_or(PERIOD);
        if wait.is_zero() {
            return Ok(());
        }
        let time = PollTimeout::try_from(wait.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        let inotify = self.inotify.as_ref().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN));
        let sockets = self.followed.values().map(|one| PollFd::new(one.follower.as_fd(), PollFlags::POLLIN));
        let mut polled: Vec<PollFd<'_>> = inotify.into_iter().chain(sockets).collect();
        match poll(&mut polled, time) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether names have changed.
    fn was_told(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut was_told = false;
        loop {
            match inotify.read_events() {
                Ok(events) => {
                    was_told = true;
                    let ended = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_IGNORED;
                    if events.iter().any(|event| event.mask.intersects(ended)) {
                        // The directory has gone; another one may come.
                        self.inotify = None;
                        return true;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return was_told,
            }
        }
    }

    /// Hears every namespace; returns whether the receiver is there.
    fn hear(&mut self, send: &mut impl FnMut(NamespaceEvent) -> bool) -> bool {
        let mut broken = Vec::new();
        for (number, Followed { name, identity, follower }) in &mut self.followed {
            match follower.turn(|event| send(NamespaceEvent::Netdev(*identity, event))) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    tracing::error!(netns = name, error = %error, "the monitor of a namespace failed; starting another");
                    broken.push((*number, *identity));
                }
            }
        }
        for (number, identity) in broken {
            self.followed.remove(&number);
            self.next_look = Instant::now() + PERIOD;
            if !send(NamespaceEvent::Gone(identity)) {
                return false;
            }
        }
        true
    }
}

/// Says why a namespace can't be entered, and what to do.
fn not_entered(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "not permitted to enter it: that takes CAP_SYS_ADMIN; install the drop-in namespaces.conf, or \
                              take it out of namespaces.include"
                .to_owned()
        }
        _ => format!("enter it: {error}"),
    }
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}
