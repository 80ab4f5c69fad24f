//! The way into a namespace that an earlier agent knew, whatever leads there by now: a name, another mount, a process.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    Entrance, Identity,
    look::{MOST_NAMES, cookie, open_path},
};

/// Finds the way into a namespace; `None` where nothing leads there that can be seen. It may live on all the same: by a
/// descriptor or a socket, or by a process that this one may not look at.
///
/// # Errors
///
/// What kept a place from being looked at that may lead there, or the namespace from being entered.
pub fn find(directory: &Path, identity: Identity) -> io::Result<Option<Entrance>> {
    let mut unseen = None;
    for path in names(directory)?.into_iter().chain(mounts(identity.inode)) {
        match is_at(&path, identity) {
            Ok(true) => return enter(&path, identity),
            Ok(false) => {}
            Err(error) => unseen = Some(error),
        }
    }
    for path in processes() {
        // A process that ends, or that is none of this one's business.
        if is_at(&path, identity).unwrap_or(false)
            && let Ok(entrance) = enter(&path, identity)
        {
            return Ok(entrance);
        }
    }
    unseen.map_or(Ok(None), Err)
}

/// Returns whether a path leads to a namespace with these numbers. That takes no right to open it.
fn is_at(path: &Path, identity: Identity) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (identity.device, identity.inode)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a namespace; `None` where another one has its numbers by now.
fn enter(path: &Path, identity: Identity) -> io::Result<Option<Entrance>> {
    let Some((number, entrance)) = open_path(path)? else { return Ok(None) };
    if number != (identity.device, identity.inode) {
        return Ok(None);
    }
    let is_the_same = identity.cookie == 0 || entrance.enter(cookie)?? == identity.cookie;
    Ok(is_the_same.then_some(entrance))
}

fn names(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.take(MOST_NAMES).map(|entry| entry.map(|entry| entry.path())).collect()
}

/// Returns where else a namespace with this inode is mounted.
fn mounts(inode: u64) -> Vec<PathBuf> {
    mounts_in(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), inode)
}

fn mounts_in(mountinfo: &str, inode: u64) -> Vec<PathBuf> {
    let root = format!("net:[{inode}]");
    let lines = mountinfo.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(3);
        (words.next()? == root).then(|| words.next().map(unescaped))?
    });
    lines.map(PathBuf::from).collect()
}

/// Returns a path of mountinfo, in which some characters stand as three octal digits.
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
}

/// Returns where each process says which namespace it is in.
fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    processes.map(|entry| entry.path().join("ns/net"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_a_namespace_are_told_by_their_root() {
        let text = "36 35 0:4 net:[4026532281] /run/netns/red rw shared:9 - nsfs nsfs rw\n\
                    37 35 0:4 net:[4026532282] /run/netns/blue rw - nsfs nsfs rw\n\
                    38 35 0:4 net:[4026532281] /var/run/a\\040b rw - nsfs nsfs rw\n\
                    39 35 8:1 / / rw - ext4 /dev/sda rw\n\
                    broken\n";
        let expected = ["/run/netns/red", "/var/run/a b"].map(PathBuf::from);
        assert_eq!(mounts_in(text, 4_026_532_281), expected);
    }

    #[test]
    fn directory_that_can_not_be_read_is_no_sign_that_a_namespace_is_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(find(file.path(), Identity::default()).is_err());
        let missing = file.path().with_extension("none");
        assert!(
            find(&missing, Identity::default()).unwrap().is_none(),
            "and one that is not there has no name"
        );
    }

    #[test]
    fn own_namespace_is_found_by_a_process_without_any_name() {
        let own = fs::metadata("/proc/self/ns/net").unwrap();
        let identity = Identity { device: own.dev(), inode: own.ino(), cookie: 0 };
        let directory = tempfile::tempdir().unwrap();
        assert!(find(directory.path(), identity).unwrap().is_some());
        assert!(find(directory.path(), Identity { inode: 1, ..identity }).unwrap().is_none());
    }
}
