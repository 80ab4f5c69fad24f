//! bpf-linker: it links LLVM bitcode, so it has to be built for the LLVM of the compiler that wrote it.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{Compiler, TARGET, clean_cargo, foreign};
use crate::{console::say, executable, workspace};

/// The release that is built where there is none.
const VERSION: &str = "0.13.0";

/// The LLVMs that this release can be built for.
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// The least that a linker must link: no core library is needed for it.
const PROBE: &str = "\
#![feature(no_core)]
#![no_core]
#![no_std]
#![crate_type = \"lib\"]
";

/// Finds a bpf-linker that links what this compiler writes: the one that [`install`] made, or the one on `PATH`.
pub(crate) fn find(compiler: &Compiler) -> Option<PathBuf> {
    let ours = Llvm::of(compiler).ok().and_then(|llvm| llvm.install_directory().ok());
    let ours = ours.map(|directory| directory.join("bin/bpf-linker"));
    let linkers = ours.into_iter().chain(executable::find("bpf-linker"));
    let linkers: Vec<PathBuf> = linkers.filter(|linker| executable::is_executable(linker)).collect();
    if linkers.is_empty() {
        return None;
    }
    // Asking for versions would not do: a linker may hold its LLVM inside, or not start for want of it.
    let bitcode = Bitcode::by(compiler).ok()?;
    linkers.into_iter().find(|linker| bitcode.is_linked_by(linker))
}

/// Says why no bpf-linker can be built for this compiler, where that is so.
pub(crate) fn obstacle(compiler: &Compiler) -> Option<String> {
    if LLVMS.contains(&compiler.llvm) {
        return Llvm::of(compiler).err().map(|error| format!("{error:#}"));
    }
    let (oldest, newest) = LLVMS.into_inner();
    Some(format!("bpf-linker {VERSION} can be built for LLVM {oldest} to {newest}; put one for this on PATH"))
}

/// Builds bpf-linker for this compiler's LLVM, in the user's cache.
///
/// # Errors
///
/// What cargo said, or why there is no LLVM to build it for.
pub(crate) fn install(compiler: &Compiler) -> Result<PathBuf> {
    let llvm = Llvm::of(compiler)?;
    let directory = llvm.install_directory()?;
    say(format_args!(
        "building bpf-linker {VERSION} for LLVM {}, once, into {} (half a minute)",
        compiler.llvm,
        directory.display()
    ));
    llvm.make_prefix(&directory)?;
    let build_directory = workspace::target().join("ebpf/bpf-linker");
    let mut command = clean_cargo(&compiler.cargo, &compiler.rustc);
    command
        .env("LLVM_PREFIX", &directory)
        // Nearly all of its work is LLVM's, which is compiled already.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{}", compiler.llvm)])
        .arg("--root")
        .arg(&directory)
        .arg("--target-dir")
        .arg(&build_directory);
    executable::run(&mut command)?;
    fs::remove_dir_all(&build_directory)
        .with_context(|| format!("cannot remove {}", build_directory.display()))?;
    let linker = directory.join("bin/bpf-linker");
    if !Bitcode::by(compiler)?.is_linked_by(&linker) {
        bail!("{} was built, but does not link what {} writes", linker.display(), compiler.rustc.display());
    }
    Ok(linker)
}

/// The LLVM library that a compiler loads.
#[derive(Debug, PartialEq, Eq)]
struct Llvm {
    major: u32,
    /// The name by which programs ask for it.
    soname: String,
    library: PathBuf,
}

impl Llvm {
    fn of(compiler: &Compiler) -> Result<Self> {
        let libraries = executable::read(foreign(Path::new("ldd")).arg(&compiler.rustc))?;
        let (soname, library) = loaded_llvm(&libraries).with_context(|| {
            format!(
                "{} has LLVM inside: bpf-linker can't share it; put one on PATH",
                compiler.rustc.display()
            )
        })?;
        Ok(Self { major: compiler.llvm, soname: soname.to_owned(), library: library.into() })
    }

    /// Returns where a bpf-linker for this LLVM is installed: by the library's name, so that one for a distribution's
    /// LLVM and one for rustup's don't take each other's place.
    fn install_directory(&self) -> Result<PathBuf> {
        let cache = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set: no place to build bpf-linker in")?;
        Ok(cache.join("meter-agent").join(directory_name(self.major, &self.soname)))
    }

    /// Makes the directory look like an LLVM's to the linker's build: `lib/libLLVM.so`, and the name that the
    /// finished linker asks the loader for.
    fn make_prefix(&self, directory: &Path) -> Result<()> {
        let lib = directory.join("lib");
        fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
        for name in ["libLLVM.so", &self.soname] {
            let link = lib.join(name);
            if link.symlink_metadata().is_ok() {
                fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
            }
            symlink(&self.library, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        Ok(())
    }
}

/// Finds libLLVM in what `ldd` says: its name and where it is.
fn loaded_llvm(ldd: &str) -> Option<(&str, &str)> {
    ldd.lines().find_map(|line| {
        let (name, path) = line.trim().split_once(" => ")?;
        let path = path.get(..path.rfind(" (")?)?;
        (name.starts_with("libLLVM") && path.starts_with('/')).then_some((name, path))
    })
}

fn directory_name(major: u32, soname: &str) -> String {
    let version = soname.trim_start_matches("libLLVM").trim_start_matches(['.', '-']);
    let version = version.trim_start_matches("so.").trim_end_matches(".so");
    let plain = version.split('.').all(|number| number.parse::<u32>().is_ok());
    if plain {
        format!("bpf-linker-{VERSION}-llvm-{major}")
    } else {
        format!("bpf-linker-{VERSION}-llvm-{version}")
    }
}

/// A compiled file to try linkers on.
struct Bitcode {
    directory: PathBuf,
}

impl Bitcode {
    fn by(compiler: &Compiler) -> Result<Self> {
        let directory = workspace::target().join(format!("ebpf/probe-{}", std::process::id()));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let bitcode = Self { directory };
        fs::write(bitcode.directory.join("probe.rs"), PROBE).context("cannot write a probe")?;
        let mut command = foreign(&compiler.rustc);
        command
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["--edition", "2024", "--target", TARGET, "--emit", "obj", "-Awarnings", "-o"])
            .arg(bitcode.object())
            .arg(bitcode.directory.join("probe.rs"));
        executable::read(&mut command)?;
        Ok(bitcode)
    }

    fn object(&self) -> PathBuf {
        self.directory.join("probe.o")
    }

    fn is_linked_by(&self, linker: &Path) -> bool {
        let mut command = foreign(linker);
        command.arg("--output").arg(self.directory.join("probe.bpf.o")).arg(self.object());
        executable::read(&mut command).is_ok()
    }
}

impl Drop for Bitcode {
    fn drop(&mut self) {
        // What remains is in the target directory and small.
        drop(fs::remove_dir_all(&self.directory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_found_among_the_loaded_libraries() {
        let debian = "\
\tlinux-vdso.so.1 (0x00007f5289a0d000)
\tlibrustc_driver-ea0e99b300280386.so => /lib/x86_64-linux-gnu/librustc_driver-ea0e99b300280386.so (0x00007f52)
\tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007f527ac00000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f5289a0f000)
";
        let rustup =
            "\tlibLLVM.so.22.1-rust-1.95.0-stable => /opt/a b/lib/libLLVM.so.22.1-rust-1.95.0-stable (0x0)\n";
        for (name, text, expected) in [
            ("debian", debian, Some(("libLLVM.so.22.1", "/lib/x86_64-linux-gnu/libLLVM.so.22.1"))),
            (
                "rustup",
                rustup,
                Some((
                    "libLLVM.so.22.1-rust-1.95.0-stable",
                    "/opt/a b/lib/libLLVM.so.22.1-rust-1.95.0-stable",
                )),
            ),
            ("not there", "\tlibLLVM.so.22.1 => not found\n", None),
            ("static", "\tstatically linked\n", None),
        ] {
            assert_eq!(loaded_llvm(text), expected, "{name}");
        }
    }

    #[test]
    fn linkers_for_different_libraries_live_apart() {
        for (major, soname, expected) in [
            (22, "libLLVM.so.22.1", "bpf-linker-0.13.0-llvm-22"),
            (21, "libLLVM-21.so", "bpf-linker-0.13.0-llvm-21"),
            (23, "libLLVM.so.23.1-rust-1.99.0-stable", "bpf-linker-0.13.0-llvm-23.1-rust-1.99.0-stable"),
            (22, "libLLVM-22-rust-1.95.0-stable.so", "bpf-linker-0.13.0-llvm-22-rust-1.95.0-stable"),
        ] {
            assert_eq!(directory_name(major, soname), expected);
        }
    }

    #[test]
    fn prefix_is_made_again_over_an_older_one() {
        let directory = tempfile::tempdir().unwrap();
        for library in ["/old/libLLVM.so.22.1", "/new/libLLVM.so.22.1"] {
            let llvm = Llvm { major: 22, soname: "libLLVM.so.22.1".to_owned(), library: library.into() };
            llvm.make_prefix(directory.path()).unwrap();
            for name in ["libLLVM.so", "libLLVM.so.22.1"] {
                assert_eq!(
                    fs::read_link(directory.path().join("lib").join(name)).unwrap(),
                    Path::new(library)
                );
            }
        }
    }
}
