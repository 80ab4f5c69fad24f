//! Prometheus itself, with the rules and alerts of the package: what it answers is what crossed.

use std::{fs, net::SocketAddr, process::Stdio, thread, time::Instant};

use lab::{http, netns::Process, require};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;

use super::{DEVICE, Daemon, Guests, Host, PORT, WITHIN, bound, ready};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus");
const WEB: &str = "127.0.0.1:9090";
/// Where the daemon serves what the JMX scraper did.
const SCRAPER: &str = "127.0.0.1:7201";

/// A Prometheus on a test's host, which scrapes the daemon each second.
pub(super) struct Prometheus<'a> {
    host: &'a Host,
    scratch: TempDir,
    _process: Process,
}

impl<'a> Prometheus<'a> {
    /// Returns whether there is one.
    pub(super) fn is_here() -> bool {
        let found = std::process::Command::new("prometheus").arg("--version").output().is_ok();
        require::met("prometheus", found, "prometheus (cargo xtask setup)")
    }

    /// Starts one that scrapes `/metrics` of the daemon as job `meter-agent`, and these addresses by their jobs.
    pub(super) fn start(host: &'a Host, jobs: &[(&str, &str)]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let config = scratch.path().join("prometheus.yml");
        let daemon = super::HTTP.to_string();
        let jobs = [("meter-agent", &*daemon)].into_iter().chain(jobs.iter().copied());
        let jobs: String = jobs
            .map(|(job, address)| {
                format!("- {{job_name: {job}, static_configs: [{{targets: ['{address}']}}]}}\n")
            })
            .collect();
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{RULES}/meter-agent.rules.yml', '{RULES}/meter-agent.alerts.yml']\n\
             scrape_configs:\n{jobs}"
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(scratch.path().join("log")).unwrap();
        let mut command = host.netns.command("prometheus").unwrap();
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", scratch.path().join("data").display()))
            .arg(format!("--web.listen-address={WEB}"))
            .arg("--log.level=warn");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = host.netns.spawn(command).unwrap();
        Self { host, scratch, _process: process }
    }

    /// Returns the data of its answer; `None` where it does not answer yet.
    fn api(&self, path: &str) -> Option<Value> {
        let server: SocketAddr = WEB.parse().unwrap();
        let answer = http::get(&self.host.netns, server, &format!("/api/v1/{path}"), &[]).ok()?;
        let mut answer: Value = serde_json::from_str(&answer.body).ok()?;
        (answer["status"] == "success").then(|| answer["data"].take())
    }

    /// Returns the values of a query's series, as they are written.
    fn query(&self, query: &str) -> Vec<String> {
        self.series(query).into_iter().map(|(_, value)| value).collect()
    }

    /// Returns a query's series: labels and value.
    pub(super) fn series(&self, query: &str) -> Vec<(Value, String)> {
        let encoded = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let data = self.api(&format!("query?query={encoded}")).unwrap_or_default();
        let series = data["result"].as_array().cloned().unwrap_or_default();
        let value = |series: &Value| series["value"][1].as_str().unwrap().to_owned();
        series.iter().map(|series| (series["metric"].clone(), value(series))).collect()
    }

    /// Waits until something holds.
    fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !holds(self) {
            let log = || fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{what}: not within {WITHIN:?}\n{}", log());
            thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Waits until a query is answered with one series of this value.
    fn expect(&self, query: &str, value: u64) {
        self.wait(&format!("{query} is {value}"), |prometheus| {
            let values = prometheus.query(query);
            values.len() == 1 && values[0].parse() == Ok(value)
        });
    }

    /// Returns each rule with its health.
    fn rules(&self) -> Vec<(String, String)> {
        let data = self.api("rules").unwrap_or_default();
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rules.map(|rule| (text(&rule["name"]), text(&rule["health"]))).collect()
    }
}

#[test]
fn prometheus_answers_with_what_crossed() {
    if !ready() || !Prometheus::is_here() {
        return;
    }
    let host = Host::new("prometheus");
    let guests = Guests::new(&host.netns);
    let compat = format!("[compat]\nscraper = true\nmidonet = true\nscraper_listen = [\"{SCRAPER}\"]\n");
    let daemon = Daemon::started(&host, &format!("{compat}{}", bound("tap1")));
    let prometheus = Prometheus::start(&host, &[("midonet", SCRAPER)]);
    guests.talk();
    guests.counts();
    let check = || {
        let [rx, tx] = daemon.port(PORT).unwrap();
        for (query, value) in [
            (format!("sum(meter_port_receive_bytes_total{{port=\"{PORT}\"}})"), rx.1),
            (format!("meter_port_transmit_packets_total{{port=\"{PORT}\"}}"), tx.0),
            (format!("meter_device_receive_bytes_total{{device=\"{DEVICE}\"}}"), rx.1),
            (format!("mnport_tx_bytes{{job=\"midonet\",mn_id=\"{PORT}\"}}"), tx.1),
            (format!("mnport_tx_bytes{{job=\"meter-agent\",mn_id=\"{PORT}\"}}"), tx.1),
            (format!("midonet_packets_bytes{{key=\"meters:port:rx:{PORT}\",registry=\"0\"}}"), rx.1),
        ] {
            prometheus.expect(&query, value);
        }
        rx.1
    };
    let first = check();
    guests.talk();
    guests.counts();
    let second = check();
    assert!(second > first);
    prometheus.expect("sum(up)", 2);
    // 1 where a rule saw the second transfer.
    for rule in [
        format!("device:meter_device_receive_bytes:rate5m{{device=\"{DEVICE}\"}}"),
        format!("device:meter_port_transmit_bytes:rate5m{{device=\"{DEVICE}\"}}"),
        format!("mnport_rx_bytes_1m{{mn_id=\"{PORT}\"}}"),
    ] {
        prometheus.expect(&format!("{rule} > bool 0"), 1);
    }
    prometheus.wait("every rule is evaluated", |prometheus| {
        let rules = prometheus.rules();
        rules.len() > 20 && rules.iter().all(|(_, health)| health == "ok")
    });
    assert_eq!(prometheus.query("ALERTS{alertstate=\"firing\"}"), [""; 0]);
}
