//! A thread that goes without some of its capabilities for a while.

/// `_LINUX_CAPABILITY_VERSION_3`, and the calling thread.
const HEADER: [u32; 2] = [0x2008_0522, 0];

/// A capability, by its number in `linux/capability.h`.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Capability {
    NetAdmin = 12,
    SysAdmin = 21,
    Bpf = 39,
}

/// Returns what `work` returns where these are not in force.
pub(crate) fn without<T>(capabilities: &[Capability], work: impl FnOnce() -> T) -> T {
    // The sets that are effective, permitted and inheritable, of the first 32 capabilities and of the next.
    let mut before = [0_u32; 6];
    // SAFETY: the kernel reads the header and writes two times three words.
    let got = unsafe { libc::syscall(libc::SYS_capget, HEADER.as_ptr(), before.as_mut_ptr()) };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    let set = |words: [u32; 6]| {
        // SAFETY: the kernel reads the header and two times three words.
        let set = unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), words.as_ptr()) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    let mut fewer = before;
    for &capability in capabilities {
        let number = capability as u32;
        fewer[if number < 32 { 0 } else { 3 }] &= !(1 << (number % 32));
    }
    set(fewer);
    let result = work();
    set(before);
    result
}
