//! Agents are killed, restarted and upgraded under traffic: every meter equals what was counted on the way, and none ever
//! goes back.
//!
//! `METER_TEST_RESTARTS` and `METER_TEST_UPGRADES` say how many times. `METER_TEST_UPGRADE` names another build of
//! `meter-agent` to upgrade to and back; without it the programs are built for other constants.

use std::{collections::BTreeMap, env, thread, time::Duration};

use lab::{
    load::{Datagrams, Load, Pace},
    require,
};
use meter_agent::datapath::TcMode;

use super::super::support::{Host, daemon::Daemon, ready};
use super::site::{self, End, Path, Site};

/// Every total of a scrape, by its name and labels. What an agent counts of itself begins with each anew.
#[derive(Default)]
struct Totals {
    last: BTreeMap<String, u64>,
    scrapes: usize,
}

impl Totals {
    /// Takes a scrape, and asserts that no total is less than in the one before, or has gone.
    fn observe(&mut self, text: &str) {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("meter_agent_"));
        let totals: BTreeMap<String, u64> = samples
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next().is_some_and(|name| name.ends_with("_total")))
            .filter(|(series, _)| series.starts_with("meter_"))
            .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
            .collect();
        for (series, before) in &self.last {
            let now = totals.get(series);
            assert!(now >= Some(before), "{series}: {now:?} after {before}");
        }
        self.last = totals;
        self.scrapes += 1;
    }
}

/// Traffic both ways between the machine and the far host, and between the machine and the container: streams with
/// super-packets, and datagrams. As slow as leaves room in every queue, since what a queue drops was counted before it.
fn steady([vm, container, far]: &[End<'_>; 3]) -> Vec<Load> {
    let pause = Duration::from_millis(4) * lab::slower();
    let pace = Pace { burst: 1 << 13, pause };
    let small = Pace { burst: 600, pause };
    let pairs = [(vm, far, 5001), (far, vm, 5002), (vm, container, 5003), (container, far, 5004)];
    let loads = pairs.into_iter().flat_map(|(from, to, port)| {
        [
            Load::tcp(from.netns, to.netns, (to.addresses[0], port).into(), pace).unwrap(),
            Load::udp(from.netns, to.netns, (to.addresses[1], port).into(), Datagrams::Single(200), small)
                .unwrap(),
        ]
    });
    loads.collect()
}

/// Lets `agents` come and go under traffic by one kind of hook, and compares every meter with the independent counts.
fn under_traffic(tc: TcMode, word: &str, agents: impl FnOnce(&mut Daemon<'_>, &str, &mut Totals, &Host)) {
    let site = Site::new(Path::Vxlan { six: false }, 1500, true);
    let mut totals = Totals::default();
    let counted = site.measure_agents(tc, |ends, host| {
        let configuration = format!("tc = \"{word}\"\n{}", site.bindings());
        let mut daemon = Daemon::new(host, &configuration);
        let loads = steady(&ends);
        agents(&mut daemon, &configuration, &mut totals, host);
        Load::stop_all(loads).unwrap();
        daemon.wait_until_ready();
        totals.observe(&daemon.get("/metrics"));
        daemon.stop();
    });
    let frames = counted.frames();
    assert!(
        counted.guest.from_guest.super_packets > 0 && counted.merged(site::UPLINK_OUT),
        "no super-packets"
    );
    eprintln!("{word}: {} scrapes, {frames} frames at all hooks, every meter exact", totals.scrapes);
}

/// Kills an agent and starts the next one, again and again: some before they are ready, at whatever they do by then.
fn restarts(tc: TcMode, word: &str) {
    under_traffic(tc, word, |daemon, _, totals, _| {
        daemon.start();
        for n in 0..lab::amount("METER_TEST_RESTARTS", 8, 3) {
            if n % 3 == 1 {
                thread::sleep(Duration::from_millis(u64::try_from(n * 37 % 400).unwrap()));
            } else {
                daemon.wait_until_ready();
                totals.observe(&daemon.get("/metrics"));
            }
            daemon.kill();
            daemon.start();
        }
    });
}

/// Ends or kills an agent and starts another build of it, again and again.
fn upgrades(tc: TcMode, word: &str) {
    let other = env::var_os("METER_TEST_UPGRADE");
    under_traffic(tc, word, |daemon, configuration, totals, host| {
        daemon.start();
        let mut programs = Vec::new();
        for n in 0..lab::amount("METER_TEST_UPGRADES", 4, 3) {
            daemon.wait_until_ready();
            totals.observe(&daemon.get("/metrics"));
            let before = std::mem::replace(&mut programs, host.programs("tap1"));
            assert!(programs.len() == 2 && programs.iter().all(|program| !before.contains(program)));
            if n % 2 == 0 {
                daemon.stop()
            } else {
                daemon.kill()
            }
            match &other {
                Some(other) if n % 2 == 0 => daemon.replace_program(other.into()),
                Some(_) => daemon.replace_program(env!("CARGO_BIN_EXE_meter-agent").into()),
                None if n % 2 == 0 => {
                    let constants =
                        "[tunnels]\nvxlan_ports = [4789]\ngeneve_ports = [6081, 6082]\nnvgre = true\n";
                    daemon.configure(&format!("{configuration}{constants}"));
                }
                None => daemon.configure(configuration),
            }
            daemon.start();
        }
    });
}

#[test]
fn killed_agents_lose_nothing_by_tcx() {
    if ready() && require::kernel(6, 6, "TCX") {
        restarts(TcMode::Tcx, "tcx");
    }
}

#[test]
fn killed_agents_lose_nothing_by_clsact() {
    if ready() {
        restarts(TcMode::Clsact, "clsact");
    }
}

#[test]
fn upgrades_lose_nothing_by_tcx() {
    if ready() && require::kernel(6, 6, "TCX") {
        upgrades(TcMode::Tcx, "tcx");
    }
}

#[test]
fn upgrades_lose_nothing_by_clsact() {
    if ready() {
        upgrades(TcMode::Clsact, "clsact");
    }
}
