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
