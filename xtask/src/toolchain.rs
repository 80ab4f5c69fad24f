//! The tool chain of the kernel half: a Rust compiler that can build for [`TARGET`], the cargo that belongs to it
//! and a bpf-linker for its LLVM.
//!
//! Found once and remembered with the identity of its files: as long as they stay as they were, nothing is started to
//! look again. What is missing is set up where that takes no decision of the user's: Debian's packages as root, and
//! bpf-linker in the user's cache.

mod candidate;
mod linker;

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use self::candidate::{Candidate, Compiler, Version};
use crate::{
    apt,
    console::say,
    stamp::{self, FileStamp},
    workspace,
};

/// What the programs are built for: little-endian eBPF.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler for its web browsers: as new as upstream's, with a core library for [`TARGET`].
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// Where the compiler takes `core` for [`TARGET`] from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Core {
    /// Its own prebuilt library.
    Prebuilt,
    /// Its own library source, by `-Z build-std`.
    Source,
}

/// A complete tool chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Toolchain {
    /// What it is, for messages.
    name: String,
    rustc: PathBuf,
    cargo: PathBuf,
    linker: PathBuf,
    core: Core,
    /// The files whose change makes all of the above doubtful.
    files: Vec<FileStamp>,
}

impl Toolchain {
    /// Returns the tool chain of this machine, after setting up what was missing.
    ///
    /// # Errors
    ///
    /// What is missing and the commands that set it up.
    pub(crate) fn ready() -> Result<Self> {
        let record = workspace::target().join("ebpf/toolchain.json");
        if let Some(toolchain) = stamp::recall::<Self>(&record)
            && toolchain.files.iter().all(FileStamp::still_holds)
        {
            return Ok(toolchain);
        }
        let toolchain = Self::find_or_set_up()?;
        say(format_args!("building eBPF with {}", toolchain.name));
        stamp::remember(&record, &toolchain)?;
        Ok(toolchain)
    }

    fn find_or_set_up() -> Result<Self> {
        let oldest =
            Version::parse(env!("CARGO_PKG_RUST_VERSION")).context("rust-version of the workspace")?;
        let (compilers, mut rejected) = judge(candidate::all(), oldest);
        // A compiler with a linker at hand is better than an earlier one that needs a linker built.
        for compiler in &compilers {
            if let Some(linker) = linker::find(compiler) {
                return Self::of(compiler, linker);
            }
        }
        for compiler in &compilers {
            match linker::obstacle(compiler) {
                None => return Self::of(compiler, linker::install(compiler)?),
                Some(obstacle) => rejected.push(format!("{}: {obstacle}", compiler.name)),
            }
        }

        say(format_args!("no compiler here can build for {TARGET}:\n{}", rejected.join("\n")));
        install_compiler(oldest)?;
        let (compilers, rejected) = judge(vec![Candidate::system()], oldest);
        let Some(compiler) = compilers.first() else {
            bail!(
                "the packages are installed, and still no compiler builds for {TARGET}: {}",
                rejected.join("; ")
            );
        };
        let linker = linker::find(compiler).map_or_else(|| linker::install(compiler), Ok)?;
        Self::of(compiler, linker)
    }

    fn of(compiler: &Compiler, linker: PathBuf) -> Result<Self> {
        let files = [&compiler.rustc, &compiler.cargo, &compiler.core_witness, &linker];
        Ok(Self {
            name: format!("{} and {}", compiler.name, linker.display()),
            files: files.into_iter().map(|path| FileStamp::of(path)).collect::<Result<_>>()?,
            rustc: compiler.rustc.clone(),
            cargo: compiler.cargo.clone(),
            linker,
            core: compiler.core,
        })
    }

    /// Returns a `cargo build` for [`TARGET`] that sees nothing of the cargo that started xtask.
    pub(crate) fn cargo_build(&self) -> Command {
        // BTF comes from debug information, and the verifier's messages show source lines by it. Paths are made
        // relative, so that the same source gives the same object wherever it is built.
        let mut flags = vec![
            format!("-Clinker={}", self.linker.display()),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("--remap-path-prefix={}=.", workspace::root().display()),
        ];
        if let Some(cargo_home) = cargo_home() {
            flags.push(format!("--remap-path-prefix={}=cargo", cargo_home.display()));
        }

        let mut command = clean_cargo(&self.cargo, &self.rustc);
        command
            .current_dir(workspace::root())
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // bpf-linker optimises the whole program itself.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .args(["build", "--locked", "--release", "--target", TARGET]);
        match self.core {
            // Inline assembly for eBPF is the one unstable feature, and only aya-ebpf and the programs use it.
            Core::Prebuilt => command.env("RUSTC_BOOTSTRAP", "aya_ebpf,meter"),
            Core::Source => command.env("RUSTC_BOOTSTRAP", "1").args(["-Z", "build-std=core"]),
        };
        command
    }

    /// Returns what tells this tool chain from another.
    pub(crate) fn identity(&self) -> &[FileStamp] {
        &self.files
    }
}

/// Splits candidates into compilers that will do and the reasons why others don't.
fn judge(candidates: Vec<Candidate>, oldest: Version) -> (Vec<Compiler>, Vec<String>) {
    let mut compilers = Vec::new();
    let mut rejected = Vec::new();
    for candidate in candidates {
        match candidate.judge(oldest) {
            Ok(compiler) => compilers.push(compiler),
            Err(reason) => rejected.push(reason),
        }
    }
    if compilers.is_empty() && rejected.is_empty() {
        rejected.push("no Rust compiler was found at all".to_owned());
    }
    (compilers, rejected)
}

/// Installs Debian's compiler where this is Debian and we are root.
fn install_compiler(oldest: Version) -> Result<()> {
    if !apt::is_here() || !workspace::is_root() {
        bail!("{}", by_hand());
    }
    let offered = |offers: &apt::Offers| offered_compiler(offers, oldest);
    let mut offer = offered(&apt::offers(&DEBIAN_PACKAGES)?);
    if offer.is_none() {
        apt::update();
        offer = offered(&apt::offers(&DEBIAN_PACKAGES)?);
    }
    if offer.is_none() {
        bail!("apt offers no compiler for {TARGET} that is {oldest} or newer. {}", by_hand());
    }
    apt::install(&DEBIAN_PACKAGES).with_context(by_hand)
}

/// Returns the version of Debian's compiler, where all of its packages are on offer and it is new enough.
fn offered_compiler(offers: &apt::Offers, oldest: Version) -> Option<Version> {
    let versions: Option<Vec<Version>> =
        DEBIAN_PACKAGES.iter().map(|&package| Version::parse(offers.get(package)?)).collect();
    versions?.into_iter().min().filter(|version| *version >= oldest)
}

fn by_hand() -> String {
    format!(
        "Set one up by either of\n\
         {}        (Debian 12 with security updates)\n\
         rustup component add rust-src        (of rustup's default tool chain)\n\
         and run this again: bpf-linker is built without root, once. Or name an object that is built already: \
         EBPF_OBJECT=PATH.",
        apt::command_line(&DEBIAN_PACKAGES)
    )
}

/// Returns a command that loads its own libraries: `cargo run` points the loader at those of its compiler.
fn foreign(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// Returns a command of this cargo that uses this compiler and inherits nothing that the cargo which started xtask, or
/// a developer's settings for host programs, put into the environment.
fn clean_cargo(cargo: &Path, rustc: &Path) -> Command {
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        if is_build_setting(&name) {
            command.env_remove(name);
        }
    }
    command.env("RUSTC", rustc);
    command
}

/// Returns whether a variable changes what cargo builds, or how; where cargo finds crates and how it prints are
/// the user's to say.
fn is_build_setting(name: &OsStr) -> bool {
    const USERS: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const BUILD: [&str; 6] =
        ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH"];
    let name = name.to_string_lossy();
    BUILD.iter().any(|prefix| name.starts_with(prefix))
        && !USERS.iter().any(|prefix| name.starts_with(prefix))
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .filter(|home| home.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_another_cargo_do_not_reach_ours() {
        for (name, ours) in [
            ("CARGO", false),
            ("CARGO_MANIFEST_DIR", false),
            ("CARGO_PKG_NAME", false),
            ("CARGO_ENCODED_RUSTFLAGS", false),
            ("CARGO_BUILD_TARGET", false),
            ("CARGO_TARGET_DIR", false),
            ("CARGO_PROFILE_RELEASE_LTO", false),
            ("CARGO_MAKEFLAGS", false),
            ("RUSTFLAGS", false),
            ("RUSTC", false),
            ("RUSTC_WRAPPER", false),
            ("RUSTC_BOOTSTRAP", false),
            ("RUSTUP_TOOLCHAIN", false),
            ("LD_LIBRARY_PATH", false),
            ("CARGO_HOME", true),
            ("CARGO_NET_OFFLINE", true),
            ("CARGO_HTTP_PROXY", true),
            ("CARGO_REGISTRIES_MIRROR_TOKEN", true),
            ("CARGO_TERM_COLOR", true),
            ("RUSTUP_HOME", true),
            ("RUST_BACKTRACE", true),
            ("PATH", true),
        ] {
            assert_eq!(is_build_setting(OsStr::new(name)), !ours, "{name}");
        }
    }

    #[test]
    fn debian_serves_where_all_packages_are_new_enough() {
        let offers = |versions: &[&str]| -> apt::Offers {
            let names = DEBIAN_PACKAGES.iter().map(|&name| name.to_owned());
            names.zip(versions.iter().map(|&version| version.to_owned())).collect()
        };
        let new = "1.96.0+dfsg1-1~deb12u2";
        let old = "1.85.0+dfsg3-1~deb12u3";
        for (name, versions, expected) in [
            ("new enough", &[new, new, new][..], Some(Version(1, 96, 0))),
            ("without security updates", &[old, old, old], None),
            ("half of them new", &[new, old, new], None),
            ("one missing", &[new, new], None),
            ("none", &[], None),
        ] {
            assert_eq!(offered_compiler(&offers(versions), Version(1, 89, 0)), expected, "{name}");
        }
    }

    #[test]
    fn nothing_at_all_has_a_reason_too() {
        assert_eq!(judge(Vec::new(), Version(1, 89, 0)).1, ["no Rust compiler was found at all"]);
    }
}
