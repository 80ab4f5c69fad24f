//! What the agent says: to `mm-meter`, and to a Prometheus that scrapes it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use lab::{count::Count, http};
use serde_json::Value;

use super::{
    machine::{eventually, output, step},
    site::{self, DEVICE, Site, TAP, Totals, VETH},
};

const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7300);
const PROMETHEUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// A Prometheus with the rules and alerts of the package.
const CONFIGURATION: &str = "global: {scrape_interval: 1s, evaluation_interval: 5s}
rule_files: [/usr/share/meter-agent/prometheus/*.yml]
scrape_configs:
  - job_name: meter-agent
    static_configs: [{targets: ['127.0.0.1:7300']}]
";

/// Returns all meters, by the program of the operator.
pub(crate) fn by_mm_meter() -> Totals {
    let list = output("mm-meter", &["list"]);
    let get = |name: &str| {
        let text = output("mm-meter", &["get", "-n", name, "0"]);
        let row: Vec<u64> =
            text.lines().last().unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect();
        Count { frames: row[0], bytes: row[1] }
    };
    let totals = list.lines().map(|name| (name.to_owned(), get(name)));
    // Netdevs that were ports until it was known what else they are have their names there too.
    totals.filter(|(_, count)| *count != Count::default()).collect()
}

/// Returns what `/metrics` says, if anything does.
pub(crate) fn exposition(site: &Site) -> Result<String, String> {
    match http::get(&site.host, AGENT, "/metrics", &[]) {
        Ok(answer) if answer.status == 200 => Ok(answer.body),
        Ok(answer) => Err(answer.head),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns the sum of a family's samples that have this text in their labels.
pub(crate) fn sum(exposition: &str, family: &str, label: &str) -> u64 {
    let of_family = |line: &&str| {
        line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    };
    let values = exposition.lines().filter(of_family).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<u64>().unwrap_or_default()).sum()
}

/// Has Debian's Prometheus scrape the agent.
pub(crate) fn start_prometheus(site: &Site) {
    fs::write("/etc/prometheus/prometheus.yml", CONFIGURATION).unwrap();
    // A series that is no longer served is no answer, also where Prometheus was not there to see it go.
    fs::write("/etc/default/prometheus", "ARGS=\"--query.lookback-delta=5s\"\n").unwrap();
    let checked = output("promtool", &["check", "config", "/etc/prometheus/prometheus.yml"]);
    assert!(checked.contains("rules found"), "{checked}");
    output("systemctl", &["restart", "prometheus.service"]);
    eventually("Prometheus scrapes", || match &query(site, "up{job=\"meter-agent\"}")?[..] {
        [up] if up["value"][1] == "1" => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Lets promtool look at the agent's own answer.
pub(crate) fn check_metrics(site: &Site) {
    let mut promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn().unwrap();
    let text = exposition(site).unwrap();
    std::io::Write::write_all(promtool.stdin.as_mut().unwrap(), text.as_bytes()).unwrap();
    assert!(promtool.wait_with_output().unwrap().status.success());
}

/// Asks Prometheus; returns the series of the answer.
fn query(site: &Site, expression: &str) -> Result<Vec<Value>, String> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = http::get(&site.host, PROMETHEUS, &format!("/api/v1/query?query={encoded}"), &[]);
    let body = answer.map_err(|error| error.to_string())?.body;
    let value: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
    value["data"]["result"].as_array().cloned().ok_or(body)
}

/// Returns a label's value as `mm-meter` has it: an address as MidoNet's number.
fn named(value: &str) -> String {
    value.parse().map_or_else(|_| value.to_owned(), site::number)
}

/// Returns all meters as Prometheus has them, by the names of `mm-meter`.
fn by_prometheus(site: &Site) -> Result<Totals, String> {
    let mut totals = Totals::new();
    for (family, bytes, name) in [
        ("meter_port_receive", "bytes", "meters:port:rx:{port}"),
        ("meter_port_transmit", "bytes", "meters:port:tx:{port}"),
        ("meter_device_receive", "bytes", "meters:device:{device}"),
        ("meter_tunnel_receive", "inner_bytes", "meters:tunnel:{src}:{dst}"),
        ("meter_tunnel_transmit", "inner_bytes", "meters:tunnel:{src}:{dst}"),
    ] {
        for part in ["packets", bytes] {
            for series in query(site, &format!("{family}_{part}_total"))? {
                let labels = series["metric"].as_object().ok_or("no labels")?;
                let name = labels.iter().fold(name.to_owned(), |name, (label, value)| {
                    name.replace(&format!("{{{label}}}"), &named(value.as_str().unwrap_or_default()))
                });
                let value = series["value"][1].as_str().and_then(|value| value.parse().ok());
                let value = value.ok_or_else(|| format!("no whole number: {series}"))?;
                let total = totals.entry(name).or_default();
                *(if part == "packets" { &mut total.frames } else { &mut total.bytes }) = value;
            }
        }
    }
    totals.retain(|_, count| *count != Count::default());
    Ok(totals)
}

/// Fails where a meter, of either reader, is not what passed.
pub(crate) fn assert_all(site: &Site, expected: &Totals) {
    assert!(!expected.is_empty(), "nothing passed");
    let mut with_ports = expected.clone();
    for port in [TAP, VETH] {
        // A port is a device too, of all that passed it.
        let ways = ["rx", "tx"].map(|way| expected.get(&format!("meters:port:{way}:{port}")).copied());
        let both: Count = ways.into_iter().flatten().sum();
        if both != Count::default() {
            with_ports.insert(format!("meters:device:{port}"), both);
        }
    }
    assert_eq!(by_mm_meter(), with_ports);
    eventually("Prometheus has the same", || {
        let found = by_prometheus(site)?;
        if &found == expected { Ok(()) } else { Err(format!("{found:?} is not {expected:?}")) }
    });
}

/// Fails where a meter ever went back, by all that Prometheus scraped.
pub(crate) fn assert_no_resets(site: &Site) {
    let mut seen = 0;
    for family in ["meter_port_receive", "meter_port_transmit", "meter_device_receive"] {
        for series in query(site, &format!("resets({family}_bytes_total[1h])")).unwrap() {
            assert_eq!(series["value"][1], "0", "{series}");
            seen += 1;
        }
    }
    assert!(seen >= 5, "two ports, each way, and a device, not {seen} series");
}

/// Waits until the ports are metered under their names.
pub(crate) fn wait_until_metered(site: &Site) {
    eventually("the ports are metered", || {
        let text = exposition(site)?;
        let named = |uuid: &&str| !text.contains(&format!("meter_port_info{{port=\"{uuid}\""));
        let missing: Vec<&str> = [TAP, VETH].into_iter().filter(named).collect();
        let pending = sum(&text, "meter_agent_attach_pending", "");
        if missing.is_empty() && pending == 0 && text.contains(DEVICE) {
            Ok(())
        } else {
            Err(format!("{missing:?}, {pending} pending\n{text}"))
        }
    });
}

/// Reads a meter again and again, whether an agent is there or not; it must never be lower than it was.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    /// Starts with the port that the steady traffic comes from.
    pub(crate) fn new(site: Arc<Site>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut highest, mut answers) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(text) = exposition(&site) {
                    let value = sum(&text, "meter_port_receive_bytes_total", TAP);
                    assert!(value >= highest, "{value} after {highest}");
                    (highest, answers) = (value, answers + 1);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            answers
        });
        Self { stop, thread }
    }

    /// Ends it; returns how often somebody answered.
    pub(crate) fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Lets traffic of which every frame is known pass while something happens to the agent; all of it is counted.
pub(crate) fn nothing_is_lost(site: &Arc<Site>, what: &str, happens: impl FnOnce()) {
    step(what);
    let before = site.expected();
    let watch = Watch::new(Arc::clone(site));
    let load = site.steady();
    happens();
    // The agent that is there now reads what passes.
    let now = eventually("the meter is read", || {
        Ok::<_, String>(sum(&exposition(site)?, "meter_port_receive_packets_total", TAP))
    });
    eventually("the meter moves", || {
        let frames = sum(&exposition(site)?, "meter_port_receive_packets_total", TAP);
        if frames > now { Ok(()) } else { Err(format!("{frames} frames")) }
    });
    let sent = Site::stop(load);
    let answers = watch.end();
    let after = site.expected();
    let rx = format!("meters:port:rx:{TAP}");
    let counted = after[&rx].since(before.get(&rx).copied().unwrap_or_default());
    assert_eq!(counted, sent, "the independent count");
    assert_all(site, &after);
    eprintln!("{what}: {} frames sent and counted, {answers} answers, none lower", sent.frames);
}
