//! The Jolokia service over snapshots of a test's own, on a port of its own.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use meter_agent::{
    http::{
        Request, Response,
        server::{Limits, serve},
    },
    jmx::{
        BeanServer, Identity,
        facts::{Facts, Registry},
    },
    jolokia::{answer, answer_from},
    meter::{DeviceId, FlowStats},
    publish::{Refresh, SnapshotReader},
    snapshot::{Snapshot, TunnelId, TunnelTotals},
};
use meter_ebpf::abi::Encap;
use uuid::Uuid;

/// A device that [`snapshot`] has.
pub(crate) const DEVICE: &str = "meters:device:7d1a2b3c-0000-4000-8000-000000000001";

/// A server that runs until it is dropped.
pub(crate) struct Served {
    /// The port of 127.0.0.1 that it serves at.
    pub(crate) port: u16,
    asked: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    /// Serves one snapshot.
    pub(crate) fn start(snapshot: Snapshot) -> Self {
        Self::sequence(vec![snapshot])
    }

    /// Serves a snapshot for each wish, the last one for all that follow.
    pub(crate) fn sequence(snapshots: Vec<Snapshot>) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let left = Mutex::new(VecDeque::from(snapshots));
        let ask = move |refresh: Refresh| {
            count.fetch_add(1, Ordering::Relaxed);
            let mut left = left.lock().unwrap();
            let next = if left.len() > 1 { left.pop_front() } else { left.front().cloned() };
            refresh.send(Arc::new(next.unwrap())).unwrap();
        };
        let reader = SnapshotReader::new(Arc::new(ArcSwap::from_pointee(Snapshot::default())), ask);
        let server = Arc::new(server(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()));
        Self::serve(asked, move |request| {
            let (reader, server) = (reader.clone(), Arc::clone(&server));
            async move { answer(&server, &reader, request).await }
        })
    }

    /// Serves registries as MidoNet had several, at the time at which the exchanges were recorded.
    pub(crate) fn recorded(registries: Vec<Registry>) -> Self {
        let now = Duration::from_secs(1_795_307_150);
        let server = Arc::new(server(Duration::from_secs(1_795_305_665)));
        let facts = Facts::new(Arc::new(Snapshot::default()), now).with_registries(registries);
        let facts = Arc::new(facts);
        Self::serve(<_>::default(), move |request| {
            let (facts, server) = (Arc::clone(&facts), Arc::clone(&server));
            async move { answer_from(&server, &facts, request).await }
        })
    }

    fn serve<A, F>(asked: Arc<AtomicUsize>, answer: A) -> Self
    where
        A: Fn(Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(serve(listener, Limits::default(), answer));
        Self { port, asked, _runtime: runtime }
    }

    /// Returns how many snapshots were asked for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Sends a request on a connection of its own; returns the answer's status and body.
    pub(crate) fn exchange(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.exchange_with(method, path, &[], body)
    }

    /// Sends a request with further headers; returns the answer's status and body.
    pub(crate) fn exchange_with(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> (u16, String) {
        let (head, body) = self.whole(method, path, headers, body);
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    /// Sends a request with further headers; returns the answer's head and body.
    pub(crate) fn whole(&self, method: &str, path: &str, headers: &[&str], body: &str) -> (String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let length = body.len();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\
             {headers}\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (format!("{head}\r\n"), body.to_owned())
    }
}

fn server(since: Duration) -> BeanServer {
    BeanServer::new(Identity { host: "host-1".to_owned(), pid: 42, version: "0.1.0".to_owned() }, since)
}

/// Makes a snapshot of two devices and a tunnel, with numbers that a float can't hold.
pub(crate) fn snapshot() -> Snapshot {
    let device = |number: u128| DeviceId(Uuid::from_u128(0x7d1a_2b3c_0000_4000_8000_0000_0000_0000 + number));
    let tunnel =
        TunnelId { src: [10, 0, 0, 9].into(), dst: [10, 0, 0, 10].into(), vni: 7, encap: Encap::Vxlan };
    let totals = TunnelTotals { packets: 9_007_199_254_740_993, inner_bytes: u64::MAX / 2, outer_bytes: 0 };
    Snapshot {
        devices: [
            (device(1), FlowStats { packets: 10, bytes: 1000 }),
            (device(2), FlowStats { packets: 50, bytes: 5000 }),
        ]
        .into(),
        tunnels_transmit: [(tunnel, totals)].into(),
        ..Snapshot::default()
    }
}

/// Makes a snapshot of one device.
pub(crate) fn device(packets: u64, bytes: u64) -> Snapshot {
    let id = DEVICE.strip_prefix("meters:device:").unwrap().parse().unwrap();
    Snapshot { devices: [(DeviceId(id), FlowStats { packets, bytes })].into(), ..Snapshot::default() }
}
