//! The packages on a Debian with systemd, as an operator has them: in a virtual machine of their own, which
//! `cargo xtask test --system` makes and boots once for each test. Elsewhere they are skipped.
//!
//! | module | owns |
//! |---|---|
//! | [`machine`] | commands, units, and what is on the file system and in the kernel |
//! | [`site`] | guests, a tunnel, traffic, and what each meter must have counted by it |
//! | [`meters`] | what the agent says to `mm-meter` and to Prometheus |
//! | [`life`] | from the installation through an upgrade and a crash |
//! | [`drop_ins`] | the drop-ins for pins, reloads and namespaces |
//! | [`listening`] | a socket of systemd's, and a port below 1024 |
//! | [`end`] | from a boot to the removal, of both kinds of package |
//!
//! The second test finds the machine as the first left it. So nothing here cleans up: the machine goes as a whole.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod drop_ins;
mod end;
mod life;
mod listening;
mod machine;
mod meters;
mod site;

use std::path::PathBuf;

/// The environment variable with the directory of the packages: there is one only in the virtual machine.
const VARIABLE: &str = "METER_TEST_PACKAGES";

/// Returns the directory of the packages, if this is the machine to install them on.
fn packages() -> Option<PathBuf> {
    let directory = std::env::var_os(VARIABLE).map(PathBuf::from);
    let met = directory.is_some() && lab::require::root();
    let missing = "a machine to install packages on (cargo xtask test --system)";
    lab::require::met("system", met, missing).then_some(directory).flatten()
}

#[test]
fn package_counts_through_upgrade_and_crash() {
    if let Some(packages) = packages() {
        life::run(&packages);
    }
}

#[test]
fn package_counts_from_boot_and_is_removed() {
    if let Some(packages) = packages() {
        end::run(&packages);
    }
}
