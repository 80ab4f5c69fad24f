use std::{sync::Arc, time::Duration};

use super::{super::budget::Budget, Compat, Escaped, Format, Stopwatch};
use crate::{
    datapath::Class,
    http::{
        process::Process,
        prometheus::{Exposition, Options},
        tests as fixture,
    },
    meter::{FlowStats, MeterKey},
    snapshot::Snapshot,
};

const TOOK: Stopwatch = Stopwatch::Stopped(Duration::from_millis(3400));
const AGENT: &str = "119.15.127.100:7200";

/// Writes these meters with room for `most` of each kind.
fn written(
    meters: &[(MeterKey, u64, u64)],
    most: usize,
    write: impl FnOnce(Compat<'_>, &mut String),
) -> String {
    let meters = meters
        .iter()
        .map(|(key, packets, bytes)| (key.clone(), FlowStats { packets: *packets, bytes: *bytes }))
        .collect();
    let pools = Budget::default().choose_meters(most, &[], &meters);
    let mut text = String::new();
    write(Compat { meters: &meters, pools: &pools, format: Format::Text }, &mut text);
    text
}

/// The meters of the blog that introduced the scraper.
fn blog() -> Vec<(MeterKey, u64, u64)> {
    [
        ("meters:device:4fc20423-5e56-4cea-a4f3-cdf02917e7a3", 5083, 213_486),
        ("meters:port:rx:64594d49-0000-4000-8000-000000000001", 10, 420),
        ("meters:port:tx:64594d49-0000-4000-8000-000000000001", 100_380_678, 4_215_888_475),
        ("meters:tunnel:1997504356:1997504357", 23, 5834),
        ("meters:user:web", 3, 126),
    ]
    .map(|(key, packets, bytes)| (key.parse().unwrap(), packets, bytes))
    .into()
}

#[test]
fn scrapers_families_are_as_the_blog_shows_them() {
    let text = written(&blog(), 10, |compat, out| compat.scraper(out, AGENT, TOOK));
    let expected = "\
# HELP mndev_pkts Description (meters:device:4fc20423-5e56-4cea-a4f3-cdf02917e7a3<hostPort=119.15.127.100:7200, type=pkts><>Value)
# TYPE mndev_pkts counter
mndev_pkts{mn_agent=\"119.15.127.100:7200\",mn_id=\"4fc20423-5e56-4cea-a4f3-cdf02917e7a3\",} 5083.0
# HELP mndev_bytes Description (meters:device:4fc20423-5e56-4cea-a4f3-cdf02917e7a3<hostPort=119.15.127.100:7200, type=bytes><>Value)
# TYPE mndev_bytes counter
mndev_bytes{mn_agent=\"119.15.127.100:7200\",mn_id=\"4fc20423-5e56-4cea-a4f3-cdf02917e7a3\",} 213486.0
# HELP mnport_rx_pkts Description (meters:port:rx:64594d49-0000-4000-8000-000000000001<hostPort=119.15.127.100:7200, type=pkts><>Value)
# TYPE mnport_rx_pkts counter
mnport_rx_pkts{mn_agent=\"119.15.127.100:7200\",mn_id=\"64594d49-0000-4000-8000-000000000001\",} 10.0
# HELP mnport_rx_bytes Description (meters:port:rx:64594d49-0000-4000-8000-000000000001<hostPort=119.15.127.100:7200, type=bytes><>Value)
# TYPE mnport_rx_bytes counter
mnport_rx_bytes{mn_agent=\"119.15.127.100:7200\",mn_id=\"64594d49-0000-4000-8000-000000000001\",} 420.0
# HELP mnport_tx_pkts Description (meters:port:tx:64594d49-0000-4000-8000-000000000001<hostPort=119.15.127.100:7200, type=pkts><>Value)
# TYPE mnport_tx_pkts counter
mnport_tx_pkts{mn_agent=\"119.15.127.100:7200\",mn_id=\"64594d49-0000-4000-8000-000000000001\",} 1.00380678E8
# HELP mnport_tx_bytes Description (meters:port:tx:64594d49-0000-4000-8000-000000000001<hostPort=119.15.127.100:7200, type=bytes><>Value)
# TYPE mnport_tx_bytes counter
mnport_tx_bytes{mn_agent=\"119.15.127.100:7200\",mn_id=\"64594d49-0000-4000-8000-000000000001\",} 4.215888475E9
# HELP mntun_pkts Description (meters:tunnel:1997504356:1997504357<hostPort=119.15.127.100:7200, type=pkts><>Value)
# TYPE mntun_pkts counter
mntun_pkts{dst=\"119.15.127.101\",src=\"119.15.127.100\",mn_agent=\"119.15.127.100:7200\",} 23.0
# HELP mntun_bytes Description (meters:tunnel:1997504356:1997504357<hostPort=119.15.127.100:7200, type=bytes><>Value)
# TYPE mntun_bytes counter
mntun_bytes{dst=\"119.15.127.101\",src=\"119.15.127.100\",mn_agent=\"119.15.127.100:7200\",} 5834.0
# HELP jmx_scrape_duration_seconds Time this JMX scrape took, in seconds.
# TYPE jmx_scrape_duration_seconds gauge
jmx_scrape_duration_seconds 3.4
# HELP jmx_scrape_error Non-zero if this scrape failed.
# TYPE jmx_scrape_error gauge
jmx_scrape_error 0.0
";
    assert_eq!(text, expected);
}

#[test]
fn midonets_families_are_as_its_own_test_has_them() {
    let meters = [
        ("meters:device:13b3e586-0000-4000-8000-000000000001", 1, 1234),
        ("meters:device:27c9bc2e-0000-4000-8000-000000000002", 1, 4321),
        ("meters:user:a \"b\"\\c\nd", 2, 84),
    ]
    .map(|(key, packets, bytes)| (key.parse().unwrap(), packets, bytes));
    let text = written(&meters, 10, |compat, out| compat.midonet(out));
    let expected = r#"# HELP midonet_packets_total Total number of packets processed.
# TYPE midonet_packets_total counter
midonet_packets_total{key="meters:device:13b3e586-0000-4000-8000-000000000001",registry="0"} 1
midonet_packets_total{key="meters:device:27c9bc2e-0000-4000-8000-000000000002",registry="0"} 1
midonet_packets_total{key="meters:user:a \"b\"\\c\nd",registry="0"} 2
# HELP midonet_packets_bytes Total number of bytes processed.
# TYPE midonet_packets_bytes counter
midonet_packets_bytes{key="meters:device:13b3e586-0000-4000-8000-000000000001",registry="0"} 1234
midonet_packets_bytes{key="meters:device:27c9bc2e-0000-4000-8000-000000000002",registry="0"} 4321
midonet_packets_bytes{key="meters:user:a \"b\"\\c\nd",registry="0"} 84
"#;
    assert_eq!(text, expected);
}

#[test]
fn no_meters_are_no_samples() {
    let midonet = written(&[], 10, |compat, out| compat.midonet(out));
    assert_eq!(midonet.lines().count(), 4);
    assert!(midonet.lines().all(|line| line.starts_with('#')), "{midonet}");
    let scraper = written(&[], 10, |compat, out| compat.scraper(out, AGENT, TOOK));
    assert!(scraper.starts_with("# HELP jmx_scrape_duration_seconds "), "{scraper}");
}

#[test]
fn meters_beyond_the_limit_are_one_of_their_kind() {
    let meters = [
        ("meters:device:00000000-0000-4000-8000-000000000001", 1, 60),
        ("meters:device:00000000-0000-4000-8000-000000000002", 2, 120),
        ("meters:device:00000000-0000-4000-8000-000000000003", 4, 240),
        ("meters:tunnel:1:2", 8, 480),
        ("meters:tunnel:2:1", 16, 960),
        ("meters:tunnel:3:1", 32, 1920),
    ]
    .map(|(key, packets, bytes)| (key.parse().unwrap(), packets, bytes));
    let midonet = written(&meters, 1, |compat, out| compat.midonet(out));
    let samples: Vec<&str> =
        midonet.lines().filter(|line| line.starts_with("midonet_packets_total{")).collect();
    assert_eq!(
        samples,
        [
            "midonet_packets_total{key=\"meters:device:00000000-0000-4000-8000-000000000001\",registry=\"0\"} 1",
            "midonet_packets_total{key=\"meters:device:other\",registry=\"0\"} 6",
            "midonet_packets_total{key=\"meters:tunnel:1:2\",registry=\"0\"} 8",
            "midonet_packets_total{key=\"meters:tunnel:other:other\",registry=\"0\"} 48",
        ]
    );
    let scraper = written(&meters, 1, |compat, out| compat.scraper(out, AGENT, TOOK));
    for sample in [
        "mndev_bytes{mn_agent=\"119.15.127.100:7200\",mn_id=\"other\",} 360.0",
        "mntun_bytes{dst=\"other\",src=\"other\",mn_agent=\"119.15.127.100:7200\",} 2880.0",
    ] {
        assert!(scraper.lines().any(|line| line == sample), "{sample}\n{scraper}");
    }
}

#[test]
fn both_sets_are_as_the_golden_files_hold_them() {
    let shown = |midonet, scraper, format| {
        let options = Options {
            max_series: 100,
            midonet,
            scraper,
            scraper_agent: "compute-1:7200".to_owned(),
            ..Options::default()
        };
        let exposition = Exposition::new(options);
        let snapshot = Arc::new(fixture::snapshot());
        (
            exposition.render(&snapshot, Process::default(), format, TOOK),
            exposition.render_scraper(&snapshot, TOOK),
        )
    };
    for (format, extension) in [(Format::Text, "txt"), (Format::OpenMetrics, "om")] {
        let (native, scraper) = shown(false, false, format);
        assert!(!native.contains("midonet_") && !native.contains("mndev"), "{native}");
        for (name, first) in [("midonet", "\n# HELP midonet_packets"), ("scraper", "\n# HELP mndev_pkts ")] {
            let (with, _) = shown(name == "midonet", name == "scraper", format);
            let (_, set) = with.split_at(with.find(first).unwrap() + 1);
            fixture::compare(&format!("{name}.{extension}"), set);
            assert!(format == Format::OpenMetrics || name == "midonet" || set == scraper);
        }
    }
}

#[test]
fn oldest_ports_have_names_in_every_set() {
    let mut ports = [1, 2, 3].map(|id| fixture::port(Class::Port, id, "tap")).to_vec();
    for (port, created_ns) in ports.iter_mut().zip([30, 10, 20]) {
        (port.created_ns, port.device) = (created_ns, None);
    }
    let oldest = ports[1].port;
    let snapshot = Arc::new(Snapshot { ports, ..Snapshot::default() });
    let scraper_agent = AGENT.to_owned();
    let options =
        Options { max_series: 1, midonet: true, scraper: true, scraper_agent, ..Options::default() };
    let text = Exposition::new(options).render(&snapshot, Process::default(), Format::Text, TOOK);
    for (family, label) in [
        ("meter_port_receive_bytes_total{", format!("port=\"{oldest}\"")),
        ("midonet_packets_total{", format!("key=\"meters:port:rx:{oldest}\"")),
        ("midonet_packets_total{", format!("key=\"meters:port:tx:{oldest}\"")),
        ("mndev_bytes{", format!("mn_id=\"{oldest}\"")),
        ("mnport_rx_bytes{", format!("mn_id=\"{oldest}\"")),
    ] {
        let is_it = |line: &str| line.starts_with(family) && line.contains(&label);
        assert!(text.lines().any(is_it), "{family}{label}\n{text}");
    }
}

#[test]
fn what_only_the_scrapers_port_shows_is_over_the_limit_as_well() {
    let ports = [1, 2, 3].map(|id| fixture::port(Class::Port, id, "tap")).to_vec();
    let snapshot = Arc::new(Snapshot { ports, ..Snapshot::default() });
    let scraper_agent = AGENT.to_owned();
    let options =
        Options { max_series: 1, midonet: false, scraper: false, scraper_agent, ..Options::default() };
    let exposition = Exposition::new(options);
    let over = |exposition: &Exposition| -> Vec<String> {
        let text = exposition.render(&snapshot, Process::default(), Format::Text, TOOK);
        let meters = text.lines().filter(|line| line.contains("{family=\"meters:port:rx\"}"));
        meters.map(ToOwned::to_owned).collect()
    };
    assert_eq!(over(&exposition), [""; 0], "nobody is shown them");
    assert!(exposition.render_scraper(&snapshot, TOOK).contains("mn_id=\"other\""));
    assert_eq!(over(&exposition), ["meter_agent_series_over_limit{family=\"meters:port:rx\"} 2"]);
}

#[test]
fn label_values_are_escaped() {
    assert_eq!(Escaped::label("").to_string(), "");
    assert_eq!(Escaped::label("a\"\\\n\"é").to_string(), "a\\\"\\\\\\n\\\"é");
}

#[test]
fn help_of_text_has_no_escaped_quotes() {
    // A host's name may hold them, and Prometheus' parser ends at the first escape that it doesn't know.
    let agent = "a\"b\\c\"";
    let text = written(&blog(), 10, |compat, out| compat.scraper(out, agent, TOOK));
    let open_metrics = written(&blog(), 10, |compat, out| {
        Compat { format: Format::OpenMetrics, ..compat }.scraper(out, agent, TOOK);
    });
    for (text, escaped) in [(text, r#"a"b\\c""#), (open_metrics, r#"a\"b\\c\""#)] {
        let device = "meters:device:4fc20423-5e56-4cea-a4f3-cdf02917e7a3";
        let rule = format!("{device}<hostPort={escaped}, type=bytes><>Value");
        assert_eq!(text.lines().nth(3), Some(format!("# HELP mndev_bytes Description ({rule})").as_str()));
        assert!(text.contains(r#"{mn_agent="a\"b\\c\"",mn_id="#), "{text}");
    }
}
