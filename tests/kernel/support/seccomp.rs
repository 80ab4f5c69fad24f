//! A filter of system calls, such as a container's or a service's.

use std::{io, os::unix::process::CommandExt as _, process::Command};

/// Has a command, and what it executes, refused `bpf(2)` as not permitted.
pub(crate) fn forbid_bpf(command: &mut Command) {
    let call = u32::try_from(libc::SYS_bpf).unwrap();
    let refused = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
    // Loads the number of the call, and compares.
    let [load, equal, end] = [
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    ]
    .map(|code| u16::try_from(code).unwrap());
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut steps = [
        step(load, 0, 0),
        step(equal, 1, call),
        step(end, 0, refused),
        step(end, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        nix::sys::prctl::set_no_new_privs()?;
        let filter = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: the kernel copies the filter, of as many steps as it says.
        let installed = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) };
        if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec there are two system calls, and nothing is allocated.
    unsafe {
        command.pre_exec(install);
    }
}
