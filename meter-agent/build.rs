//! Puts the eBPF object into the agent's binary.
//!
//! The object is built by `cargo xtask`, not here: an ordinary `cargo build`, `test` or `clippy` needs no eBPF
//! compiler. It is `target/meter.bpf.o`, or the file that `EBPF_OBJECT` names (relative to the workspace); with none,
//! the binary carries an empty one and says so when it is asked to count.
//!
//! Writes `$OUT_DIR/object.rs`, which declares `pub static OBJECT: &[u8]`, aligned as an ELF file wants it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Names an object to take in place of the workspace's own.
const PREBUILT: &str = "EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    if let Err(message) = embed() {
        println!("cargo::error={message}");
    }
}

fn embed() -> Result<(), String> {
    let package = directory("CARGO_MANIFEST_DIR")?;
    let workspace = package.parent().ok_or("the package is in no workspace")?;
    let prebuilt = env::var_os(PREBUILT).filter(|path| !path.is_empty());
    let (path, bytes) = if let Some(named) = prebuilt {
        let path = workspace.join(named);
        let bytes =
            fs::read(&path).map_err(|error| format!("{PREBUILT}: read {}: {error}", path.display()))?;
        (path, bytes)
    } else {
        let path = workspace.join("target/meter.bpf.o");
        let bytes = fs::read(&path).unwrap_or_default();
        if bytes.is_empty() {
            make_empty(&path);
        }
        (path, bytes)
    };
    if !bytes.is_empty() && !is_ebpf(&bytes) {
        return Err(format!("{} is no eBPF object", path.display()));
    }
    println!("cargo::rerun-if-changed={}", path.display());

    let out = directory("OUT_DIR")?;
    write(&out.join("meter.bpf.o"), &bytes)?;
    write(&out.join("object.rs"), SOURCE.as_bytes())
}

/// What includes the copy, at an alignment of 8 that `include_bytes!` alone doesn't promise.
const SOURCE: &str = r#"/// The eBPF object that this build carries; empty where it was built without one.
pub static OBJECT: &[u8] = {
    #[repr(C, align(8))]
    struct Aligned<Bytes: ?Sized>(Bytes);
    static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/meter.bpf.o")));
    &ALIGNED.0
};
"#;

/// Makes an empty file stand for the object that isn't built yet.
///
/// Cargo runs this script again when the file changes, but would do so every time, and build the agent anew, where
/// there is none. Where it can't be made, in a tree that is read only, that is the cost.
fn make_empty(path: &Path) {
    let make = || -> io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        // A file made while this script runs would look changed to the next build.
        fs::File::create_new(path)?.set_modified(SystemTime::UNIX_EPOCH)
    };
    drop(make());
}

/// Returns whether this begins as a little-endian 64-bit ELF file for eBPF does.
fn is_ebpf(bytes: &[u8]) -> bool {
    const EM_BPF: [u8; 2] = 247_u16.to_le_bytes();
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(&EM_BPF)
}

fn directory(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("cargo didn't set {variable}"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("write {}: {error}", path.display()))
}
