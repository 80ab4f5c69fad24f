//! What the packages hold and the tree does not: stripped programs, manual pages, completions, Debian's changelog.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{binaries::Binaries, ebpf, executable, workspace};

/// Where it is.
pub(super) fn directory() -> PathBuf {
    workspace::target().join("dist")
}

/// Makes all of it anew.
pub(super) fn fill(binaries: &Binaries, version: &str) -> Result<()> {
    let stage = directory();
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("remove {}", stage.display()))?;
    }
    let bin = stage.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
    for program in [&binaries.agent, &binaries.mm_meter] {
        let name = program.file_name().context("a program has a name")?;
        executable::run(Command::new("strip").arg("-o").arg(bin.join(name)).arg(program))?;
    }
    pages(&stage)?;
    let path = stage.join("changelog");
    fs::write(&path, changelog(version, &date()?)).with_context(|| format!("write {}", path.display()))
}

/// Has the agent's own example write manual pages and completions.
fn pages(stage: &Path) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["run", "--quiet", "--package", "meter-agent", "--example", "pages", "--"]).arg(stage);
    ebpf::provide_to(&mut command)?;
    executable::run(&mut command)?;
    for entry in fs::read_dir(stage.join("man"))? {
        // Without the time, so that the same source gives the same package.
        executable::run(Command::new("gzip").args(["-9", "--no-name"]).arg(entry?.path()))?;
    }
    Ok(())
}

/// Debian's changelog wants an entry for the package's version; what changed is in the project's own.
fn changelog(version: &str, date: &str) -> String {
    format!(
        "meter-agent ({version}-1) unstable; urgency=medium\n\n  * See /usr/share/doc/meter-agent/changelog.gz.\n\n \
         -- The meter-agent maintainers <maintainers@meter-agent.invalid>  {date}\n"
    )
}

/// Seconds since the Unix epoch of what is packaged: of the last commit, or of now where git does not know.
pub(super) fn time() -> Result<u64> {
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"]).current_dir(workspace::root());
    match executable::read(&mut git) {
        Ok(text) => text.trim().parse().with_context(|| format!("git says {text:?} for a time")),
        Err(_) => Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs()),
    }
}

fn date() -> Result<String> {
    let at = format!("--date=@{}", time()?);
    let text = executable::read(Command::new("date").env("LC_ALL", "C").args(["--utc", "--rfc-email", &at]))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::changelog;

    #[test]
    fn changelog_is_one_entry_for_the_version() {
        let text = changelog("1.2.3", "Wed, 25 Nov 2026 00:00:00 +0000");
        assert!(text.starts_with("meter-agent (1.2.3-1) "), "{text}");
        assert!(text.ends_with(">  Wed, 25 Nov 2026 00:00:00 +0000\n"), "{text}");
    }
}
