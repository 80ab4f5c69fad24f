//! Programs that can't be installed beside what this machine has, such as one whose package breaks an installed one of
//! another release: unpacked with the libraries that are not installed, and run with these.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};

use crate::{apt, executable};

/// Where packages have programs.
const PROGRAMS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];

/// Unpacks packages under `tools`, and writes a script of the command's name to `usr/bin` there that runs it.
///
/// # Errors
///
/// A package can't be fetched, or none of them has the command.
pub(super) fn provide(command: &str, packages: &[String], tools: &Path) -> Result<()> {
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    let tree = tools.join("beside").join(command);
    apt::unpack(&packages, &tree)?;
    let program = PROGRAMS
        .iter()
        .map(|directory| tree.join(directory).join(command))
        .find(|path| executable::is_executable(path))
        .with_context(|| format!("{command}: not found, though its package is in {}", tree.display()))?;
    let script = tools.join("usr/bin").join(command);
    fs::create_dir_all(tools.join("usr/bin"))
        .and_then(|()| fs::write(&script, wrapper(&tree, &program)))
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", script.display()))
}

/// Returns the script that runs a program with the libraries of its tree.
fn wrapper(tree: &Path, program: &Path) -> String {
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = ["usr/lib", "lib"].map(|directory| tree.join(directory).join(&architecture));
    let [first, second] = libraries.map(|path| path.display().to_string());
    let program = executable::quoted(&program.into());
    let path = executable::quoted(&format!("{first}:{second}").into());
    format!("#!/bin/sh\nexport LD_LIBRARY_PATH={path}\nexec {program} \"$@\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_runs_the_program_with_its_libraries() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("a tree");
        let program = tree.join("usr/bin/print");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(&program, "#!/bin/sh\necho \"$1 $LD_LIBRARY_PATH\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let script = directory.path().join("script");
        fs::write(&script, wrapper(&tree, &program)).unwrap();
        let said = executable::read(std::process::Command::new("sh").arg(&script).arg("two words")).unwrap();
        let path = said.trim_end().strip_prefix("two words ").unwrap();
        let found: Vec<_> =
            path.split(':').map(|path| Path::new(path).parent().unwrap().to_owned()).collect();
        assert_eq!(found, [tree.join("usr/lib"), tree.join("lib")]);
    }
}
