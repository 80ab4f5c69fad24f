//! What the allocator keeps of memory that is free.

/// The least that is mapped on its own, and the most that is kept at the end of an arena: what glibc begins with, and gives
/// up for more when the first bigger block is freed (`mallopt(3)`).
const BIG: libc::c_int = 128 * 1024;

/// Has the allocator return to the kernel what is free.
///
/// Loading takes blocks of up to ten megabytes for a moment. By itself glibc would keep them in the arena of whichever thread
/// loaded, and as threads take turns the process would grow to several times what it holds.
pub(in super::super) fn keep_no_free_memory() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: it takes two numbers, and locks what it changes.
        let taken = unsafe { libc::mallopt(parameter, BIG) };
        debug_assert_eq!(taken, 1, "both are known to every glibc");
    }
}
