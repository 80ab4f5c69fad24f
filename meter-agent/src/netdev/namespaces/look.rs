//! What the directory of namespaces holds.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    getsockopt_impl, sockopt_impl,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
        stat::fstat,
        statfs::fstatfs,
    },
};

use super::{Entrance, Selection};

/// `NSFS_MAGIC`.
const NSFS_MAGIC: libc::c_long = 0x6e73_6673;
/// Names that are read: more than can be followed, and a bound to what a directory can cost.
pub(super) const MOST_NAMES: usize = 16_384;

sockopt_impl!(
    /// What no other network namespace has before a reboot (Linux 5.14).
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// The names that are meant.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Those that lead to a namespace: device and inode, and the way in.
    pub(super) namespaces: BTreeMap<String, ((u64, u64), Entrance)>,
    /// Whether a name is there and no namespace on it yet.
    pub(super) unmounted: bool,
    /// Names that may not be opened: those on which no namespace is mounted yet, mostly.
    pub(super) denied: BTreeMap<String, String>,
    /// Names that could not be looked at, and why.
    pub(super) failed: BTreeMap<String, String>,
}

/// Looks at every name that is meant. A directory that is not there has none.
pub(super) fn look(directory: &Path, selection: &Selection) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(seen),
        entries => entries?,
    };
    for entry in entries.take(MOST_NAMES) {
        let entry = entry?;
        // No pattern means a name that is not UTF-8.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !selection.has(&name) {
            continue;
        }
        match open_path(&entry.path()) {
            Ok(Some(found)) => drop(seen.namespaces.insert(name, found)),
            Ok(None) => seen.unmounted = true,
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Before the namespace is mounted nobody but root may open the file.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                seen.unmounted = true;
                seen.denied.insert(name, format!("open {}: {error}", entry.path().display()));
            }
            Err(error) => drop(seen.failed.insert(name, format!("open {}: {error}", entry.path().display()))),
        }
    }
    Ok(seen)
}

/// Opens a name; `None` where there is no namespace on it.
pub(super) fn open_path(path: &Path) -> io::Result<Option<((u64, u64), Entrance)>> {
    // Without waiting, whatever it is that somebody put there.
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let file = OwnedFd::from(file);
    if fstatfs(&file)?.filesystem_type().0 != NSFS_MAGIC {
        return Ok(None);
    }
    let number = number(&file)?;
    Ok(Some((number, Entrance(Arc::new(file)))))
}

/// Returns device and inode of a namespace.
pub(super) fn number(file: &OwnedFd) -> io::Result<(u64, u64)> {
    let status = fstat(file)?;
    Ok((status.st_dev, status.st_ino))
}

/// Returns the cookie of the calling thread's namespace, 0 where the kernel has none.
pub(super) fn cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    match getsockopt(&socket, NetnsCookie) {
        Err(Errno::ENOPROTOOPT) => Ok(0),
        cookie => Ok(cookie?),
    }
}

/// Returns the way into the namespace of this name; `None` where there is none.
#[must_use]
pub fn open(directory: &Path, name: &str) -> Option<Entrance> {
    open_path(&directory.join(name)).ok().flatten().map(|(_, entrance)| entrance)
}
