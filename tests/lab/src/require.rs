//! What a test needs, and what happens where that is missing.
//!
//! A test asks at its start and returns when the answer is no. The skip is printed past libtest's capture. Where the
//! environment variable `METER_TEST_REQUIRE` holds the requirement's name (a list: `root,geneve`) it is a failure
//! instead.

use std::{io::Write as _, path::Path, process::Command};

/// The environment variable with the names of what must not be missing.
pub const VARIABLE: &str = "METER_TEST_REQUIRE";

/// The environment variable with the file that each skip is appended to as a line, for whoever sums them up.
pub const SKIPS: &str = "METER_TEST_SKIPS";

/// Returns whether network namespaces and taps can be made here: root, `/dev/net/tun`, iproute2.
///
/// # Panics
///
/// When something is missing and [`VARIABLE`] names `root`.
#[must_use]
pub fn root() -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        Some("root")
    } else if !Path::new("/dev/net/tun").exists() {
        Some("/dev/net/tun (modprobe tun)")
    } else if Command::new("ip").arg("-V").output().is_err() {
        Some("ip (apt-get install iproute2)")
    } else {
        None
    };
    met("root", missing.is_none(), missing.unwrap_or_default())
}

/// Returns whether the kernel can make netdevs of this kind, such as `geneve`, `gretap` or `vlan`.
///
/// Needs what [`root`] needs.
///
/// # Panics
///
/// When it can't and [`VARIABLE`] names the kind.
#[must_use]
pub fn netdev_kind(kind: &str) -> bool {
    met(kind, crate::netdev::kind_exists(kind), &format!("a kernel with netdevs of kind {kind}"))
}

/// Returns whether the running kernel is at least `major.minor`; `what` is the feature that needs it.
///
/// # Panics
///
/// When it is older and [`VARIABLE`] names `kernel`.
#[must_use]
pub fn kernel(major: u32, minor: u32, what: &str) -> bool {
    let missing = format!("{what} (requires Linux >= {major}.{minor}, this is {})", release());
    met("kernel", is_kernel(major, minor), &missing)
}

/// Returns whether the running kernel is at least `major.minor`: for a test of what differs between kernels.
#[must_use]
pub fn is_kernel(major: u32, minor: u32) -> bool {
    let release = release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0_u32));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

fn release() -> String {
    let name = nix::sys::utsname::uname();
    name.map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Appends a skip to the file that [`SKIPS`] names, if it names one.
///
/// # Panics
///
/// When that can't be written: a skip that nobody hears of would pass for a test.
fn record(skip: &str) {
    let Some(path) = std::env::var_os(SKIPS) else { return };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(&path);
    file.and_then(|mut file| file.write_all(skip.as_bytes()))
        .unwrap_or_else(|error| panic!("{SKIPS}: {}: {error}", Path::new(&path).display()));
}

/// Returns `met`; when it is false, prints that `missing` is what the calling test lacks.
///
/// # Panics
///
/// When it is false and [`VARIABLE`] names `requirement`.
#[must_use]
pub fn met(requirement: &str, met: bool, missing: &str) -> bool {
    if met {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    let required = std::env::var(VARIABLE).unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == requirement),
        "{test}: missing: {missing}; {VARIABLE} requires {requirement}"
    );
    // Straight to the file descriptor: libtest shows nothing of what a passing test prints.
    let message = format!("skipped {test}: missing: {missing}\n");
    if std::io::stderr().write_all(message.as_bytes()).is_err() {
        eprint!("{message}");
    }
    record(&message);
    false
}
