//! Programs of a few instructions that no meter would load: they drop, or lead frames past a hook.

use std::{io, os::fd::FromRawFd as _};

use lab::netns::Netns;

/// `BPF_PROG_LOAD` and `BPF_LINK_CREATE`.
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

/// Where a program hangs on its netdev.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// TCX, before every other program of ingress.
    FirstOfIngress,
    /// TCX, behind every other program of ingress.
    LastOfIngress,
    /// TCX, behind every other program of egress.
    LastOfEgress,
    /// XDP in the driver.
    Xdp,
}

impl Place {
    /// Returns program type, attach type and flags.
    const fn numbers(self) -> [u32; 3] {
        match self {
            Self::FirstOfIngress => [3, 46, 1 << 3],
            Self::LastOfIngress => [3, 46, 1 << 4],
            Self::LastOfEgress => [3, 47, 1 << 4],
            Self::Xdp => [6, 37, 1 << 2],
        }
    }
}

/// An instruction: opcode, registers (source in the upper half), immediate value.
type Instruction = (u8, u8, u32);

const EXIT: Instruction = (0x95, 0, 0);

/// Drops every frame: `TC_ACT_SHOT`, or `XDP_DROP`.
pub(crate) fn drop_all(netns: &Netns, ifindex: u32, place: Place) -> impl Drop {
    let verdict = if matches!(place, Place::Xdp) { 1 } else { 2 };
    attach(netns, ifindex, place, &[(0xb7, 0, verdict), EXIT])
}

/// Hands every frame to the other end of the veth with the number `to`.
pub(crate) fn redirect_peer(netns: &Netns, ifindex: u32, to: u32) -> impl Drop {
    const REDIRECT_PEER: u32 = 155;
    let program = [(0xb7, 1, to), (0xb7, 2, 0), (0x85, 0, REDIRECT_PEER), EXIT];
    attach(netns, ifindex, Place::LastOfIngress, &program)
}

/// A link that goes with its descriptor.
struct Link {
    fd: std::os::fd::OwnedFd,
}

impl Drop for Link {
    fn drop(&mut self) {
        // `BPF_LINK_DETACH`: at once, and not when the descriptor is collected.
        let mut detach = [std::os::fd::AsRawFd::as_raw_fd(&self.fd).cast_unsigned()];
        // SAFETY: the command reads these 4 bytes.
        let detached = unsafe { libc::syscall(libc::SYS_bpf, 34, detach.as_mut_ptr(), 4) };
        assert_eq!(detached, 0, "{}", io::Error::last_os_error());
    }
}

fn attach(netns: &Netns, ifindex: u32, place: Place, program: &[Instruction]) -> impl Drop + use<> {
    let bytes: Vec<u8> = program
        .iter()
        .flat_map(|(code, registers, immediate)| {
            let [a, b, c, d] = immediate.to_ne_bytes();
            [*code, *registers, 0, 0, a, b, c, d]
        })
        .collect();
    let [program_type, attach_type, flags] = place.numbers();
    let license = c"Apache-2.0";
    let count = u64::try_from(program.len()).unwrap();
    let mut load =
        [u64::from(program_type) | count << 32, bytes.as_ptr() as u64, license.as_ptr() as u64, 0, 0, 0];
    let fd = netns
        .run_in(|| {
            // SAFETY: the first command reads these 48 bytes, the instructions and the license; the second one 32 bytes
            // without a pointer. Both return descriptors that are ours.
            unsafe {
                let program = libc::syscall(libc::SYS_bpf, PROG_LOAD, load.as_mut_ptr(), 48);
                assert!(program >= 0, "{}", io::Error::last_os_error());
                let program = std::os::fd::OwnedFd::from_raw_fd(i32::try_from(program).unwrap());
                let number = std::os::fd::AsRawFd::as_raw_fd(&program).cast_unsigned();
                let mut create = [number, ifindex, attach_type, flags, 0, 0, 0, 0];
                let link = libc::syscall(libc::SYS_bpf, LINK_CREATE, create.as_mut_ptr(), 32);
                assert!(link >= 0, "{}", io::Error::last_os_error());
                std::os::fd::OwnedFd::from_raw_fd(i32::try_from(link).unwrap())
            }
        })
        .unwrap();
    Link { fd }
}
