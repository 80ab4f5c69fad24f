//! The listeners: which address serves what.

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::{activation::Inherited, beans};
use crate::{
    config::{self, Config},
    control::{self, Desk},
    http::{
        Request, Response, prometheus, routes,
        server::{Limits, Server},
        web::Web,
    },
    jolokia,
    publish::SnapshotReader,
};

/// How long an address that can't be listened on is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// A server at one of its addresses.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts every server on the current runtime.
///
/// The http server says that the agent is ready, and whoever has read that may connect to another server at once. So nothing
/// is served before every address that can be had is listened on.
pub(super) fn start(
    config: &Config,
    web: Option<Web>,
    inherited: Inherited,
    control: Option<(UnixListener, Desk)>,
    reader: &SnapshotReader,
) {
    for task in prepare(config, web, inherited, control, reader) {
        tokio::spawn(task);
    }
}

/// Makes every server, listens for it on the current runtime, and returns what is to run. Connections that come before wait in
/// the kernel.
fn prepare(
    config: &Config,
    web: Option<Web>,
    inherited: Inherited,
    control: Option<(UnixListener, Desk)>,
    reader: &SnapshotReader,
) -> Vec<Task> {
    let pages = Arc::new(routes::Pages::new(reader.clone(), exposition(config), config.compat.device_stats));
    let native = {
        let pages = Arc::clone(&pages);
        move |request| {
            let pages = Arc::clone(&pages);
            async move { routes::answer(&pages, request).await }
        }
    };
    let web = web.map(Arc::new);
    let server = Server::new(Limits::default()).with_web(web.clone()).publish("metrics");
    let mut tasks = tasks_of("http", &server, inherited.metrics, &config.http_listen, &native);

    if !config.compat.skydive_listen.is_empty() {
        let pages = Arc::clone(&pages);
        let skydive = move |request| {
            let pages = Arc::clone(&pages);
            async move { routes::skydive(&pages, request).await }
        };
        let server = Server::new(Limits::default()).with_web(web.clone()).publish("skydive");
        let more = tasks_of("skydive", &server, Vec::new(), &config.compat.skydive_listen, &skydive);
        tasks.extend(more);
    }

    let scraper = move |request| {
        let pages = Arc::clone(&pages);
        async move { routes::scraper(&pages, request).await }
    };
    if !config.compat.scraper_listen.is_empty() {
        // The same numbers, so the same clients may read them.
        let server = Server::new(Limits::default()).with_web(web).publish("scraper");
        let more = tasks_of("scraper", &server, Vec::new(), &config.compat.scraper_listen, &scraper);
        tasks.extend(more);
    }

    if !config.jolokia_listen.is_empty() || !inherited.jolokia.is_empty() {
        let (reader, beans) = (reader.clone(), beans::start(config, reader));
        let jolokia = move |request| {
            let (reader, beans) = (reader.clone(), Arc::clone(&beans));
            async move { jolokia::answer(&beans, &reader, request).await }
        };
        if config.web_config.is_some() && is_open(&inherited.jolokia, &config.jolokia_listen) {
            tracing::warn!("Jolokia is open to other hosts, and http.config_file does not hold for it");
        }
        // Its clients, mm-meter among them, speak plain HTTP and know no password; it is on the loopback for that.
        let server = Server::new(Limits::default()).publish("jolokia");
        let more = tasks_of("jolokia", &server, inherited.jolokia, &config.jolokia_listen, &jolokia);
        tasks.extend(more);
    }

    if let Some((socket, desk)) = control {
        let server = Server::new(Limits::default()).publish("control");
        tasks.push(Box::pin(async move {
            let answer = move |request| {
                let desk = desk.clone();
                async move { control::answer(&desk, request).await }
            };
            server.serve(socket, answer).await;
        }));
    }
    tasks
}

fn exposition(config: &Config) -> prometheus::Options {
    prometheus::Options {
        max_series: usize::try_from(config.metrics.max_series).unwrap_or(usize::MAX),
        midonet: config.compat.midonet,
        scraper: config.compat.scraper,
        scraper_agent: config.compat.scraper_agent.clone(),
        connections: config.connections_view.clone(),
        skydive: config.compat.skydive,
    }
}

/// Returns whether other hosts can connect to the sockets that were passed or, for want of any, to the configured addresses.
fn is_open(passed: &[std::net::TcpListener], addresses: &[SocketAddr]) -> bool {
    let passed_at: Vec<SocketAddr> = passed.iter().filter_map(|socket| socket.local_addr().ok()).collect();
    let addresses = if passed.is_empty() { addresses } else { &passed_at };
    addresses.iter().any(|address| !address.ip().to_canonical().is_loopback())
}

/// Makes what serves on the sockets that were passed or, for want of any, on the configured addresses.
fn tasks_of<A, F>(
    what: &'static str,
    server: &Server,
    passed: Vec<std::net::TcpListener>,
    addresses: &[SocketAddr],
    answer: &A,
) -> Vec<Task>
where
    A: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let mut tasks: Vec<Task> = Vec::new();
    let is_passed = !passed.is_empty();
    for socket in passed {
        match adopt(socket) {
            Ok(listener) => {
                tracing::info!(what, listen = ?listener.local_addr().ok(), "serving on a socket that was passed");
                let (server, answer) = (server.clone(), answer.clone());
                tasks.push(Box::pin(async move { server.serve(listener, answer).await }));
            }
            Err(error) => tracing::error!(what, error = %error, "can't serve on a socket that was passed"),
        }
    }
    for &address in addresses.iter().filter(|_| !is_passed) {
        let first = bind(address);
        tasks.push(Box::pin(serve_at(what, server.clone(), address, first, answer.clone())));
    }
    tasks
}

fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

/// Serves on an address. `first` is what came of the first try to listen there: it is tried again until it can be done, as
/// counting must not wait for it.
async fn serve_at<A, F>(
    what: &'static str,
    server: Server,
    address: SocketAddr,
    first: io::Result<TcpListener>,
    answer: A,
) where
    A: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let mut bound = first;
    let mut last = String::new();
    let listener = loop {
        match bound {
            Ok(listener) => break listener,
            Err(error) => {
                let hint = hint(&error, address);
                let error = error.to_string();
                if error != last {
                    tracing::error!(
                        what,
                        listen = %address,
                        error,
                        hint,
                        "can't listen; will retry, and count meanwhile"
                    );
                    last = error;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
        bound = bind(address);
    };
    tracing::info!(what, listen = %listener.local_addr().unwrap_or(address), "serving");
    server.serve(listener, answer).await;
}

/// Returns what may be looked at where an address can't be listened on.
fn hint(error: &io::Error, address: SocketAddr) -> Option<&'static str> {
    /// Ports below this one are privileged, unless `net.ipv4.ip_unprivileged_port_start` says otherwise.
    const UNPRIVILEGED: u16 = 1024;
    match error.raw_os_error()? {
        libc::EADDRINUSE => Some("another agent or exporter may be there"),
        libc::EACCES if address.port() < UNPRIVILEGED => Some(
            "a port below 1024 takes CAP_NET_BIND_SERVICE, which the drop-in low-ports.conf gives to the service",
        ),
        libc::EACCES => Some("a security module may forbid it"),
        libc::EADDRNOTAVAIL => Some("no netdev of this host has the address yet"),
        _ => None,
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match bind_to(address) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind_to(config::without_ipv6(address).ok_or(error)?)
        }
        result => result,
    }
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    /// Connections that may wait to be accepted; the kernel's own bound, `net.core.somaxconn`, stands where it is lower.
    const WAITING: u32 = 1024;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // `[::]` is IPv4's addresses too, whatever net.ipv6.bindv6only says, and `::ffff:…` is one of them.
        setsockopt(&socket, Ipv6V6Only, &false)?;
    }
    socket.bind(address)?;
    socket.listen(WAITING)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::{
        config::{Flags, HostFacts},
        snapshot::Snapshot,
    };

    #[test]
    fn jolokia_is_open_where_a_socket_is_not_on_the_loopback() {
        let on = |address: &str| std::net::TcpListener::bind(address).unwrap();
        let configured = |address: &str| address.parse::<SocketAddr>().unwrap();
        let [local, open] = ["127.0.0.1:7200", "0.0.0.0:7200"].map(configured);
        assert!(!is_open(&[], &[]));
        assert!(!is_open(&[], &[local, configured("[::1]:7200"), configured("[::ffff:127.0.0.1]:7200")]));
        assert!(is_open(&[], &[local, open]));
        assert!(!is_open(&[on("127.0.0.1:0")], &[open]));
        assert!(is_open(&[on("127.0.0.1:0"), on("0.0.0.0:0")], &[local]));
    }

    #[test]
    fn addresses_take_connections_before_anything_is_served() {
        // An address that nothing else uses, and ports of it that the kernel says are free.
        let free = [(); 4]
            .map(|()| std::net::TcpListener::bind("127.72.0.1:0").unwrap())
            .map(|listener| listener.local_addr().unwrap());
        let [http, jolokia, scraper, skydive] = free;
        let text = format!(
            "[http]\nlisten = [\"{http}\"]\n[jolokia]\nlisten = [\"{jolokia}\"]\n\
             [compat]\nscraper_listen = [\"{scraper}\"]\nskydive_listen = [\"{skydive}\"]\n"
        );
        let host = HostFacts { machine_id: None, host_name: "compute1".to_owned() };
        let config = Config::parse(text, "a.toml", &Flags::default(), &host).unwrap();
        let reader = SnapshotReader::fixed(Snapshot::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

        let tasks = runtime.block_on(async { prepare(&config, None, Inherited::default(), None, &reader) });

        assert_eq!(tasks.len(), free.len());
        assert_eq!(runtime.metrics().num_alive_tasks(), 1, "the beans' clock");
        for address in free {
            assert!(TcpStream::connect(address).is_ok(), "{address}");
        }
    }
}
