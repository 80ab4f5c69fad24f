//! What the kernel says of this process.

use std::{fs, path::Path, time::Duration};

/// The process, as `process_*` metrics show it. What can't be read is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// CPU time, user and system.
    pub cpu_time: Option<Duration>,
    /// When it started, since the Unix epoch.
    pub start_time: Option<Duration>,
    /// Memory in RAM.
    pub resident_bytes: Option<u64>,
    /// Address space.
    pub virtual_bytes: Option<u64>,
    /// Open file descriptors, without the one that counts them.
    pub open_fds: Option<u64>,
    /// The soft limit of file descriptors; `None` as well where there is no limit.
    pub max_fds: Option<u64>,
}

/// Types of the auxiliary vector (`getauxval(3)`): the size of a page, and the clock ticks in a second.
const AT_PAGESZ: usize = 6;
const AT_CLKTCK: usize = 17;

impl Process {
    /// Reads the running process.
    #[must_use]
    pub fn read() -> Self {
        Self::read_below(Path::new("/proc"))
    }

    fn read_below(proc: &Path) -> Self {
        let text = |file: &str| fs::read_to_string(proc.join(file)).ok();
        let auxv = fs::read(proc.join("self/auxv")).unwrap_or_default();
        let (page, hertz) = (auxiliary(&auxv, AT_PAGESZ), auxiliary(&auxv, AT_CLKTCK));
        let time = |ticks: u64| hertz.and_then(|hertz| ticks_to_time(ticks, hertz));
        let stat = text("self/stat").unwrap_or_default();
        // The name of the program, in parentheses, may hold blanks and parentheses. Field 3 is the first behind it.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
        let booted = text("stat").as_deref().and_then(boot_time);
        Self {
            cpu_time: field(14).zip(field(15)).and_then(|(user, system)| time(user.checked_add(system)?)),
            start_time: booted
                .zip(field(22).and_then(time))
                .and_then(|(boot, since)| boot.checked_add(since)),
            resident_bytes: field(24).zip(page).and_then(|(pages, page)| pages.checked_mul(page)),
            virtual_bytes: field(23),
            open_fds: fs::read_dir(proc.join("self/fd"))
                .ok()
                .and_then(|entries| u64::try_from(entries.count()).ok())
                .map(|open| open.saturating_sub(1)),
            max_fds: text("self/limits").as_deref().and_then(open_files_limit),
        }
    }
}

/// Returns a value of the auxiliary vector: pairs of words.
fn auxiliary(auxv: &[u8], wanted: usize) -> Option<u64> {
    let (words, _) = auxv.as_chunks();
    let words: Vec<usize> = words.iter().map(|word| usize::from_ne_bytes(*word)).collect();
    let value = words.chunks_exact(2).find(|pair| pair[0] == wanted)?[1];
    u64::try_from(value).ok()
}

fn ticks_to_time(ticks: u64, hertz: u64) -> Option<Duration> {
    let rest = (ticks.checked_rem(hertz)?).checked_mul(1_000_000_000)?.checked_div(hertz)?;
    Some(Duration::from_secs(ticks.checked_div(hertz)?) + Duration::from_nanos(rest))
}

/// Reads `btime` of `/proc/stat`.
fn boot_time(stat: &str) -> Option<Duration> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// Reads the soft limit of `/proc/self/limits`.
fn open_files_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::{AT_CLKTCK, AT_PAGESZ, Process};

    #[test]
    fn each_number_is_where_the_kernel_writes_it() {
        let proc = tempfile::tempdir().unwrap();
        let write = |file: &str, content: &[u8]| fs::write(proc.path().join(file), content).unwrap();
        fs::create_dir_all(proc.path().join("self/fd")).unwrap();
        for fd in ["0", "1", "2", "9"] {
            write(&format!("self/fd/{fd}"), b"");
        }
        let auxv: Vec<u8> =
            [33, 1, AT_CLKTCK, 100, AT_PAGESZ, 4096, 0, 0].into_iter().flat_map(usize::to_ne_bytes).collect();
        write("self/auxv", &auxv);
        write(
            "self/stat",
            b"42 (a) b) (c) S 1 42 42 0 -1 4194560 100 0 0 0 150 25 0 0 20 0 5 0 3050 10000000 2048 \
              18446744073709551615 1 1 0 0 0 0 0\n",
        );
        write("stat", b"cpu  1 2 3\nbtime 1700000000\nprocesses 9\n");
        write(
            "self/limits",
            b"Max cpu time  unlimited unlimited seconds\nMax open files  1024  524288  files\n",
        );
        assert_eq!(
            Process::read_below(proc.path()),
            Process {
                cpu_time: Some(Duration::from_millis(1750)),
                start_time: Some(Duration::from_millis(1_700_000_030_500)),
                resident_bytes: Some(2048 * 4096),
                virtual_bytes: Some(10_000_000),
                open_fds: Some(3),
                max_fds: Some(1024),
            }
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(Process::read_below(proc.path()), Process::default());
        fs::create_dir(proc.path().join("self")).unwrap();
        for file in ["self/auxv", "self/stat", "self/limits", "stat"] {
            fs::write(proc.path().join(file), "btime x) 1 Max open files unlimited").unwrap();
        }
        assert_eq!(Process::read_below(proc.path()), Process::default());
    }

    #[test]
    fn the_running_process_is_known() {
        let process = Process::read();
        assert!(process.cpu_time.is_some() && process.start_time.is_some(), "{process:?}");
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 0), "{process:?}");
        assert!(process.virtual_bytes > process.resident_bytes, "{process:?}");
        assert!(process.open_fds.is_some_and(|open| open > 0), "{process:?}");
    }
}
