//! Whatever bytes come to a port: nothing panics, nothing hangs, and memory does not grow with them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use meter_agent::snapshot::Snapshot;
use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof},
    test_runner::TestRunner,
};

use crate::{
    prometheus::serve,
    served::{Served, snapshot},
    web,
};

/// How long an answer may take; a client that hangs up waits for no time-out of the server.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes that the process may grow by, whatever it is sent.
const GROWTH: usize = 64 * 1024 * 1024;

/// Is set where the test is alone in its process.
const ALONE: &str = "METER_TEST_ALONE";

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics of the servers' threads.
fn count_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("tokio")) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        report(panic);
    }));
}

/// Makes what a client may send: bytes, and pieces of requests in any order.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let text = |text: &'static str| Just(text.as_bytes().to_vec());
    let piece = prop_oneof![
        4 => vec(any::<u8>(), 0..64),
        1 => (any::<u8>(), 0_usize..40_000).prop_map(|(byte, times)| vec![byte; times]),
        2 => text("GET /metrics HTTP/1.1\r\n"),
        2 => text("GET /jolokia/read/org.midonet.midolman:type=Metering HTTP/1.1\r\n"),
        1 => text("GET /jolokia/!!/!/%00%zz?p=%2F&&=;maxDepth=-1 HTTP/1.1\r\n"),
        2 => text("POST /jolokia HTTP/1.1\r\n"),
        1 => text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        1 => text("GET http://[::1/ HTTP/1.0\r\n"),
        3 => text("Host: a\r\n"),
        1 => text("Accept: text/plain;q=;q=1e999, */*;;q=0.5\r\n"),
        1 => text("Accept-Encoding: gzip;q=nan, *;q=-1\r\n"),
        1 => text("Authorization: Basic \u{1F600}=\r\n"),
        1 => text("Authorization: Basic Ojo6\r\n"),
        1 => text("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"),
        1 => text("Expect: 100-continue\r\n"),
        1 => text("Upgrade: h2c\r\nConnection: upgrade\r\n"),
        2 => text("Transfer-Encoding: chunked\r\n"),
        2 => any::<u16>().prop_map(|length| format!("Content-Length: {length}\r\n").into_bytes()),
        1 => text("Content-Length: 18446744073709551616\r\n"),
        4 => text("\r\n"),
        1 => text("ffffffffffffffff\r\n"),
        1 => text("5\r\n[{},7\r\n0\r\n\r\n"),
        2 => text(r#"{"type":"read","mbean":"*:*","attribute":null,"path":"a/!"}"#),
        1 => text(r#"[{"type":"exec","mbean":"a:b=c","operation":"f(","arguments":[1e400]}]"#),
        1 => (1_usize..5000).prop_map(|depth| b"[".repeat(depth)),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Sends bytes and hangs up its half; returns what comes back.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // A server that has seen enough may end the connection first.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let mut piece = [0; 65536];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return answer,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) => {
                let hangs = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(!hangs, "no end: {:?}", String::from_utf8_lossy(&answer));
                return answer;
            }
        }
    }
}

/// Returns the bytes of this process that are in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Returns whether this is a process of the test's own; where it is not, the test runs in one.
///
/// The memory and the panics of other tests are none of this one's.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

#[test]
fn body_in_pieces_of_a_byte_takes_no_more_memory_than_its_bytes() {
    if !is_alone("bytes::body_in_pieces_of_a_byte_takes_no_more_memory_than_its_bytes") {
        return;
    }
    let served = Served::start(snapshot());
    let before = resident();
    let pieces = "1\r\n \r\n".repeat(60_000);
    let mut clients: Vec<TcpStream> =
        (0..4).map(|_| TcpStream::connect(("127.0.0.1", served.port)).unwrap()).collect();
    for stream in &mut clients {
        let head = "POST /jolokia HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(pieces.as_bytes()).unwrap();
    }
    let mut most = 0;
    for stream in &mut clients {
        most = most.max(resident().saturating_sub(before));
        stream.write_all(b"0\r\n\r\n").unwrap();
        // An answer: so all that was sent before has been read.
        assert!(matches!(stream.read(&mut [0; 1024]), Ok(1..)));
    }
    assert!(most < GROWTH / 16, "grown by {most} bytes");
}

#[test]
fn no_bytes_on_either_port_panic_hang_or_grow() {
    if !is_alone("bytes::no_bytes_on_either_port_panic_hang_or_grow") {
        return;
    }
    count_panics();
    let jolokia = Served::start(snapshot());
    let (_runtime, metrics) = serve(Snapshot::default());
    let guarded = web::Site::start(&web::users("secret"));
    let tls = web::Site::start(web::TLS);
    let ports = [metrics, ([127, 0, 0, 1], jolokia.port).into(), guarded.address, tls.address];
    let config = ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() };
    let before = resident();
    TestRunner::new(config)
        .run(&requests(), |bytes| {
            for port in ports {
                let answer = exchange(port, &bytes);
                let is_answer = answer.is_empty() || answer.starts_with(b"HTTP/1.");
                // An alert of TLS.
                prop_assert!(
                    is_answer || port == tls.address && answer.starts_with(b"\x15\x03"),
                    "{answer:?}"
                );
            }
            prop_assert!(PANICS.load(Ordering::Relaxed) == 0, "a server's thread panicked");
            Ok(())
        })
        .unwrap();
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH, "grown by {grown} bytes");
    for (port, path) in ports.into_iter().zip(["/-/healthy", "/jolokia/version"]) {
        let answer = exchange(port, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{path}");
    }
}
