//! Without a bpffs that can be written to: what counts is held by descriptors, and ends with the agent.
//!
//! The kernel ends links with their last descriptor, and maps with the programs that use them. A filter of clsact it
//! keeps: an agent that ends removes its own, and those of one that was killed go at the next start with the same pin
//! path, by their names.

use std::{
    io,
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
    thread,
    time::Duration,
};

use meter_ebpf::abi::Direction;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
    },
    unistd::geteuid,
};
use uuid::Uuid;

use super::{
    Options, clsact,
    directories::pins_anything,
    hooks::remove_qdisc,
    open::{OpenError, has_dot},
};

/// Bytes of a pin path that a name has room for: of a filter, and of a socket.
const LONGEST_MARK: usize = 80;
/// Attempts to take the lock, and the time between them.
const LOCK_ATTEMPTS: usize = 20;
const LOCK_REST: Duration = Duration::from_millis(10);
/// What stands in the name of a filter between the program and the mark of the pin path; the second where the qdisc is
/// ours as well.
const MARKS: [&str; 2] = ["@unpinned:", "@unpinned+qdisc:"];

/// What an agent has instead of pins.
#[derive(Debug)]
pub(super) struct Unpinned {
    /// What could not be done, to what, and why.
    pub(super) why: String,
    pub(super) alone: Alone,
}

/// What makes one agent the only one with these pins, or without them, in a network namespace; held while the agent lives.
/// None where somebody else has taken its name: who holds it can't be told then.
pub(super) type Alone = Option<UnixListener>;

impl Unpinned {
    /// Does without pins where `error` says that none can be made.
    ///
    /// # Errors
    ///
    /// The same error where it means something else, such as a mistake in the path, or where there are pins: what they hold goes
    /// on, and an agent beside them would begin anew. And that another agent is there.
    pub(super) fn after(error: OpenError, options: &Options) -> Result<Self, OpenError> {
        let pin_path = &options.pin_path;
        if !error.forbids_pins() || has_dot(pin_path) || pins_anything(pin_path) {
            return Err(error);
        }
        Ok(Self { why: error.to_string(), alone: lock(pin_path)? })
    }
}

/// Returns what stands for a pin path in names.
pub(super) fn mark(pin_path: &Path) -> String {
    match pin_path.to_str().filter(|path| path.len() <= LONGEST_MARK) {
        Some(path) => path.to_owned(),
        None => Uuid::new_v5(&Uuid::NAMESPACE_URL, pin_path.as_os_str().as_encoded_bytes()).to_string(),
    }
}

/// Returns the name of a filter that runs this program.
pub(super) fn filter_name(program: &str, qdisc_is_ours: bool, mark: &str) -> String {
    format!("{program}{}{mark}", MARKS[usize::from(qdisc_is_ours)])
}

/// Returns whether a filter of this name is one of an agent without pins, and then whether the qdisc is its own as well.
fn read_name(name: &str, mark: &str) -> Option<bool> {
    let is = |between: &str| name.split_once(between).is_some_and(|(_, rest)| rest == mark);
    MARKS.iter().position(|between| is(between)).map(|found| found == 1)
}

/// Takes what makes one agent the only one here, with pins or without. It goes with the process.
///
/// A name of a socket is anybody's to take. So one that is neither root's nor this user's locks nobody out.
pub(super) fn lock(pin_path: &Path) -> Result<Alone, OpenError> {
    let name = format!("meter-agent {}", mark(pin_path));
    let mut attempts = 1..LOCK_ATTEMPTS;
    loop {
        let taken = SocketAddr::from_abstract_name(&name).and_then(|name| UnixListener::bind_addr(&name));
        match taken {
            Ok(lock) => return Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_an_agents(&name) => {
                // One that was just killed still closes what it had.
                attempts.next().ok_or_else(|| OpenError::Locked { path: pin_path.to_owned() })?;
                thread::sleep(LOCK_REST);
            }
            Err(error) => {
                tracing::warn!(name, error = %error, "another user has the name of the lock: whether another agent runs here can't be told");
                return Ok(None);
            }
        }
    }
}

/// Returns whether the user who listens there may run an agent. Where so many asked before that no more can, that is not told,
/// and one that is there is not to be disturbed.
fn is_an_agents(name: &str) -> bool {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let asked = socket(AddressFamily::Unix, SockType::Stream, flags, None).and_then(|socket| {
        connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        getsockopt(&socket, PeerCredentials)
    });
    match asked {
        Ok(peer) => peer.uid() == 0 || peer.uid() == geteuid().as_raw(),
        Err(errno) => errno == Errno::EAGAIN,
    }
}

/// Removes the filters in the calling thread's network namespace of an agent without pins that was killed; returns how
/// many.
///
/// # Errors
///
/// The first thing that could not be looked at or removed; the rest is.
pub(super) fn sweep(pin_path: &Path) -> io::Result<usize> {
    let mark = mark(pin_path);
    let mut swept = Ok(0);
    for ifindex in clsact::netdevs()? {
        let of_netdev = sweep_netdev(ifindex, &mark);
        swept = swept.and_then(|removed| of_netdev.map(|more| removed + more));
    }
    swept
}

fn sweep_netdev(ifindex: u32, mark: &str) -> io::Result<usize> {
    let mut removed = 0;
    let mut qdisc_is_ours = false;
    for direction in Direction::ALL {
        let name = clsact::filter_name(ifindex, direction)?;
        if let Some(is_ours) = name.and_then(|name| read_name(&name, mark)) {
            qdisc_is_ours |= is_ours;
            removed += usize::from(clsact::remove_filter(ifindex, direction)?);
        }
    }
    if qdisc_is_ours {
        remove_qdisc(ifindex);
    }
    Ok(removed)
}

/// The same at a start, which says what it found. Where another agent may have the filters they stay.
pub(super) fn sweep_here(pin_path: &Path, alone: &Alone) {
    if alone.is_some() {
        report(sweep(pin_path));
    }
}

/// Says what was found.
pub(super) fn report(swept: io::Result<usize>) {
    match swept {
        Ok(0) => {}
        Ok(removed) => {
            tracing::warn!(removed, "an agent without pins was killed, and its filters of clsact are removed")
        }
        Err(error) => tracing::error!(error = %error, "what an agent without pins left is not removed"),
    }
}

/// The same in a namespace of others; where an agent is that may have filters of these names they stay.
pub(super) fn sweep_there(pin_path: &Path) -> io::Result<usize> {
    match lock(pin_path) {
        Ok(Some(_alone)) => sweep(pin_path),
        Ok(None) | Err(_) => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn filters_are_known_by_their_names_and_those_of_others_are_not() {
        let mark = mark(Path::new("/sys/fs/bpf/meter-agent"));
        for ours in [false, true] {
            assert_eq!(read_name(&filter_name("meter_in", ours, &mark), &mark), Some(ours));
        }
        let others = ["meter_in", "", "@unpinned:", "meter_in@unpinned:/sys/fs/bpf/meter-agent2", &mark];
        assert_eq!(others.map(|name| read_name(name, &mark)), [None; 5]);
    }

    #[test]
    fn long_pin_paths_have_marks_of_their_own() {
        let long = |last: &str| mark(&PathBuf::from(format!("/{}/{last}", "p".repeat(3_000))));
        assert_ne!(long("a"), long("b"));
        assert!(long("a").len() <= LONGEST_MARK);
    }

    /// Each that finds it taken leaves a connection that nobody accepts, until there is no room for one more.
    #[test]
    fn lock_is_held_however_many_asked_for_it() {
        let path = PathBuf::from(format!("/nowhere/asked/{}", std::process::id()));
        let held = lock(&path).unwrap();
        let name = format!("meter-agent {}", mark(&path));
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let full = (0..100_000).any(|_| {
            let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            let to = UnixAddr::new_abstract(name.as_bytes()).unwrap();
            connect(asking.as_raw_fd(), &to) == Err(Errno::EAGAIN)
        });
        assert!(full && is_an_agents(&name));
        drop(held);
        assert!(!is_an_agents(&name));
    }

    #[test]
    fn one_agent_at_a_time_has_the_lock() {
        let path = PathBuf::from(format!("/nowhere/{}", std::process::id()));
        let held = lock(&path).unwrap();
        assert!(held.is_some());
        assert!(matches!(lock(&path), Err(OpenError::Locked { .. })));
        assert!(lock(&path.join("another")).unwrap().is_some());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
    }
}
