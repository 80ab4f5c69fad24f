//! From the installation of a package through an upgrade, a crash and a wrong configuration.

use std::{fs, path::Path, sync::Arc};

use super::{
    drop_ins, listening,
    machine::{
        CONFIGURATION, DropIn, SERVICE, assert_kernel_is_clean, eventually, figure, files, is_refused,
        output, programs, properties, property, ready_after, runs_installed_program, step,
    },
    meters::{
        assert_all, assert_no_resets, check_metrics, nothing_is_lost, start_prometheus, wait_until_metered,
    },
    site::Site,
};

/// Where the paths of before the installation are kept for the removal.
pub(crate) const BEFORE: &str = "/var/tmp/files-before";

pub(crate) fn run(packages: &Path) {
    let package = |name: &str| packages.join(name).to_str().unwrap().to_owned();
    step("installation");
    assert_kernel_is_clean();
    Site::prepare();
    fs::write(BEFORE, files().into_iter().collect::<Vec<_>>().join("\n")).unwrap();
    output("dpkg", &["--install", &package("earlier.deb")]);
    runs_installed_program(ready_after(0));
    assert_eq!(output("systemctl", &["is-enabled", SERVICE]).trim(), "enabled");
    let user = properties(&["User", "AmbientCapabilities"]);
    assert_eq!(user["User"], "meter-agent");
    exposure();
    does_not_start_beyond_its_memory();
    drop_ins::pin_path();
    let pid = listening::run();

    step("configuration");
    let site = Arc::new(Site::new());
    Site::configure();
    output("meter-agent", &["--check-config"]);
    output("systemctl", &["reload", SERVICE]);
    wait_until_metered(&site);
    check_metrics(&site);
    start_prometheus(&site);

    step("traffic of all kinds");
    let loads = site.talk();
    eventually("every guest has sent and received", || {
        let moved: Vec<u64> = loads.iter().map(lab::load::Load::received).collect();
        if moved.iter().all(|&bytes| bytes > 100_000) { Ok(()) } else { Err(format!("{moved:?}")) }
    });
    lab::load::Load::stop_all(loads).unwrap();
    let expected = site.expected();
    assert_eq!(expected.len(), 7, "two ports, each way, their device, and a tunnel, each way: {expected:?}");
    assert_all(&site, &expected);

    let earlier = programs();
    nothing_is_lost(&site, "upgrade", || {
        output("dpkg", &["--install", &package("own.deb")]);
        runs_installed_program(ready_after(pid));
    });
    let own = programs();
    assert!(earlier.is_disjoint(&own) && earlier.len() == own.len(), "{earlier:?} {own:?}");

    let pid = ready_after(0);
    nothing_is_lost(&site, "crash", || {
        output("systemctl", &["kill", "--signal", "KILL", SERVICE]);
        ready_after(pid);
    });
    assert_eq!(property("NRestarts"), "1");

    let pid = ready_after(0);
    nothing_is_lost(&site, "restart", || {
        output("systemctl", &["restart", SERVICE]);
        ready_after(pid);
    });

    nothing_is_lost(&site, "wrong configuration", || {
        let text = fs::read_to_string(CONFIGURATION).unwrap();
        fs::write(CONFIGURATION, format!("{text}\nno_such_key = 1\n")).unwrap();
        is_refused("2");
        fs::write(CONFIGURATION, text).unwrap();
        output("systemctl", &["start", SERVICE]);
        ready_after(0);
    });

    nothing_is_lost(&site, "namespaces, by the drop-in", || drop_ins::namespaces(&site));
    nothing_is_lost(&site, "reload that is waited for, by the drop-in", drop_ins::reload);

    nothing_is_lost(&site, "restart while the kernel is locked down, until the next boot", || {
        let pid = ready_after(0);
        fs::write("/sys/kernel/security/lockdown", "confidentiality").unwrap();
        output("systemctl", &["restart", SERVICE]);
        ready_after(pid);
    });
    assert_no_resets(&site);
}

/// Has maps made under a limit that they don't fit into; the service runs again once the limit is gone.
fn does_not_start_beyond_its_memory() {
    step("a memory limit that the maps don't fit into");
    output("systemctl", &["stop", SERVICE]);
    output("meter-agent", &["detach"]);
    let limit = DropIn::new("limit.conf", "[Service]\nMemoryMax=64M\n");
    is_refused("3");
    let expected = "the 64 MiB that /sys/fs/cgroup/system.slice/meter-agent.service allow";
    eventually("the journal says why", || {
        let said = output("journalctl", &["--unit", SERVICE, "--no-pager"]);
        if said.contains(expected) { Ok(()) } else { Err(said) }
    });
    limit.remove();
    output("systemctl", &["start", SERVICE]);
    ready_after(0);
}

/// Asks systemd what the service could do to the machine.
fn exposure() {
    let text = output("systemd-analyze", &["security", SERVICE]);
    let line = text.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let score: f64 = line.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(score <= 2.0, "{text}");
    figure(&format!("systemd-analyze security {SERVICE}: {score}"));
}
