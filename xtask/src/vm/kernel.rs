//! Debian's kernels: found by name with apt, which checks their signatures, and unpacked below `target/vm`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::directory;
use crate::{console::say, executable};

/// The releases that have the kernels, from the oldest on.
const RELEASES: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];

/// What signs them, on every Debian.
pub(super) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How old the lists of packages may be: a mirror drops what a list of some weeks names.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// Netdev kinds, qdiscs and classifiers that the tests ask for, as far as a kernel has them, a guest's own NIC, and its
/// disks with their file system.
const MODULES: [&str; 30] = [
    "tun",
    "veth",
    "bridge",
    "8021q",
    "vxlan",
    "geneve",
    "ip_gre",
    "ip6_gre",
    "ipip",
    "sit",
    "dummy",
    "bonding",
    "team",
    "vrf",
    "ifb",
    "macvlan",
    "macvtap",
    "ipvlan",
    "wireguard",
    "sch_ingress",
    "cls_bpf",
    "af_packet",
    "sch_tbf",
    "virtio_net",
    "virtio_pci",
    "virtio_blk",
    "ext4",
    // What ext4 asks for by no dependency.
    "crc32c_generic",
    "crc32c_intel",
    "autofs4",
];

/// A kernel, unpacked.
pub(super) struct Kernel {
    /// Such as `6.1.0-50-cloud-amd64`.
    pub(super) version: String,
    /// The oldest release that has it, such as `bookworm`.
    pub(super) release: &'static str,
    tree: PathBuf,
}

impl Kernel {
    /// Returns the newest kernel of a series, fetched where it is not there yet.
    ///
    /// # Errors
    ///
    /// No package of that series, or what apt said.
    pub(super) fn fetch(series: &str) -> Result<Self> {
        let mut lists = Lists::ready()?;
        loop {
            let names = lists.kernels()?;
            let Some(version) = newest(names.iter().map(String::as_str), series) else {
                bail!(
                    "Debian has no kernel {series}; it has {}",
                    names.into_iter().collect::<Vec<_>>().join(", ")
                );
            };
            let tree = directory().join("kernels").join(&version);
            let release = lists.release(&version)?;
            let kernel = Self { version, release, tree };
            if kernel.image().is_ok() {
                return Ok(kernel);
            }
            match lists.unpack(&kernel.version, &kernel.tree) {
                Ok(()) => return Ok(kernel),
                // What they name may have been replaced on the mirror since.
                Err(error) if lists.age == Age::AsFound => {
                    say(format_args!("{error:#}"));
                    lists.update()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns what boots.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let places = [
            self.tree.join("boot").join(format!("vmlinuz-{}", self.version)),
            self.tree.join("usr/lib/modules").join(&self.version).join("vmlinuz"),
        ];
        match places.into_iter().find(|path| path.exists()) {
            Some(path) => Ok(path),
            None => bail!("no kernel image below {}", self.tree.display()),
        }
    }

    /// Returns the modules that a guest needs, as paths and where they are in the guest; and the lists of them all.
    pub(super) fn modules(&self) -> Result<Vec<(PathBuf, String)>> {
        let modules = root(&self.tree).join("lib/modules").join(&self.version);
        let path = modules.join("modules.dep");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut files: Vec<String> = closure(&text).into_iter().collect();
        for entry in fs::read_dir(&modules)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("modules.") && entry.file_type()?.is_file() {
                files.push(name);
            }
        }
        let place = |file: String| (modules.join(&file), format!("/lib/modules/{}/{file}", self.version));
        Ok(files.into_iter().map(place).collect())
    }
}

/// Returns the directory of an unpacked kernel that has `lib/modules`.
fn root(tree: &Path) -> PathBuf {
    if tree.join("lib/modules").exists() { tree.to_owned() } else { tree.join("usr") }
}

/// Returns the modules of [`MODULES`] and all that they depend on, by `modules.dep`.
fn closure(dependencies: &str) -> BTreeSet<String> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let all: BTreeMap<&str, &str> = lines.collect();
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split(".ko").next().unwrap_or(file).replace('-', "_")
    };
    // Each line has all that its module depends on, not only directly.
    let wanted = all.iter().filter(|(path, _)| MODULES.contains(&name(path).as_str()));
    wanted
        .flat_map(|(path, needs)| std::iter::once(*path).chain(needs.split_whitespace()))
        .map(str::to_owned)
        .collect()
}

/// Returns the version of the newest kernel of a series.
fn newest<'v>(versions: impl Iterator<Item = &'v str>, series: &str) -> Option<String> {
    let numbers = |version: &str| -> Vec<u64> {
        version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    versions
        .filter(|version| version.strip_prefix(series).is_some_and(|rest| rest.starts_with('.')))
        .max_by_key(|version| numbers(version))
        .map(str::to_owned)
}

/// apt's lists of packages of every release, beside those of the system.
struct Lists {
    options: Vec<String>,
    sources: PathBuf,
    age: Age,
}

/// Whether the lists have just been fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    AsFound,
    JustFetched,
}

impl Lists {
    /// Fetches them where they are not there or are old.
    fn ready() -> Result<Self> {
        let home = directory().join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = home.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let sources = home.join("sources.list");
        let mut lists = Self {
            options: vec![
                set("Dir::Etc::sourcelist", &sources),
                "Dir::Etc::sourceparts=-".to_owned(),
                set("Dir::State::lists", &home.join("lists")),
                set("Dir::Cache", &home.join("cache")),
                "Dir::State::status=/dev/null".to_owned(),
                "APT::Sandbox::User=root".to_owned(),
                "Acquire::Languages=none".to_owned(),
            ],
            sources,
            age: Age::AsFound,
        };
        let fetched = fs::metadata(&lists.sources).and_then(|metadata| metadata.modified());
        match fetched {
            Err(_) => lists.update()?,
            Ok(at) if at.elapsed().is_ok_and(|age| age < FRESH) => {}
            // Without the mirror the kernels that are here still boot.
            Ok(_) => {
                if let Err(error) = lists.update() {
                    say(format_args!("the lists of Debian's kernels stay as old as they are: {error:#}"));
                }
            }
        }
        Ok(lists)
    }

    /// Fetches them.
    fn update(&mut self) -> Result<()> {
        say("fetching the lists of Debian's kernels");
        let (mirror, _) = mirror()?;
        let line = |release: &&str| format!("deb [signed-by={KEYS}] {mirror} {release} main\n");
        let text: String = RELEASES.iter().map(line).collect();
        let next = self.sources.with_file_name("sources.next");
        fs::write(&next, text).with_context(|| format!("cannot write {}", next.display()))?;
        let mut update = self.command("apt-get");
        update.arg("-o").arg(set("Dir::Etc::sourcelist", &next));
        // A list that could not be fetched is an error, and not a warning beside the old one.
        update.args(["-o", "APT::Update::Error-Mode=any", "--quiet", "update"]);
        executable::run(&mut update)?;
        // Named like this only once its lists are there; they are found by what it says, not by its name.
        fs::rename(&next, &self.sources)?;
        self.age = Age::JustFetched;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(std::process::Stdio::null());
        self.options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        command
    }

    /// Returns the versions of all kernels for virtual machines.
    fn kernels(&self) -> Result<BTreeSet<String>> {
        let mut search = self.command("apt-cache");
        search.args(["search", "--names-only", "^linux-image-[0-9.+deb-]*-cloud-amd64$"]);
        let text = executable::read(&mut search)?;
        let name =
            |line: &str| line.split_whitespace().next()?.strip_prefix("linux-image-").map(str::to_owned);
        // The packages that only name the newest have no digit behind the dash.
        let versions = text.lines().filter_map(name).filter(|version| version.matches('.').count() >= 2);
        Ok(versions.collect())
    }

    /// Returns the oldest release that has a kernel.
    fn release(&self, version: &str) -> Result<&'static str> {
        let package = format!("linux-image-{version}");
        let table = executable::read(self.command("apt-cache").args(["madison", &package]))?;
        oldest_release(&table).with_context(|| format!("no release has {package}: {table}"))
    }

    /// Unpacks a kernel's packages into a directory.
    fn unpack(&self, version: &str, into: &Path) -> Result<()> {
        say(format_args!("fetching Linux {version}"));
        let next = into.with_file_name(format!("{version}.next"));
        if next.exists() {
            fs::remove_dir_all(&next)?;
        }
        fs::create_dir_all(&next).with_context(|| format!("cannot make {}", next.display()))?;
        for part in ["image", "binary", "modules", "base"] {
            let package = format!("linux-{part}-{version}");
            let mut show = self.command("apt-cache");
            if executable::read(show.args(["show", "--no-all-versions", &package])).is_err() {
                // Newer releases split what older ones have in one.
                continue;
            }
            executable::run(
                self.command("apt-get").args(["--quiet", "download", &package]).current_dir(&next),
            )?;
        }
        for entry in fs::read_dir(&next)?.collect::<Result<Vec<_>, _>>()? {
            if entry.path().extension().is_some_and(|extension| extension == "deb") {
                executable::run(Command::new("dpkg-deb").arg("--extract").arg(entry.path()).arg(&next))?;
                fs::remove_file(entry.path())?;
            }
        }
        // Packages of older kernels come without it; it is made on installation.
        executable::run(Command::new("depmod").arg("--basedir").arg(root(&next)).arg(version))?;
        if into.exists() {
            fs::remove_dir_all(into)?;
        }
        fs::rename(&next, into).with_context(|| format!("cannot make {}", into.display()))
    }
}

/// Returns the oldest release of a table of `apt-cache madison`: package, version, and where it is from.
fn oldest_release(table: &str) -> Option<&'static str> {
    let has = |release: &str, line: &str| {
        line.rsplit('|').next().is_some_and(|source| source.contains(&format!(" {release}/")))
    };
    RELEASES.into_iter().find(|release| table.lines().any(|line| has(release, line)))
}

/// Returns the newer of two releases.
pub(super) fn newer<'r>(one: &'r str, other: &'r str) -> &'r str {
    let age = |release: &str| RELEASES.iter().position(|known| *known == release);
    if age(one) < age(other) { other } else { one }
}

/// Returns an option of apt.
fn set(name: &str, value: &Path) -> String {
    format!("{name}={}", value.display())
}

/// Returns where this system has its packages from, and which release it is.
pub(super) fn mirror() -> Result<(String, String)> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"]);
    let text = executable::read(&mut targets)?;
    let debian = |line: &str| {
        let (uri, release) = line.split_once(' ')?;
        let release = release.trim();
        RELEASES.contains(&release).then(|| (uri.to_owned(), release.to_owned()))
    };
    match text.lines().find_map(debian) {
        Some(found) => Ok(found),
        None => bail!(
            "apt's sources have no Debian release ({}), where the kernels are from",
            RELEASES.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{closure, newer, newest, oldest_release};

    #[test]
    fn newest_is_by_numbers() {
        let versions = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-50-cloud-amd64",
            "6.12.107+deb13-cloud-amd64",
            "5.10.0-32-cloud-amd64",
        ];
        for (series, expected) in
            [("6.1", Some(versions[1])), ("6", Some(versions[2])), ("6.12", Some(versions[2])), ("7", None)]
        {
            assert_eq!(newest(versions.into_iter(), series).as_deref(), expected, "{series}");
        }
    }

    #[test]
    fn kernel_is_of_the_oldest_release_that_has_it() {
        let line = |release: &str| {
            format!("linux-image-a | 7.2-1 | http://a.org/debian {release}/main amd64 Packages\n")
        };
        assert_eq!(oldest_release(&(line("sid") + &line("trixie"))), Some("trixie"));
        assert_eq!(oldest_release(&line("sid")), Some("sid"));
        assert_eq!(oldest_release(""), None);
    }

    #[test]
    fn later_release_is_the_newer() {
        assert_eq!(newer("bullseye", "bookworm"), "bookworm");
        assert_eq!(newer("trixie", "bookworm"), "trixie");
        assert_eq!(newer("sid", "sid"), "sid");
    }

    #[test]
    fn modules_come_with_what_they_depend_on() {
        let text = "kernel/net/vxlan.ko.xz: kernel/net/udp_tunnel.ko.xz\nkernel/net/udp_tunnel.ko.xz:\n\
                    kernel/fs/other.ko:\nkernel/net/sch_ingress.ko:\n";
        let expected = ["kernel/net/sch_ingress.ko", "kernel/net/udp_tunnel.ko.xz", "kernel/net/vxlan.ko.xz"];
        assert_eq!(closure(text).into_iter().collect::<Vec<_>>(), expected);
    }
}
