//! From a boot with the package installed to its removal; then the same of the other kind of package.

use std::{collections::BTreeSet, fs, path::Path, process::Command, sync::Arc};

use lab::netns::Netns;

use super::{
    life::BEFORE,
    machine::{
        SERVICE, assert_kernel_is_clean, eventually, figure, files, output, property, ready_after,
        runs_installed_program, step, uptime,
    },
    meters::{assert_all, exposition, nothing_is_lost, start_prometheus, sum, wait_until_metered},
    site::{Site, TAP},
};

/// How many ports the agent is measured with.
const PORTS: usize = 1000;

/// What the Debian package leaves when it is removed and not purged: what an administrator wrote, and what Debian's helpers
/// keep to find it again, the mask of the unit among it.
const KEPT: [&str; 10] = [
    "/etc/meter-agent",
    "/etc/meter-agent/meter-agent.toml",
    "/etc/systemd/system/meter-agent.service",
    "/etc/systemd/system/multi-user.target.wants/meter-agent.service",
    "/var/lib/meter-agent",
    "/var/lib/systemd/deb-systemd-helper-enabled/meter-agent.service.dsh-also",
    "/var/lib/systemd/deb-systemd-helper-enabled/meter-agent.socket.dsh-also",
    "/var/lib/systemd/deb-systemd-helper-enabled/multi-user.target.wants/meter-agent.service",
    "/var/lib/systemd/deb-systemd-helper-masked",
    "/var/lib/systemd/deb-systemd-helper-masked/meter-agent.service",
];

/// What the RPM package leaves: what an administrator wrote and, where it was not there before, directories that on an RPM
/// system are others'.
const KEPT_BY_RPM: [&str; 6] = [
    "/etc/meter-agent",
    "/etc/meter-agent/meter-agent.toml.rpmsave",
    "/usr/share/fish",
    "/usr/share/fish/vendor_completions.d",
    "/usr/share/licenses",
    "/usr/share/zsh/site-functions",
];

pub(crate) fn run(packages: &Path) {
    let package = |name: &str| packages.join(name).to_str().unwrap().to_owned();
    let before: BTreeSet<String> = fs::read_to_string(BEFORE).unwrap().lines().map(str::to_owned).collect();

    let site = Arc::new(first_count());
    start_prometheus(&site);
    assert_all(&site, &site.expected());
    memory(&site);

    step("removal");
    output("dpkg", &["--remove", "meter-agent"]);
    assert_kernel_is_clean();
    assert_eq!(left_since(&before), KEPT);

    step("installation again, on what the removal left");
    output("dpkg", &["--install", &package("own.deb")]);
    runs_installed_program(ready_after(0));
    output("dpkg", &["--remove", "meter-agent"]);
    assert_kernel_is_clean();
    assert_eq!(left_since(&before), KEPT);

    step("purge");
    output("dpkg", &["--purge", "meter-agent"]);
    assert_eq!(left_since(&before), [""; 0]);
    assert!(output("id", &["meter-agent"]).contains("meter-agent"));

    // Those totals ended with the package; others begin.
    Arc::into_inner(site).unwrap().end();

    step("installation of the RPM package");
    output("rpm", &["--install", "--nodeps", &package("earlier.rpm")]);
    let pid = ready_after(0);
    assert_eq!(changed(), "");
    let site = Arc::new(Site::new());
    Site::configure();
    output("systemctl", &["reload", SERVICE]);
    wait_until_metered(&site);
    nothing_is_lost(&site, "upgrade of the RPM package", || {
        output("rpm", &["--upgrade", "--nodeps", &package("own.rpm")]);
        runs_installed_program(ready_after(pid));
    });
    assert_eq!(changed(), "S.5....T.  c /etc/meter-agent/meter-agent.toml\n");
    assert_eq!(output("systemctl", &["is-enabled", SERVICE]).trim(), "enabled");

    step("removal of the RPM package");
    output("rpm", &["--erase", "meter-agent"]);
    assert_kernel_is_clean();
    let kept = KEPT_BY_RPM.into_iter().filter(|&path| !before.contains(path));
    assert_eq!(left_since(&before), kept.collect::<Vec<_>>());
}

/// Returns what rpm finds changed, of every file of the package.
fn changed() -> String {
    let verified = Command::new("rpm").args(["--verify", "--nodeps", "meter-agent"]).output().unwrap();
    String::from_utf8(verified.stdout).unwrap()
}

/// Returns the paths that were not there before.
fn left_since(before: &BTreeSet<String>) -> Vec<String> {
    files().difference(before).cloned().collect()
}

/// Waits for the first frame that is counted in this boot.
fn first_count() -> Site {
    step("boot");
    let site = Site::new();
    wait_until_metered(&site);
    let load = site.steady();
    eventually("something is counted", || {
        match sum(&exposition(&site)?, "meter_port_receive_packets_total", TAP) {
            0 => Err("nothing".to_owned()),
            _ => Ok(()),
        }
    });
    let first = uptime();
    let ready: f64 = property("ActiveEnterTimestampMonotonic").parse::<f64>().unwrap() / 1e6;
    figure(&format!("boot to ready: {ready:.1} s, to the first count that was read: {first:.1} s"));
    Site::stop(load);
    site
}

/// Says what the agent takes, with the few ports that there are and with many.
fn memory(site: &Site) {
    step("memory");
    figure(&format!("memory idle: {}", taken(site)));
    let many = Netns::new("many").unwrap();
    // Who names and configures netdevs has no part in this, and would take most of the time.
    output("systemctl", &["stop", "systemd-udevd*.socket", "systemd-udevd.service"]);
    output("systemctl", &["stop", SERVICE]);
    let lines: String = (0..PORTS)
        .map(|n| format!("link add many{n} type veth peer name eth{n} netns {}\n", many.name()))
        .collect();
    site.host.ip(&lines).unwrap();
    let began = uptime();
    output("systemctl", &["start", SERVICE]);
    ready_after(0);
    let text = exposition(site).unwrap();
    let ports = text.lines().filter(|line| line.starts_with("meter_port_receive_bytes_total{")).count();
    assert!(ports >= PORTS && sum(&text, "meter_agent_attach_pending", "") == 0, "{ports} ports");
    figure(&format!(
        "memory with {PORTS} ports more: {}; the start took {:.1} s",
        taken(site),
        uptime() - began
    ));
}

/// Returns the process's resident memory, and what is accounted to the unit with its maps.
fn taken(site: &Site) -> String {
    let pid = property("MainPID");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.split_whitespace().next().unwrap().parse().unwrap();
    let unit: u64 = property("MemoryCurrent").parse().unwrap_or_default();
    let maps = sum(&exposition(site).unwrap(), "meter_agent_map_memory_bytes", "");
    let megabytes = |bytes: u64| format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000);
    format!(
        "{} resident, {} of the unit's cgroup, {} of maps",
        megabytes(kilobytes * 1024),
        megabytes(unit),
        megabytes(maps)
    )
}
