//! `cargo xtask vm` and `cargo xtask test --vm`: the same kernel tests, the same agent, on other kernels; and, on a
//! Debian with systemd, the packages: [`system`].
//!
//! A guest is one of Debian's kernels and an initramfs with what runs in it, in QEMU: no network, nothing of the host to
//! break, and no disk but of the packages' tests. Its verdict is a line on its console; a guest that ends without one has
//! failed.

mod archive;
mod guest;
mod kernel;
mod programs;
mod report;
mod root;
pub(crate) mod run;
pub(crate) mod system;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    iter,
    num::NonZero,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use archive::Archive;
use guest::{Guest, Processor};
use kernel::Kernel;
use lab::{amount::SLOWER, require::VARIABLE};
use report::Wanted;

use crate::{console::say, executable, tools, workspace};

/// Series of Debian's kernels that are supported, each by its newest package: of sid, trixie, bookworm and bullseye. In the
/// order in which their guests begin: the one that takes the least time ends the last.
const SERIES: [&str; 4] = ["7", "6.12", "6.1", "5.10"];

/// The guest of the kernel tests.
const GUEST_SERIES: &str = "6.1";

/// How long the kernel tests may say nothing in a guest: longer than the longest of them takes without hardware
/// virtualization, on a machine that does other things as well. All of them take 26 to 44 minutes there, two guests on two
/// processors.
const SILENCE: Duration = Duration::from_secs(30 * 60);

/// What must not be missing in a guest: each is in the initramfs.
const REQUIRED: &str = "root,object,ip,ping,ethtool,bpftool,setpriv,iperf3";

/// Runs the kernel tests on each supported kernel, or on those of some series.
///
/// # Errors
///
/// A test that failed on one of them, a guest without a verdict, or a check that was skipped on all of them.
pub(crate) fn test(series: &[String], arguments: &[OsString]) -> Result<()> {
    set_up()?;
    let series: Vec<String> =
        if series.is_empty() { SERIES.iter().map(|&one| one.to_owned()).collect() } else { series.to_vec() };
    let (binary, helpers) = programs::kernel_tests()?;
    let mut kernels: Vec<Kernel> = Vec::new();
    for one in &series {
        let kernel = Kernel::fetch(one)?;
        // What a guest has on the disk is named by its kernel.
        if kernels.iter().all(|other| other.version != kernel.version) {
            kernels.push(kernel);
        }
    }
    let Some(first) = kernels.first() else { bail!("no series of kernels to test on") };
    let processor = Processor::of_this_machine(first)?;
    let line = line(processor, arguments);
    let runs = kernels.into_iter().map(|kernel| {
        let guest = guest_of(&kernel, &binary, &helpers, &line)?;
        Ok((kernel, guest))
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    let wanted = Wanted::by(&words.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    let mut results = run_all(&runs, &wanted, processor);
    results.sort_by_key(|(version, _)| runs.iter().position(|(kernel, _)| kernel.version == *version));
    let mut failed = Vec::new();
    let mut skipped: Option<BTreeSet<String>> = None;
    for (version, skips) in results {
        let Some(skips) = skips else {
            failed.push(version);
            continue;
        };
        let names = skips.iter().filter_map(|skip| report::what_lacks(skip)).map(str::to_owned).collect();
        skipped = Some(match skipped {
            Some(before) => &before & &names,
            None => names,
        });
    }
    if !failed.is_empty() {
        bail!("the kernel tests failed on Linux {}", failed.join(", "));
    }
    let nowhere = skipped.unwrap_or_default();
    if runs.len() == SERIES.len() && arguments.is_empty() && !nowhere.is_empty() {
        let list = nowhere.into_iter().collect::<Vec<_>>().join("\n  ");
        bail!("checked on none of the kernels:\n  {list}");
    }
    say("the kernel tests passed on every kernel");
    Ok(())
}

/// What a guest does for the kernel tests, with what they put on the kernel's command line in its environment: a stream
/// to a port of its peer and one from another, datagrams to a third and, once it has sent one to a fourth, datagrams from
/// there.
const TALK: &str = "/usr/sbin/modprobe -q -a virtio_pci virtio_net
/usr/sbin/ip address add $ADDRESS dev eth0
/usr/sbin/ip link set eth0 mtu $MTU up
/usr/sbin/ip neighbour replace $PEER lladdr $PEER_MAC dev eth0 nud permanent
bash -e -c '
dd if=/dev/zero bs=64k count=64 status=none >/dev/tcp/$PEER/$SINK
cat </dev/tcp/$PEER/$SOURCE >/dev/null
dd if=/dev/zero bs=1000 count=100 status=none >/dev/udp/$PEER/$DATAGRAMS
# What comes at once has to wait for dd.
echo 4000000 >/proc/sys/net/core/rmem_default
exec 3<>/dev/udp/$PEER/$ANSWERS
echo >&3
bytes=$(timeout 60 dd bs=$((2 * ANSWER_BYTES)) count=$ANSWER_COUNT status=none <&3 | wc -c)
echo $bytes bytes of $ANSWER_COUNT datagrams arrived
test $bytes = $((ANSWER_COUNT * ANSWER_BYTES))
'";

/// Makes the guest that the kernel tests boot on a tap of theirs; returns the directory of its `vmlinuz` and `initramfs`.
///
/// # Errors
///
/// What is missing.
pub(crate) fn guest() -> Result<PathBuf> {
    set_up()?;
    let kernel = Kernel::fetch(GUEST_SERIES)?;
    let mut archive = Archive::new();
    programs::add_common(&mut archive, &kernel)?;
    guest::make(&kernel, archive, TALK, &directory().join("guest"))
}

/// Returns what the guests run.
fn line(processor: Processor, arguments: &[OsString]) -> String {
    let arguments = arguments.iter().map(executable::quoted).collect::<Vec<_>>().join(" ");
    let first = processor.first();
    format!("{first}{SLOWER}={} {VARIABLE}={REQUIRED} kernel-tests {arguments}", processor.slower())
}

/// Makes the guest that runs the kernel tests by this line.
fn guest_of(kernel: &Kernel, binary: &Path, helpers: &[PathBuf], line: &str) -> Result<Guest> {
    let mut archive = Archive::new();
    programs::add_common(&mut archive, kernel)?;
    programs::add_stripped(&mut archive, binary, "/usr/bin/kernel-tests")?;
    for helper in helpers {
        programs::add_stripped(&mut archive, helper, &helper.to_string_lossy())?;
    }
    Guest::new(kernel, archive, line)
}

/// Runs the guests, as many at once as this machine has processors and memory for, and says how each of them ended;
/// returns what was skipped by the kernel's version, `None` where it failed.
fn run_all<'a>(
    runs: &'a [(Kernel, Guest)],
    wanted: &Wanted,
    processor: Processor,
) -> Vec<(&'a str, Option<BTreeSet<String>>)> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get) / processor.takes();
    let at_once = processors.min(memory_for(processor));
    let next = AtomicUsize::new(0);
    let work = || -> Vec<_> {
        let runs = iter::from_fn(|| runs.get(next.fetch_add(1, Ordering::Relaxed)));
        runs.map(|(kernel, guest)| {
            (kernel.version.as_str(), run_one(&kernel.version, guest, wanted, processor))
        })
        .collect()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once.clamp(1, runs.len())).map(|_| scope.spawn(work)).collect();
        let ended = |worker: thread::ScopedJoinHandle<'_, _>| {
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        workers.into_iter().flat_map(ended).collect()
    })
}

/// Returns how many guests this machine has memory for. Where it doesn't say how much is available, that is no limit.
fn memory_for(processor: Processor) -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available(&text).map_or(usize::MAX, |mebibytes| mebibytes / processor.memory())
}

/// Returns the mebibytes that are available by the text of `/proc/meminfo`.
fn available(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024)
}

/// Runs a guest and says how it ended.
fn run_one(version: &str, guest: &Guest, wanted: &Wanted, processor: Processor) -> Option<BTreeSet<String>> {
    let began = Instant::now();
    let skips = skips_of(guest, wanted, processor);
    let seconds = began.elapsed().as_secs();
    match &skips {
        Ok(skips) => {
            let list: String = skips.iter().map(|skip| format!("\n{skip}")).collect();
            say(format_args!("Linux {version}: green in {seconds} s, {} checks skipped{list}", skips.len()));
        }
        Err(error) => say(format_args!("Linux {version}: failed after {seconds} s: {error:#}")),
    }
    skips.ok()
}

/// Runs a guest's tests, these; returns the skips.
fn skips_of(guest: &Guest, wanted: &Wanted, processor: Processor) -> Result<BTreeSet<String>> {
    let (code, console) = guest.watched(processor, SILENCE)?;
    let text = String::from_utf8_lossy(&std::fs::read(&console)?).into_owned();
    if code != 0 {
        let end = report::end(&text);
        bail!(
            "the tests ended with {code}; the console's log is {}, which ends with\n{end}",
            console.display()
        );
    }
    if let Some(error) = report::not_run(&text, wanted) {
        bail!("{error}; the console's log is {}", console.display());
    }
    Ok(report::skips(&text))
}

fn set_up() -> Result<()> {
    tools::install(tools::GUESTS)
}

/// Returns where everything of the guests is kept.
fn directory() -> PathBuf {
    workspace::target().join("vm")
}

#[cfg(test)]
mod tests {
    use super::available;

    #[test]
    fn what_is_available_is_read_in_mebibytes() {
        assert_eq!(available("MemTotal:  24 kB\nMemAvailable:   22968348 kB\n"), Some(22430));
        assert_eq!(available("MemTotal:  24 kB\n"), None);
    }
}
