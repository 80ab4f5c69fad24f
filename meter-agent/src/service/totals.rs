//! Totals in a file, for the time after a reboot, and where nothing is pinned after a restart: read once at the start, written at an interval and at the end.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::{agent::Event, aside::set_aside, datapath::ReadError, totals::Totals};

/// Bytes of the longest file: a million ports and a million tunnels take less.
const LIMIT: u64 = 1 << 30;
/// What is another one in each boot of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file, and the boot that it is written in.
#[derive(Debug)]
pub(super) struct TotalsFile {
    path: PathBuf,
    boot_id: String,
    /// Held while it is written; whether the last writing was begun, after which there is no other.
    is_ended: Mutex<bool>,
}

impl TotalsFile {
    /// Opens the file; `None` where it can't be used, which the log says. Also returns what is in it, of this boot or of
    /// another.
    ///
    /// A file that is broken is moved away; one that can't be read is left alone, and not written either.
    pub(super) fn open(path: &Path) -> Option<(Self, Option<Totals>)> {
        let boot_id = match fs::read_to_string(BOOT_ID) {
            Ok(id) => id.trim().to_owned(),
            Err(error) => {
                tracing::error!(file = BOOT_ID, error = %error, "no state file: this boot has no name");
                return None;
            }
        };
        let file = Self { path: path.to_owned(), boot_id, is_ended: Mutex::new(false) };
        let shown = path.display();
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some((file, None)),
            Err(error) => {
                tracing::error!(file = %shown, error = %error, "the state file can't be read; it is left as it is");
                return None;
            }
        };
        match Totals::decode(&text) {
            Ok(state) => {
                if file.is_older(&state) {
                    file.keep_previous();
                }
                Some((file, Some(state)))
            }
            Err(error) => {
                let aside = set_aside(path, ".broken").ok();
                tracing::error!(
                    file = %shown,
                    error = %error,
                    aside = aside.as_ref().map(|aside| aside.display().to_string()),
                    "the state file is broken; the totals in it are lost"
                );
                aside.map(|_| (file, None))
            }
        }
    }

    /// Returns whether these totals are from another boot.
    pub(super) fn is_older(&self, state: &Totals) -> bool {
        state.boot_id != self.boot_id
    }

    /// Gives the file of the boot before a second name, which stays when the file is replaced: there may be no room now
    /// for all that it has.
    fn keep_previous(&self) {
        let previous = self.beside(".previous");
        let kept = match fs::remove_file(&previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::hard_link(&self.path, &previous),
        };
        if let Err(error) = kept {
            let file = previous.display();
            tracing::warn!(%file, error = %error, "the totals of the boot before are not kept beside the new ones");
        }
    }

    /// Moves the file away, where not all of it has come into the maps: it is never written over.
    pub(super) fn keep_unrestored(&self) {
        let file = self.path.display();
        match set_aside(&self.path, ".unrestored") {
            Ok(aside) => {
                let aside = aside.display();
                tracing::error!(%file, %aside, "some totals from before are not counted on; they are kept");
            }
            Err(error) => {
                tracing::error!(%file, error = %error, "the totals from before are not kept")
            }
        }
    }

    /// Writes all totals, unless the last ones are.
    fn write(&self, state: Totals) -> io::Result<()> {
        let is_ended = self.is_ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_ended { Ok(()) } else { self.replace(state) }
    }

    /// Replaces the file: it has these totals or those from before, whatever happens meanwhile.
    fn replace(&self, state: Totals) -> io::Result<()> {
        let text = Totals { boot_id: self.boot_id.clone(), ..state }.encode();
        let new = self.beside(".new");
        let mut options = File::options();
        // Totals say who talks to whom.
        let options =
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let written = options.open(&new).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        if let Err(error) = written.and_then(|()| fs::rename(&new, &self.path)) {
            // On a disk that is full it would keep its space.
            drop(fs::remove_file(&new));
            return Err(error);
        }
        // The name as well.
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(suffix);
        name.into()
    }

    /// Writes the totals at the end.
    pub(super) fn write_last(&self, state: Result<Totals, ReadError>) {
        // One at the interval may be going on.
        let mut is_ended = self.is_ended.lock().unwrap_or_else(PoisonError::into_inner);
        *is_ended = true;
        let result = state.map_err(io::Error::other).and_then(|state| self.replace(state));
        if let Err(error) = result {
            let file = self.path.display();
            tracing::error!(%file, error = %error, "the state file was not written; it is as it was");
        }
    }
}

/// Returns the bytes of the file.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a FIFO waits for a writer otherwise.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LIMIT) {
        return Err(io::Error::other(format!("it is longer than {LIMIT} bytes")));
    }
    Ok(bytes)
}

/// Writes the totals at this interval, for as long as there is an agent.
pub(super) async fn keep(file: Arc<TotalsFile>, every: Duration, events: mpsc::Sender<Event>) {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one is at once.
    tick.tick().await;
    let mut fails = false;
    loop {
        tick.tick().await;
        let (ask, answer) = oneshot::channel();
        if events.send(Event::Totals(ask)).is_err() {
            return;
        }
        let Ok(state) = answer.await else { return };
        let written = match state {
            Ok(state) => {
                let file = Arc::clone(&file);
                spawn_blocking(move || file.write(state))
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)))
            }
            Err(error) => Err(io::Error::other(error)),
        };
        match written {
            Err(error) => {
                if !fails {
                    let file = file.path.display();
                    tracing::error!(%file, error = %error, "the state file can't be written; it stays as it was");
                }
                fails = true;
                if events.send(Event::TotalsFailed).is_err() {
                    return;
                }
            }
            Ok(()) => {
                if fails {
                    tracing::info!(file = %file.path.display(), "the state file is written again");
                }
                fails = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn file_is_ours_alone_and_no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("totals"), directory.path().join("other"));
        let (file, none) = TotalsFile::open(&path).unwrap();
        assert_eq!(none, None);
        file.write(Totals::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&other, "another's").unwrap();
        symlink(&other, directory.path().join("totals.new")).unwrap();
        file.write(Totals::default()).unwrap_err();
        assert_eq!(fs::read_to_string(&other).unwrap(), "another's");

        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert!(TotalsFile::open(&path).is_none());
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(TotalsFile::open(&path).is_none(), "nor is anything waited for");
    }

    #[test]
    fn totals_that_did_not_all_come_back_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("totals");
        let before = Totals { boot_id: "before".to_owned(), ..Totals::default() }.encode();
        for kept in ["totals.unrestored", "totals.unrestored.1"] {
            fs::write(&path, &before).unwrap();
            let (file, state) = TotalsFile::open(&path).unwrap();
            assert_eq!(state.unwrap().boot_id, "before");
            file.keep_unrestored();
            file.write(Totals::default()).unwrap();
            assert_eq!(fs::read(directory.path().join(kept)).unwrap(), before);
        }
    }
}
