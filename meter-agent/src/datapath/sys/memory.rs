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

/// Returns to the kernel all memory that is free, also what lies below blocks that are in use. It takes one or two milliseconds.
///
/// By itself glibc returns only what is free at the end of an arena, so a small block that lasts, made while there was much below
/// it, would keep that resident: five megabytes or none, as threads happened to take turns.
pub(in crate::datapath) fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it touches what is free and nothing else, and takes each arena's lock for it.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use std::{env, fs, hint::black_box, process::Command};

    use super::return_free_memory;

    /// The environment variable of the process in which nothing else takes or returns memory.
    const ALONE: &str = "METER_TEST_ALONE";

    /// Returns the resident KiB of the mapping with this address, by `/proc/self/smaps`.
    fn resident(address: usize) -> u64 {
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_here = false;
        for line in text.lines() {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            let bounds = range.map(|(start, end)| [start, end].map(|text| usize::from_str_radix(text, 16)));
            if let Some([Ok(start), Ok(end)]) = bounds {
                is_here = (start..end).contains(&address);
            } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| is_here) {
                return rest.trim_end_matches("kB").trim().parse().unwrap();
            }
        }
        panic!("nothing is mapped at {address:#x}");
    }

    #[test]
    fn memory_below_a_block_that_lasts_goes_back() {
        if env::var_os(ALONE).is_none() {
            let mut alone = Command::new(env::current_exe().unwrap());
            let (_, module) = module_path!().split_once("::").unwrap();
            alone.args(["--exact", &format!("{module}::memory_below_a_block_that_lasts_goes_back")]);
            let output = alone.env(ALONE, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("test result: ok. 1 passed"), "{text}");
            return;
        }
        const BLOCK: usize = 1_000;
        let mut blocks: Vec<Vec<u8>> = (0..16 << 10).map(|_| vec![1; BLOCK]).collect();
        let middle = blocks[blocks.len() / 2].as_ptr().addr();
        let lasts = blocks.pop();
        drop(blocks);
        let kept = resident(middle);
        assert!(kept > 7 << 10, "{kept} KiB: the allocator keeps it by itself");
        return_free_memory();
        let after = resident(middle);
        assert!(after < kept / 4, "{kept} then {after} KiB");
        black_box(lasts);
    }
}
