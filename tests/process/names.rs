//! User-defined meters are called what their owners like: the same name comes out of every interface.

use std::process::Command;

use meter_agent::{datapath::UserMeter, meter::FlowStats, snapshot::Snapshot};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};

use crate::{
    prometheus::{ask, serve},
    served::Served,
};

/// One name for each thing that some interface escapes.
const NAMES: &[&str] = &[
    " leading and trailing ",
    "!bang!/slash",
    "%41+%",
    "-n",
    "C:\\net\\n",
    "a/b//c",
    "comma,equals=star*?#",
    "other",
    "say \"hi\", 'you'",
    "web",
    "web:80:x",
    "Straße 端口 🦀",
    "{le=\"1\"} 7 # EOF",
];
/// What a path can't hold as it is.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'?').add(b'{').add(b'}');
const MBEAN: &str = "org.midonet.midolman:type=Metering";

/// A meter of each name, with totals that all differ.
fn snapshot() -> Snapshot {
    let meter = |(number, name): (u64, &&str)| {
        ((*name).to_owned(), FlowStats { packets: number, bytes: 100 * number }.into())
    };
    Snapshot { user_meters: (1..).zip(NAMES).map(meter).collect(), ..Snapshot::default() }
}

fn mm_meter(port: u16, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mm-meter"));
    let output = command.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn mm_meter_lists_and_gets_each_name_as_it_is() {
    let served = Served::start(snapshot());
    let mut sorted = NAMES.to_vec();
    sorted.sort_unstable();
    let list: String = sorted.iter().map(|name| format!("meters:user:{name}\n")).collect();
    assert_eq!(mm_meter(served.port, &["list"]), list);
    for (name, UserMeter { stats, .. }) in &snapshot().user_meters {
        let expected = format!("     packets        bytes\n{:>12} {:>12}\n", stats.packets, stats.bytes);
        assert_eq!(mm_meter(served.port, &["get", "-n", &format!("meters:user:{name}")]), expected, "{name}");
    }
}

/// Returns a part of a path of Jolokia's GET: its own escape first, then the URL's.
fn part(text: &str) -> String {
    let escaped = text.replace('!', "!!").replace('/', "!/");
    utf8_percent_encode(&escaped, IN_PATH).to_string()
}

#[test]
fn jolokia_takes_each_name_in_a_path_and_in_json() {
    let served = Served::start(snapshot());
    let value = |method: &str, path: &str, body: &str| {
        let (status, answer) = served.exchange(method, path, body);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["status"]), (200, &json!(200)), "{path}: {answer}");
        answer["value"].clone()
    };
    let all = value("GET", &format!("/jolokia/read/{MBEAN}/ConsolidatedMeters/meters"), "");
    assert_eq!(all.as_object().unwrap().len(), NAMES.len());
    for (name, UserMeter { stats, .. }) in &snapshot().user_meters {
        let key = format!("meters:user:{name}");
        let expected = json!({"bytes": stats.bytes, "packets": stats.packets});
        assert_eq!(all[&key], expected, "{name}");
        let exec = format!("/jolokia/exec/{MBEAN}/getMeter/{}", part(&key));
        assert_eq!(value("GET", &exec, ""), expected, "{exec}");
        let read = format!("/jolokia/read/{MBEAN}/ConsolidatedMeters/meters/{}", part(&key));
        assert_eq!(value("GET", &read, ""), expected, "{read}");
        let body = json!({"type": "exec", "mbean": MBEAN, "operation": "getMeter", "arguments": [key]});
        assert_eq!(value("POST", "/jolokia/", &body.to_string()), expected, "{name}");
    }
}

#[test]
fn pages_of_the_metrics_port_hold_each_name_once() {
    let (_runtime, address) = serve(snapshot());
    let (table, metrics) = (ask(address, "GET", "/device_stats").1, ask(address, "GET", "/metrics").1);
    for (name, UserMeter { stats, .. }) in &snapshot().user_meters {
        let row = format!("meters:user:{name}\t{}\t{}", stats.packets, stats.bytes);
        assert_eq!(table.lines().filter(|line| *line == row).count(), 1, "{row}");
        let label = name.replace('\\', "\\\\").replace('"', "\\\"");
        let sample = format!("meter_user_packets_total{{meter=\"{label}\"}} {}", stats.packets);
        assert_eq!(metrics.lines().filter(|line| *line == sample).count(), 1, "{sample}\n{metrics}");
    }
}
