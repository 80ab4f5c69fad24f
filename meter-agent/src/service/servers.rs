//! The listeners: which address serves what.

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use tokio::net::{TcpListener, UnixListener};

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
/// The http server says that the agent is ready, and who has read so may connect to another server at once. So nothing is
/// served before every address that can be had is listened on.
pub(super) async fn start(
    config: &Config,
    web: Option<Web>,
    inherited: Inherited,
    control: Option<(UnixListener, Desk)>,
    reader: &SnapshotReader,
) {
    for task in listening(config, web, inherited, control, reader).await {
        tokio::spawn(task);
    }
}

/// Makes every server, listens for it, and returns what is to run. Connections that come before wait in the kernel.
async fn listening(
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
    let mut tasks = listeners("http", &server, inherited.metrics, &config.http_listen, &native).await;

    if !config.compat.skydive_listen.is_empty() {
        let pages = Arc::clone(&pages);
        let skydive = move |request| {
            let pages = Arc::clone(&pages);
            async move { routes::skydive(&pages, request).await }
        };
        let server = Server::new(Limits::default()).with_web(web.clone()).publish("skydive");
        let more = listeners("skydive", &server, Vec::new(), &config.compat.skydive_listen, &skydive).await;
        tasks.extend(more);
    }

    let scraper = move |request| {
        let pages = Arc::clone(&pages);
        async move { routes::scraper(&pages, request).await }
    };
    if !config.compat.scraper_listen.is_empty() {
        // The same numbers, so the same clients may read them.
        let server = Server::new(Limits::default()).with_web(web).publish("scraper");
        let more = listeners("scraper", &server, Vec::new(), &config.compat.scraper_listen, &scraper).await;
        tasks.extend(more);
    }

    if !config.jolokia_listen.is_empty() || !inherited.jolokia.is_empty() {
        let (reader, beans) = (reader.clone(), beans::start(config, reader));
        let jolokia = move |request| {
            let (reader, beans) = (reader.clone(), Arc::clone(&beans));
            async move { jolokia::answer(&beans, &reader, request).await }
        };
        let is_open = config.jolokia_listen.iter().any(|address| !address.ip().is_loopback());
        if is_open && config.web_config.is_some() {
            tracing::warn!(
                "jolokia.listen is open to other hosts, and http.config_file does not hold for it"
            );
        }
        // Its clients, mm-meter among them, speak plain HTTP and know no password; it is on the loopback for that.
        let server = Server::new(Limits::default()).publish("jolokia");
        let more = listeners("jolokia", &server, inherited.jolokia, &config.jolokia_listen, &jolokia).await;
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

/// Listens on the sockets that were passed or, for want of any, on the configured addresses.
async fn listeners<A, F>(
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
        let first = bind(address).await;
        tasks.push(Box::pin(listen(what, server.clone(), address, first, answer.clone())));
    }
    tasks
}

fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

/// Serves on an address. `first` is what came of the first try to listen there: one that is in use is tried again, as
/// counting must not wait for it.
async fn listen<A, F>(
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
                let error = error.to_string();
                if error != last {
                    tracing::error!(
                        what,
                        listen = %address,
                        error,
                        "can't listen; will retry, and count meanwhile. Is another agent or exporter there?"
                    );
                    last = error;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
        bound = bind(address).await;
    };
    tracing::info!(what, listen = %listener.local_addr().unwrap_or(address), "serving");
    server.serve(listener, answer).await;
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            match config::without_ipv6(address) {
                Some(address) => TcpListener::bind(address).await,
                None => Err(error),
            }
        }
        result => result,
    }
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

        let tasks = runtime.block_on(listening(&config, None, Inherited::default(), None, &reader));

        assert_eq!(tasks.len(), free.len());
        assert_eq!(runtime.metrics().num_alive_tasks(), 1, "the beans' clock");
        for address in free {
            assert!(TcpStream::connect(address).is_ok(), "{address}");
        }
    }
}
