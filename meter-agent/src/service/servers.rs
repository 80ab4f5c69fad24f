//! The listeners: which address serves what.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::{TcpListener, UnixListener};

use super::beans;
use crate::{
    config::{self, Config},
    control,
    http::{
        Request, Response, prometheus, routes,
        server::{Limits, serve},
    },
    jolokia,
    publish::SnapshotReader,
};

/// How long an address that can't be listened on is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// Starts every server on the current runtime.
pub(super) fn start(config: &Config, control: Option<UnixListener>, reader: &SnapshotReader) {
    let pages = Arc::new(routes::Pages::new(reader.clone(), exposition(config), config.compat.device_stats));
    for &address in &config.http_listen {
        let pages = Arc::clone(&pages);
        tokio::spawn(listen("http", address, move |request| {
            let pages = Arc::clone(&pages);
            async move { routes::answer(&pages, request).await }
        }));
    }
    for &address in &config.compat.scraper_listen {
        let pages = Arc::clone(&pages);
        tokio::spawn(listen("scraper", address, move |request| {
            let pages = Arc::clone(&pages);
            async move { routes::scraper(&pages, request).await }
        }));
    }
    if !config.jolokia_listen.is_empty() {
        let beans = beans::start(config, reader);
        for &address in &config.jolokia_listen {
            let (reader, beans) = (reader.clone(), Arc::clone(&beans));
            tokio::spawn(listen("jolokia", address, move |request| {
                let (reader, beans) = (reader.clone(), Arc::clone(&beans));
                async move { jolokia::answer(&beans, &reader, request).await }
            }));
        }
    }
    if let Some(socket) = control {
        let reader = reader.clone();
        tokio::spawn(serve(socket, Limits::default(), move |request| {
            let reader = reader.clone();
            async move { control::answer(&reader, request).await }
        }));
    }
}

fn exposition(config: &Config) -> prometheus::Options {
    prometheus::Options {
        max_series: usize::try_from(config.metrics.max_series).unwrap_or(usize::MAX),
        midonet: config.compat.midonet,
        scraper: config.compat.scraper,
        scraper_agent: config.compat.scraper_agent.clone(),
    }
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
