//! The HTTP edge: the only part that knows the HTTP library.
//!
//! [`server`] turns a connection into [`Request`]s and writes [`Response`]s, with a bound on everything that a client
//! decides; [`web`] says who may ask, and over which TLS. What is served is a function from one to the other:
//! [`routes::answer`] for the metrics port, and [`routes::scraper`] for that of MidoNet's JMX scraper.

mod accept;
pub mod client;
mod compress;
pub mod device_stats;
pub mod prometheus;
pub mod routes;
pub mod server;
#[cfg(test)]
mod tests;
pub mod web;

use bytes::Bytes;
pub use hyper::StatusCode;
use hyper::{HeaderMap, Method, header::HeaderValue};

use crate::process;

/// One request, read to its end.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, percent-encoded as it came.
    pub path: String,
    /// What follows the question mark, percent-encoded.
    pub query: Option<String>,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most [`server::Limits::max_body`] bytes.
    pub body: Bytes,
}

impl Request {
    /// Returns a header that is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// Headers beside `content-length`, which is the body's.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// Makes an answer with status 200.
    #[must_use]
    pub fn ok(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, content_type, body)
    }

    /// Makes an answer.
    #[must_use]
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { status, headers, body: body.into() }
    }

    /// Makes an answer of one line of text, such as what is wrong with the request.
    #[must_use]
    pub fn text(status: StatusCode, line: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", format!("{line}\n"))
    }
}
