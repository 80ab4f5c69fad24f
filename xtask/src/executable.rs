//! Running other programs: where they are, and errors that name what was run.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Where administrators' programs are; not on every user's `PATH`, nor on `sudo`'s everywhere.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Runs a command to its end with xtask's own standard streams.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to standard output.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}: {}", shown(command), output.status, message.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{}: output is not UTF-8", shown(command)))
}

/// Finds a program by its name on `PATH`, then where administrators' programs are.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|directory| directory.join(name)).find(|path| is_executable(path))
}

/// Returns whether this is a file that may be run.
pub(crate) fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Returns `PATH`, completed by the directories of administrators' programs that it lacks.
pub(crate) fn search_path() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    for system in SYSTEM_DIRECTORIES.map(PathBuf::from) {
        if !directories.contains(&system) {
            directories.push(system);
        }
    }
    directories
}

/// Replaces this process by the command. Returns only where that failed.
pub(crate) fn exec(command: &mut Command) -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    let error: io::Error = command.exec();
    anyhow::Error::new(error).context(format!("cannot run {}", shown(command)))
}

/// Prints a command as a shell would take it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_os_string())).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for a shell where it needs that.
pub(crate) fn quoted(word: &OsString) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(byte);
    let text = word.to_string_lossy();
    if !word.is_empty() && word.as_bytes().iter().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_a_shell_takes_them() {
        let mut command = Command::new("cargo");
        command.args(["build", "--cfg=a", "two words", "it's", ""]);
        assert_eq!(shown(&command), r"cargo build --cfg=a 'two words' 'it'\''s' ''");
    }

    #[test]
    fn failures_name_the_command_and_what_it_said() {
        let error = read(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("sh -c 'echo no such thing >&2; exit 3' failed: exit status: 3"), "{text}");
        assert!(text.ends_with("no such thing"), "{text}");
    }
}
