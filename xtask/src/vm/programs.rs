//! What runs in a guest: programs with the libraries that they load, modules, the first process.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{archive::Archive, directory, kernel::Kernel};
use crate::{ebpf, executable, workspace};

/// Programs that the tests run.
const PROGRAMS: [&str; 14] = [
    "ip", "tc", "bridge", "bpftool", "ethtool", "ping", "setpriv", "setarch", "unshare", "nsenter",
    "modprobe", "sysctl", "bash", "dd",
];

/// Applets of busybox. Not its `ip` and `tc`: they are others.
const APPLETS: [&str; 20] = [
    "sh", "cat", "ls", "sleep", "env", "true", "false", "id", "kill", "ps", "dmesg", "mount", "umount",
    "mkdir", "grep", "head", "tail", "setsid", "cttyhack", "poweroff",
];

/// Adds what the first process needs.
pub(super) fn add_shell(archive: &mut Archive) -> Result<()> {
    for directory in ["/proc", "/sys", "/run", "/tmp", "/root", "/var/lib", "/etc"] {
        archive.directory(directory);
    }
    add(archive, &found("busybox")?, "/bin/busybox")?;
    APPLETS.iter().for_each(|applet| archive.link(&format!("/bin/{applet}"), "busybox"));
    Ok(())
}

/// Adds that, the programs that everything may run, and the kernel's modules.
pub(super) fn add_common(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    archive.file("/etc/passwd", b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    archive.file("/etc/group", b"root:x:0:\nnogroup:x:65534:\n");
    archive.file("/etc/machine-id", b"0123456789abcdef0123456789abcdef\n");
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
    executable::run(Command::new("strip").args(["--strip-debug", "-o"]).arg(&stripped).arg(program))?;
    add(archive, &stripped, path)
}

/// Builds the kernel tests; returns their binary and the binaries that they run by the path they were built at.
pub(super) fn kernel_tests() -> Result<(PathBuf, Vec<PathBuf>)> {
    let mut command = workspace::cargo();
    command.args([
        "test",
        "--package",
        "meter-agent",
        "--test",
        "kernel",
        "--no-run",
        "--message-format",
        "json",
    ]);
    ebpf::provide_to(&mut command)?;
    let text = executable::read(&mut command)?;
    let made = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let tests = made
        .filter(|message| message["target"]["name"] == "kernel")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no binary of the kernel tests")?;
    let beside = workspace::target().join("debug");
    Ok((tests, vec![beside.join("meter-agent"), beside.join("mm-meter")]))
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
