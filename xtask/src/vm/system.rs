//! `cargo xtask test --system`: the packages on a Debian with systemd, from their installation to their removal.
//!
//! The guest has two disks: a root file system of its own to write to, and one with the packages, the tests
//! (`tests/system`) and the kernel's modules. Each boot runs one test, which finds what the one before left, and ends
//! with an orderly shutdown: the verdict is said by the last program of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    archive::Archive,
    directory,
    guest::{ENDED, Guest, Processor},
    kernel::Kernel,
    programs,
    report::{self, Wanted},
    root::{self, Root},
};
use crate::{binaries, console::say, dist, executable, tools, workspace};

/// The kernel where none is named.
pub(crate) const SERIES: &str = "6.1";

/// The tests of the boots, in their order.
const BOOTS: [&str; 2] =
    ["package_counts_through_upgrade_and_crash", "package_counts_from_boot_and_is_removed"];

/// The version of the package that is upgraded: older than all others.
const EARLIER: &str = "0.0.1";

/// How long one boot may take without hardware virtualization.
const PATIENCE: Duration = Duration::from_secs(40 * 60);

/// What the tests say of what they measured.
const FIGURE: &str = "figure: ";

/// The first process: it finds the disks, and hands over to systemd on the first.
const INIT: &str = "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
/usr/sbin/modprobe -q -a virtio_pci virtio_blk crc32c_generic ext4
for attempt in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vdb ] || sleep 1; done
mkdir -p /disk
mount -t ext4 /dev/vda /disk
mount -t ext4 -o ro /dev/vdb /disk/mnt
mkdir -p /disk/usr/lib/modules
mount -o bind /disk/mnt/modules /disk/usr/lib/modules
umount /proc
umount /sys
exec switch_root /disk /mnt/begin ";

/// What the first disk's file system needs before systemd starts: what an installer would write, the tests, and no
/// services but theirs. Prometheus is started when there is something to scrape.
const BEGIN: &str = "#!/bin/sh
[ -s /etc/hosts ] || echo '127.0.0.1 localhost' >/etc/hosts
cat /mnt/system-tests.service >/etc/systemd/system/system-tests.service
mkdir -p /usr/lib/systemd/system-shutdown /etc/systemd/system/multi-user.target.wants
cp /mnt/verdict /usr/lib/systemd/system-shutdown/
ln -sf ../system-tests.service /etc/systemd/system/multi-user.target.wants/
(cd /etc/systemd/system && rm -f multi-user.target.wants/prometheus.service multi-user.target.wants/e2scrub_reap.service)
rm -f /etc/systemd/system/timers.target.wants/*
exec /sbin/init
";

/// What runs the test of this boot, which the kernel's command line names, and shuts the guest down.
const RUN: &str = r#"#!/bin/sh
export METER_TEST_REQUIRE=root,system METER_TEST_PACKAGES=/mnt RUST_BACKTRACE=1
test=$(sed 's/.*system-test=\([a-z_]*\).*/\1/' /proc/cmdline)
echo "system test $test"
/mnt/system-tests --exact --nocapture "$test"
status=$?
[ $status = 0 ] || journalctl --boot --no-pager --output short-monotonic
echo $status >/run/verdict
systemctl poweroff --no-block
"#;

const UNIT: &str = "[Unit]
Description=Tests of meter-agent's packages
[Service]
Type=oneshot
ExecStart=/bin/sh /mnt/run
StandardOutput=file:/dev/ttyS0
StandardError=inherit
TimeoutStartSec=infinity
";

/// Builds the packages, boots the guest with them, once for each test.
///
/// # Errors
///
/// A test that failed, or a boot without a verdict.
pub(crate) fn test(series: &str) -> Result<()> {
    if !workspace::is_root() {
        bail!("making a root file system needs root: {}", workspace::as_root("test --system"));
    }
    super::set_up()?;
    tools::install(tools::PACKAGES)?;
    let kernel = Kernel::fetch(series)?;
    let Root { image: root, release } = root::image(&kernel)?;
    let payload = payload(&kernel)?;
    let processor = Processor::of_this_machine(&kernel)?;
    let disk = directory().join("disk.ext4");
    for (index, test) in BOOTS.iter().enumerate() {
        let began = Instant::now();
        // A boot by software may end in nothing; the first may be repeated.
        let mut attempts = if index == 0 { 2 } else { 1 };
        let console = loop {
            if index == 0 {
                executable::run(Command::new("cp").arg("--sparse=always").arg(&root).arg(&disk))?;
            }
            attempts -= 1;
            let disks = vec![disk.clone(), payload.clone()];
            let (result, console) = boot(&kernel, processor, disks, test)?;
            match result {
                Some(0) => break console,
                None if attempts > 0 && !console.contains("system test ") => {}
                Some(code) => bail!("{test} ended with {code} on Linux {}:\n{console}", kernel.version),
                None => bail!("{test}: no verdict on Linux {}:\n{console}", kernel.version),
            }
        };
        if let Some(error) = report::not_run(&console, &Wanted::by(&[test])) {
            bail!("{error}:\n{console}");
        }
        say(format_args!(
            "Linux {}, Debian {release} with systemd: {test}: green in {} s",
            kernel.version,
            began.elapsed().as_secs()
        ));
        // systemd skips units too.
        for skip in report::skips(&console).iter().filter(|skip| skip.starts_with(test)) {
            say(format_args!("  skipped {skip}"));
        }
        for figure in console.lines().filter_map(|line| line.trim_end().strip_prefix(FIGURE)) {
            say(format_args!("  {figure}"));
        }
    }
    fs::remove_file(&disk).with_context(|| format!("cannot remove {}", disk.display()))?;
    say("the packages install, count, upgrade and go as they should");
    Ok(())
}

/// Boots once; returns the test's exit status, if there is one, and the console's text.
fn boot(
    kernel: &Kernel,
    processor: Processor,
    disks: Vec<PathBuf>,
    test: &str,
) -> Result<(Option<i32>, String)> {
    let mut archive = Archive::new();
    programs::add_disks(&mut archive, kernel)?;
    // No prompt among the lines of the test.
    let words = format!("system-test={test} systemd.mask=serial-getty@ttyS0.service");
    let guest = Guest::with_disks(kernel, archive, INIT, disks, &words)?;
    guest.tried(processor, PATIENCE)
}

/// Makes the disk with the packages, the tests, and the kernel's modules.
fn payload(kernel: &Kernel) -> Result<PathBuf> {
    let tree = directory().join("payload");
    root::remove(&tree)?;
    fs::create_dir_all(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
    // As the tests have them: other binaries than those that they are replaced by, and built for the tests anyway.
    place(dist::make(&binaries::build_unoptimized()?, EARLIER)?, &tree, "earlier")?;
    place(dist::run()?, &tree, "own")?;
    programs::strip(&programs::tests("system")?, &tree.join("system-tests"))?;
    // On a line of its own: systemd may have left the last one open.
    let verdict = format!("#!/bin/sh\nprintf '\\n%s\\n' \"{ENDED}$(cat /run/verdict)\" >/dev/ttyS0\n");
    for (name, text) in
        [("begin", BEGIN), ("run", RUN), ("system-tests.service", UNIT), ("verdict", &verdict)]
    {
        write(&tree.join(name), text)?;
    }
    for (from, path) in kernel.modules()? {
        let to = tree.join(path.trim_start_matches("/lib/"));
        fs::create_dir_all(to.parent().context("a module is in a directory")?)?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let image = directory().join("payload.ext4");
    root::pack(&tree, &image, "300M")?;
    Ok(image)
}

/// Moves both packages to where the guest finds them.
fn place(packages: dist::Packages, tree: &Path, name: &str) -> Result<()> {
    for (package, kind) in [(packages.deb, "deb"), (packages.rpm, "rpm")] {
        let to = tree.join(format!("{name}.{kind}"));
        fs::copy(&package, &to).with_context(|| format!("cannot copy {}", package.display()))?;
    }
    Ok(())
}

/// Writes a file that may be run.
fn write(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::BOOTS;

    #[test]
    fn each_boot_has_its_test() {
        let tests = include_str!("../../../tests/system/main.rs");
        for boot in BOOTS {
            assert!(tests.contains(&format!("#[test]\nfn {boot}()")), "{boot}");
        }
        assert_eq!(tests.matches("#[test]").count(), BOOTS.len());
    }
}
