//! The eBPF objects: built by the tool chain's cargo, then put where the agent's build script and the bench look.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    console::say,
    executable,
    stamp::{self, FileStamp},
    toolchain::{TARGET, Toolchain},
    workspace,
};

/// Names an object that is built already, in place of `target/meter.bpf.o`.
const PREBUILT: &str = "EBPF_OBJECT";

/// One of the objects that the kernel half has sources for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Object {
    /// The meters.
    Meter,
    /// The meters with logs: what to load where the verifier or a frame is a riddle.
    MeterLog,
    /// What the bench compares with.
    Floors,
}

/// What an object was made of. While all of this holds, cargo is not asked.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    command: String,
    toolchain: Vec<FileStamp>,
    sources: Vec<FileStamp>,
    object: FileStamp,
}

impl Object {
    /// Returns where the object is put.
    pub(crate) fn path(self) -> PathBuf {
        workspace::target().join(format!("{}.bpf.o", self.name()))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Meter => "meter",
            Self::MeterLog => "meter-log",
            Self::Floors => "floors",
        }
    }

    fn bin(self) -> &'static str {
        match self {
            Self::Meter | Self::MeterLog => "meter",
            Self::Floors => "floors",
        }
    }

    fn features(self) -> &'static str {
        match self {
            Self::Meter | Self::Floors => "program",
            Self::MeterLog => "program,log",
        }
    }
}

/// Builds one object for a developer who asked for just that.
pub(crate) fn run(object: Object) -> Result<()> {
    if let Some(path) = prebuilt()? {
        say(format_args!("{PREBUILT} names {}: nothing to build", path.display()));
        return Ok(());
    }
    let path = build(object)?;
    say(format_args!("{} is up to date", path.display()));
    if object == Object::MeterLog {
        say(format_args!("run the agent with it by {PREBUILT}={} cargo xtask run", path.display()));
    }
    Ok(())
}

/// Makes the object that the agent carries, the one that [`PREBUILT`] names or our own, known to a cargo command
/// that builds the agent.
pub(crate) fn provide_to(command: &mut Command) -> Result<()> {
    if let Some(path) = prebuilt()? {
        say(format_args!("the agent gets the eBPF object {} ({PREBUILT})", path.display()));
        command.env(PREBUILT, path);
    } else {
        build(Object::Meter)?;
    }
    Ok(())
}

/// Builds an object where it is out of date and returns its path.
pub(crate) fn build(object: Object) -> Result<PathBuf> {
    let toolchain = Toolchain::ready()?;
    let directory = workspace::target().join("ebpf");
    let mut command = toolchain.cargo_build();
    command
        .args(["--package", "meter-ebpf", "--bin", object.bin(), "--features", object.features()])
        .arg("--target-dir")
        .arg(&directory);

    let path = object.path();
    let record_path = directory.join(format!("{}.json", object.name()));
    // Taken before the build: what is edited while it runs is newer than the record.
    let sources = sources()?;
    let shown = executable::shown(&command);
    if let Some(record) = stamp::recall::<Record>(&record_path)
        && record.command == shown
        && record.toolchain == toolchain.identity()
        && record.sources == sources
        && record.object.still_holds()
    {
        return Ok(path);
    }

    executable::run(&mut command)?;
    let built = directory.join(TARGET).join("release").join(object.bin());
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    if !is_ebpf(&bytes) {
        bail!("{} is no eBPF object", built.display());
    }
    // An object that is the same stays untouched, or the agent would be built anew.
    if fs::read(&path).ok().as_deref() != Some(&bytes[..]) {
        stamp::replace(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let record = Record {
        command: shown,
        toolchain: toolchain.identity().to_vec(),
        sources,
        object: FileStamp::of(&path)?,
    };
    stamp::remember(&record_path, &record)?;
    Ok(path)
}

/// Returns the object that [`PREBUILT`] names, as an absolute path.
fn prebuilt() -> Result<Option<PathBuf>> {
    let Some(named) = env::var_os(PREBUILT).filter(|path| !path.is_empty()) else { return Ok(None) };
    let path = Path::new(&named);
    let bytes = fs::read(path).with_context(|| format!("{PREBUILT}: cannot read {}", path.display()))?;
    if !is_ebpf(&bytes) {
        bail!("{PREBUILT}: {} is no eBPF object", path.display());
    }
    path.canonicalize().map(Some).with_context(|| format!("{PREBUILT}: cannot resolve {}", path.display()))
}

fn sources() -> Result<Vec<FileStamp>> {
    let root = workspace::root();
    let mut stamps = FileStamp::of_tree(&root.join("meter-ebpf"))?;
    for manifest in ["Cargo.toml", "Cargo.lock"] {
        stamps.push(FileStamp::of(&root.join(manifest))?);
    }
    Ok(stamps)
}

/// Returns whether this begins as a little-endian 64-bit ELF file for eBPF does.
fn is_ebpf(bytes: &[u8]) -> bool {
    const EM_BPF: [u8; 2] = 247_u16.to_le_bytes();
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(&EM_BPF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_elf_files_for_ebpf_pass() {
        let mut header = [0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[18] = 247;
        assert!(is_ebpf(&header));
        for (name, bytes) in [
            ("empty", &[][..]),
            ("cut short", &header[..19]),
            ("a script", b"#!/bin/sh\nexit 0\n# and some more text"),
        ] {
            assert!(!is_ebpf(bytes), "{name}");
        }
        let own = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(!is_ebpf(&own), "a host program");
    }

    #[test]
    fn objects_do_not_overwrite_each_other() {
        let objects = [Object::Meter, Object::MeterLog, Object::Floors];
        let paths: std::collections::BTreeSet<_> = objects.map(Object::path).into();
        assert_eq!(paths.len(), objects.len());
    }
}
