//! iperf3 between a guest and a far host: what each of its connections moved, each way, is what crossed the wire.

use std::{collections::BTreeMap, io::BufRead as _, io::BufReader, process::Stdio};

use lab::require;
use serde_json::Value;

use super::{
    connections::measure_at,
    site::{End, Path, Site},
};
use crate::support::ready;

/// iperf3's own.
const SERVER_PORT: u16 = 5_201;

/// Payload of a connection; it ends with the block that has the last byte.
fn payload() -> u64 {
    lab::amount("METER_TEST_IPERF", 4_000_000, 500_000).try_into().unwrap()
}

/// Runs iperf3 from one end to another; returns how many bytes of payload the receiver says that it got, and the sender that it
/// sent. A client of TCP ends while there is something under way.
fn iperf(client: &End<'_>, server: &End<'_>, six: bool, arguments: &[&str]) -> [u64; 2] {
    let mut command = server.netns.command("iperf3").unwrap();
    command.args(["--server", "--one-off", "--forceflush"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut listening = server.netns.spawn(command).unwrap();
    let mut said = BufReader::new(listening.child().stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "iperf3 does not listen");
    }
    let address = server.addresses[usize::from(six)].to_string();
    let mut all = vec!["--client", &address, "--json", "--connect-timeout", "10000"];
    all.extend(arguments);
    let report = client.netns.run("iperf3", &all).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let end = &report["end"];
    let bytes = |sum: &str| end[sum]["bytes"].as_u64();
    // Of datagrams it has one sum, of those that were sent, and how many of them were lost.
    let [received, sent] =
        [bytes("sum_received").unwrap_or_default(), bytes("sum_sent").or(bytes("sum")).unwrap()];
    // To the end of its output, so that the next one may have its port.
    while said.read_line(&mut line).unwrap() > 0 {}
    [received, sent]
}

fn measure(path: Path, gro: bool) {
    let found = std::process::Command::new("iperf3").arg("--version").output().is_ok();
    if !ready() || !require::met("iperf3", found, "iperf3 (cargo xtask setup)") {
        return;
    }
    let site = Site::new(path, 1_500, gro);
    let mut moved = BTreeMap::new();
    let payload = payload();
    let (_, reading) = measure_at(&site, |[vm, _, far]| {
        for six in [false, true] {
            for reverse in [false, true] {
                for udp in [false, true] {
                    let bytes = payload.to_string();
                    let mut arguments = vec!["--bytes", &bytes];
                    arguments.extend(reverse.then_some("--reverse"));
                    // No fragments, and a rate that no socket's buffer overflows at.
                    arguments.extend(
                        udp.then_some(["--udp", "--length", "1200", "--bitrate", "200M"]).iter().flatten(),
                    );
                    let bytes = iperf(&vm, &far, six, &arguments);
                    moved.insert((six, reverse, udp), bytes);
                }
            }
        }
    });
    for ((six, reverse, udp), [received, sent]) in moved {
        let label = format!("{path:?}: IPv6 {six}, reverse {reverse}, UDP {udp}");
        assert!(sent > payload - payload / 20, "{label}: {sent}");
        // One connection had it, beside the one by which iperf3 speaks of it.
        let is_it = reading.connections.iter().filter(|connection| {
            let [forward, back] =
                connection.counts.map(|counts| counts.iter().map(|count| count.bytes).sum::<u64>());
            let (data, answers) = if reverse { (back, forward) } else { (forward, back) };
            connection.protocol == if udp { 17 } else { 6 }
                && connection.target.is_ipv6() == six
                && connection.target.port() == SERVER_PORT
                && data > received.max(payload / 4)
                && data < sent + sent / 5
                && answers < data / 4
        });
        assert_eq!(is_it.count(), 1, "{label}: {received} of {sent} in {:#?}", reading.connections);
    }
}

#[test]
fn iperf3_over_a_bridge() {
    measure(Path::Bridge, true);
}

#[test]
fn iperf3_in_vxlan_over_ipv4() {
    measure(Path::Vxlan { six: false }, true);
}

#[test]
fn iperf3_in_vxlan_over_ipv6() {
    measure(Path::Vxlan { six: true }, false);
}
