//! Connections in what the daemon serves: with what is in none they are the port's totals, also over an agent that is killed.

use std::collections::BTreeMap;

use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use serde_json::Value;

use super::{Daemon, Guests, Host, PORT, bound, ready};
use crate::support::until;

/// Returns the sums of the port's families: those of its connections, of what is in none, and its own.
fn sums(text: &str, unit: &str) -> [u64; 3] {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains(PORT)) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        if let Ok(value) = value.parse::<u64>() {
            *sums.entry(series.split('{').next().unwrap()).or_default() += value;
        }
    }
    let of =
        |name: &str| sums.get(format!("meter_{name}_{unit}_total").as_str()).copied().unwrap_or_default();
    [of("connection"), of("connection_other"), of("port_receive") + of("port_transmit")]
}

/// Asserts that they add up, and returns the bytes of the named connections and of the rest.
fn parts(daemon: &Daemon<'_>) -> [u64; 2] {
    let text = daemon.get("/metrics");
    for unit in ["packets", "bytes"] {
        let [connections, others, port] = sums(&text, unit);
        assert_eq!(connections + others, port, "{unit}: {text}");
    }
    let [connections, others, _] = sums(&text, "bytes");
    [connections, others]
}

/// Waits until what comes is told from what was: when a connection began is known to the second.
fn wait_for_the_next_second() {
    let uptime = || clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap().tv_sec();
    let now = uptime();
    until(|| uptime() > now);
}

#[test]
fn connections_and_the_rest_are_the_port_whoever_is_killed() {
    if !ready() {
        return;
    }
    let host = Host::new("connections");
    let guests = Guests::new(&host.netns);
    let configuration = |more: &str| format!("{}[connections]\nnetdevs = [\"tap*\"]\n{more}", bound("tap1"));
    let mut daemon = Daemon::started(&host, &configuration("timeout = \"1h\"\n"));
    guests.talk();
    guests.counts();
    let mut before = parts(&daemon);
    let [first, _] = before;
    // Two streams of half a megabyte, and datagrams.
    assert!(first > 1_000_000, "{first}");

    let listed = daemon.run(&["connections", "--json", "--protocol", "tcp", "--sort", "packets"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    for connection in listed {
        assert_eq!(connection["target"]["port"], 5001, "{connection}");
        assert_eq!(
            (&connection["netdev"], &connection["port"]),
            (&"tap1".into(), &PORT.into()),
            "{connection}"
        );
        assert!(connection["rtt_ns"].as_u64().is_some_and(|rtt| rtt > 0), "{connection}");
    }
    let table = String::from_utf8(daemon.run(&["connections", "--limit", "1"]).stdout).unwrap();
    assert_eq!(table.lines().count(), 2, "{table}");
    let wrong = daemon.run(&["connections", "--address", "nonsense"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");

    for _ in 0..lab::amount("METER_TEST_CONNECTION_KILLS", 3, 1) {
        daemon.kill();
        guests.talk();
        wait_for_the_next_second();
        daemon.start();
        daemon.wait_until_ready();
        guests.counts();
        // What the agent before named, and what came while there was none, is the rest's.
        let [named, others] = parts(&daemon);
        assert!(others >= before[0] + before[1] && named < first, "{named} and {others} after {before:?}");
        guests.talk();
        guests.counts();
        before = parts(&daemon);
        assert!(before[0] > 1_000_000 && before[1] >= others, "{before:?} after {others}");
    }

    // Names for one connection only, and the rest of them are in what has none.
    daemon.kill();
    daemon.configure(&configuration(
        "timeout = \"1h\"\nended_timeout = \"1h\"\nmax_series = 2\n[compat]\nskydive = true\n",
    ));
    daemon.start();
    daemon.wait_until_ready();
    guests.talk();
    guests.counts();
    parts(&daemon);
    let text = daemon.get("/metrics");
    assert_eq!(text.lines().filter(|line| line.starts_with("meter_connection_bytes_total{")).count(), 2);
    let skydive = "skydive_network_connection_total_bytes{";
    assert_eq!(text.lines().filter(|line| line.starts_with(skydive)).count(), 2, "{text}");

    // Other connections, by a rule: the streams go to the rest, which has all that they move.
    let ruled = "[connections]\nnetdevs = [\"tap*\"]\ntimeout = \"1h\"\nended_timeout = \"1h\"\nrules = [\"proto 17\", \"vni 9\"]\n";
    daemon.configure(&format!("{}{ruled}", bound("tap1")));
    daemon.signal(Signal::SIGHUP);
    daemon.wait("the rules are in force", |daemon| {
        daemon.sample("meter_agent_map_entries{map=\"CAPTURE_RULES\"}") == Some(1)
    });
    let begun = |protocol: &str| {
        let listed = daemon.run(&["connections", "--json", "--protocol", protocol]);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        listed.as_array().unwrap().len()
    };
    let known = ["tcp", "udp"].map(begun);
    guests.talk();
    guests.counts();
    parts(&daemon);
    let [streams, datagrams] = ["tcp", "udp"].map(begun);
    assert_eq!(streams, known[0], "the streams that were known, and no other");
    assert!(datagrams > known[1]);
    daemon.stop();
}
