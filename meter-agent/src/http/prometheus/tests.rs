use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::{
    collection, option,
    prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest},
    sample::select,
};

use super::{Exposition, Format, Options, Process, Stopwatch};
use crate::{
    connections::View,
    datapath::Class,
    http::{
        server::{Cut, Limits, Published, Refused, Server, Stats},
        tests as fixture,
        web::WebStatus,
    },
    meter::FlowStats,
    snapshot::{Port, Snapshot},
};

const TOOK: Stopwatch = Stopwatch::Stopped(Duration::from_millis(12));

fn process() -> Process {
    Process {
        cpu_time: Some(Duration::from_millis(1750)),
        start_time: Some(Duration::from_millis(1_789_000_000_500)),
        resident_bytes: Some(12_345_344),
        virtual_bytes: Some(100_000_000),
        open_fds: Some(42),
        max_fds: Some(1024),
    }
}

fn exposition(max_series: usize) -> Exposition {
    let scraper_agent = "compute-1:7200".to_owned();
    let connections = View { most: 100, ..View::default() };
    Exposition::new(Options {
        max_series,
        midonet: false,
        scraper: false,
        scraper_agent,
        connections,
        ..Options::default()
    })
}

/// Makes what a busy server and an idle one say of themselves.
fn servers() -> Vec<Published> {
    let numbered = |first: u64| first..;
    let busy = Stats {
        open: 7,
        accepted: 1000,
        cut: Cut::ALL.iter().copied().zip(numbered(10)).collect(),
        refused: Refused::ALL.iter().copied().zip(numbered(20)).collect(),
    };
    let idle = Server::new(Limits::default()).stats();
    let web = Some(WebStatus { is_ok: false, loaded_s: 1_789_000_100 });
    vec![
        Published { name: "metrics", stats: busy, web },
        Published { name: "jolokia", stats: idle, web: None },
    ]
}

fn rendered(snapshot: Snapshot, format: Format) -> String {
    exposition(10_000).render_with(&Arc::new(snapshot), process(), servers(), format, TOOK)
}

fn is_sample(line: &&str) -> bool {
    !line.starts_with('#')
}

/// Returns the name of a sample's series: what stands before its labels or its value.
fn name(sample: &str) -> &str {
    sample.split(['{', ' ']).next().unwrap()
}

/// Checks what both formats ask of the order of lines; returns the samples.
///
/// Each family stands together and is there once; each sample belongs to the family above it.
fn samples(text: &str, format: Format) -> Vec<&str> {
    let mut families = BTreeSet::new();
    let mut allowed: Vec<String> = Vec::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", family, help] => {
                assert!(families.insert(family), "{family} is there twice");
                assert!(help.ends_with('.') && !help.contains(['\\', '"']), "{line}");
            }
            ["#", "TYPE", family, kind] => {
                let suffixes: &[&str] = match (format, kind) {
                    (Format::OpenMetrics, "counter") => &["_total", "_created"],
                    (Format::OpenMetrics, "info") => &["_info"],
                    (_, "gauge") => &[""],
                    (Format::Text, "counter") => {
                        assert!(family.ends_with("_total"), "{line}");
                        &[""]
                    }
                    _ => panic!("{line}"),
                };
                allowed = suffixes.iter().map(|suffix| format!("{family}{suffix}")).collect();
            }
            ["#", "UNIT", family, unit] => {
                assert_eq!(format, Format::OpenMetrics, "{line}");
                assert!(family.ends_with(&format!("_{unit}")), "{line}");
            }
            ["#", "EOF"] => assert_eq!(format, Format::OpenMetrics),
            _ => {
                assert!(
                    allowed.iter().any(|allowed| allowed == name(line)),
                    "{line} is not one of {allowed:?}"
                );
                let (series, _) = line.rsplit_once(' ').unwrap();
                assert_eq!(samples.insert(series, line), None, "{series} is there twice");
            }
        }
    }
    assert_eq!(text.ends_with("# EOF\n"), format == Format::OpenMetrics);
    text.lines().filter(is_sample).collect()
}

#[test]
fn both_formats_are_as_the_golden_files_hold_them() {
    for (file, format) in [("metrics.txt", Format::Text), ("metrics.om", Format::OpenMetrics)] {
        let version = concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"");
        let text = rendered(fixture::snapshot(), format).replace(version, "{version=\"VERSION\"");
        fixture::compare(file, &text);
    }
}

#[test]
fn created_is_next_to_its_counter() {
    let text = rendered(fixture::snapshot(), Format::OpenMetrics);
    let lines: Vec<&str> = text.lines().collect();
    let created = lines.windows(2).filter(|pair| name(pair[1]).ends_with("_created"));
    let mut count = 0;
    for pair in created {
        let (series, seconds) = pair[1].rsplit_once(' ').unwrap();
        assert_eq!(pair[0].rsplit_once(' ').unwrap().0, series.replace("_created", "_total"));
        // What no map keeps began with the agent.
        let is_agents = pair[1].starts_with("meter_agent_")
            || pair[1].starts_with("process_")
            || pair[1].contains("_transmit_dropped_packets_");
        let began = if is_agents { "1789000000.500000000" } else { "1789000000.25" };
        assert!(seconds.starts_with(began), "{}", pair[1]);
        count += 1;
    }
    // Four ports know when they began; each has eight counters. So do three user-defined meters, with two each. Fourteen of the agent began with it, and three that say
    // what was dropped.
    assert_eq!(count, 4 * 8 + 3 * 2 + 14 + 3);
}

#[test]
fn agent_that_has_counted_nothing_says_so() {
    let text = exposition(1).render(&Arc::default(), Process::default(), Format::Text, TOOK);
    let found: Vec<&str> = samples(&text, Format::Text);
    assert!(found.contains(&"meter_agent_ready 0"), "{text}");
    assert!(found.contains(&"meter_agent_readings_total 0"), "{text}");
    assert!(found.contains(&"meter_agent_gso_fault_packets_total{reason=\"gso_truncated\"} 0"), "{text}");
    assert!(
        !found.iter().any(|sample| sample.starts_with("meter_port") || sample.starts_with("process_")),
        "{text}"
    );
}

/// Returns the sum over each family of counters.
fn sums(text: &str) -> BTreeMap<&str, u64> {
    let counters = text.lines().filter(is_sample).filter(|sample| name(sample).ends_with("_total"));
    counters.filter(|sample| !sample.starts_with("process_")).fold(BTreeMap::new(), |mut sums, sample| {
        let (_, value) = sample.rsplit_once(' ').unwrap();
        let sum: &mut u64 = sums.entry(name(sample)).or_default();
        *sum = sum.wrapping_add(value.parse().unwrap());
        sums
    })
}

#[test]
fn families_beyond_the_limit_have_the_same_sums() {
    let snapshot = Arc::new(fixture::snapshot());
    for format in [Format::Text, Format::OpenMetrics] {
        let [all, few] = [100, 1].map(|max_series| {
            exposition(max_series).render_with(&snapshot, process(), servers(), format, TOOK)
        });
        assert_eq!(sums(&all), sums(&few));
        let found = samples(&few, format);
        for (family, most) in [
            ("meter_port_receive_bytes_total{", 2),
            // No netdev carries the oldest one.
            ("meter_port_info{", 0),
            ("meter_device_receive_packets_total{", 2),
            ("meter_device_info{", 1),
            ("meter_user_packets_total{", 2),
            ("meter_user_bytes_total{", 2),
            ("meter_tunnel_transmit_packets_total{", 1),
            ("meter_tunnel_receive_outer_bytes_total{", 2),
            ("meter_uplink_receive_bytes_total{", 1),
            ("meter_connection_other_bytes_total{", 4),
        ] {
            assert_eq!(found.iter().filter(|sample| sample.starts_with(family)).count(), most, "{family}");
        }
        for sample in [
            // The port of which nobody knows when it began is the oldest.
            "meter_port_receive_packets_total{port=\"00000000-0000-0000-0000-000000000001\"} 18446744073709551615",
            "meter_port_receive_packets_total{port=\"other\"} 2340",
            "meter_device_receive_bytes_total{device=\"other\"} 109798",
            "meter_user_packets_total{meter=\"other\"} 23",
            "meter_tunnel_receive_packets_total{src=\"other\",dst=\"other\",vni=\"other\",encap=\"other\"} \
             18446744073709551615",
            "meter_agent_series_limit 1",
            "meter_agent_series_over_limit{family=\"meter_port\"} 2",
            "meter_agent_series_over_limit{family=\"meter_device\"} 1",
            "meter_agent_series_over_limit{family=\"meter_user\"} 1",
            "meter_agent_series_over_limit{family=\"meter_tunnel_transmit\"} 0",
            "meter_agent_series_over_limit{family=\"meter_tunnel_receive\"} 1",
            "meter_connection_other_packets_total{port=\"other\",direction=\"receive\"} 5",
            "meter_agent_series_over_limit{family=\"meter_connection_other\"} 1",
        ] {
            assert!(found.contains(&sample), "{sample} is missing");
        }
    }
}

#[test]
fn other_began_when_its_first_member_did() {
    let few = exposition(1).render(&Arc::new(fixture::snapshot()), process(), Format::OpenMetrics, TOOK);
    let created = "meter_port_receive_packets_created{port=\"other\"} 1789000000.250000005";
    assert!(few.lines().any(|line| line == created), "{few}");
}

#[test]
fn thousand_ports_have_their_samples() {
    let ports = (0..1000).map(|id| fixture::port(Class::Port, id, "tap0123456789")).collect();
    let text = rendered(Snapshot { ports, ..Snapshot::default() }, Format::OpenMetrics);
    let counts =
        samples(&text, Format::OpenMetrics).into_iter().fold(BTreeMap::new(), |mut counts, sample| {
            *counts.entry(name(sample)).or_insert(0) += 1;
            counts
        });
    assert_eq!(counts["meter_port_receive_bytes_total"], 1000);
    assert_eq!(counts["meter_port_transmit_skb_packets_created"], 1000);
    assert_eq!(counts["meter_port_info"], 1000);
}

/// Undoes the escapes of a label's value.
fn unescape(value: &str) -> String {
    let mut characters = value.chars();
    let mut text = String::new();
    while let Some(c) = characters.next() {
        text.push(match c {
            '\\' => match characters.next().unwrap() {
                'n' => '\n',
                other => other,
            },
            other => other,
        });
    }
    text
}

fn any_port() -> impl Strategy<Value = Port> {
    let class = select(vec![Class::Port, Class::Uplink, Class::Tunnel]);
    (class, any::<u128>(), "(?s).+", any::<[u64; 5]>(), option::of(any::<u32>())).prop_map(
        |(class, id, name, [a, b, c, d, created_ns], vni)| {
            let mut port = fixture::port(class, id, &name);
            port.created_ns = created_ns;
            port.ingress.skb_packets = a;
            port.ingress.extra_bytes = b;
            port.egress.skb_bytes = c;
            port.egress.extra_packets = d;
            let carrier = port.carrier.as_mut().unwrap();
            carrier.alias = Some(name);
            carrier.vni = vni;
            port
        },
    )
}

/// Names that a user-defined meter can have, `other` among them.
fn any_meters() -> impl Strategy<Value = BTreeMap<String, FlowStats>> {
    let name = prop_oneof![Just("other".to_owned()), "[^\\p{Cc}]{1,20}", r#"[ a:"\\é{}=,#]{1,9}"#];
    let stats = any::<[u64; 2]>().prop_map(|[packets, bytes]| FlowStats { packets, bytes });
    collection::btree_map(name, stats, 0..6)
}

/// Reads the samples of a family of user-defined meters back.
fn user_meters(samples: &[&str], family: &str) -> BTreeMap<String, u64> {
    let prefix = format!("{family}{{meter=\"");
    let read = |sample: &&str| {
        let (name, value) = sample.strip_prefix(&prefix)?.rsplit_once("\"} ").unwrap();
        Some((unescape(name), value.parse().unwrap()))
    };
    samples.iter().filter_map(read).collect()
}

/// Checks that the totals and the alias of a port are read back from its samples.
fn check_port(samples: &[&str], port: &Port) {
    let (prefix, label) = match port.class {
        Class::Port => ("meter_port", "port"),
        Class::Uplink => ("meter_uplink", "uplink"),
        Class::Tunnel => ("meter_tunnel_netdev", "tunnel_netdev"),
    };
    let identity = format!("{{{label}=\"{}\"", port.port);
    for (family, value) in [
        ("receive_packets", port.ingress.wire().packets),
        ("receive_bytes", port.ingress.wire().bytes),
        ("receive_skb_packets", port.ingress.skb_packets),
        ("receive_skb_bytes", port.ingress.skb_bytes),
        ("transmit_packets", port.egress.wire().packets),
        ("transmit_bytes", port.egress.wire().bytes),
        ("transmit_skb_packets", port.egress.skb_packets),
        ("transmit_skb_bytes", port.egress.skb_bytes),
    ] {
        let expected = format!("{prefix}_{family}_total{identity}}} {value}");
        assert!(samples.contains(&expected.as_str()), "{expected} is missing");
    }
    let info = format!("{prefix}_info{identity},");
    let info = samples.iter().find(|line| line.starts_with(&info)).unwrap();
    let (_, rest) = info.split_once(",alias=\"").unwrap();
    let (alias, _) = rest.rsplit_once("\",source=\"").unwrap();
    assert_eq!(Some(unescape(alias)), port.carrier.as_ref().unwrap().alias);
}

proptest! {
    #[test]
    fn both_formats_carry_the_same_samples(
        ports in collection::vec(any_port(), 0..8),
        meters in any_meters(),
    ) {
        let ports: BTreeMap<_, _> = ports.into_iter().map(|port| (port.port, port)).collect();
        let snapshot = Snapshot {
            ports: ports.values().cloned().collect(),
            user_meters: meters.iter().map(|(name, &stats)| (name.clone(), stats.into())).collect(),
            ..fixture::snapshot()
        };
        let open_metrics = rendered(snapshot.clone(), Format::OpenMetrics);
        let text = rendered(snapshot, Format::Text);
        let text = samples(&text, Format::Text);
        let mut open_metrics = samples(&open_metrics, Format::OpenMetrics);
        open_metrics.retain(|sample| !name(sample).ends_with("_created"));
        prop_assert_eq!(&text, &open_metrics);
        for port in ports.values() {
            check_port(&text, port);
        }
        let values = |value: fn(&FlowStats) -> u64| -> BTreeMap<String, u64> {
            meters.iter().map(|(name, stats)| (name.clone(), value(stats))).collect()
        };
        prop_assert_eq!(user_meters(&text, "meter_user_packets_total"), values(|stats| stats.packets));
        prop_assert_eq!(user_meters(&text, "meter_user_bytes_total"), values(|stats| stats.bytes));
    }
}

#[test]
fn skydives_families_are_as_the_connector_wrote_them() {
    let text = exposition(100).render_skydive(&fixture::snapshot());
    fixture::compare("skydive.txt", &text);
}
