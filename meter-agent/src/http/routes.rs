//! What is served on the metrics port: one table from path to page.

use std::{sync::Arc, time::Instant};

use hyper::{
    Method, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue, VARY},
};
use tokio::sync::Semaphore;

use super::{
    Request, Response,
    compress::Coding,
    device_stats,
    process::Process,
    prometheus::{Exposition, Format, Options, Stopwatch},
};
use crate::{
    publish::SnapshotReader,
    snapshot::{Health, Snapshot},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Landing,
    Metrics,
    DeviceStats,
    Healthy,
    Ready,
}

/// Every path, and what the landing page says of it.
const ROUTES: &[(&str, Page, &str)] = &[
    ("/", Page::Landing, "this page"),
    ("/metrics", Page::Metrics, "all meters for Prometheus, as OpenMetrics 1.0 or text 0.0.4"),
    ("/device_stats", Page::DeviceStats, "all meters as MidoNet's agent lists them: name, packets, bytes"),
    ("/-/healthy", Page::Healthy, "200 while the agent serves"),
    ("/-/ready", Page::Ready, "200 once every netdev found at the start is attached, 503 before"),
];

/// Pages that are made at a time; one takes a CPU and some MB.
const RENDERS: usize = 2;

/// What the pages are made of. Shared by all listeners.
#[derive(Debug)]
pub struct Pages {
    reader: SnapshotReader,
    exposition: Arc<Exposition>,
    device_stats: bool,
    renders: Arc<Semaphore>,
}

impl Pages {
    /// Makes pages of what this reader reads, `/device_stats` among them where asked for.
    #[must_use]
    pub fn new(reader: SnapshotReader, options: Options, device_stats: bool) -> Self {
        let exposition = Arc::new(Exposition::new(options));
        Self { reader, exposition, device_stats, renders: Arc::new(Semaphore::new(RENDERS)) }
    }

    /// Returns every page that is served: its path, what it is, and what to say of it.
    fn routes(&self) -> impl Iterator<Item = &'static (&'static str, Page, &'static str)> {
        ROUTES.iter().filter(|(_, page, _)| *page != Page::DeviceStats || self.device_stats)
    }

    /// Makes a page with one line for each of maybe ten thousand ports, beside the tasks that serve other clients, and
    /// compressed where the client takes it.
    async fn render(
        &self,
        content_type: &'static str,
        headers: &HeaderMap,
        render: impl FnOnce() -> String + Send + 'static,
    ) -> Response {
        let coding = Coding::negotiate(texts(headers, ACCEPT_ENCODING));
        let Ok(place) = Arc::clone(&self.renders).acquire_owned().await else {
            return Response::text(StatusCode::SERVICE_UNAVAILABLE, "the agent ends");
        };
        let work = move || {
            // Kept to the end of the work, which goes on when its client doesn't wait for it.
            let _place = place;
            coding.encode(render().into_bytes())
        };
        let rendered = tokio::task::spawn_blocking(work).await;
        let (body, coding) = match rendered {
            Ok(rendered) => rendered,
            Err(error) => {
                tracing::error!(error = %error, "page failed");
                let line = "the page could not be made; the log says why";
                return Response::text(StatusCode::INTERNAL_SERVER_ERROR, line);
            }
        };
        let mut response = Response::ok(content_type, body);
        response.headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        if coding == Coding::Gzip {
            response.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

/// Returns the values of a header, as far as they are text.
fn texts(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// Answers a request on the metrics port.
///
/// The pages with totals wait for a reading that is taken after the request came. HEAD is answered as GET is: the
/// server leaves the body out.
pub async fn answer(pages: &Pages, request: Request) -> Response {
    let Some((_, page, _)) = pages.routes().find(|(path, ..)| *path == request.path) else {
        return Response::text(StatusCode::NOT_FOUND, "nothing is served at this path; / lists what is");
    };
    if request.method != Method::GET && request.method != Method::HEAD {
        let line = "this page can only be read: use GET or HEAD";
        return not_allowed(line, "GET, HEAD");
    }
    match page {
        Page::Landing => Response::ok("text/html; charset=utf-8", landing(pages)),
        Page::Metrics => metrics(pages, &request.headers).await,
        Page::DeviceStats => {
            let snapshot = pages.reader.fresh().await;
            let kind = "text/plain; charset=utf-8";
            pages.render(kind, &request.headers, move || device_stats::render(&snapshot)).await
        }
        Page::Healthy => Response::text(StatusCode::OK, "healthy"),
        Page::Ready => ready(&pages.reader.latest()),
    }
}

/// Answers a request on the port of the JMX scraper, which had one page and took POST as well.
pub async fn scraper(pages: &Pages, request: Request) -> Response {
    let stopwatch = Stopwatch::Running(Instant::now());
    if request.path != "/metrics" {
        return Response::text(StatusCode::NOT_FOUND, "nothing is served at this path; /metrics is");
    }
    if ![Method::GET, Method::HEAD, Method::POST].contains(&request.method) {
        return not_allowed("this page can only be read: use GET, HEAD or POST", "GET, HEAD, POST");
    }
    let snapshot = pages.reader.fresh().await;
    let exposition = Arc::clone(&pages.exposition);
    let render = move || exposition.render_scraper(&snapshot, stopwatch);
    pages.render(Format::Text.content_type(), &request.headers, render).await
}

/// Answers a request on the port of the Skydive-Prometheus connector, which had one page.
pub async fn skydive(pages: &Pages, request: Request) -> Response {
    if request.path != "/metrics" {
        return Response::text(StatusCode::NOT_FOUND, "nothing is served at this path; /metrics is");
    }
    if ![Method::GET, Method::HEAD].contains(&request.method) {
        return not_allowed("this page can only be read: use GET or HEAD", "GET, HEAD");
    }
    let snapshot = pages.reader.fresh().await;
    let exposition = Arc::clone(&pages.exposition);
    let render = move || exposition.render_skydive(&snapshot);
    pages.render(Format::Text.content_type(), &request.headers, render).await
}

async fn metrics(pages: &Pages, headers: &HeaderMap) -> Response {
    let stopwatch = Stopwatch::Running(Instant::now());
    let format = Format::negotiate(texts(headers, ACCEPT));
    let snapshot = pages.reader.fresh().await;
    let exposition = Arc::clone(&pages.exposition);
    let render = move || exposition.render(&snapshot, Process::read(), format, stopwatch);
    let mut response = pages.render(format.content_type(), headers, render).await;
    response.headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    response
}

fn not_allowed(line: &str, allow: &'static str) -> Response {
    let mut response = Response::text(StatusCode::METHOD_NOT_ALLOWED, line);
    response.headers.insert(ALLOW, HeaderValue::from_static(allow));
    response
}

fn ready(snapshot: &Snapshot) -> Response {
    let Health { ready, attach_pending, .. } = snapshot.health;
    if ready {
        return Response::text(StatusCode::OK, "ready");
    }
    let line = if snapshot.generation == 0 {
        "not ready: nothing has been counted yet".to_owned()
    } else {
        format!("not ready: {attach_pending} of the netdevs found at the start are not attached yet")
    };
    Response::text(StatusCode::SERVICE_UNAVAILABLE, &line)
}

fn landing(pages: &Pages) -> String {
    let links: String = pages
        .routes()
        .filter(|(_, page, _)| *page != Page::Landing)
        .map(|(path, _, about)| format!("<li><a href=\"{path}\">{path}</a>: {about}</li>\n"))
        .collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>meter-agent</title></head>\n<body>\n\
         <h1>meter-agent</h1>\n<p>Version {}. Exact traffic meters of this host's virtual ports and tunnels.</p>\n\
         <ul>\n{links}</ul>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests;
