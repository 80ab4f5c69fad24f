//! Telling whether files are still what they were, without reading them.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A file's identity as `make` would take it, with its size and inode: a replaced file differs even where its time
/// of modification is an archive's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileStamp {
    path: PathBuf,
    modified_ns: i128,
    bytes: u64,
    inode: u64,
}

impl FileStamp {
    /// Takes the stamp of a file; a symbolic link stands for what it leads to.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
            bytes: metadata.len(),
            inode: metadata.ino(),
        })
    }

    /// Takes the stamps of all files below a directory, in the order of their paths.
    pub(crate) fn of_tree(directory: &Path) -> Result<Vec<Self>> {
        let mut stamps = Vec::new();
        let mut pending = vec![directory.to_owned()];
        while let Some(directory) = pending.pop() {
            let entries =
                fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
            for entry in entries {
                let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
                if path.is_dir() {
                    pending.push(path);
                } else {
                    stamps.push(Self::of(&path)?);
                }
            }
        }
        stamps.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(stamps)
    }

    /// Returns whether the file is still the same.
    pub(crate) fn still_holds(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

/// Reads a record that [`remember`] wrote; `None` where there is none that this xtask understands.
pub(crate) fn recall<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a record for [`recall`].
pub(crate) fn remember<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(record).context("cannot write a record as JSON")?;
    replace(path, &text).with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces a file's content in one step, so that no reader sees half of it.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_replaced_and_deleted_files_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "one").unwrap();
        let stamp = FileStamp::of(&path).unwrap();
        assert!(stamp.still_holds());

        fs::write(&path, "three").unwrap();
        assert!(!stamp.still_holds(), "changed");

        let stamp = FileStamp::of(&path).unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        replace(&path, b"seven").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert!(!stamp.still_holds(), "replaced by one of the same size and time");

        let stamp = FileStamp::of(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!stamp.still_holds(), "deleted");
    }

    #[test]
    fn tree_holds_every_file_in_order() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("b")).unwrap();
        for name in ["c", "b/d", "a"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let stamps = FileStamp::of_tree(directory.path()).unwrap();
        let names: Vec<_> = stamps
            .iter()
            .map(|stamp| stamp.path.strip_prefix(directory.path()).unwrap().to_owned())
            .collect();
        assert_eq!(names, [Path::new("a"), Path::new("b/d"), Path::new("c")]);
    }

    #[test]
    fn record_of_another_shape_is_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/record.json");
        assert_eq!(recall::<Vec<String>>(&path), None);
        remember(&path, &["x"]).unwrap();
        assert_eq!(recall(&path), Some(vec!["x".to_owned()]));
        assert_eq!(recall::<u32>(&path), None);
    }
}
