//! What a package is to hold, by `meter-agent/Cargo.toml`, and what it does hold.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{console::say, executable, workspace};

/// One line of a list of files. Sources are relative to the agent's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asset {
    source: String,
    /// Without the slash at the beginning; a directory with one at the end.
    destination: String,
    mode: String,
}

/// The part of the agent's manifest that is about packages.
struct Manifest {
    deb: Vec<Asset>,
    rpm: Vec<Asset>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    metadata: Option<Packagers>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Packagers {
    deb: Deb,
    generate_rpm: Rpm,
}

#[derive(Deserialize)]
struct Deb {
    assets: Vec<[String; 3]>,
}

#[derive(Deserialize)]
struct Rpm {
    assets: Vec<RpmAsset>,
}

#[derive(Deserialize)]
struct RpmAsset {
    source: String,
    dest: String,
    mode: String,
}

impl Manifest {
    fn read() -> Result<Self> {
        let mut command = workspace::cargo();
        command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
        let text = executable::read(&mut command)?;
        let metadata: Metadata = serde_json::from_str(&text).context("what cargo metadata says")?;
        let package = metadata.packages.into_iter().find(|package| package.name == "meter-agent");
        let packagers =
            package.and_then(|package| package.metadata).context("meter-agent has no package.metadata")?;
        let deb = packagers.deb.assets.into_iter();
        let rpm = packagers.generate_rpm.assets.into_iter();
        Ok(Self {
            deb: deb.map(|[source, destination, mode]| Asset { source, destination, mode }).collect(),
            rpm: rpm
                .map(|RpmAsset { source, dest, mode }| Asset {
                    source,
                    destination: dest.trim_start_matches('/').to_owned(),
                    mode,
                })
                .collect(),
        })
    }
}

impl Asset {
    /// Returns the files that come of it, as `mode path`. A `*` stands for what its directory has.
    fn files(&self) -> Result<Vec<String>> {
        let file = |name: &str| {
            let path = &self.destination;
            let name = if path.ends_with('/') { name } else { "" };
            format!("{} {path}{name}", self.mode)
        };
        let (directory, pattern) = self.source.rsplit_once('/').unwrap_or(("", &self.source));
        let Some(suffix) = pattern.strip_prefix('*') else { return Ok(vec![file(pattern)]) };
        let directory = workspace::root().join("meter-agent").join(directory);
        let entries =
            std::fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        let names: Result<Vec<String>, _> = entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect();
        Ok(names?.iter().filter(|name| name.ends_with(suffix)).map(|name| file(name)).collect())
    }
}

/// Compares a Debian package with the list, where there is `dpkg-deb`.
pub(super) fn check_deb(package: &Path) -> Result<()> {
    if executable::find("dpkg-deb").is_none() {
        say("dpkg-deb is not here: the package's contents are not checked");
        return Ok(());
    }
    let list = executable::read(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    let mut expected = files(&Manifest::read()?.deb)?;
    // What cargo-deb adds.
    for name in ["changelog.Debian.gz", "copyright"] {
        expected.insert(format!("644 usr/share/doc/meter-agent/{name}"));
    }
    // Policy has long documents compressed.
    let without_gz = |line: &String| match line.strip_suffix(".gz") {
        Some(plain) if expected.contains(plain) => plain.to_owned(),
        _ => line.clone(),
    };
    let found: BTreeSet<String> = parse_listing(&list)?.iter().map(without_gz).collect();
    compare(package, &expected, &found)
}

/// Compares an RPM package with the list, where there is `rpm`.
pub(super) fn check_rpm(package: &Path) -> Result<()> {
    if executable::find("rpm").is_none() {
        say("rpm is not here: the package's contents are not checked");
        return Ok(());
    }
    let format = "[%{FILEMODES:perms} root/root 0 - - %{FILENAMES}\\n]";
    let mut rpm = Command::new("rpm");
    rpm.args(["--query", "--nosignature", "--queryformat", format, "--package"]).arg(package);
    let found = parse_listing(&executable::read(&mut rpm)?)?;
    compare(package, &files(&Manifest::read()?.rpm)?, &found)
}

fn files(assets: &[Asset]) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for asset in assets {
        all.extend(asset.files()?);
    }
    Ok(all)
}

fn compare(package: &Path, expected: &BTreeSet<String>, found: &BTreeSet<String>) -> Result<()> {
    let missing: Vec<_> = expected.difference(found).collect();
    let others: Vec<_> = found.difference(expected).collect();
    ensure!(
        missing.is_empty() && others.is_empty(),
        "{}: not as listed in meter-agent/Cargo.toml: missing {missing:?}, and not listed {others:?}",
        package.display()
    );
    Ok(())
}

/// Reads lines such as `-rwxr-xr-x root/root 123 2026-11-25 00:00 ./usr/bin/x` to `755 usr/bin/x`, without directories.
fn parse_listing(text: &str) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(&mode), Some(&owner), Some(path)) = (words.first(), words.get(1), words.get(5)) else {
            bail!("{line:?} is no line of a list of files");
        };
        if mode.starts_with('d') {
            continue;
        }
        ensure!(["root/root", "0/0"].contains(&owner), "{line}: not root's");
        let path = path.trim_start_matches('.').trim_start_matches('/');
        files.insert(format!("{} {path}", octal(mode)));
    }
    Ok(files)
}

/// Returns `755` for `-rwxr-xr-x`.
fn octal(mode: &str) -> String {
    let bits: Vec<bool> = mode.chars().skip(1).map(|c| c != '-').collect();
    bits.chunks(3)
        .map(|three| three.iter().fold(0, |sum, &bit| sum * 2 + u8::from(bit)).to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::read().unwrap()
    }

    #[test]
    fn every_file_that_is_packaged_is_there() {
        // The rest is made for the packages.
        let in_the_tree = |asset: &&Asset| !asset.source.starts_with("../target/dist/");
        for asset in manifest().deb.iter().filter(in_the_tree) {
            if asset.source.contains('*') {
                assert_ne!(asset.files().unwrap(), [""; 0], "{}", asset.source);
                continue;
            }
            let path = workspace::root().join("meter-agent").join(&asset.source);
            assert!(path.is_file(), "{}", path.display());
        }
    }

    #[test]
    fn both_packages_hold_the_same_files() {
        let Manifest { deb, rpm } = manifest();
        // The distributions have it at different places.
        let zsh = |asset: Asset| Asset {
            destination: asset.destination.replace("vendor-completions", "site-functions"),
            ..asset
        };
        // cargo-deb writes the license by itself.
        let (license, rpm): (Vec<_>, Vec<_>) =
            rpm.into_iter().partition(|asset| asset.source == "../LICENSE");
        assert_eq!(license.len(), 1);
        assert_eq!(deb.into_iter().map(zsh).collect::<Vec<_>>(), rpm);
    }

    #[test]
    fn everything_of_the_packaging_directory_is_packaged() {
        let sources: Vec<String> = manifest().deb.into_iter().map(|asset| asset.source).collect();
        let directory = workspace::root().join("meter-agent/packaging");
        for place in ["", "drop-ins/", "prometheus/"] {
            for entry in std::fs::read_dir(directory.join(place)).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().to_string_lossy().into_owned();
                let source = format!("packaging/{place}{name}");
                // It writes the manual pages.
                if entry.file_type().unwrap().is_file() && name != "pages.rs" {
                    assert!(sources.contains(&source), "{source} is in no package");
                }
            }
        }
    }

    #[test]
    fn scripts_run_what_the_shell_takes() {
        for script in [
            "debian/postinst",
            "debian/prerm",
            "debian/postrm",
            "rpm/post.sh",
            "rpm/preun.sh",
            "rpm/postun.sh",
        ] {
            let path = workspace::root().join("meter-agent/packaging").join(script);
            executable::read(Command::new("sh").arg("-n").arg(&path)).unwrap();
        }
    }

    #[test]
    fn listings_are_files_with_their_modes() {
        let listing = "drwxr-xr-x root/root 0 2026-11-25 00:00 ./usr/bin/\n\
                       -rwxr-xr-x root/root 12 2026-11-25 00:00 ./usr/bin/meter-agent\n\
                       -rw-r--r-- root/root 0 - - /etc/meter-agent/meter-agent.toml\n";
        let expected = ["644 etc/meter-agent/meter-agent.toml", "755 usr/bin/meter-agent"];
        assert_eq!(parse_listing(listing).unwrap(), expected.map(ToOwned::to_owned).into());
        assert!(parse_listing("-rw-r--r-- user/root 0 - - ./x").is_err());
    }
}
