//! Moving a file out of the way that can't be trusted, over nothing that was moved before.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

/// Names that are tried.
const NAMES: usize = 1_000;

/// Renames a file to its name with this behind it, or with a number behind that where there is one already; returns its
/// new name.
///
/// # Errors
///
/// What renaming ends in, or that all names are taken.
pub fn set_aside(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let name = |number: usize| {
        let mut name = OsString::from(path);
        name.push(suffix);
        if number > 0 {
            name.push(format!(".{number}"));
        }
        PathBuf::from(name)
    };
    let free = (0..NAMES).map(name).find(|name| fs::symlink_metadata(name).is_err());
    let aside = free.ok_or_else(|| io::Error::from(io::ErrorKind::AlreadyExists))?;
    fs::rename(path, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_before_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for (text, name) in [
            ("first", "state.json.broken"),
            ("second", "state.json.broken.1"),
            ("third", "state.json.broken.2"),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(set_aside(&path, ".broken").unwrap(), directory.path().join(name));
        }
        assert_eq!(fs::read_to_string(directory.path().join("state.json.broken")).unwrap(), "first");
        assert_eq!(set_aside(&path, ".broken").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
