//! `bpf(2)` where aya 0.14 has no call for it: batch lookups, and links by the number of a netdev.
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
use meter_ebpf::abi::Direction;
use nix::sys::resource::{Resource, setrlimit};

// Commands: <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/bpf.h#L922>
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
/// Linux 5.6.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
/// Linux 5.9.
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// Linux 5.5.
pub(super) const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where a link hangs on its netdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkPlace {
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

/// The member of `union bpf_attr` for the elements of a map.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The member of `union bpf_attr` for pins.
#[repr(C)]
struct PathAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
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

/// The member of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_link_info`: type, id and program, padding, and for XDP and TCX alike the ifindex; then what nobody asks.
type LinkInfo = [u32; 16];

/// The member of `union bpf_attr` for `BPF_PROG_LOAD`, up to `expected_attach_type`.
#[repr(C)]
#[derive(Default)]
struct ProgAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<ProgAttr>() == 72 && offset_of!(ProgAttr, expected_attach_type) == 68);

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

/// Makes an array of so many values that can be mapped into memory.
///
/// # Errors
///
/// What the kernel says, such as `EPERM`.
pub(super) fn create_mapped_array(name: &str, value_size: usize, max_entries: u32) -> io::Result<OwnedFd> {
    let mut attr = MapAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: u32::try_from(value_size).map_err(io::Error::other)?,
        max_entries,
        map_flags: BPF_F_MMAPABLE,
        ..MapAttr::default()
    };
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

/// Removes what an array of maps has at an index.
///
/// # Errors
///
/// What the kernel says: `ENOENT` where there is nothing.
pub(super) fn delete_entry(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
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

/// Hangs a program on the netdev with this number, whatever it is called.
///
/// # Errors
///
/// What the kernel says: `ENODEV` without such a netdev, `EINVAL` before Linux 6.6 for TCX, `EBUSY` where XDP is taken.
pub(super) fn create_link(program: BorrowedFd<'_>, ifindex: u32, place: LinkPlace) -> io::Result<OwnedFd> {
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
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
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
pub(super) fn is_link(fd: BorrowedFd<'_>) -> bool {
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
pub(super) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    let [_, _, program, ..] = link_info(link)?;
    Ok(program)
}

/// Returns the number of the netdev on which a link hangs; `None` where it hangs on none any more, or is of another
/// type.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn link_netdev(link: BorrowedFd<'_>, place: LinkPlace) -> io::Result<Option<u32>> {
    let [kind, _, _, _, ifindex, attach_type, ..] = link_info(link)?;
    let is_here = match place {
        LinkPlace::Xdp => kind == BPF_LINK_TYPE_XDP,
        _ => kind == BPF_LINK_TYPE_TCX && attach_type == place.attach_type(),
    };
    Ok((is_here && ifindex != 0).then_some(ifindex))
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info: LinkInfo = [0; 16];
    let mut attr = InfoAttr {
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<LinkInfo>()).unwrap_or_default(),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `attr` is the 16 bytes that this command reads and writes. The kernel writes at most `info_len` bytes to
    // `info`, which lives through the call and is nobody else's.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Returns how many TCX programs hang on one side of a netdev, whoever's.
///
/// # Errors
///
/// What the kernel says: `EINVAL` before Linux 6.6.
pub(super) fn tcx_programs(ifindex: u32, direction: Direction) -> io::Result<u32> {
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
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkAttr { link_fd: link.as_raw_fd().cast_unsigned() };
    // SAFETY: `attr` is the 4 bytes that this command reads.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// Loads an XDP program that lets every frame pass and counts none: whether a netdev takes XDP can be tried with it.
///
/// # Errors
///
/// What the kernel says; `EINVAL` before Linux 5.18 for one that takes frames of several buffers (`fragments`).
pub(super) fn load_xdp_pass(fragments: bool) -> io::Result<OwnedFd> {
    /// `XDP_PASS`.
    const PASS: i32 = 2;
    // `r0 = XDP_PASS; exit`.
    let program = [(0xb7, PASS), (0x95, 0)].map(|(code, immediate)| Instruction {
        code,
        registers: 0,
        offset: 0,
        immediate,
    });
    let mut attr = ProgAttr {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        prog_flags: if fragments { BPF_F_XDP_HAS_FRAGS } else { 0 },
        prog_name: *b"meter_pass\0\0\0\0\0\0",
        expected_attach_type: BPF_XDP,
        ..ProgAttr::default()
    };
    // SAFETY: `attr` is the first 72 bytes of what this command reads, the rest being optional. It points to two
    // instructions, as it says, and to a text that ends in 0; both live through the call. The command returns a
    // descriptor.
    unsafe { bpf(BPF_PROG_LOAD, &mut attr).and_then(|fd| owned(fd)) }
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
