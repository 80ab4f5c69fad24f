//! The metrics port as a client on a socket finds it, and what Prometheus' own linter says of the metrics.

use std::{
    io::{Read as _, Seek as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::Arc,
    time::Duration,
};

use lab::require;
use meter_agent::{
    http::{prometheus::Options, routes, server, web},
    meter::{DeviceId, FlowStats},
    publish::SnapshotReader,
    snapshot::Snapshot,
};

/// Every family, as the library's own tests prove that it is rendered.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/prometheus");

/// Returns a file in which the library's own tests hold what is rendered.
fn golden(file: &str) -> Vec<u8> {
    std::fs::read(format!("{GOLDEN}/{file}")).unwrap()
}

/// Returns how `promtool check metrics` ended over a text, and what it said; `None` where there is no such tool.
fn lint(metrics: &[u8]) -> Option<(Option<i32>, String)> {
    let found = Command::new("promtool").arg("--version").output().is_ok();
    if !require::met("promtool", found, "promtool (apt-get install prometheus)") {
        return None;
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(metrics).unwrap();
    file.rewind().unwrap();
    let linted = Command::new("promtool").args(["check", "metrics"]).stdin(file).output().unwrap();
    let said = String::from_utf8_lossy(&linted.stdout) + String::from_utf8_lossy(&linted.stderr);
    Some((linted.status.code(), said.into_owned()))
}

#[test]
fn linter_of_prometheus_finds_nothing() {
    if let Some((code, said)) = lint(&golden("metrics.txt")) {
        assert!(code == Some(0) && said.trim().is_empty(), "{said}");
    }
}

#[test]
fn compatible_families_can_be_parsed_and_have_no_faults_but_those_of_old() {
    for (file, faults) in [
        ("midonet.txt", &["midonet_packets_bytes counter metrics should have"][..]),
        ("scraper.txt", &["mndev_", "mnport_", "mntun_"]),
    ] {
        let Some((code, said)) = lint(&golden(file)) else { return };
        // 3 says that the linter has something to say of names; 1 that it could not read the text.
        assert_eq!(code, Some(3), "{file}: {said}");
        for line in said.lines() {
            assert!(faults.iter().any(|fault| line.starts_with(fault)), "{file}: {line}");
        }
    }
}

fn options() -> Options {
    Options {
        max_series: 1000,
        midonet: false,
        scraper: false,
        scraper_agent: "compute1:7200".to_owned(),
        ..Options::default()
    }
}

/// Serves a snapshot on a port of its own for as long as the test runs.
pub(crate) fn serve(snapshot: Snapshot) -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reader = SnapshotReader::fixed(snapshot);
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let pages = Arc::new(routes::Pages::new(reader, options(), true));
    runtime.spawn(server::serve(listener, server::Limits::default(), move |request| {
        let pages = Arc::clone(&pages);
        async move { routes::answer(&pages, request).await }
    }));
    (runtime, address)
}

/// Sends these bytes and returns all that comes back, head and body.
fn exchange(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let sent = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    // A server that refuses what it has not read to its end resets the connection behind its answer.
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..length]);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) =
        answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request:.60}: {sent:?}: {answer:?}"));
    (head.to_ascii_lowercase(), body.to_owned())
}

/// Asks for a path on a connection of its own; returns head and body.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    exchange(address, &format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
}

#[test]
fn head_is_get_without_the_body() {
    let devices = [(DeviceId(uuid::Uuid::from_u128(1)), FlowStats { packets: 1, bytes: 60 })].into();
    let (_runtime, address) = serve(Snapshot { devices, ..Snapshot::default() });
    for path in ["/", "/device_stats", "/-/healthy", "/-/ready", "/none"] {
        let (get, body) = ask(address, "GET", path);
        let (head, nothing) = ask(address, "HEAD", path);
        let without_date = |head: &str| {
            let mut lines: Vec<_> = head.lines().filter(|line| !line.starts_with("date:")).collect();
            lines.sort_unstable();
            lines.join("\n")
        };
        assert_eq!(without_date(&get), without_date(&head), "{path}");
        assert!(get.contains(&format!("content-length: {}", body.len())), "{path}: {get}");
        assert_eq!(nothing, "", "{path}");
    }
}

#[test]
fn metrics_are_served_in_the_format_that_the_client_names() {
    let (_runtime, address) = serve(Snapshot::default());
    let (head, body) = ask(address, "GET", "/metrics?a=b");
    assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(body.ends_with('\n') && !body.contains("# EOF"), "{body}");
    let request = "GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n";
    let (head, body) = exchange(address, request);
    let kind = "\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(head.contains(kind), "{head}");
    assert!(body.ends_with("\n# EOF\n"), "{body}");
}

#[test]
fn metrics_show_the_servers_that_are_published() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web.yml");
    std::fs::write(&file, "http_server_config: {headers: {X-Frame-Options: deny}}").unwrap();
    let web = Arc::new(web::Web::load(&file).unwrap());
    let loaded = web.status().loaded_s;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let limits = server::Limits { max_connections_of_peer: 1, ..server::Limits::default() };
    let serving = server::Server::new(limits).with_web(Some(web)).publish("metrics");
    let reader = SnapshotReader::fixed(Snapshot::default());
    runtime.spawn(async move {
        let pages = Arc::new(routes::Pages::new(reader, options(), true));
        let answer = move |request| {
            let pages = Arc::clone(&pages);
            async move { routes::answer(&pages, request).await }
        };
        serving.serve(listener, answer).await;
    });
    let idle = TcpStream::connect(address).unwrap();
    let (_, body) = ask(address, "GET", "/metrics");
    drop(idle);
    let shown: Vec<&str> = body
        .lines()
        .filter(|line| line.starts_with("meter_agent_http") || line.starts_with("meter_agent_web"))
        .collect();
    let timestamp = format!("meter_agent_web_config_last_reload_success_timestamp_seconds {loaded}");
    assert_eq!(
        shown,
        [
            r#"meter_agent_http_connections{server="metrics"} 1"#,
            r#"meter_agent_http_connections_accepted_total{server="metrics"} 2"#,
            r#"meter_agent_http_connections_refused_total{server="metrics",reason="peer_full"} 0"#,
            r#"meter_agent_http_connections_refused_total{server="metrics",reason="full"} 0"#,
            r#"meter_agent_http_connections_cut_total{server="metrics",reason="head_timeout"} 0"#,
            r#"meter_agent_http_connections_cut_total{server="metrics",reason="idle"} 0"#,
            r#"meter_agent_http_connections_cut_total{server="metrics",reason="write_stalled"} 0"#,
            r#"meter_agent_http_connections_cut_total{server="metrics",reason="write_timeout"} 0"#,
            r#"meter_agent_http_connections_cut_total{server="metrics",reason="displaced"} 1"#,
            r#"meter_agent_http_connections_cut_total{server="metrics",reason="tls_handshake"} 0"#,
            "meter_agent_web_config_last_reload_successful 1",
            &timestamp,
        ]
    );
    if let Some((code, said)) = lint(body.as_bytes()) {
        assert!(code == Some(0) && said.trim().is_empty(), "{said}");
    }
}

#[test]
fn garbage_gets_an_error_and_the_next_client_its_page() {
    let (_runtime, address) = serve(Snapshot::default());
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000));
    for (request, status) in [
        ("\r\n\r\nnonsense\r\n\r\n", "400"),
        ("GET / HTTP/9.9\r\n\r\n", "400"),
        ("GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", "400"),
        (&long, "4"),
        ("POST /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", "405"),
    ] {
        let (head, _) = exchange(address, request);
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{request:.60}: {head}");
    }
    assert_eq!(ask(address, "GET", "/-/healthy").1, "healthy\n");
}
