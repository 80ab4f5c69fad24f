//! `bpf(2)` for the one program that is not in the object.

use std::{io, mem::offset_of, os::fd::OwnedFd};

use super::{bpf, link::BPF_XDP, owned};

const BPF_PROG_LOAD: libc::c_long = 5;

const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

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

/// Loads an XDP program that lets every frame pass and counts none: whether a netdev takes XDP can be tried with it.
///
/// # Errors
///
/// What the kernel says; `EINVAL` before Linux 5.18 for one that takes frames of several buffers (`fragments`).
pub(in super::super) fn load_xdp_pass(fragments: bool) -> io::Result<OwnedFd> {
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
