//! `bpf(2)` where aya 0.14 has no call for it: batch lookups, and detaching a link that others may hold.
//!
//! The only `unsafe` of the user half.

use std::{
    ffi::CString,
    io,
    mem::{offset_of, size_of},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;

/// `BPF_MAP_LOOKUP_BATCH`, Linux 5.6.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/bpf.h#L952>
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// `BPF_OBJ_GET`, Linux 4.4.
const BPF_OBJ_GET: libc::c_long = 7;
/// `BPF_LINK_DETACH`, Linux 5.9.
const BPF_LINK_DETACH: libc::c_long = 34;

/// The member of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct PathAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The member of `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkAttr {
    link_fd: u32,
}

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<BatchAttr>() == 56 && offset_of!(BatchAttr, elem_flags) == 40);

/// Returns every key and value of a hash map, `chunk` to a system call.
///
/// Entries that come or go meanwhile may be missed or not; entries that stay are returned once each.
///
/// # Errors
///
/// What the kernel says, such as `EINVAL` for sizes that are not the map's.
pub(super) fn lookup_batch<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    chunk: usize,
) -> io::Result<Vec<(K, V)>> {
    let mut chunk = chunk.max(1);
    let mut entries = Vec::new();
    let mut position: Option<u64> = None;
    loop {
        let mut keys = vec![K::default(); chunk];
        let mut values = vec![V::default(); chunk];
        let mut next = 0_u64;
        let mut attr = BatchAttr {
            in_batch: position.as_ref().map_or(0, |position| std::ptr::from_ref(position) as u64),
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(chunk).unwrap_or(u32::MAX),
            map_fd: map.as_raw_fd().cast_unsigned(),
            ..BatchAttr::default()
        };
        // SAFETY: `attr` is the 56 bytes that this command reads and writes. The kernel writes at most `count` keys
        // and values of the map's sizes, which the caller has checked to be those of `K` and `V` (both `Pod`, so any
        // bytes are a value), and a position of 4 bytes for a hash map into the 8 of `next`. All buffers live
        // through the call and nobody else has them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                std::ptr::from_mut(&mut attr),
                size_of::<BatchAttr>(),
            )
        };
        let error = (result < 0).then(io::Error::last_os_error);
        match error.as_ref().map(io::Error::raw_os_error) {
            // ENOENT ends the map; what was found until then is in the buffers.
            None | Some(Some(libc::ENOENT)) => {}
            Some(Some(libc::ENOSPC)) => {
                // One bucket holds more entries than the buffers.
                chunk *= 2;
                continue;
            }
            Some(_) => return Err(error.unwrap_or_else(io::Error::last_os_error)),
        }
        let count = usize::try_from(attr.count).unwrap_or(chunk).min(chunk);
        entries.extend(keys.into_iter().zip(values).take(count));
        if error.is_some() {
            return Ok(entries);
        }
        position = Some(next);
    }
}

/// Detaches the link that is pinned at `path`, before this returns; the pin stays.
///
/// Removing the last pin detaches as well, but some time later: frames would still count at a hook that is said to
/// have gone.
///
/// # Errors
///
/// What the kernel says, such as `ENOENT` where nothing is pinned, or `EINVAL` where that is no link.
pub(super) fn detach_link(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` is the 16 bytes that this command reads, and `name`, to which it points, ends in 0 and lives
    // through the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, std::ptr::from_mut(&mut attr), size_of::<PathAttr>())
    };
    let fd = match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error()),
    };
    let mut attr = LinkAttr { link_fd: fd.as_raw_fd().cast_unsigned() };
    // SAFETY: `attr` is the 4 bytes that this command reads; it writes to no memory of ours.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, std::ptr::from_mut(&mut attr), size_of::<LinkAttr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
