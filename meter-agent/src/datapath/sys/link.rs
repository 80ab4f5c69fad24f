//! `bpf(2)` for links, by the number of a netdev.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use meter_ebpf::abi::Direction;

use super::{bpf, info, owned};

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
/// Linux 5.9.
const BPF_LINK_DETACH: libc::c_long = 34;

pub(super) const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where a link hangs on its netdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum LinkPlace {
    /// TCX, before every other program.
    TcxIngress,
    /// TCX, after every other program.
    TcxEgress,
    /// XDP in the driver.
    Xdp,
}

impl LinkPlace {
    const fn attach_type(self) -> u32 {
        match self {
            Self::TcxIngress => BPF_TCX_INGRESS,
            Self::TcxEgress => BPF_TCX_EGRESS,
            Self::Xdp => BPF_XDP,
        }
    }

    const fn flags(self) -> u32 {
        match self {
            Self::TcxIngress => BPF_F_BEFORE,
            Self::TcxEgress => BPF_F_AFTER,
            Self::Xdp => XDP_FLAGS_DRV_MODE,
        }
    }
}

/// The member of `union bpf_attr` for `BPF_LINK_CREATE`, as far as TCX and XDP go.
#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// The member of `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The member of `union bpf_attr` for `BPF_PROG_QUERY`, up to `revision`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<QueryAttr>() == 64 && offset_of!(QueryAttr, count) == 24);

/// The member of `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkAttr {
    link_fd: u32,
}

/// `struct bpf_link_info`: type, id and program, padding, and for XDP and TCX alike the ifindex; then what nobody asks.
type LinkInfo = [u32; 16];

/// Hangs a program on the netdev with this number, whatever it is called.
///
/// # Errors
///
/// What the kernel says: `ENODEV` without such a netdev, `EINVAL` before Linux 6.6 for TCX, `EBUSY` where XDP is taken.
pub(in super::super) fn create_link(
    program: BorrowedFd<'_>,
    ifindex: u32,
    place: LinkPlace,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: ifindex,
        attach_type: place.attach_type(),
        flags: place.flags(),
        relative_fd: 0,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: `attr` is the 32 bytes that this command reads, without a pointer. The command returns a descriptor.
    unsafe { bpf(BPF_LINK_CREATE, &mut attr).and_then(|fd| owned(fd)) }
}

/// Puts another program into the place of a link's, atomically.
///
/// # Errors
///
/// What the kernel says: `ENOLINK` where the link hangs on nothing any more.
pub(in super::super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: `attr` is the 16 bytes that this command reads, without a pointer.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Returns whether what was pinned is a link, and not a map or a program.
pub(in super::super) fn is_link(fd: BorrowedFd<'_>) -> bool {
    let what = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    // One that was pinned has a hyphen, and one that was just made an underscore.
    what.is_ok_and(|what| {
        ["anon_inode:bpf-link", "anon_inode:bpf_link"].map(Path::new).contains(&what.as_path())
    })
}

/// Returns the id of the program that a link runs.
///
/// # Errors
///
/// What the kernel says.
pub(in super::super) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    let [_, _, program, ..]: LinkInfo = info(link)?;
    Ok(program)
}

/// Returns the number of the netdev on which a link hangs; `None` where it hangs on none any more, or is of another
/// type.
///
/// # Errors
///
/// What the kernel says.
pub(in super::super) fn link_netdev(link: BorrowedFd<'_>, place: LinkPlace) -> io::Result<Option<u32>> {
    let [kind, _, _, _, ifindex, attach_type, ..]: LinkInfo = info(link)?;
    let is_here = match place {
        LinkPlace::Xdp => kind == BPF_LINK_TYPE_XDP,
        _ => kind == BPF_LINK_TYPE_TCX && attach_type == place.attach_type(),
    };
    Ok((is_here && ifindex != 0).then_some(ifindex))
}

/// Returns how many TCX programs hang on one side of a netdev, whoever's.
///
/// # Errors
///
/// What the kernel says: `EINVAL` before Linux 6.6.
pub(in super::super) fn tcx_programs(ifindex: u32, direction: Direction) -> io::Result<u32> {
    let place = match direction {
        Direction::Ingress => LinkPlace::TcxIngress,
        Direction::Egress => LinkPlace::TcxEgress,
    };
    let mut attr =
        QueryAttr { target_ifindex: ifindex, attach_type: place.attach_type(), ..QueryAttr::default() };
    // SAFETY: `attr` is the first 64 bytes of what this command reads and writes. Without room for ids the kernel writes
    // their number only.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    Ok(attr.count)
}

/// Detaches a link, before this returns; its pin stays.
///
/// Removing the last pin detaches as well, but some time later: frames would still count at a hook that is said to
/// have gone.
///
/// # Errors
///
/// What the kernel says.
pub(in super::super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkAttr { link_fd: link.as_raw_fd().cast_unsigned() };
    // SAFETY: `attr` is the 4 bytes that this command reads.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}
