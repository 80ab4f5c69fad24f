//! What dashboards of the Skydive-Prometheus connector ask: its own query gives the true rate, and its families of netdevs are
//! what the kernel counts.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use lab::{
    count::{Count, Flow},
    traffic::connect,
};

use super::{Daemon, Guests, Host, PORT, WITHIN, bound, prometheus::Prometheus, ready};

/// What the connector's users ask.
const QUERY: &str = "rate(skydive_network_connection_total_bytes[1m])";
/// Its range.
const RANGE: Duration = Duration::from_secs(60);
/// From one write to the next.
const PACE: Duration = Duration::from_millis(20);
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 5_001);

/// Lets one stream and one flow of datagrams run at a steady rate while `work` is done.
fn steadily<T>(guests: &Guests, work: impl FnOnce() -> T) -> T {
    let (vm, container) = (guests.vm.netns(), guests.container.netns());
    let (mut client, mut server) = connect(vm, container, SERVER, WITHIN).unwrap();
    client.set_nodelay(true).unwrap();
    let sink = container.run_in(|| UdpSocket::bind(SERVER)).unwrap().unwrap();
    let source = vm.run_in(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
    source.connect(SERVER).unwrap();
    sink.set_nonblocking(true).unwrap();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            let mut buffer = [0; 4_096];
            while server.read(&mut buffer).unwrap() > 0 {}
        });
        let sending = scope.spawn(|| {
            let mut next = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                client.write_all(&[0x5a; 700]).unwrap();
                source.send(&[0x5a; 400]).unwrap();
                while sink.recv(&mut [0; 2_048]).is_ok() {}
                next += PACE;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        ended.store(true, Ordering::Relaxed);
        sending.join().unwrap();
        receiving.join().unwrap();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Returns what each flow of the guest moved so far, both ways.
fn flows(guests: &Guests) -> BTreeMap<Flow, Count> {
    let counts = guests.vm.counts();
    counts.from_guest.flows.into_iter().chain(counts.to_guest.flows).collect()
}

/// What an answer's series is about.
fn flow_of(labels: &serde_json::Value) -> Flow {
    let text = |label: &str| labels[label].as_str().unwrap_or_else(|| panic!("{label} in {labels}"));
    let end = |end: &str| {
        let [ip, port] = ["ip", "port"].map(|what| text(&format!("{end}_{what}")));
        SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap())
    };
    let protocol = match text("protocol") {
        "TCP" => 6,
        "UDP" => 17,
        other => panic!("{other} in {labels}"),
    };
    assert_eq!(text("node_tid"), PORT);
    match text("direction") {
        "initiator_to_target" => (protocol, end("initiator"), end("target")),
        "target_to_initiator" => (protocol, end("target"), end("initiator")),
        other => panic!("{other} in {labels}"),
    }
}

#[test]
fn the_connectors_query_is_answered_with_the_true_rate() {
    if !ready() || !Prometheus::is_here() {
        return;
    }
    let host = Host::new("connector");
    let guests = Guests::new(&host.netns);
    let mut daemon = Daemon::new(&host, &format!("{}[connections]\nnetdevs = [\"tap*\"]\n", bound("tap1")));
    daemon.start_flags(&[], &["--compat.skydive"], |_| {});
    daemon.wait_until_ready();
    let prometheus = Prometheus::start(&host, &[]);
    steadily(&guests, || {
        // The independent count as it was at each look.
        let mut seen: Vec<(Instant, BTreeMap<Flow, Count>)> = Vec::new();
        let deadline = Instant::now() + RANGE + WITHIN;
        let is_long = "skydive_network_connection_total_bytes offset 62s";
        while prometheus.series(is_long).len() < 4 {
            assert!(Instant::now() < deadline, "no connection is known for a minute");
            seen.push((Instant::now(), flows(&guests)));
            thread::sleep(Duration::from_millis(200));
        }
        let (now, answer) = (Instant::now(), prometheus.series(QUERY));
        let after = flows(&guests);
        let (then, before) = seen
            .iter()
            .rev()
            .find(|(then, _)| now.duration_since(*then) >= RANGE)
            .expect("a minute has passed");
        let answer: BTreeMap<Flow, f64> =
            answer.iter().map(|(labels, value)| (flow_of(labels), value.parse().unwrap())).collect();
        let flow = |protocol| move |flow: &&Flow| flow.0 == protocol;
        assert_eq!((answer.keys().filter(flow(6)).count(), answer.keys().filter(flow(17)).count()), (2, 2));
        for (flow, rate) in answer {
            let moved = |counts: &BTreeMap<Flow, Count>| counts.get(&flow).copied().unwrap_or_default();
            let moved = moved(&after).since(moved(before));
            #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
            let truth = moved.bytes as f64 / now.duration_since(*then).as_secs_f64();
            let answers = flow.0 == 17 && flow.1 == SERVER;
            assert_eq!(truth < 1_000.0, answers, "{flow:?}: {moved:?}");
            assert!((rate - truth).abs() <= truth * 0.03, "{flow:?}: {rate} and in truth {truth}");
        }
    });
}

#[test]
fn netdevs_of_the_connectors_page_are_as_the_kernel_counts_them() {
    if !ready() {
        return;
    }
    let host = Host::new("connector-netdevs");
    let guests = Guests::new(&host.netns);
    host.netns.address("tap1", [192, 0, 2, 5].into(), 24).unwrap();
    host.netns.address("tap1", "2001:db8::5".parse().unwrap(), 64).unwrap();
    let daemon = Daemon::started(&host, &format!("{}[compat]\nskydive = true\n", bound("tap1")));
    guests.talk();
    guests.counts();
    let labels = |daemon: &Daemon<'_>| {
        let text = daemon.get("/metrics");
        let lines = text.lines().filter_map(|line| line.strip_prefix("skydive_network_interface_"));
        lines.filter(|line| line.contains("interface_name=\"tap1\"")).map(str::to_owned).collect::<Vec<_>>()
    };
    let stats = host.netns.stats("tap1").unwrap();
    assert!(stats.rx_bytes > 500_000, "{stats:?}");
    let name = host.netns.run("uname", &["-n"]).unwrap();
    let expected: BTreeMap<&str, u64> = [
        ("collisions", 0),
        ("rx_bytes", stats.rx_bytes),
        ("rx_dropped", 0),
        ("rx_errors", 0),
        ("rx_missed_errors", 0),
        ("rx_packets", stats.rx_packets),
        ("tx_bytes", stats.tx_bytes),
        ("tx_dropped", stats.tx_dropped),
        ("tx_errors", 0),
        ("tx_missed_errors", 0),
        ("tx_packets", stats.tx_packets),
    ]
    .into();
    let labels_of_tap = format!(
        "{{host=\"{}\",interface_name=\"tap1\",interface_type=\"tap\",ipv4=\"192.0.2.5/24\",ipv6=\"2001:db8::5/64\",\
         node_tid=\"{PORT}\"}}",
        name.trim()
    );
    // They are as old as the last look.
    daemon.wait("the page says what the kernel does", |daemon| {
        let lines = labels(daemon);
        let found: BTreeMap<&str, f64> = lines
            .iter()
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                Some((series.strip_suffix(&*labels_of_tap)?, value.parse().ok()?))
            })
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
        let is_so = |(name, value): (&&str, &u64)| found.get(*name) == Some(&(*value as f64));
        found.len() == expected.len() && expected.iter().all(is_so)
    });
}
