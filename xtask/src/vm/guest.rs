//! A guest in QEMU: booted from a kernel and an initramfs, watched on its console.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{archive::Archive, directory, kernel::Kernel, programs, report};
use crate::{
    console::say,
    tools::{self, QEMU},
};

/// What the first process says at the end, with the command's exit status behind it.
pub(super) const ENDED: &str = "guest ended with ";
/// What a guest says when its line begins.
const BEGINS: &str = "guest begins";

/// The processors of a guest.
const PROCESSORS: usize = 2;

/// The memory of a guest in mebibytes, its initramfs in it.
const MEMORY: usize = 3072;
/// What QEMU translates to at most, likewise.
const TRANSLATED: usize = 1024;

/// How long an empty guest may take with hardware virtualization that works.
const BOOT: Duration = Duration::from_secs(30);

/// The first process. Paths in full: busybox's shell has an `ip` and a `modprobe` of its own.
const INIT: &str = "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp -o mode=1777
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
/usr/sbin/modprobe -q -a tun veth bridge vxlan sch_ingress cls_bpf
/usr/sbin/ip link set lo up
exec_shell() { setsid cttyhack sh; }
";

/// How a processor is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Processor {
    /// By the host's.
    Kvm,
    /// By software.
    Software,
}

impl Processor {
    /// Finds out by an empty guest whether hardware virtualization works here; that `/dev/kvm` is there says little.
    ///
    /// # Errors
    ///
    /// The guest can't be made.
    pub(super) fn of_this_machine(kernel: &Kernel) -> Result<Self> {
        if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Software);
        }
        let mut archive = Archive::new();
        programs::add_shell(&mut archive)?;
        if Guest::new(kernel, archive, "true")?.once(Self::Kvm, Patience::Whole(BOOT))? == Some(0) {
            return Ok(Self::Kvm);
        }
        say("/dev/kvm is there, but a guest doesn't boot by it: software instead");
        Ok(Self::Software)
    }

    /// Returns how many of the host's processors one guest keeps busy.
    pub(super) fn takes(self) -> usize {
        match self {
            Self::Kvm => PROCESSORS,
            Self::Software => 1,
        }
    }

    /// Returns the memory that one guest takes at most, in mebibytes.
    pub(super) fn memory(self) -> usize {
        match self {
            Self::Kvm => MEMORY,
            Self::Software => MEMORY + TRANSLATED,
        }
    }

    /// Returns how many times as long something takes as on a host.
    pub(super) fn slower(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Software => 40,
        }
    }

    /// Returns what a guest does before its tests: by software it hides the kernel's types, tens of thousands, which aya
    /// parses before each loading and no program asks for. A test looks at them all the same.
    pub(super) fn first(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Software => "test ! -e /sys/kernel/btf || mount -t tmpfs none /sys/kernel/btf\n",
        }
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // One thread for all of the guest's processors: with one for each, a processor may go on with what was
            // translated of code that another has changed since, and a kernel that patches itself, as it does for each
            // first hook, dies of its own breakpoint. Without what costs most by software: page tables of five levels,
            // protection keys (each switch of tasks empties the TLB), `rep movsb` for copies, and what lets the kernel at
            // a user's memory (each switch of it ends a block of what is translated). QEMU 7.2 corrupts the flags after
            // cmpxchg16b.
            Self::Software => ["-accel", "tcg,thread=single", "-cpu", "max,-cx16,-la57,-pku,-erms,-smap"],
        }
    }

    /// Returns what the kernel is told, in any guest, so that it doesn't do what costs much by software:
    ///
    /// - to have code at another address in each process, so that it is translated again (`norandmaps`);
    /// - to fill memory with zeros twice, and to ask a security module about each call (`init_on_alloc`, `apparmor`);
    /// - to read the time from a device, which 5.10 does (`tsc`), and to set a timer of the device's for each wait: these
    ///   are in ticks of 4 ms (`highres`, `nohz`).
    ///
    /// Not `mitigations=off`: newer verifiers ask for fewer capabilities then.
    fn words(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Software => "norandmaps init_on_alloc=0 apparmor=0 tsc=reliable highres=off nohz=off",
        }
    }
}

/// A guest that has not been started.
pub(super) struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
    console: PathBuf,
    disks: Vec<PathBuf>,
    /// What the kernel is told more.
    words: String,
}

/// Writes a guest's first process into an archive.
fn finish(archive: &mut Archive, line: &str) {
    archive.file(
        "/init",
        format!("{INIT}echo {BEGINS}\n{line}\necho \"{ENDED}$?\"\nsleep 1\npoweroff -f\n").as_bytes(),
    );
}

/// Makes `vmlinuz` and `initramfs` of a guest for others to boot; returns their directory.
pub(super) fn make(kernel: &Kernel, mut archive: Archive, line: &str, place: &Path) -> Result<PathBuf> {
    fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    finish(&mut archive, line);
    archive.write(&place.join("initramfs"))?;
    let image = kernel.image()?;
    fs::copy(&image, place.join("vmlinuz")).with_context(|| format!("cannot copy {}", image.display()))?;
    Ok(place.to_owned())
}

impl Guest {
    /// Makes the initramfs of a guest that runs a line of shell and ends.
    pub(super) fn new(kernel: &Kernel, mut archive: Archive, line: &str) -> Result<Self> {
        finish(&mut archive, line);
        Self::place(kernel, archive, &kernel.version)
    }

    /// Makes a guest with disks, whose first process is this script. Whatever runs in it has to say the verdict.
    pub(super) fn with_disks(
        kernel: &Kernel,
        mut archive: Archive,
        script: &str,
        disks: Vec<PathBuf>,
        words: &str,
    ) -> Result<Self> {
        archive.file("/init", script.as_bytes());
        let guest = Self::place(kernel, archive, &format!("{}-system", kernel.version))?;
        Ok(Self { disks, words: words.to_owned(), ..guest })
    }

    /// Writes the initramfs to where others of this name have theirs.
    fn place(kernel: &Kernel, archive: Archive, name: &str) -> Result<Self> {
        let initramfs = directory().join(format!("{name}.cpio"));
        archive.write(&initramfs)?;
        let console = directory().join(format!("{name}.log"));
        Ok(Self { kernel: kernel.image()?, initramfs, console, disks: Vec::new(), words: String::new() })
    }

    /// Runs it on this process's terminal; returns the line's exit status.
    ///
    /// # Errors
    ///
    /// No verdict.
    pub(super) fn attached(&self, processor: Processor) -> Result<i32> {
        let status =
            self.command(processor, "stdio")?.status().with_context(|| format!("cannot run {QEMU}"))?;
        if !status.success() {
            bail!("{QEMU} failed: {status}");
        }
        self.verdict().context("the guest ended without a verdict")
    }

    /// Runs it until it ends, or says nothing for so long; returns the line's exit status, and where its console was written to.
    ///
    /// # Errors
    ///
    /// No verdict.
    pub(super) fn watched(&self, processor: Processor, silence: Duration) -> Result<(i32, PathBuf)> {
        for _ in 0..2 {
            if let Some(code) = self.once(processor, Patience::Silence(silence))? {
                return Ok((code, self.console.clone()));
            }
            // A boot by software may end in nothing. What began is not begun anew.
            if has_begun(&self.text()) {
                break;
            }
        }
        bail!(
            "no verdict: the guest hung, panicked or ended; the console's log is {}, which ends with\n{}",
            self.console.display(),
            report::end(&self.text())
        )
    }

    /// Runs it once to its end; returns the verdict, if there is one, and what its console said.
    ///
    /// # Errors
    ///
    /// QEMU can't be run.
    pub(super) fn tried(&self, processor: Processor, patience: Duration) -> Result<(Option<i32>, String)> {
        let code = self.once(processor, Patience::Whole(patience))?;
        Ok((code, self.text()))
    }

    fn once(&self, processor: Processor, patience: Patience) -> Result<Option<i32>> {
        fs::write(&self.console, "")?;
        let console = format!("file:{}", self.console.display());
        let mut command = self.command(processor, &console)?;
        let mut child =
            Killed(command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot run {QEMU}"))?);
        let (began, mut spoke) = (Instant::now(), Instant::now());
        let mut said = 0;
        loop {
            let is_over = child.0.try_wait()?.is_some()
                || match patience {
                    Patience::Whole(time) => began.elapsed() > time,
                    Patience::Silence(time) => spoke.elapsed() > time,
                };
            // Asked after that: what it wrote last counts.
            let text = self.text();
            let verdict = verdict(&text);
            if verdict.is_some() || is_over {
                return Ok(verdict);
            }
            if text.len() != said {
                (said, spoke) = (text.len(), Instant::now());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn command(&self, processor: Processor, console: &str) -> Result<Command> {
        let mut command = Command::new(tools::find(QEMU)?);
        command.args(processor.arguments()).args([
            "-M",
            "q35",
            "-smp",
            &PROCESSORS.to_string(),
            "-m",
            &MEMORY.to_string(),
            "-nic",
            "none",
            "-no-reboot",
        ]);
        command.args(["-display", "none", "-monitor", "none"]);
        if console == "stdio" {
            let chardev = format!("stdio,id=console,signal=off,logfile={}", self.console.display());
            command.args(["-chardev", &chardev, "-serial", "chardev:console"]);
        } else {
            command.args(["-serial", console]);
        }
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        for disk in &self.disks {
            let drive = format!("file={},format=raw,if=virtio,cache=unsafe", disk.display());
            command.args(["-drive", &drive]);
        }
        command.arg("-append").arg(format!(
            "console=ttyS0 panic=-1 quiet {} {}",
            processor.words(),
            self.words
        ));
        Ok(command)
    }

    fn text(&self) -> String {
        fs::read(&self.console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn verdict(&self) -> Option<i32> {
        verdict(&self.text())
    }
}

/// How long a guest is waited for.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// In all.
    Whole(Duration),
    /// From what it says to what it says next.
    Silence(Duration),
}

/// Returns whether a guest's line began, by its console's text.
fn has_begun(text: &str) -> bool {
    text.lines().any(|line| line.trim() == BEGINS)
}

/// Returns the exit status that a console's text tells.
fn verdict(text: &str) -> Option<i32> {
    text.lines().rev().find_map(|line| line.trim().strip_prefix(ENDED)?.parse().ok())
}

/// A process that doesn't outlive this one's interest.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // One that has ended can't be killed, and needn't be.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::{has_begun, verdict};

    #[test]
    fn verdict_is_a_line_of_its_own() {
        assert_eq!(verdict("guest begins\r\nguest ended with 101\r\n"), Some(101));
        assert_eq!(verdict("guest begins\nguest ended with "), None, "not all of it is written yet");
        assert_eq!(verdict("Kernel panic"), None);
        assert!(has_begun("Linux version 6.1\r\nguest begins\r\nrunning 3 tests\r\n"));
        assert!(!has_begun("Linux version 6.1\r\nno guest begins\r\n"));
    }
}
