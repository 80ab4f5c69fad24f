//! What the allocator keeps of memory that is free.

/// Has the allocator return big blocks to the kernel as soon as they are free, and what is free at the end of an arena. To be
/// called before there is another thread: others read the same numbers without a lock.
///
/// Loading takes blocks of up to ten megabytes for a moment. By itself glibc would keep them in the arena of whichever thread
/// loaded, and as threads take turns the process would grow to several times what it holds.
pub fn keep_no_big_blocks() {
    #[cfg(target_env = "gnu")]
    {
        /// What is big: what glibc begins with, and gives up for more when the first bigger block is freed (`mallopt(3)`).
        const BIG: libc::c_int = 128 * 1024;
        for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
            // SAFETY: it takes two numbers; the caller has no other thread.
            let taken = unsafe { libc::mallopt(parameter, BIG) };
            debug_assert_eq!(taken, 1, "both are known to every glibc");
        }
    }
}
