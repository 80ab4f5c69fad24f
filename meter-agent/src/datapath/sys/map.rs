//! `bpf(2)` for maps: batch lookups, maps that can be mapped, and what aya's arrays of maps can't do.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::Pod;
use nix::sys::resource::{Resource, setrlimit};

use super::{bpf, info, owned};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
/// Linux 5.6.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
/// Linux 5.5.
pub(in super::super) const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The member of `union bpf_attr` for `BPF_MAP_CREATE`, up to `map_name`.
#[repr(C)]
#[derive(Default)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

const _: () = assert!(size_of::<MapAttr>() == 44);

/// A map of one entry, whose key is a number.
const ONE_ENTRY: MapAttr = MapAttr {
    map_type: 0,
    key_size: 4,
    value_size: 0,
    max_entries: 1,
    map_flags: 0,
    inner_map_fd: 0,
    numa_node: 0,
    map_name: [0; 16],
};

/// The member of `union bpf_attr` for the elements of a map.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The member of `union bpf_attr` for what has an id.
#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
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
pub(in super::super) fn lookup_batch<K: Pod + Default, V: Pod + Default>(
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
        let error = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) }.err();
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

/// Makes an array of one value, with flags such as [`BPF_F_MMAPABLE`].
///
/// # Errors
///
/// What the kernel says, such as `EPERM`.
pub(in super::super) fn create_array(name: &str, value_size: usize, flags: u32) -> io::Result<OwnedFd> {
    let value_size = u32::try_from(value_size).map_err(io::Error::other)?;
    create(name, MapAttr { map_type: BPF_MAP_TYPE_ARRAY, value_size, map_flags: flags, ..ONE_ENTRY })
}

/// Makes an array of so many values that can be mapped into memory.
///
/// # Errors
///
/// What the kernel says, such as `EPERM`.
pub(in super::super) fn create_mapped_array(
    name: &str,
    value_size: usize,
    max_entries: u32,
) -> io::Result<OwnedFd> {
    let value_size = u32::try_from(value_size).map_err(io::Error::other)?;
    let map_type = BPF_MAP_TYPE_ARRAY;
    create(name, MapAttr { map_type, value_size, max_entries, map_flags: BPF_F_MMAPABLE, ..ONE_ENTRY })
}

/// Makes an array of one map that is of the same type and sizes as this one.
///
/// # Errors
///
/// What the kernel says, such as `EPERM`.
pub(in super::super) fn create_array_of_maps(name: &str, like: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let inner_map_fd = like.as_raw_fd().cast_unsigned();
    let map_type = BPF_MAP_TYPE_ARRAY_OF_MAPS;
    create(name, MapAttr { map_type, value_size: 4, inner_map_fd, ..ONE_ENTRY })
}

/// Makes a map of this type (its number) with these sizes: of keys, of values, and entries.
///
/// # Errors
///
/// What the kernel says, such as `EPERM`.
pub(in super::super) fn create_map(
    name: &str,
    map_type: u32,
    [key_size, value_size, max_entries]: [u32; 3],
) -> io::Result<OwnedFd> {
    create(name, MapAttr { map_type, key_size, value_size, max_entries, ..MapAttr::default() })
}

fn create(name: &str, mut attr: MapAttr) -> io::Result<OwnedFd> {
    // The last byte stays 0.
    let name_bytes = attr.map_name[..15].iter_mut().zip(name.as_bytes());
    name_bytes.for_each(|(to, from)| *to = *from);
    let mut create = || {
        // SAFETY: `attr` is the first 44 bytes of what this command reads, the rest being optional. It points to nothing.
        // The command returns a descriptor.
        unsafe { bpf(BPF_MAP_CREATE, &mut attr).and_then(|fd| owned(fd)) }
    };
    match create() {
        // Before Linux 5.11 maps count as locked memory, and where there is too much of it creation is not permitted.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY)
                .map_err(|_| error)?;
            create()
        }
        created => created,
    }
}

/// Puts a map into an array of maps, and waits until no program runs that may have got the one before.
///
/// # Errors
///
/// What the kernel says: `EINVAL` for a map of another type or size.
pub(in super::super) fn set_inner_map(
    map: BorrowedFd<'_>,
    index: u32,
    inner: BorrowedFd<'_>,
) -> io::Result<()> {
    let inner = inner.as_raw_fd();
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(&index) as u64,
        value: std::ptr::from_ref(&inner) as u64,
        flags: 0,
    };
    // SAFETY: `attr` is the 32 bytes that this command reads; its key is the 4 bytes of an array's, and its value the 4 of a
    // descriptor, and both live through the call. Nothing is written.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Returns the id of what an array of maps has at an index; `None` for nothing.
///
/// # Errors
///
/// What the kernel says.
pub(in super::super) fn inner_map(map: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(&index) as u64,
        value: std::ptr::from_mut(&mut id) as u64,
        flags: 0,
    };
    // SAFETY: `attr` is the 32 bytes that this command reads, and its key the 4 bytes of an array's. The kernel writes the 4
    // bytes of an array of maps' value. Both live through the call and nobody else has them.
    match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the id of a map.
///
/// # Errors
///
/// What the kernel says.
pub(in super::super) fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_map_info`, up to `id`.
    let [_, id]: [u32; 2] = info(map)?;
    Ok(id)
}

/// Opens the map with this id, for which the kernel wants CAP_SYS_ADMIN.
///
/// # Errors
///
/// What the kernel says: `ENOENT` without such a map.
pub(in super::super) fn open_map(id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr { id, next_id: 0, open_flags: 0 };
    // SAFETY: `attr` is the 12 bytes that this command reads, without a pointer. The command returns a descriptor.
    unsafe { bpf(BPF_MAP_GET_FD_BY_ID, &mut attr).and_then(|fd| owned(fd)) }
}

/// Has a descriptor stand for another map from now on: its number stays.
///
/// # Errors
///
/// What the kernel says.
pub(in super::super) fn stand_for(descriptor: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open for as long as they are borrowed, and the number stays open and with its owner, who closes it
    // once, as before. What it stood for is a map, as what it stands for is: nobody relies on more.
    let result = unsafe { libc::dup3(map.as_raw_fd(), descriptor.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Removes what an array of maps has at an index.
///
/// # Errors
///
/// What the kernel says: `ENOENT` where there is nothing.
pub(in super::super) fn delete_entry(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(&index) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: `attr` is the 32 bytes that this command reads, and its key the 4 bytes of an array's, which live through the
    // call. Nothing is written.
    unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) }.map(drop)
}
