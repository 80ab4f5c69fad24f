//! Whether softirqs on one CPU may interrupt one another: what a program adds to a counter would be lost then.
//!
//! A per-CPU value belongs to one program at a time where XDP's and TC's run with bottom halves disabled and these exclude
//! one another. On PREEMPT_RT a lock of each CPU does that, and since Linux 6.18 a kernel may be built without it.
//! <https://git.kernel.org/torvalds/c/3253cb49cbad4772389d6ef55be75db1f97da910>

use std::{fs::File, io::Read as _};

use flate2::read::GzDecoder;

/// Bytes of a kernel's configuration that are read at most.
const LIMIT: u64 = 4 << 20;
const LOCK: &str = "CONFIG_PREEMPT_RT_NEEDS_BH_LOCK";

/// How softirqs of one CPU run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Softirqs {
    /// One after the other.
    Serial,
    /// They interrupt one another.
    Preemptible,
    /// On PREEMPT_RT, and what the kernel was built with can't be read.
    Unknown,
}

impl Softirqs {
    /// Asks the kernel that runs.
    pub(super) fn of_kernel() -> Self {
        let Ok(name) = nix::sys::utsname::uname() else { return Self::Serial };
        let (version, release) = (name.version().to_string_lossy(), name.release().to_string_lossy());
        if !is_rt(&version) {
            return Self::Serial;
        }
        Self::of(&version, configuration(&release).as_deref())
    }

    /// Judges by what `uname -v` says and by the kernel's configuration.
    fn of(version: &str, configuration: Option<&str>) -> Self {
        if !is_rt(version) {
            return Self::Serial;
        }
        let Some(configuration) = configuration else { return Self::Unknown };
        let unset = format!("# {LOCK} is not set");
        // Before 6.18 there is no such option, and always the lock.
        if configuration.lines().any(|line| line == unset) { Self::Preemptible } else { Self::Serial }
    }

    /// Says what to know of it; `None` where all is well.
    pub(super) const fn warning(self) -> Option<&'static str> {
        match self {
            Self::Serial => None,
            Self::Preemptible => Some(
                "PREEMPT_RT without CONFIG_PREEMPT_RT_NEEDS_BH_LOCK: programs on one CPU interrupt one another, and a frame \
                 may be missing in a meter now and then; use a kernel with that option, or none with PREEMPT_RT, to bill by it",
            ),
            Self::Unknown => Some(
                "PREEMPT_RT, and the kernel's configuration can't be read: without CONFIG_PREEMPT_RT_NEEDS_BH_LOCK (there \
                 since Linux 6.18) a frame may be missing in a meter now and then",
            ),
        }
    }
}

fn is_rt(version: &str) -> bool {
    version.contains("PREEMPT_RT")
}

/// Returns what the kernel was built with, from where it may be.
fn configuration(release: &str) -> Option<String> {
    let plain = |path: String| {
        let mut text = String::new();
        File::open(path).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
        Some(text)
    };
    let packed = || {
        let mut text = String::new();
        GzDecoder::new(File::open("/proc/config.gz").ok()?).take(LIMIT).read_to_string(&mut text).ok()?;
        Some(text)
    };
    packed()
        .or_else(|| plain(format!("/boot/config-{release}")))
        .or_else(|| plain(format!("/lib/modules/{release}/config")))
}

#[cfg(test)]
mod tests {
    use super::Softirqs::{self, Preemptible, Serial, Unknown};

    #[test]
    fn only_real_time_kernels_without_the_lock_lose_frames() {
        let rt = "#1 SMP PREEMPT_RT Debian 6.18.1-1 (2025-12-01)";
        let without = "CONFIG_PREEMPT_RT=y\n# CONFIG_PREEMPT_RT_NEEDS_BH_LOCK is not set\nCONFIG_BPF=y\n";
        let with = "CONFIG_PREEMPT_RT=y\nCONFIG_PREEMPT_RT_NEEDS_BH_LOCK=y\n";
        for (version, configuration, expected) in [
            ("#1 SMP PREEMPT_DYNAMIC Debian 6.18.1-1", Some(without), Serial),
            ("#1 SMP PREEMPT_DYNAMIC Debian 6.18.1-1", None, Serial),
            (rt, Some(without), Preemptible),
            (rt, Some(with), Serial),
            (rt, Some("CONFIG_PREEMPT_RT=y\n"), Serial),
            (rt, None, Unknown),
        ] {
            let found = Softirqs::of(version, configuration);
            assert_eq!(found, expected, "{version}: {configuration:?}");
            assert_eq!(found.warning().is_none(), found == Serial);
        }
    }
}
