//! The file that keeps what was added at run time: `meters.json` of the state directory.
//!
//! It is replaced as a whole: written beside itself, synced, and renamed. A file that holds anything but meters is set
//! aside under another name, and one that can't be read is left alone; neither is ever written over. An entry in it that
//! is no meter, or none any more, stays there as it is, and the others count.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::meter;
use crate::{aside::set_aside, rules::Meter};

const FILE: &str = "meters.json";
/// Bytes of the longest file.
const LIMIT: u64 = 16 * 1024 * 1024;
/// The layout of the file.
const VERSION: u32 = 1;

/// Something is wrong with the file or its directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory is not there.
    #[error(
        "state.directory {0}: there is no such directory; make it for the agent's user, or set state.directory"
    )]
    NoDirectory(PathBuf),
    /// Nothing can be written there.
    #[error(
        "state.directory {path}: can't be written to: {source}; make it the agent's, or set state.directory"
    )]
    ReadOnly {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is none of this agent's; it was set aside.
    #[error("{path}: {what}; set aside as {aside}; add its meters again")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// Where it is now.
        aside: PathBuf,
    },
    /// Some of what is in the file is no meter; it stays there.
    #[error(
        "{path}: {}; kept there as it is and not counted: add it again with right rules, or take it out while no agent \
         runs",
        .what.join("; ")
    )]
    NoMeters {
        /// The file.
        path: PathBuf,
        /// What is wrong, for each of them.
        what: Vec<String>,
    },
    /// The file is in the way.
    #[error("{path}: {what}; repair or remove it, and start the agent again")]
    InTheWay {
        /// The file.
        path: PathBuf,
        /// Why it is of no use.
        what: String,
    },
    /// There would be too much to keep.
    #[error("{0}: would be longer than {LIMIT} bytes")]
    TooLong(PathBuf),
    /// This agent keeps nothing.
    #[error("this agent has no state directory")]
    Nowhere,
}

/// The file as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    /// Each an [`Entry`], unless another agent or somebody by hand wrote it.
    meters: Vec<Value>,
}

/// A meter in it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    rules: Vec<String>,
}

/// What was found at the start.
#[derive(Debug)]
pub struct Found {
    /// Where changes are kept from now on.
    pub state: State,
    /// The meters that were added before.
    pub meters: Vec<Meter>,
    /// What an operator should know.
    pub trouble: Option<StateError>,
}

/// Keeps what was added at run time.
#[derive(Debug, Clone)]
pub struct State {
    /// The file; `None` where nothing can be kept.
    path: Option<PathBuf>,
    /// Why the file that is there must not be replaced.
    in_the_way: Option<String>,
    /// What is in the file and is no meter.
    no_meters: Vec<Value>,
}

/// A new file that is complete, and not in its place yet. It goes away unless it is put there.
#[derive(Debug)]
pub struct Prepared {
    new: PathBuf,
    path: PathBuf,
}

impl State {
    /// Returns one that keeps nothing: every change of it fails.
    #[must_use]
    pub const fn nowhere() -> Self {
        Self { path: None, in_the_way: None, no_meters: Vec::new() }
    }

    /// Reads what was kept in a directory.
    #[must_use]
    pub fn open(directory: &Path) -> Found {
        let path = directory.join(FILE);
        let mut state = Self { path: Some(path.clone()), in_the_way: None, no_meters: Vec::new() };
        let (meters, trouble) = match read(&path) {
            Ok(Some(bytes)) => match parse(&bytes) {
                Ok(Parsed { meters, no_meters, what }) => {
                    state.no_meters = no_meters;
                    let trouble = check(directory).err();
                    (
                        meters,
                        trouble.or_else(|| (!what.is_empty()).then_some(StateError::NoMeters { path, what })),
                    )
                }
                Err(what) => (Vec::new(), Some(state.set_aside(what))),
            },
            Ok(None) => (Vec::new(), check(directory).err()),
            Err(what) => (Vec::new(), Some(state.leave_alone(format!("can't be read: {what}")))),
        };
        Found { state, meters, trouble }
    }

    /// Writes a new file beside the one that is there. What was in that one and is no meter stays in it, unless a meter has
    /// its name now.
    ///
    /// # Errors
    ///
    /// Why these meters can't be kept.
    pub fn prepare(&self, meters: &[Meter]) -> Result<Prepared, StateError> {
        let path = self.path.clone().ok_or(StateError::Nowhere)?;
        if let Some(what) = &self.in_the_way {
            return Err(StateError::InTheWay { path, what: what.clone() });
        }
        check(path.parent().unwrap_or(Path::new("/")))?;
        let entry = |meter: &Meter| {
            serde_json::json!(Entry {
                name: meter.name.clone(),
                rules: meter.rules.iter().map(ToString::to_string).collect(),
            })
        };
        let has_name =
            |value: &&Value| meters.iter().any(|meter| value["name"].as_str() == Some(meter.name.as_str()));
        let no_meters = self.no_meters.iter().filter(|value| !has_name(value)).cloned();
        let document =
            Document { version: VERSION, meters: meters.iter().map(entry).chain(no_meters).collect() };
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { action, path, source }
        };
        let mut text =
            serde_json::to_vec_pretty(&document).map_err(|error| failed("write", &path)(error.into()))?;
        text.push(b'\n');
        if u64::try_from(text.len()).is_ok_and(|length| length > LIMIT) {
            return Err(StateError::TooLong(path));
        }
        let prepared = Prepared { new: path.with_extension("json.new"), path };
        let new = &prepared.new;
        let mut options = fs::OpenOptions::new();
        let options =
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(new).map_err(failed("make", new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", new))?;
        Ok(prepared)
    }

    fn set_aside(&mut self, what: String) -> StateError {
        let path = self.path.clone().unwrap_or_default();
        match set_aside(&path, ".broken") {
            Ok(aside) => StateError::Broken { path, what, aside },
            Err(error) => self.leave_alone(format!("{what}, and it can't be set aside: {error}")),
        }
    }

    fn leave_alone(&mut self, what: String) -> StateError {
        self.in_the_way = Some(what.clone());
        StateError::InTheWay { path: self.path.clone().unwrap_or_default(), what }
    }
}

impl Prepared {
    /// Puts the new file in its place.
    ///
    /// # Errors
    ///
    /// The old one is still there, or it is not certain that the new one outlives a crash of the host.
    pub fn commit(self) -> Result<(), StateError> {
        let Self { new, path } = &self;
        let failed = |action| move |source| StateError::Io { action, path: path.clone(), source };
        fs::rename(new, path).map_err(failed("replace"))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync"))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Gone where it was put in its place. One that stays is written over the next time.
        drop(fs::remove_file(&self.new));
    }
}

/// Returns the bytes of a file; `None` where there is none.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut options = fs::OpenOptions::new();
    // Opening a FIFO waits for a writer otherwise.
    let file = match options.read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// What a file holds.
struct Parsed {
    meters: Vec<Meter>,
    no_meters: Vec<Value>,
    /// What is wrong with each of these.
    what: Vec<String>,
}

/// Reads the meters of a file.
fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LIMIT) {
        return Err(format!("is longer than {LIMIT} bytes"));
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| format!("is no list of meters: {error}"))?;
    if document.version != VERSION {
        return Err(format!("has version {}, and this agent writes version {VERSION}", document.version));
    }
    let mut parsed = Parsed { meters: Vec::new(), no_meters: Vec::new(), what: Vec::new() };
    for (number, value) in (1..).zip(document.meters) {
        match parse_entry(number, &value, &parsed.meters) {
            Ok(meter) => parsed.meters.push(meter),
            Err(what) => {
                parsed.no_meters.push(value);
                parsed.what.push(what);
            }
        }
    }
    Ok(parsed)
}

/// Reads the entry with this number, behind these.
fn parse_entry(number: usize, value: &Value, before: &[Meter]) -> Result<Meter, String> {
    let Entry { name, rules } =
        Entry::deserialize(value).map_err(|error| format!("entry {number}: is no meter: {error}"))?;
    let meter =
        meter(&name, &rules).map_err(|mistakes| format!("meter {name:?}: {}", mistakes.join("; ")))?;
    if before.iter().any(|other| other.name == meter.name) {
        return Err(format!("meter {name:?}: is there twice"));
    }
    Ok(meter)
}

/// Finds out whether files can be made in a directory.
fn check(directory: &Path) -> Result<(), StateError> {
    let path = directory.to_owned();
    match access(directory, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if directory.is_dir() => Ok(()),
        Ok(()) => Err(StateError::ReadOnly { path, source: io::ErrorKind::NotADirectory.into() }),
        Err(nix::Error::ENOENT) => Err(StateError::NoDirectory(path)),
        Err(error) => Err(StateError::ReadOnly { path, source: error.into() }),
    }
}
