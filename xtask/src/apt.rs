//! Debian's packages: what is on offer, installing it, and the command line for who isn't root.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Result, bail};

use crate::{
    console::say,
    executable::{self, shown},
    workspace,
};

/// Packages on offer, each with the version that apt would install.
pub(crate) type Offers = BTreeMap<String, String>;

/// What can be done about packages that are missing.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// All are on offer.
    Install,
    /// Some are not, but the lists of packages may be old or absent.
    UpdateFirst,
    /// Some are not, by lists just fetched.
    NotOffered(Vec<String>),
}

/// Whether the lists of packages have been fetched by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    AsFound,
    JustFetched,
}

fn plan(packages: &[&str], offers: &Offers, lists: Lists) -> Plan {
    let absent: Vec<String> =
        packages.iter().filter(|&&package| !offers.contains_key(package)).map(|&p| p.to_owned()).collect();
    match lists {
        _ if absent.is_empty() => Plan::Install,
        Lists::AsFound => Plan::UpdateFirst,
        Lists::JustFetched => Plan::NotOffered(absent),
    }
}

/// Returns whether this system has apt.
pub(crate) fn is_here() -> bool {
    executable::find("apt-get").is_some() && executable::find("apt-cache").is_some()
}

/// Returns the command that installs these packages.
pub(crate) fn command_line(packages: &[&str]) -> String {
    format!("sudo {}", shown(&install_command(packages)))
}

/// Installs packages, after an update of the lists where one of them is not on offer.
///
/// Nothing is ever removed for it: where that would be needed, apt refuses and so does this.
///
/// # Errors
///
/// Not root, not on offer, or what apt said.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if !workspace::is_root() {
        bail!("installing packages needs root: {}", command_line(packages));
    }
    let mut lists = Lists::AsFound;
    loop {
        match plan(packages, &offers(packages)?, lists) {
            Plan::Install => break,
            Plan::UpdateFirst => {
                update();
                lists = Lists::JustFetched;
            }
            Plan::NotOffered(absent) => bail!("apt has no package {}", absent.join(", ")),
        }
    }
    say(format_args!("installing {} by apt", packages.join(", ")));
    match executable::run(&mut install_command(packages)) {
        // The lists may name versions that the mirror has dropped since they were fetched.
        Err(_) if lists == Lists::AsFound => {
            update();
            executable::run(&mut install_command(packages))
        }
        result => result,
    }
}

/// What installing packages would do to this system, by the names of packages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Transaction {
    /// Those that are not installed, or not in this version.
    pub(crate) installs: Vec<String>,
    /// Those that don't go together with them.
    pub(crate) removes: Vec<String>,
}

/// Asks apt what installing packages would do; nothing is done.
pub(crate) fn transaction(packages: &[&str]) -> Result<Transaction> {
    let mut simulate = apt_get();
    simulate.env("LC_ALL", "C").args(["install", "--simulate", "--quiet=2", "--no-install-recommends"]);
    Ok(parse_transaction(&executable::read(simulate.args(packages))?))
}

/// Unpacks packages into a directory without installing them: no service starts, nothing on the system changes.
pub(crate) fn unpack(packages: &[&str], directory: &std::path::Path) -> Result<()> {
    if plan(packages, &offers(packages)?, Lists::AsFound) == Plan::UpdateFirst {
        if !workspace::is_root() {
            bail!("apt's lists of packages don't name {}: sudo apt-get update", packages.join(", "));
        }
        update();
    }
    say(format_args!("unpacking {} into {}", packages.join(", "), directory.display()));
    let archives = directory.join("archives");
    if archives.exists() {
        // Of one that was stopped: not all of them may be whole.
        std::fs::remove_dir_all(&archives)?;
    }
    std::fs::create_dir_all(&archives)?;
    // As root apt would fetch as its own user, who may not write here.
    let mut download = apt_get();
    download.args(["-o", "APT::Sandbox::User=root", "--quiet", "download"]).args(packages);
    executable::run(download.current_dir(&archives))?;
    for entry in std::fs::read_dir(&archives)? {
        executable::run(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(directory))?;
    }
    std::fs::remove_dir_all(&archives)?;
    Ok(())
}

/// Asks apt which of these packages it could install, and in which version.
pub(crate) fn offers(packages: &[&str]) -> Result<Offers> {
    let mut policy = Command::new("apt-cache");
    policy.env("LC_ALL", "C").arg("policy").args(packages);
    Ok(parse_policy(&executable::read(&mut policy)?))
}

/// Fetches the lists of packages. A repository that can't be reached is apt's to report: what is needed may come
/// from another.
pub(crate) fn update() {
    say("fetching apt's lists of packages");
    if let Err(error) = executable::run(apt_get().args(["--quiet", "update"])) {
        say(format_args!("{error:#}"));
    }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    command
}

fn install_command(packages: &[&str]) -> Command {
    let mut command = apt_get();
    command.args(["install", "--yes", "--quiet", "--no-install-recommends", "--no-remove"]).args(packages);
    command
}

/// Reads what `apt-get install --simulate` would do: a verb and a package in each line, and its versions.
fn parse_transaction(text: &str) -> Transaction {
    let of = |verb: &str| {
        let steps = text.lines().filter_map(|line| line.split_once(' ').filter(|(word, _)| *word == verb));
        steps.filter_map(|(_, rest)| rest.split(' ').next()).map(str::to_owned).collect()
    };
    Transaction { installs: of("Inst"), removes: of("Remv") }
}

/// Reads `apt-cache policy`: a line `name:` for each package that apt has heard of, indented lines about it.
fn parse_policy(text: &str) -> Offers {
    let mut offers = Offers::new();
    let mut package = None;
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            package = Some(name);
        } else if let (Some(name), Some(version)) = (package, line.trim_start().strip_prefix("Candidate: "))
            && version != "(none)"
        {
            offers.insert(name.to_owned(), version.to_owned());
        }
    }
    offers
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
cargo-web:
  Installed: 1.96.0+dfsg1-1~deb12u2
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
 *** 1.96.0+dfsg1-1~deb12u2 500
        500 http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
        100 /var/lib/dpkg/status
ethtool:
  Installed: (none)
  Candidate: 1:6.1-1
  Version table:
     1:6.1-1 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
rustc-mozilla:
  Installed: (none)
  Candidate: (none)
  Version table:
";

    #[test]
    fn offers_are_read_from_the_policy() {
        let offers = parse_policy(POLICY);
        let expected = [("cargo-web", "1.96.0+dfsg1-1~deb12u2"), ("ethtool", "1:6.1-1")];
        assert_eq!(offers, expected.map(|(name, version)| (name.to_owned(), version.to_owned())).into());
        assert_eq!(parse_policy(""), Offers::new());
    }

    #[test]
    fn what_would_be_removed_is_read_from_a_simulation() {
        let text = "\
Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]
Inst libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])
Inst qemu-system-x86 (1:7.2+dfsg-7+deb12u18+b3 Debian:12.15/oldstable [amd64])
Conf libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])
";
        let expected = Transaction {
            installs: vec!["libslirp0".to_owned(), "qemu-system-x86".to_owned()],
            removes: vec!["qemu-utils".to_owned()],
        };
        assert_eq!(parse_transaction(text), expected);
        assert_eq!(parse_transaction(""), Transaction { installs: Vec::new(), removes: Vec::new() });
    }

    #[test]
    fn lists_are_fetched_once_and_only_for_what_is_not_on_offer() {
        let offers = parse_policy(POLICY);
        let missing = vec!["nothing".to_owned(), "rustc-mozilla".to_owned()];
        for (name, packages, lists, expected) in [
            ("on offer", &["cargo-web", "ethtool"][..], Lists::AsFound, Plan::Install),
            ("on offer after all", &["ethtool"], Lists::JustFetched, Plan::Install),
            ("unknown yet", &["nothing", "ethtool"], Lists::AsFound, Plan::UpdateFirst),
            (
                "unknown",
                &["nothing", "ethtool", "rustc-mozilla"],
                Lists::JustFetched,
                Plan::NotOffered(missing),
            ),
            ("nothing wanted", &[], Lists::AsFound, Plan::Install),
        ] {
            assert_eq!(plan(packages, &offers, lists), expected, "{name}");
        }
    }

    #[test]
    fn command_line_is_what_a_developer_types() {
        assert_eq!(
            command_line(&["ethtool", "bpftool"]),
            "sudo apt-get install --yes --quiet --no-install-recommends --no-remove ethtool bpftool"
        );
    }
}
