//! The listeners: which address serves what.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    net::{TcpListener, UnixListener},
    time::{MissedTickBehavior, interval},
};

use crate::{
    config::{self, Config},
    control,
    http::{
        Request, Response, routes,
        server::{Limits, serve},
    },
    jmx::{BeanServer, Identity, rates},
    jolokia,
    publish::SnapshotReader,
};

/// How long an address that can't be listened on is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// Starts every server on the current runtime.
pub(super) fn start(config: &Config, control: Option<UnixListener>, reader: &SnapshotReader) {
    for &address in &config.http_listen {
        let reader = reader.clone();
        tokio::spawn(listen("http", address, move |request| {
            let reader = reader.clone();
            async move { routes::answer(&reader, request).await }
        }));
    }
    let beans = Arc::new(BeanServer::new(identity(config), now()));
    for &address in &config.jolokia_listen {
        let (reader, beans) = (reader.clone(), Arc::clone(&beans));
        tokio::spawn(listen("jolokia", address, move |request| {
            let (reader, beans) = (reader.clone(), Arc::clone(&beans));
            async move { jolokia::answer(&beans, &reader, request).await }
        }));
    }
    if !config.jolokia_listen.is_empty() {
        tokio::spawn(tick(beans, reader.clone()));
    }
    if let Some(socket) = control {
        let reader = reader.clone();
        tokio::spawn(serve(socket, Limits::default(), move |request| {
            let reader = reader.clone();
            async move { control::answer(&reader, request).await }
        }));
    }
}

fn identity(config: &Config) -> Identity {
    Identity {
        host: config.host_name.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Moves the rates of the beans on, for ever: each time with totals of that moment, so that rates are those of what
/// was counted, not of when somebody asked.
async fn tick(beans: Arc<BeanServer>, reader: SnapshotReader) {
    let mut ticks = interval(rates::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        beans.tick(&*reader.fresh().await, now());
    }
}

/// Returns the time since the Unix epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Serves on an address. One that is in use is tried again: counting must not wait for it.
async fn listen<A, F>(what: &'static str, address: SocketAddr, answer: A)
where
    A: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let mut last = String::new();
    loop {
        match bind(address).await {
            Ok(listener) => {
                let bound = listener.local_addr().unwrap_or(address);
                tracing::info!(what, listen = %bound, "serving");
                serve(listener, Limits::default(), answer).await;
                return;
            }
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
    }
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
