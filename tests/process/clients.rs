//! Clients that take more than their share: none of them costs another one its answer.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use meter_agent::http::{
    Request, Response,
    server::{Cut, Limits, Refused, Server, Stats},
};

/// Bytes of `/large`: more than the kernels' buffers of a connection hold.
const LARGE: usize = 16 * 1024 * 1024;
/// How long something may take that happens on its own.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server of a short and a large page, and of one that is never ready.
struct Site {
    server: Server,
    address: SocketAddr,
    /// Answers of `/made` that are in memory.
    made: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

/// An answer that counts while it is in memory.
struct Counted {
    bytes: Vec<u8>,
    made: Arc<AtomicUsize>,
}

impl Counted {
    fn new(bytes: &[u8], made: &Arc<AtomicUsize>) -> Self {
        made.fetch_add(1, Ordering::SeqCst);
        Self { bytes: bytes.to_vec(), made: Arc::clone(made) }
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.made.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Site {
    fn start(limits: Limits) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(limits);
        let large = Bytes::from(vec![b'x'; LARGE]);
        let made = Arc::new(AtomicUsize::new(0));
        let (serving, counted) = (server.clone(), Arc::clone(&made));
        runtime.spawn(async move {
            let answer = move |request: Request| {
                let (large, made) = (large.clone(), Arc::clone(&counted));
                async move {
                    match request.path.as_str() {
                        "/large" => Response::ok("text/plain", large),
                        "/made" => Response::ok("text/plain", Bytes::from_owner(Counted::new(&large, &made))),
                        "/never" => std::future::pending().await,
                        _ => Response::ok("text/plain", request.body),
                    }
                }
            };
            serving.serve(listener, answer).await;
        });
        Self { server, address, made, _runtime: runtime }
    }

    /// Connects and sends these bytes.
    fn send(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream
    }

    /// Asks for a page on a connection of its own; returns the status and how long the body is.
    fn ask(&self, path: &str) -> (String, usize) {
        answer(self.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")))
    }

    /// Waits until the server's counts are so.
    fn wait(&self, what: &str, holds: impl Fn(&Stats) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.server.stats()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.server.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads an answer to its end; returns its status and how long its body is.
fn answer(mut stream: TcpStream) -> (String, usize) {
    let mut answer = Vec::new();
    let mut piece = vec![0; 65536];
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..length]);
    }
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap_or_else(|| {
        panic!("no answer: {:?}", String::from_utf8_lossy(&answer[..answer.len().min(200)]))
    });
    let text = String::from_utf8_lossy(&answer[..head]).into_owned();
    (text.split(' ').nth(1).unwrap().to_owned(), answer.len() - head - 4)
}

const GET_LARGE: &str = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn clients_that_do_not_read_cost_nobody_an_answer() {
    let limits = Limits { max_unsent: 4 * LARGE, ..Limits::default() };
    let places = u64::try_from(limits.max_connections_of_peer).unwrap();
    let site = Site::start(limits);
    // All from one address, as another scraper on the same host is.
    let hostile: Vec<TcpStream> = (0..512).map(|_| site.send(GET_LARGE)).collect();
    for _ in 0..3 {
        assert_eq!(site.ask("/"), ("200".to_owned(), 0));
        assert_eq!(site.ask("/large"), ("200".to_owned(), LARGE));
    }
    let stats = site.server.stats();
    assert!(u64::try_from(stats.open).unwrap() <= places, "{stats:?}");
    assert!(stats.cut(Cut::Displaced) + stats.refused(Refused::Peer) >= 512 - places, "{stats:?}");
    drop(hostile);
    site.wait("all gone", |stats| stats.open == 0);
}

#[test]
fn answers_that_nobody_reads_take_so_much_memory_and_no_more() {
    // None is cut because it stands still, however slow the machine is.
    let stall_timeout = 10 * PATIENCE;
    let site = Site::start(Limits { max_unsent: 4 * LARGE, stall_timeout, ..Limits::default() });
    let hostile: Vec<TcpStream> =
        (0..32).map(|_| site.send("GET /made HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    assert_eq!(site.ask("/made"), ("200".to_owned(), LARGE));
    // Whoever gets its answer later takes the memory of one who has it already.
    site.wait("four are held", |stats| stats.open <= 4 && stats.cut(Cut::Displaced) == 28);
    drop(hostile);
}

#[test]
fn next_request_hides_no_answer_that_nobody_reads() {
    let site = Site::start(Limits { max_unsent: 4 * LARGE, ..Limits::default() });
    let two = "GET /made HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let hostile: Vec<TcpStream> = (0..32).map(|_| site.send(two)).collect();
    assert_eq!(site.ask("/made"), ("200".to_owned(), LARGE));
    // An answer's memory goes after its connection.
    site.wait("four are held", |stats| stats.open <= 4 && site.made.load(Ordering::SeqCst) <= 4);
    drop(hostile);
}

#[test]
fn bytes_of_a_next_request_do_not_keep_an_answer_waiting() {
    let site = Site::start(Limits { stall_timeout: Duration::from_secs(1), ..Limits::default() });
    let mut hostile = site.send(GET_LARGE);
    let deadline = Instant::now() + PATIENCE;
    while site.server.stats().cut(Cut::Stalled) == 0 {
        assert!(Instant::now() < deadline, "{:?}", site.server.stats());
        // Fails once the connection is cut.
        drop(hostile.write_all(b"G"));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn client_that_stops_reading_is_cut_and_its_memory_is_free() {
    let site = Site::start(Limits {
        stall_timeout: Duration::from_millis(200),
        max_unsent: LARGE,
        ..Limits::default()
    });
    let hostile: Vec<TcpStream> = (0..4).map(|_| site.send(GET_LARGE)).collect();
    site.wait("each cut", |stats| stats.open == 0 && stats.accepted == 4);
    let stats = site.server.stats();
    assert_eq!(stats.cut(Cut::Stalled) + stats.cut(Cut::Displaced), 4, "{stats:?}");
    assert_eq!(site.ask("/large"), ("200".to_owned(), LARGE));
    drop(hostile);
}

#[test]
fn answer_that_is_taken_drop_by_drop_has_an_end() {
    let site = Site::start(Limits { send_timeout: Duration::from_millis(400), ..Limits::default() });
    let mut slow = site.send(GET_LARGE);
    let mut piece = vec![0; 64 * 1024];
    while site.server.stats().open > 0 && slow.read(&mut piece).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    site.wait("cut", |stats| stats.cut(Cut::Slow) == 1 && stats.open == 0);
}

#[test]
fn head_that_does_not_end_is_a_408_and_an_idle_connection_just_ends() {
    let site = Site::start(Limits {
        head_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(900),
        ..Limits::default()
    });
    let loris: Vec<TcpStream> =
        (0..10).map(|index| site.send(&"GET / HTTP/1.1\r\nHost: a\r\nX: "[..3 * index])).collect();
    for stream in loris {
        assert_eq!(answer(stream).0, "408");
    }
    assert_eq!(site.server.stats().cut(Cut::Head), 10);
    // The time of a head begins anew with its first byte, however often the connection was used.
    let mut used = site.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    // Only then: what comes with the request before begins with its answer.
    let mut first = [0; 1];
    used.read_exact(&mut first).unwrap();
    used.write_all(b"GET / HTTP").unwrap();
    let mut all = String::from_utf8(first.into()).unwrap();
    used.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 OK") && all.contains("HTTP/1.1 408 Request Timeout"), "{all}");
    let mut idle = site.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    all.clear();
    idle.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 OK") && all.ends_with("\r\n\r\n"), "{all}");
    let stats = site.server.stats();
    assert_eq!((stats.cut(Cut::Head), stats.cut(Cut::Idle)), (11, 1));
}

#[test]
fn slow_head_byte_by_byte_has_no_more_time_than_a_silent_one() {
    let site = Site::start(Limits { head_timeout: Duration::from_millis(300), ..Limits::default() });
    let mut loris = site.send("GET / HTTP/1.1\r\nX: ");
    while site.server.stats().cut(Cut::Head) == 0 {
        if loris.write_all(b"a").is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(answer(loris).0, "408");
}

#[test]
fn bodies_have_a_time_and_a_length_and_the_client_reads_which() {
    let limits = Limits { body_timeout: Duration::from_millis(300), max_body: 1000, ..Limits::default() };
    let site = Site::start(limits);
    let post = |length: usize| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    assert_eq!(answer(site.send(&(post(1000) + "half"))).0, "408");
    let long = post(3_000_000) + &"x".repeat(3_000_000);
    assert_eq!(answer(site.send(&long)).0, "413");
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    assert_eq!(answer(site.send(&(chunked + "7d0\r\n" + &"x".repeat(2000) + "\r\n0\r\n\r\n"))).0, "413");
    assert_eq!(answer(site.send(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(100_000)))).0, "431");
    let many: String = (0..1000).map(|index| format!("x{index}: 1\r\n")).collect();
    assert_eq!(answer(site.send(&format!("GET / HTTP/1.1\r\n{many}\r\n"))).0, "431");
    assert_eq!(site.ask("/").0, "200");
}

#[test]
fn answer_that_takes_too_long_is_a_503_and_the_connection_lives() {
    let site = Site::start(Limits { answer_timeout: Duration::from_millis(200), ..Limits::default() });
    let last = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut stream = site.send(&format!("GET /never HTTP/1.1\r\nHost: a\r\n\r\n{last}"));
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(
        all.starts_with("HTTP/1.1 503") && all.contains("the answer took too long\nHTTP/1.1 200"),
        "{all}"
    );
}

#[test]
fn half_closed_client_gets_its_answer() {
    let site = Site::start(Limits::default());
    let mut stream = site.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 OK") && all.ends_with("\r\n\r\nhello"), "{all}");
    // Half a head, and no more to come.
    let stream = site.send("GET / HT");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    site.wait("all gone", |stats| stats.open == 0);
}

#[test]
fn who_finds_all_places_waiting_for_the_server_is_told_so() {
    let site = Site::start(Limits { max_connections_of_peer: 4, ..Limits::default() });
    let waiting: Vec<TcpStream> =
        (0..4).map(|_| site.send("GET /never HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    site.wait("all asked", |stats| stats.open == 4);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut refused = TcpStream::connect(site.address).unwrap();
        let mut all = String::new();
        // Until the four have been read, one of them may have given way.
        if refused.read_to_string(&mut all).is_ok() && all.starts_with("HTTP/1.1 503 Service Unavailable") {
            break;
        }
        assert!(Instant::now() < deadline, "{all}: {:?}", site.server.stats());
    }
    assert!(site.server.stats().refused(Refused::Peer) > 0);
    drop(waiting);
}
