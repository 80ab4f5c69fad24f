//! What is served on the metrics port: one table from path to page.

use hyper::{
    Method, StatusCode,
    header::{ACCEPT, ALLOW, HeaderMap, HeaderValue, VARY},
};

use super::{
    Request, Response, device_stats,
    process::Process,
    prometheus::{self, Format},
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

/// Answers a request on the metrics port.
///
/// The pages with totals wait for a reading that is taken after the request came. HEAD is answered as GET is: the
/// server leaves the body out.
pub async fn answer(reader: &SnapshotReader, request: Request) -> Response {
    let Some((_, page, _)) = ROUTES.iter().find(|(path, ..)| *path == request.path) else {
        return Response::text(StatusCode::NOT_FOUND, "nothing is served at this path; / lists what is");
    };
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut response =
            Response::text(StatusCode::METHOD_NOT_ALLOWED, "this page can only be read: use GET or HEAD");
        response.headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match page {
        Page::Landing => Response::ok("text/html; charset=utf-8", landing()),
        Page::Metrics => metrics(reader, &request.headers).await,
        Page::DeviceStats => {
            let snapshot = reader.fresh().await;
            rendered("text/plain; charset=utf-8", move || device_stats::render(&snapshot)).await
        }
        Page::Healthy => Response::text(StatusCode::OK, "healthy"),
        Page::Ready => ready(&reader.latest()),
    }
}

async fn metrics(reader: &SnapshotReader, headers: &HeaderMap) -> Response {
    let format = Format::negotiate(headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    let snapshot = reader.fresh().await;
    let mut response =
        rendered(format.content_type(), move || prometheus::render(snapshot, Process::read(), format)).await;
    response.headers.insert(VARY, HeaderValue::from_static("Accept"));
    response
}

/// Makes a page with one line for each of maybe ten thousand ports beside the tasks that serve other clients.
async fn rendered(content_type: &'static str, render: impl FnOnce() -> String + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(render).await {
        Ok(body) => Response::ok(content_type, body),
        Err(error) => {
            tracing::error!(error = %error, "page failed");
            Response::text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made; the log says why")
        }
    }
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

fn landing() -> String {
    let links: String = ROUTES
        .iter()
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
