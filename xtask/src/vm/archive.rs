//! An initramfs: a cpio archive of the "newc" kind, which is what the kernel unpacks.
//! <https://www.kernel.org/doc/html/latest/driver-api/early-userspace/buffer-format.html>

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const DEVICE: u32 = 0o020_600;

/// The archive, written into memory.
pub(super) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    /// What is in it already.
    paths: BTreeSet<String>,
}

impl Archive {
    pub(super) fn new() -> Self {
        let mut archive = Self { bytes: Vec::new(), inode: 0, paths: BTreeSet::new() };
        // The kernel opens it before anything is mounted.
        archive.directories_of("/dev/console");
        archive.entry("dev/console", DEVICE, (5, 1), b"");
        archive
    }

    /// Returns whether something is at this path.
    pub(super) fn has(&self, path: &str) -> bool {
        self.paths.contains(path.trim_start_matches('/'))
    }

    /// Adds a directory and those above it.
    pub(super) fn directory(&mut self, path: &str) {
        self.directories_of(&format!("{path}/x"));
    }

    /// Adds a file that may be run. What is there already stays.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        if !self.has(path) {
            self.directories_of(path);
            self.entry(path.trim_start_matches('/'), PROGRAM, (0, 0), content);
        }
    }

    /// Adds a copy of a file of the host.
    pub(super) fn copy(&mut self, from: &Path, path: &str) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, &content);
        Ok(())
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        if !self.has(path) {
            self.directories_of(path);
            self.entry(path.trim_start_matches('/'), LINK, (0, 0), target.as_bytes());
        }
    }

    /// Writes the archive to a file.
    pub(super) fn write(mut self, path: &Path) -> Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        fs::write(path, self.bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    fn directories_of(&mut self, path: &str) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            let directory = &path[..at];
            if !self.paths.contains(directory) {
                self.entry(directory, DIRECTORY, (0, 0), b"");
            }
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        self.paths.insert(name.to_owned());
        let header = Header { inode: self.inode, mode, device, size: content.len(), name: name.len() + 1 };
        self.bytes.extend_from_slice(header.text().as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

struct Header {
    inode: u32,
    mode: u32,
    device: (u32, u32),
    size: usize,
    name: usize,
}

impl Header {
    /// Returns the fields, each of eight hexadecimal digits: inode, mode, owner, group, links, time, size, the device that
    /// the file is on (two numbers), the device that it is (two), the name's length with its 0, a checksum that is unused.
    fn text(&self) -> String {
        let Self { inode, mode, device: (major, minor), size, name } = *self;
        let [size, name] = [size, name].map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name, 0];
        fields.iter().fold("070701".to_owned(), |text, field| text + &format!("{field:08x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_what_the_kernel_unpacks() {
        let mut archive = Archive::new();
        archive.file("/a/b", b"hello");
        archive.file("/a/b", b"not again");
        archive.link("/a/c", "b");
        archive.directory("/run");
        let paths: Vec<&str> = archive.paths.iter().map(String::as_str).collect();
        assert_eq!(paths, ["a", "a/b", "a/c", "dev", "dev/console", "run"]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive");
        archive.write(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..14], b"07070100000001", "the first entry, and its inode");
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("hello") && !text.contains("not again") && text.contains("TRAILER!!!"),
            "{text}"
        );
    }
}
