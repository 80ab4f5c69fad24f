use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use hyper::{HeaderMap, Method, StatusCode, header::HeaderName};

use super::{Pages, Request, Response, answer, scraper};
use crate::{
    datapath::Class,
    http::{prometheus::Options, tests as fixture},
    publish::SnapshotReader,
    snapshot::{Health, Snapshot},
};

fn pages(reader: SnapshotReader) -> Pages {
    let scraper_agent = "compute-1:7200".to_owned();
    Pages::new(
        reader,
        Options { max_series: 100, midonet: false, scraper: false, scraper_agent, ..Options::default() },
        true,
    )
}

fn fixed(snapshot: Snapshot) -> Pages {
    pages(SnapshotReader::fixed(snapshot))
}

fn request(method: Method, path: &str, headers: &[(&'static str, &str)]) -> Request {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_static(name), value.parse().unwrap());
    }
    Request { method, path: path.to_owned(), query: None, headers: map, body: <_>::default() }
}

async fn ask(pages: &Pages, method: Method, path: &str, headers: &[(&'static str, &str)]) -> Response {
    answer(pages, request(method, path, headers)).await
}

async fn get(pages: &Pages, path: &str) -> (StatusCode, String) {
    let response = ask(pages, Method::GET, path, &[]).await;
    (response.status, String::from_utf8(response.body.to_vec()).unwrap())
}

fn content_type(response: &Response) -> &str {
    response.headers["content-type"].to_str().unwrap()
}

#[tokio::test]
async fn each_path_has_its_page_and_others_have_none() {
    let pages = fixed(fixture::snapshot());
    for (path, status, kind, beginning) in [
        ("/", 200, "text/html; charset=utf-8", "<!DOCTYPE html>"),
        (
            "/metrics",
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            "# HELP meter_port_receive_packets_total ",
        ),
        ("/device_stats", 200, "text/plain; charset=utf-8", "meters:device:00000000-"),
        ("/-/healthy", 200, "text/plain; charset=utf-8", "healthy\n"),
        ("/-/ready", 200, "text/plain; charset=utf-8", "ready\n"),
        ("/metrics/", 404, "text/plain; charset=utf-8", "nothing is served at this path"),
        ("/%6detrics", 404, "text/plain; charset=utf-8", "nothing is served at this path"),
        ("", 404, "text/plain; charset=utf-8", "nothing is served at this path"),
        ("*", 404, "text/plain; charset=utf-8", "nothing is served at this path"),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let response = ask(&pages, method, path, &[]).await;
            let body = String::from_utf8(response.body.to_vec()).unwrap();
            assert_eq!((response.status.as_u16(), content_type(&response)), (status, kind), "{path}");
            assert!(body.starts_with(beginning), "{path}: {body}");
            assert!(status == 200 || body.lines().count() == 1, "{path}: {body}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let response = ask(&pages, method, path, &[]).await;
            let allow = response.headers.get("allow").map(|allow| allow.to_str().unwrap());
            let expected = if status == 404 { (404, None) } else { (405, Some("GET, HEAD")) };
            assert_eq!((response.status.as_u16(), allow), expected, "{path}");
        }
    }
}

#[tokio::test]
async fn accept_headers_choose_the_format() {
    let pages = fixed(fixture::snapshot());
    let both = [("accept", "text/plain;q=0.5"), ("accept", "application/openmetrics-text")];
    let response = ask(&pages, Method::GET, "/metrics", &both).await;
    assert_eq!(content_type(&response), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert_eq!(response.headers["vary"], "Accept, Accept-Encoding");
    assert!(response.body.ends_with(b"\n# EOF\n"));
}

fn read_gzip(body: &[u8]) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(body), &mut text).unwrap();
    text
}

#[tokio::test]
async fn pages_with_totals_are_compressed_for_those_who_take_it() {
    let ports = (0..100).map(|id| fixture::port(Class::Port, id, "tap0")).collect();
    let pages = fixed(Snapshot { ports, ..fixture::snapshot() });
    for (path, vary) in [("/metrics", "Accept, Accept-Encoding"), ("/device_stats", "Accept-Encoding")] {
        for (headers, coding) in [
            (&[][..], None),
            (&[("accept-encoding", "gzip")], Some("gzip")),
            (&[("accept-encoding", "br"), ("accept-encoding", "gzip;q=0.5")], Some("gzip")),
            (&[("accept-encoding", "gzip;q=0")], None),
        ] {
            let response = ask(&pages, Method::GET, path, headers).await;
            assert_eq!(response.headers["vary"], vary);
            let found = response.headers.get("content-encoding").map(|coding| coding.to_str().unwrap());
            assert_eq!(found, coding, "{path} {headers:?}");
            let text = match coding {
                Some(_) => read_gzip(&response.body),
                None => String::from_utf8(response.body.to_vec()).unwrap(),
            };
            assert!(text.contains("845a54bf-b702-4dc2-8958-bbe7156bc4ef"), "{text}");
        }
    }
    let gzip = [("accept-encoding", "gzip")];
    let response = ask(&pages, Method::GET, "/-/healthy", &gzip).await;
    assert_eq!((response.headers.get("content-encoding"), &response.body[..]), (None, &b"healthy\n"[..]));
}

#[tokio::test]
async fn large_page_keeps_no_other_client_waiting() {
    let ports = (0..1000).map(|id| fixture::port(Class::Port, id, "tap0")).collect();
    let pages = fixed(Snapshot { ports, ..Snapshot::default() });
    let gzip = [("accept-encoding", "gzip")];
    // The large one goes first, on the one thread that there is.
    tokio::select! {
        biased;
        response = ask(&pages, Method::GET, "/metrics", &gzip) => panic!("made at once: {}", response.status),
        (status, _) = get(&pages, "/-/healthy") => assert_eq!(status, 200),
    }
}

#[tokio::test]
async fn device_stats_can_be_switched_off() {
    let pages = Pages { device_stats: false, ..fixed(fixture::snapshot()) };
    assert_eq!(ask(&pages, Method::GET, "/device_stats", &[]).await.status, 404);
    let (_, landing) = get(&pages, "/").await;
    assert!(!landing.contains("device_stats"), "{landing}");
}

#[tokio::test]
async fn scrapers_port_has_its_one_page() {
    let pages = fixed(fixture::snapshot());
    for method in [Method::GET, Method::HEAD, Method::POST] {
        let accept = [("accept", "application/openmetrics-text")];
        let response = scraper(&pages, request(method, "/metrics", &accept)).await;
        assert_eq!(
            (response.status.as_u16(), content_type(&response)),
            (200, "text/plain; version=0.0.4; charset=utf-8")
        );
        assert!(response.body.starts_with(b"# HELP mndev_pkts "));
    }
    assert_eq!(scraper(&pages, request(Method::GET, "/", &[])).await.status, 404);
    let response = scraper(&pages, request(Method::PUT, "/metrics", &[])).await;
    assert_eq!(
        (response.status.as_u16(), &response.headers["allow"]),
        (405, &"GET, HEAD, POST".parse().unwrap())
    );
}

#[tokio::test]
async fn landing_page_links_every_other_page() {
    let pages = fixed(Snapshot::default());
    let (_, body) = get(&pages, "/").await;
    assert!(body.contains(env!("CARGO_PKG_VERSION")), "{body}");
    for (path, ..) in &super::ROUTES[1..] {
        assert!(body.contains(&format!("<a href=\"{path}\">")), "{body}");
    }
}

#[tokio::test]
async fn agent_is_healthy_before_it_is_ready_and_says_why() {
    let mut snapshot = Snapshot::default();
    for (generation, health, status, line) in [
        (0, Health::default(), 503, "not ready: nothing has been counted yet\n"),
        (
            3,
            Health { attach_pending: 2, ..Health::default() },
            503,
            "not ready: 2 of the netdevs found at the start are not attached yet\n",
        ),
        (3, Health { ready: true, ..Health::default() }, 200, "ready\n"),
    ] {
        snapshot = Snapshot { generation, health, ..snapshot };
        let pages = fixed(snapshot.clone());
        let (found, body) = get(&pages, "/-/ready").await;
        assert_eq!((found.as_u16(), body.as_str()), (status, line));
        assert_eq!(get(&pages, "/-/healthy").await, (StatusCode::OK, "healthy\n".to_owned()));
    }
}

#[tokio::test]
async fn totals_are_read_for_each_request_and_health_is_not() {
    let asked = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&asked);
    let latest = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let reader = SnapshotReader::new(latest, move |refresh| {
        *counter.lock().unwrap() += 1;
        let fresh = Snapshot { generation: 41, ..fixture::snapshot() };
        drop(refresh.send(Arc::new(fresh)));
    });
    let pages = pages(reader);
    for path in ["/", "/-/healthy", "/-/ready"] {
        get(&pages, path).await;
    }
    assert_eq!(*asked.lock().unwrap(), 0);
    let (_, body) = get(&pages, "/metrics").await;
    assert!(body.contains("\nmeter_agent_readings_total 41\n"), "{body}");
    let (_, body) = get(&pages, "/device_stats").await;
    assert!(body.contains("meters:tunnel:167772169:-1062731519\t5\t500\n"), "{body}");
    assert_eq!(*asked.lock().unwrap(), 2);
}
