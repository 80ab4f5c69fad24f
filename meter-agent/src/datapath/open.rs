//! What opening the kernel half takes: a kernel that is new enough, permission, a bpffs, and no other agent.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{maps::MapError, programs::ProgramError};
use nix::fcntl::{Flock, FlockArg};

use super::{
    MetersError, ReadError,
    failure::{describe, refusal},
    sys,
};

/// The oldest kernel whose verifier takes the programs.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// Where systemd mounts a bpffs, and others too.
const USUAL_BPFFS: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC`.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/magic.h#L88>
const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;

/// The datapath could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The build has no object.
    #[error("this build carries no eBPF object: build it with `cargo xtask build`")]
    NoObject,
    /// The kernel is too old.
    #[error("Linux {found} is too old: the eBPF programs need {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    OldKernel {
        /// Its release.
        found: String,
    },
    /// Not permitted.
    #[error("{action}: not permitted{}", remedy(.missing))]
    Permission {
        /// What was being done.
        action: String,
        /// The capabilities that this process lacks; none where something else forbids it.
        missing: Vec<&'static str>,
    },
    /// The pin path is not on a bpffs.
    #[error(
        "{path} is not on a bpffs ({why}); mount one with `mount -t bpf bpf /sys/fs/bpf`, or set datapath.pin_path"
    )]
    NoBpffs {
        /// The path.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A path could not be used.
    #[error("{action} {path}: {source}")]
    Path {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent uses the maps.
    #[error("another agent uses {path}; stop it, or set datapath.pin_path")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Something that is not ours, or not of this version, is pinned.
    #[error("{path} is not this version's map {map}: {found}")]
    ForeignPin {
        /// The pin.
        path: PathBuf,
        /// The map that belongs there.
        map: &'static str,
        /// What is there.
        found: String,
    },
    /// There are maps of a later version.
    #[error(
        "{path} has the pins of version {found} of the maps, and this agent knows up to {known}: start the newer agent \
         again, or end all totals with its `meter-agent detach`"
    )]
    NewerPins {
        /// The directory of all versions.
        path: PathBuf,
        /// The version that is there.
        found: u32,
        /// This agent's.
        known: u32,
    },
    /// There are maps of several earlier versions: an agent was ended while it took over from another.
    #[error(
        "{path} has the pins of versions {} and {} of the maps: an agent of version {} was ended while it took over; start \
         that one once more, then this one", .found[0], .found[1], .found[1]
    )]
    UnfinishedPins {
        /// The directory of all versions.
        path: PathBuf,
        /// The first two versions.
        found: [u32; 2],
    },
    /// The object is not what this agent expects.
    #[error("eBPF object: {0}")]
    Object(String),
    /// The maps don't fit into the memory that this process may take.
    #[error(
        "the maps may take {needed} MiB, which the {limit} MiB that {group} allows have no room for beside the agent: raise \
         its MemoryMax= (memory.max), or lower tunnels.max_tunnels, datapath.max_netdevs, datapath.max_ports or \
         connections.max_entries"
    )]
    MemoryLimit {
        /// What the maps take with all entries.
        needed: u64,
        /// What there may be.
        limit: u64,
        /// The control group whose limit that is.
        group: PathBuf,
    },
    /// Something keeps this process from `bpf(2)`, though it has the capabilities.
    #[error("load the eBPF object: {0}")]
    Forbidden(String),
    /// The verifier refuses the object.
    #[error("load the eBPF object: {0}")]
    Refused(String),
    /// The kernel could not load the object now.
    #[error("load the eBPF object: {0}")]
    Load(String),
    /// A map could not be written.
    #[error("write map {map}: {source}")]
    Write {
        /// Its name.
        map: &'static str,
        /// Why not.
        source: MapError,
    },
    /// A map could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl OpenError {
    /// Returns whether another attempt ends in the same way, until somebody has changed the host.
    ///
    /// Not so while another agent ends, or where memory was short.
    #[must_use]
    pub const fn lasts(&self) -> bool {
        match self {
            Self::NoObject
            | Self::OldKernel { .. }
            | Self::Permission { .. }
            | Self::NoBpffs { .. }
            | Self::ForeignPin { .. }
            | Self::NewerPins { .. }
            | Self::UnfinishedPins { .. }
            | Self::Object(_)
            | Self::MemoryLimit { .. }
            | Self::Forbidden(_)
            | Self::Refused(_) => true,
            Self::Path { .. } | Self::Locked { .. } | Self::Load(_) | Self::Write { .. } | Self::Read(_) => {
                false
            }
        }
    }
}

impl OpenError {
    /// Returns whether this is what making pins ends in where none can be made: there is no bpffs, or it, its rights or a
    /// security module refuse.
    ///
    /// A capability that lacks is another thing: it takes more than the pins.
    pub(super) fn forbids_pins(&self) -> bool {
        match self {
            // Another place is a mistake in the path: pins may be where it should lead to.
            Self::NoBpffs { path, .. } => path.starts_with(USUAL_BPFFS),
            Self::Permission { missing, .. } => missing.is_empty(),
            Self::Path { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::EROFS | libc::EPERM | libc::EACCES | libc::ENOENT | libc::ENOTDIR | libc::ENOSPC)
            ),
            _ => false,
        }
    }
}

/// Returns the kernel's release, if it is new enough.
pub(super) fn check_kernel() -> Result<String, OpenError> {
    let found = nix::sys::utsname::uname().map_or_else(
        |_| "of unknown release".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    if major_minor(&found) >= Some(OLDEST_KERNEL) {
        return Ok(found);
    }
    Err(OpenError::OldKernel { found })
}

/// Returns the first two numbers of a kernel's release.
///
/// Not aya's `KernelVersion`, which on Debian is the package's version and, where it can't be parsed, none at all.
pub(super) fn major_minor(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Makes a directory of ours on a bpffs, only for us; mounts a bpffs at its usual place if there is none, where it would stay.
pub(super) fn make_directory(directory: &Path, pin_path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;

    if !has_bpffs(pin_path)? {
        let usual = Path::new(USUAL_BPFFS);
        if !stays_mounted() {
            let why = format!("what is mounted at {} here goes with this mount namespace", usual.display());
            return Err(OpenError::NoBpffs { path: pin_path.to_owned(), why });
        }
        if !mount_bpffs(usual) {
            return Err(no_bpffs(pin_path, usual));
        }
        tracing::info!(path = %usual.display(), "mounted a bpffs");
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| path_error("make directory", directory, source))
}

/// Returns what is there of a path.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Refuses a pin path on a file system that is mounted read-only.
pub(super) fn check_writable(pin_path: &Path) -> Result<(), OpenError> {
    let existing = existing(pin_path);
    let status = nix::sys::statvfs::statvfs(existing)
        .map_err(|errno| path_error("look at the file system of", existing, errno.into()))?;
    if status.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) {
        return Err(path_error("write to", existing, io::Error::from_raw_os_error(libc::EROFS)));
    }
    Ok(())
}

/// Returns whether a pin path is on a bpffs; where it is not, one may be mounted at its usual place.
pub(super) fn has_bpffs(pin_path: &Path) -> Result<bool, OpenError> {
    let existing = existing(pin_path);
    let is_there = on_bpffs(existing)?;
    if is_there || existing == Path::new(USUAL_BPFFS) {
        return Ok(is_there);
    }
    Err(no_bpffs(pin_path, existing))
}

fn no_bpffs(pin_path: &Path, existing: &Path) -> OpenError {
    let why = format!("{} is on another file system", existing.display());
    OpenError::NoBpffs { path: pin_path.to_owned(), why }
}

fn on_bpffs(path: &Path) -> Result<bool, OpenError> {
    let status = nix::sys::statfs::statfs(path)
        .map_err(|errno| path_error("look at the file system of", path, errno.into()))?;
    Ok(status.filesystem_type().0 == BPF_FS_MAGIC)
}

/// Returns whether this is the mount namespace of the first process, in which what is mounted outlives this one.
fn stays_mounted() -> bool {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    of("self").is_ok_and(|own| of("1").is_ok_and(|first| first == own))
}

fn mount_bpffs(path: &Path) -> bool {
    use nix::mount::{MsFlags, mount};
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>).is_ok()
}

/// Pins something and removes it, to see whether that can be done.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn try_pin(directory: &Path) -> Result<(), OpenError> {
    let pin = directory.join("TRIED");
    let map =
        sys::create_array("TRIED", size_of::<u64>(), 0).map_err(|error| load_error("make a map", &error))?;
    // An agent may have been killed here.
    let refused = match sys::pin(map.as_fd(), &pin) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => fs::remove_file(&pin),
    };
    refused.map_err(|source| path_error("pin a map at", &pin, source))
}

/// Takes the lock that makes one agent the only writer. It goes with the process.
pub(super) fn lock(directory: &Path) -> Result<Flock<OwnedFd>, OpenError> {
    let file = fs::File::open(directory).map_err(|source| path_error("open", directory, source))?;
    Flock::lock(OwnedFd::from(file), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => OpenError::Locked { path: directory.to_owned() },
        errno => path_error("lock", directory, errno.into()),
    })
}

/// Returns whether a path has a name with a dot in it, which a bpffs refuses.
pub(super) fn has_dot(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&b'.')
}

pub(super) fn path_error(action: &'static str, path: &Path, source: io::Error) -> OpenError {
    if source.kind() == io::ErrorKind::PermissionDenied {
        let hint = if has_dot(path) { " (bpffs refuses names with a dot)" } else { "" };
        let action = format!("{action} {}{hint}", path.display());
        return OpenError::Permission { action, missing: missing_capabilities() };
    }
    OpenError::Path { action, path: path.to_owned(), source }
}

/// Says why a pin can't be opened as a map: nothing of `bpf(2)` is permitted (Linux 5.10 without CAP_BPF), it is another
/// user's, or it is none.
pub(super) fn pin_error(map: &'static str, path: &Path, error: &MapError) -> OpenError {
    if matches!(errno(error), Some(libc::EPERM | libc::EACCES)) {
        let action = format!("open the pinned map {}", path.display());
        return OpenError::Permission { action, missing: missing_capabilities() };
    }
    OpenError::ForeignPin { path: path.to_owned(), map, found: describe(error) }
}

impl From<OpenError> for MetersError {
    fn from(error: OpenError) -> Self {
        Self(error.to_string())
    }
}

/// Tells a missing permission, and what will be refused again, from everything else that can go wrong when the object is
/// loaded.
///
/// The error alone does not say it: without CAP_BPF aya can't ask the kernel for its features, takes it for one that
/// has none of them, and fails over something that follows from that.
pub(super) fn load_error(action: &str, error: &(dyn std::error::Error + 'static)) -> OpenError {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return OpenError::Permission { action: action.to_owned(), missing };
    }
    let why = match errno(error) {
        Some(libc::EPERM | libc::EACCES) => {
            "not permitted, though no capability is missing: look for a security module, a seccomp filter or the kernel's \
             lockdown that forbids it, and before Linux 5.11 for a limit of locked memory"
        }
        Some(libc::ENOSYS) => "this kernel has no bpf(2): it takes CONFIG_BPF_SYSCALL",
        _ => return OpenError::Load(format!("{action}: {}", describe(error))),
    };
    OpenError::Forbidden(format!("{action}: {why} ({})", describe(error)))
}

/// The same of a program: in few words what the verifier did not like.
pub(super) fn program_error(name: &str, error: &ProgramError) -> OpenError {
    match (load_error(&format!("load program {name}"), error), refusal(name, error)) {
        // The verifier says EACCES as well.
        (OpenError::Load(_) | OpenError::Forbidden(_), Some(why)) => OpenError::Refused(why),
        (other, _) => other,
    }
}

/// Returns the number of the system error behind an error.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}

/// What the programs take, with what stands in for each (`linux/capability.h`).
const CAPABILITIES: [(&str, u32, u32); 3] =
    [("CAP_BPF", 39, CAP_SYS_ADMIN), ("CAP_NET_ADMIN", 12, 12), ("CAP_PERFMON", 38, CAP_SYS_ADMIN)];
const CAP_SYS_ADMIN: u32 = 21;

/// Returns the capabilities that this thread needs and lacks; none where the kernel doesn't tell.
pub(super) fn missing_capabilities() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).map(lacking).unwrap_or_default()
}

/// Returns which of [`CAPABILITIES`] are not in a set, given as the kernel's bits.
fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    CAPABILITIES
        .into_iter()
        .filter(|&(_, bit, instead)| !has(bit) && !has(instead))
        .map(|(name, ..)| name)
        .collect()
}

fn remedy(missing: &[&str]) -> String {
    if missing.is_empty() {
        return "; run as root, or as the user whose it is, or look for a security module that forbids it"
            .to_owned();
    }
    let missing = missing.join(", ");
    format!(" without {missing}; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
}

#[cfg(test)]
mod tests {
    use super::{OLDEST_KERNEL, lacking, major_minor};

    #[test]
    fn capabilities_that_lack_are_named() {
        assert_eq!(lacking(u64::MAX), [""; 0]);
        assert_eq!(lacking(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(lacking(1 << 39 | 1 << 12), ["CAP_PERFMON"]);
        assert_eq!(lacking(1 << 21), ["CAP_NET_ADMIN"], "CAP_SYS_ADMIN stands in for the newer ones");
    }

    #[test]
    fn release_is_compared_by_its_numbers() {
        for (release, numbers) in [
            ("5.10.0-32-cloud-amd64", Some((5, 10))),
            ("6.12.118+deb13-amd64", Some((6, 12))),
            ("7.0-rc3", Some((7, 0))),
            ("2.6.78", Some((2, 6))),
            ("10.1", Some((10, 1))),
            ("of unknown release", None),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(major_minor(release), numbers, "{release}");
        }
        assert!(Some((10, 1)) > Some(OLDEST_KERNEL) && Some((5, 9)) < Some(OLDEST_KERNEL));
        assert!(None < Some(OLDEST_KERNEL));
    }
}
