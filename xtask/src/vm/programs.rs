//! What runs in a guest: programs with the libraries that they load, modules, the first process.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{archive::Archive, directory, kernel::Kernel};
use crate::{ebpf, executable, workspace};

/// Programs that the tests run.
const PROGRAMS: [&str; 16] = [
    "ip", "tc", "bridge", "bpftool", "ethtool", "ping", "setpriv", "setarch", "unshare", "nsenter",
    "modprobe", "sysctl", "dd", "curl", "iperf3", "prlimit",
];

/// Adds what the first process needs.
pub(super) fn add_shell(archive: &mut Archive) -> Result<()> {
    for directory in ["/proc", "/sys", "/run", "/tmp", "/root", "/var/lib", "/etc"] {
        archive.directory(directory);
    }
    let busybox = found("busybox")?;
    add(archive, &busybox, "/bin/busybox")?;
    // The last in the path: its `ip` and `tc` are others.
    let applets = executable::read(Command::new(&busybox).arg("--list"))?;
    applets.lines().for_each(|applet| archive.link(&format!("/bin/{applet}"), "busybox"));
    Ok(())
}

/// Adds that, and what mounts a disk and goes on from it.
pub(super) fn add_disks(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    add_shell(archive)?;
    add(archive, &found("modprobe")?, "/usr/sbin/modprobe")?;
    for (from, path) in kernel.modules()? {
        archive.copy(&from, &path)?;
    }
    Ok(())
}

/// Adds that of [`add_shell`], the programs that everything may run, and the kernel's modules.
pub(super) fn add_common(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    archive.file("/etc/passwd", b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    archive.file("/etc/group", b"root:x:0:\nnogroup:x:65534:\n");
    archive.file("/etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n");
    archive.file("/etc/machine-id", b"0123456789abcdef0123456789abcdef\n");
    // Busybox's shell has programs of its own in place of those that tests name.
    add(archive, &found("bash")?, "/usr/sbin/bash")?;
    archive.link("/bin/sh", "../usr/sbin/bash");
    add_shell(archive)?;
    for program in PROGRAMS {
        if let Some(path) = executable::find(program) {
            add(archive, &path, &format!("/usr/sbin/{program}"))?;
        }
    }
    // Where the kernel looks for what loads a module.
    archive.link("/sbin/modprobe", "../usr/sbin/modprobe");
    for (from, path) in kernel.modules()? {
        archive.copy(&from, &path)?;
    }
    Ok(())
}

/// Adds a program and the libraries that it loads.
pub(super) fn add(archive: &mut Archive, program: &Path, path: &str) -> Result<()> {
    archive.copy(program, path)?;
    for library in libraries(program)? {
        archive.copy(&library, &library.to_string_lossy())?;
    }
    Ok(())
}

/// The same without what only a debugger reads.
pub(super) fn add_stripped(archive: &mut Archive, program: &Path, path: &str) -> Result<()> {
    let name = program.file_name().context("a program without a name")?;
    let stripped = directory().join("stripped");
    std::fs::create_dir_all(&stripped)?;
    let stripped = stripped.join(name);
    strip(program, &stripped)?;
    add(archive, &stripped, path)
}

/// Copies a program without what only a debugger reads.
pub(super) fn strip(program: &Path, to: &Path) -> Result<()> {
    executable::run(Command::new("strip").args(["--strip-debug", "-o"]).arg(to).arg(program))
}

/// Builds the kernel tests; returns their binary and the binaries that they run by the path they were built at.
pub(super) fn kernel_tests() -> Result<(PathBuf, Vec<PathBuf>)> {
    let tests = tests("kernel")?;
    let beside = workspace::target().join("debug");
    Ok((tests, vec![beside.join("meter-agent"), beside.join("mm-meter")]))
}

/// Builds tests of the agent; returns their binary.
pub(super) fn tests(name: &str) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args([
        "test",
        "--package",
        "meter-agent",
        "--test",
        name,
        "--no-run",
        "--message-format",
        "json",
    ]);
    ebpf::provide_to(&mut command)?;
    let text = executable::read(&mut command)?;
    let made = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    made.filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo named no binary of the {name} tests"))
}

fn found(name: &str) -> Result<PathBuf> {
    executable::find(name).with_context(|| format!("{name}: not found"))
}

/// Returns the libraries that a program loads; none for one that has all inside.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    Ok(paths(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads what `ldd` prints: `name => path (address)`, or a path alone for what loads the others.
fn paths(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let line = line.trim();
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = path.split(" (").next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x0)\n";
        assert_eq!(paths(text), [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]);
        assert!(paths("\tnot a dynamic executable\n").is_empty());
    }
}
