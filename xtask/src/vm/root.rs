//! A Debian root file system with systemd, made of packages by `mmdebstrap` and kept as an image below `target/vm`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    directory,
    kernel::{self, Kernel},
};
use crate::{console::say, executable, stamp};

/// What is installed beside what every Debian has: what boots, what the tests run, and who reads the meters.
const PACKAGES: [&str; 12] = [
    "bpftool",
    "dbus",
    "ethtool",
    "init-system-helpers",
    "iproute2",
    "kmod",
    "procps",
    "prometheus",
    "rpm",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// What nothing here reads: half of the image.
const EXCLUDED: [&str; 2] = ["/usr/share/javascript/*", "/usr/share/locale/*"];

/// Options of apt that are this system's: how the mirror is reached, and which lists of it are taken.
const INHERITED: [&str; 4] =
    ["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Date", "Acquire::Check-Valid-Until"];

/// Room for what is installed and written later.
const SIZE: &str = "1500M";

/// An image that is there.
pub(super) struct Root {
    pub(super) image: PathBuf,
    /// Debian's name of it.
    pub(super) release: String,
}

/// What an image was made of.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    release: String,
    /// The kernel that it was made for, where the release goes on changing.
    kernel: Option<String>,
    packages: Vec<String>,
    excluded: Vec<String>,
    size: String,
}

/// Returns an image of the release that a kernel is of, or of this system's own where that is newer: what is built here
/// runs on no older one. It is made where it is not there yet.
///
/// # Errors
///
/// What a command said.
pub(super) fn image(kernel: &Kernel) -> Result<Root> {
    let (mirror, own_release) = kernel::mirror()?;
    let release = kernel::newer(kernel.release, &own_release).to_owned();
    let image = directory().join(format!("root-{release}.ext4"));
    let record_path = image.with_extension("json");
    let own = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let record = Record {
        kernel: (release == "sid").then(|| kernel.version.clone()),
        release: release.clone(),
        packages: own(&PACKAGES),
        excluded: own(&EXCLUDED),
        size: SIZE.to_owned(),
    };
    if image.exists() && stamp::recall::<Record>(&record_path).is_some_and(|made| made == record) {
        return Ok(Root { image, release });
    }
    say(format_args!("making a root file system of Debian {release}, once (a minute)"));
    let tree = directory().join("root.tree");
    remove(&tree)?;
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=minbase", "--include", &PACKAGES.join(",")]);
    make.args(["--aptopt", "APT::Install-Recommends \"false\"", "--aptopt", "Acquire::Languages \"none\""]);
    for option in inherited(&executable::read(Command::new("apt-config").arg("dump"))?) {
        make.args(["--aptopt", option]);
    }
    for pattern in EXCLUDED {
        make.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    let source = format!("deb [signed-by={}] {mirror} {release} main", kernel::KEYS);
    executable::run(make.arg(&release).arg(&tree).arg(source))?;
    pack(&tree, &image, SIZE)?;
    remove(&tree)?;
    stamp::remember(&record_path, &record)?;
    Ok(Root { image, release })
}

/// Returns those of [`INHERITED`] that are set, given what apt says of all its options.
fn inherited(options: &str) -> impl Iterator<Item = &str> {
    let lines = options.lines().filter_map(|line| line.strip_suffix(';'));
    lines.filter(|line| line.split_once(' ').is_some_and(|(name, _)| INHERITED.contains(&name)))
}

/// Writes a directory into an image of a file system.
pub(super) fn pack(tree: &Path, image: &Path, size: &str) -> Result<()> {
    let next = image.with_extension("next");
    if next.exists() {
        fs::remove_file(&next).with_context(|| format!("cannot remove {}", next.display()))?;
    }
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d"]).arg(tree).arg(&next).arg(size);
    executable::run(&mut mke2fs)?;
    fs::rename(&next, image).with_context(|| format!("cannot make {}", image.display()))
}

/// Removes a directory with all that is in it, if it is there.
pub(super) fn remove(tree: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::inherited;

    #[test]
    fn options_of_the_mirror_are_inherited() {
        let options = "APT::Architecture \"amd64\";\nAcquire::http::Proxy \"http://a.org:3142\";\n\
                       Acquire::http::Proxy::b.org \"DIRECT\";\nAcquire::Check-Date \"false\";\n";
        let expected = ["Acquire::http::Proxy \"http://a.org:3142\"", "Acquire::Check-Date \"false\""];
        assert_eq!(inherited(options).collect::<Vec<_>>(), expected);
    }
}
