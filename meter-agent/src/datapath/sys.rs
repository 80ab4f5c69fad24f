//! `bpf(2)` where aya 0.14 has no call for it: batch lookups, and links by the number of a netdev. And what loading leaves
//! with the allocator.
//!
//! With its modules, the only `unsafe` of the user half beside [`mapped`](super::mapped).

mod link;
mod map;
mod memory;
mod program;

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

pub use self::memory::keep_no_big_blocks;
pub(super) use self::{
    link::{
        LinkPlace, create_link, detach_link, is_link, link_netdev, link_program, tcx_programs, update_link,
    },
    map::{
        BPF_F_MMAPABLE, create_array, create_array_of_maps, create_map, create_mapped_array, delete_entry,
        inner_map, lookup_batch, map_id, open_map, set_inner_map, stand_for,
    },
    memory::return_free_memory,
    program::load_xdp_pass,
};

// Commands: <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/bpf.h#L922>
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// The member of `union bpf_attr` for pins.
#[repr(C)]
struct PathAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The member of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Opens what is pinned at `path`.
///
/// # Errors
///
/// What the kernel says, such as `ENOENT` where nothing is pinned.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` is the 16 bytes that this command reads, and `name`, to which it points, ends in 0 and lives
    // through the call. The command returns a descriptor.
    unsafe { bpf(BPF_OBJ_GET, &mut attr).and_then(|fd| owned(fd)) }
}

/// Pins a map or a link at `path`.
///
/// # Errors
///
/// What the kernel says, such as `EEXIST`.
pub(super) fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr =
        PathAttr { pathname: name.as_ptr() as u64, bpf_fd: link.as_raw_fd().cast_unsigned(), file_flags: 0 };
    // SAFETY: as in `open_pin`; nothing is written.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Returns the beginning of what the kernel tells of a map or a link, as so many words.
fn info<const WORDS: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; WORDS]> {
    let mut info = [0_u32; WORDS];
    let mut attr = InfoAttr {
        bpf_fd: fd.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of_val(&info)).unwrap_or_default(),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `attr` is the 16 bytes that this command reads and writes. The kernel writes at most `info_len` bytes to
    // `info`, which lives through the call and is nobody else's.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Calls `bpf(2)`.
///
/// # Safety
///
/// `attr` is laid out as the command's member of `union bpf_attr`, and what it points to may be read or written as the
/// command does until this returns.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the size is that of `attr`, so the kernel touches nothing beyond it; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes a descriptor over.
///
/// # Safety
///
/// The kernel has just made it for us, and nobody else knows of it.
unsafe fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
