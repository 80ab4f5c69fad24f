//! `meter-agent doctor` beside the agent that does what it foretells.

use std::fs;

use meter_ebpf::abi::Direction;

use super::{Daemon, Guests, Host, PORT, bound, ready};
use crate::support::{auto_kind, foreign::Foreign};

/// What the doctor says.
struct Report(String);

impl Report {
    /// Where all is well.
    fn of(daemon: &Daemon<'_>, flags: &[&str]) -> Self {
        Self::with(daemon, flags, 0)
    }

    /// With this exit code.
    fn with(daemon: &Daemon<'_>, flags: &[&str], code: i32) -> Self {
        let output = daemon.run(&[&["doctor"], flags].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}{}", String::from_utf8_lossy(&output.stderr));
        Self(text)
    }

    /// Returns the line of a netdev in the list.
    fn netdev(&self, netdev: &str) -> Vec<&str> {
        let line = self.0.lines().find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(netdev) && words.next().is_some_and(|word| word.parse::<u32>().is_ok())
        });
        line.unwrap_or_else(|| panic!("no {netdev} in\n{}", self.0)).split_whitespace().collect()
    }

    fn says(&self, text: &str) -> bool {
        self.0.contains(text)
    }
}

#[test]
fn doctor_foretells_what_the_agent_does_and_finds_what_others_did() {
    if !ready() {
        return;
    }
    let host = Host::new("doctor");
    let _guests = Guests::new(&host.netns);
    host.netns.ip("link add eth0 type veth peer name eth0-peer").unwrap();
    let mut daemon = Daemon::new(&host, &format!("[uplinks]\nnetdevs = [\"eth0\"]\n{}", bound("tap1")));

    let kind = auto_kind().name();
    let before = Report::of(&daemon, &[]);
    assert!(before.says("\nok      verifier      takes the programs\n"), "{}", before.0);
    assert!(before.says("no agent runs") && before.says("Nobody else has attached anything"), "{}", before.0);
    assert_eq!(before.netdev("tap1")[2..6], ["tap", "port", kind, PORT], "{}", before.0);
    assert_eq!(before.netdev("eth0")[2..5], ["veth", "uplink", kind], "{}", before.0);
    assert_eq!(host.hooks(), [""; 0], "looking attaches nothing");
    assert!(!host.pins.exists(), "and pins nothing");

    // What only a later agent knows keeps this one from starting.
    let later = host.pins.join("v4000").join("maps");
    fs::create_dir_all(&later).unwrap();
    let refused = Report::with(&daemon, &[], 1);
    let expected =
        format!("\nBAD     pins          {} has the pins of version 4000 of the maps, ", host.pins.display());
    assert!(refused.says(&expected), "{}", refused.0);
    for directory in later.ancestors().take(3) {
        fs::remove_dir(directory).unwrap();
    }

    let mut foreign = Foreign::load(&host.netns);
    host.netns.run("tc", &["qdisc", "add", "dev", "tap1", "clsact"]).unwrap();
    foreign.clsact("tap1", Direction::Egress, 7);
    foreign.xdp("eth0");
    host.netns.run("tc", &["qdisc", "add", "dev", "veth2", "ingress"]).unwrap();
    let clsact = Report::with(&daemon, &["--datapath-tc", "clsact"], 1);
    assert_eq!(clsact.netdev("tap1")[4], "clsact", "{}", clsact.0);
    assert_eq!(clsact.netdev("veth2")[4], "-", "{}", clsact.0);
    assert!(
        clsact.says("\nBAD     netdevs       not metered, or not as they should be: 1; "),
        "{}",
        clsact.0
    );
    assert!(clsact.says("a qdisc of kind ingress is at clsact's place"), "{}", clsact.0);
    let found = |report: &Report| {
        report.says("tap1  clsact egress: a filter of kind bpf\n") && report.says("eth0  XDP: program ")
    };
    assert!(found(&clsact), "{}", clsact.0);
    host.netns.run("tc", &["qdisc", "del", "dev", "veth2", "ingress"]).unwrap();

    // A netdev whose port another one carries, with and without an agent.
    let is_one_short = |report: &Report| {
        report.says("\nBAD     netdevs       not metered, or not as they should be: 1; ")
            && report.netdev("veth2")[3] == "-"
    };
    host.netns.ip(&format!("link set veth2 alias {PORT}")).unwrap();
    let beside = Report::with(&daemon, &[], 1);
    assert!(is_one_short(&beside), "{}", beside.0);
    daemon.start();
    daemon.wait_until_ready();
    let beside = Report::with(&daemon, &[], 1);
    assert!(is_one_short(&beside), "{}", beside.0);
    host.netns.ip("link set veth2 alias other").unwrap();
    daemon.wait("all are metered", |daemon| daemon.sample("meter_agent_attach_pending") == Some(0));
    let running = Report::of(&daemon, &[]);
    assert!(running.says("\nok      agent         runs"), "{}", running.0);
    assert_eq!(running.netdev("tap1"), before.netdev("tap1"), "{}", running.0);
    assert_eq!(running.netdev("eth0"), before.netdev("eth0"), "{}", running.0);
    assert!(found(&running), "our own hooks are nobody else's:\n{}", running.0);
    let hooks = ["clsact ingress", "clsact egress", "TCX ingress", "TCX egress"];
    let others = running.0.lines().filter(|line| hooks.iter().any(|hook| line.contains(hook))).count();
    assert_eq!(others, 1, "{}", running.0);
    daemon.stop();
    drop(foreign);
    host.netns.run("tc", &["qdisc", "del", "dev", "tap1", "clsact"]).unwrap();
}
