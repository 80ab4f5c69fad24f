//! Rust compilers on this machine, and which of them can build the kernel half.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Core, TARGET, foreign};
use crate::executable;

/// A release of Rust: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    /// Reads `1.89`, `1.95.0`, `1.97.0-nightly` or a package's `1.96.0+dfsg1-1~deb12u2`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text.get(..end)?.split('.').map(|number| number.parse().ok());
        let version = Self(numbers.next()??, numbers.next()??, numbers.next().unwrap_or(Some(0))?);
        numbers.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A place where a compiler is, or may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// What the user calls it.
    origin: String,
    sysroot: PathBuf,
}

/// A compiler that can build for [`TARGET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// For messages.
    pub(crate) name: String,
    /// The compiler itself, not rustup's stand-in for it.
    pub(crate) rustc: PathBuf,
    /// The cargo that belongs to it.
    pub(crate) cargo: PathBuf,
    /// How it comes by `core`.
    pub(crate) core: Core,
    /// A file that is there as long as `core` is.
    pub(crate) core_witness: PathBuf,
    /// Major version of its LLVM: what reads its bitcode must be of the same.
    pub(crate) llvm: u32,
}

/// What decides about a candidate that has a compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    version: Version,
    llvm: u32,
    prebuilt: bool,
    source: Source,
}

/// The library source that goes with a compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Absent,
    /// There, but nothing says which release it is of.
    Unknown,
    Of(Version),
    /// A part of the same rustup tool chain.
    SameChannel,
}

/// Finds every compiler: rustup's tool chains first, then the one on `PATH`, then the system's.
pub(crate) fn all() -> Vec<Candidate> {
    let mut candidates = executable::find("rustup")
        .and_then(|rustup| executable::read(Command::new(rustup).args(["toolchain", "list", "-v"])).ok())
        .map(|list| rustup_toolchains(&list))
        .unwrap_or_default();
    if let Some(rustc) = executable::find("rustc")
        && let Ok(sysroot) = executable::read(Command::new(&rustc).args(["--print", "sysroot"]))
    {
        candidates.push(Candidate { origin: rustc.display().to_string(), sysroot: sysroot.trim().into() });
    }
    candidates.push(Candidate::system());

    // Several names may lead to one sysroot.
    let mut seen = BTreeSet::new();
    candidates.retain(|candidate| candidate.sysroot.canonicalize().is_ok_and(|real| seen.insert(real)));
    candidates
}

/// Reads `rustup toolchain list -v`: a name, remarks in parentheses, a path.
fn rustup_toolchains(list: &str) -> Vec<Candidate> {
    list.lines()
        .filter_map(|line| {
            let name = line.split_whitespace().next()?;
            let path = line.get(line.find([' ', '\t'])?..)?;
            let path = path.get(path.find('/')?..)?;
            Some(Candidate { origin: format!("rustup's {name}"), sysroot: path.trim_end().into() })
        })
        .collect()
}

impl Candidate {
    /// Returns the system's own compiler, where packages put it.
    pub(crate) fn system() -> Self {
        Self { origin: "/usr/bin/rustc".to_owned(), sysroot: "/usr".into() }
    }

    /// Decides whether this is a compiler for [`TARGET`], or says why not.
    pub(crate) fn judge(&self, oldest: Version) -> Result<Compiler, String> {
        let rejected = |reason: &str| format!("{}: {reason}", self.origin);
        let rustc = self.sysroot.join("bin/rustc");
        let cargo = self.sysroot.join("bin/cargo");
        if !executable::is_executable(&rustc) {
            return Err(rejected("not installed"));
        }
        if !executable::is_executable(&cargo) {
            return Err(rejected("has no cargo of its own"));
        }
        let about = executable::read(foreign(&rustc).arg("-vV"));
        let about = about.map_err(|error| rejected(&format!("{error:#}")))?;
        let (version, llvm) =
            parse_about(&about).ok_or_else(|| rejected("tells neither its release nor its LLVM"))?;
        let prebuilt = prebuilt_core(&self.sysroot);
        let facts = Facts { version, llvm, prebuilt: prebuilt.is_some(), source: source_of(&self.sysroot) };
        let core = choose_core(&facts, oldest).map_err(|reason| rejected(&reason))?;
        Ok(Compiler {
            name: format!("{} ({version}, LLVM {llvm})", self.origin),
            rustc,
            cargo,
            core,
            core_witness: prebuilt
                .filter(|_| core == Core::Prebuilt)
                .unwrap_or_else(|| core_source(&self.sysroot)),
            llvm,
        })
    }
}

fn choose_core(facts: &Facts, oldest: Version) -> Result<Core, String> {
    let version = facts.version;
    if version < oldest {
        return Err(format!("is {version}; this workspace needs {oldest}"));
    }
    if facts.prebuilt {
        return Ok(Core::Prebuilt);
    }
    match facts.source {
        Source::SameChannel => Ok(Core::Source),
        Source::Of(source) if source == version => Ok(Core::Source),
        Source::Of(source) => Err(format!("is {version}, but its library source is of {source}")),
        Source::Unknown => Err("its library source doesn't say of which release it is".to_owned()),
        Source::Absent => Err(format!("has neither a core library for {TARGET} nor rust-src")),
    }
}

/// Reads the release and LLVM's major version from `rustc -vV`.
fn parse_about(about: &str) -> Option<(Version, u32)> {
    let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name));
    let llvm = field("LLVM version: ")?.split('.').next()?;
    Some((Version::parse(field("release: ")?)?, llvm.parse().ok()?))
}

fn prebuilt_core(sysroot: &Path) -> Option<PathBuf> {
    let directory = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let mut paths = fs::read_dir(directory).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn core_source(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs")
}

fn source_of(sysroot: &Path) -> Source {
    let rustlib = sysroot.join("lib/rustlib");
    if !core_source(sysroot).is_file() {
        Source::Absent
    } else if rustlib.join("manifest-rust-src").is_file() {
        Source::SameChannel
    } else {
        // Distributions ship the release's whole source tree, with the file that names it.
        let named = fs::read_to_string(rustlib.join("src/rust/src/version")).ok();
        named.and_then(|text| Version::parse(text.trim())).map_or(Source::Unknown, Source::Of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_compilers_and_packages() {
        for (text, expected) in [
            ("1.89", Some(Version(1, 89, 0))),
            ("1.95.0", Some(Version(1, 95, 0))),
            ("1.97.0-nightly", Some(Version(1, 97, 0))),
            ("1.96.0+dfsg1-1~deb12u2", Some(Version(1, 96, 0))),
            ("1.96.1~rc1", Some(Version(1, 96, 1))),
            ("", None),
            ("1", None),
            ("1.", None),
            ("1.2.3.4", None),
            ("nightly", None),
            ("99999999999.0", None),
        ] {
            assert_eq!(Version::parse(text), expected, "{text:?}");
        }
        assert!(Version(1, 100, 0) > Version(1, 89, 3));
    }

    #[test]
    fn rustup_lists_are_read_old_and_new() {
        let list = "\
stable-x86_64-unknown-linux-gnu (active, default) /opt/a/.rustup/toolchains/stable-x86_64-unknown-linux-gnu
nightly-x86_64-unknown-linux-gnu\t/opt/a b/.rustup/toolchains/nightly
own (default)\t/opt/rust
no installed toolchains
";
        let candidates = rustup_toolchains(list);
        let read: Vec<_> =
            candidates.iter().map(|c| (c.origin.as_str(), c.sysroot.to_str().unwrap())).collect();
        assert_eq!(
            read,
            [
                (
                    "rustup's stable-x86_64-unknown-linux-gnu",
                    "/opt/a/.rustup/toolchains/stable-x86_64-unknown-linux-gnu"
                ),
                ("rustup's nightly-x86_64-unknown-linux-gnu", "/opt/a b/.rustup/toolchains/nightly"),
                ("rustup's own", "/opt/rust"),
            ]
        );
    }

    #[test]
    fn release_and_llvm_are_read_from_the_compiler() {
        let about =
            "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_about(about), Some((Version(1, 96, 0), 22)));
        assert_eq!(parse_about("rustc 1.96.0\nrelease: 1.96.0\n"), None);
    }

    #[test]
    fn core_comes_prebuilt_or_from_source_of_the_same_release() {
        const NEW: Version = Version(1, 96, 0);
        let rows = [
            ("prebuilt", NEW, true, Source::Absent, Ok(Core::Prebuilt)),
            ("both", NEW, true, Source::SameChannel, Ok(Core::Prebuilt)),
            ("rustup's component", NEW, false, Source::SameChannel, Ok(Core::Source)),
            ("a package of the same release", NEW, false, Source::Of(NEW), Ok(Core::Source)),
            (
                "another release's source",
                Version(1, 95, 0),
                false,
                Source::Of(NEW),
                Err("is 1.95.0, but its library source is of 1.96.0"),
            ),
            (
                "source of nobody knows what",
                NEW,
                false,
                Source::Unknown,
                Err("its library source doesn't say of which release it is"),
            ),
            (
                "nothing",
                NEW,
                false,
                Source::Absent,
                Err("has neither a core library for bpfel-unknown-none nor rust-src"),
            ),
            (
                "too old",
                Version(1, 85, 0),
                true,
                Source::SameChannel,
                Err("is 1.85.0; this workspace needs 1.89.0"),
            ),
        ];
        for (name, version, prebuilt, source, expected) in rows {
            let facts = Facts { version, llvm: 22, prebuilt, source };
            assert_eq!(choose_core(&facts, Version(1, 89, 0)), expected.map_err(ToOwned::to_owned), "{name}");
        }
    }

    #[test]
    fn sysroot_is_looked_into() {
        let sysroot = tempfile::tempdir().unwrap();
        let rustlib = sysroot.path().join("lib/rustlib");
        let write = |path: &str, text: &str| {
            let path = rustlib.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(source_of(sysroot.path()), Source::Absent);
        assert_eq!(prebuilt_core(sysroot.path()), None);

        write("src/rust/library/core/src/lib.rs", "");
        assert_eq!(source_of(sysroot.path()), Source::Unknown);
        write("src/rust/src/version", "1.96.0\n");
        assert_eq!(source_of(sysroot.path()), Source::Of(Version(1, 96, 0)));
        write("manifest-rust-src", "");
        assert_eq!(source_of(sysroot.path()), Source::SameChannel);

        write("bpfel-unknown-none/lib/libcore-0.rmeta", "");
        assert_eq!(prebuilt_core(sysroot.path()), None);
        write("bpfel-unknown-none/lib/libcore-0.rlib", "");
        assert!(prebuilt_core(sysroot.path()).is_some());
    }

    #[test]
    fn place_without_a_compiler_says_so() {
        let empty = tempfile::tempdir().unwrap();
        let candidate = Candidate { origin: "here".to_owned(), sysroot: empty.path().to_owned() };
        assert_eq!(candidate.judge(Version(1, 89, 0)), Err("here: not installed".to_owned()));
    }
}
