//! Connections: accepted, read and answered within bounds.

use std::{convert::Infallible, future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};

use super::{Request, Response};

/// What a client may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// How long a request may take to arrive, its head and its body each.
    pub read_timeout: Duration,
    /// How long an answer may take to be made and written.
    pub answer_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_body: 1024 * 1024,
            read_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
        }
    }
}

/// Bytes of a request's head. hyper answers 431 beyond it.
const MAX_HEAD: usize = 16 * 1024;
/// How long a connection may stand still; a scraper comes back within a minute.
const IDLE: Duration = Duration::from_secs(120);

/// Something that connections come from: a TCP or a Unix socket.
pub trait Listener: Send + 'static {
    /// What a connection is.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        let (stream, _) = self.accept().await?;
        // An answer is one write; waiting to fill a segment only delays it.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves until the task is dropped. `answer` is called once for each request that could be read.
pub async fn serve<L, A, F>(listener: L, limits: Limits, answer: A)
where
    L: Listener,
    A: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send,
{
    let places = Arc::new(Semaphore::new(limits.max_connections));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.next().await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, mostly: a connection that ends frees one.
                tracing::warn!(error = %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (answer, limits) = (answer.clone(), limits.clone());
        tokio::spawn(async move {
            connection(stream, &limits, answer).await;
            drop(place);
        });
    }
}

async fn connection<S, A, F>(stream: S, limits: &Limits, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let answer = answer.clone();
        let limits = limits.clone();
        async move { Ok::<_, Infallible>(respond(request, &limits, answer).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read_timeout.max(IDLE))
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        // A client that hung up or sent something that isn't HTTP: hyper has answered what could be answered.
        tracing::debug!(error = %error, "connection ended");
    }
}

async fn respond<A, F>(
    request: hyper::Request<Incoming>,
    limits: &Limits,
    answer: A,
) -> hyper::Response<Full<Bytes>>
where
    A: Fn(Request) -> F,
    F: Future<Output = Response>,
{
    let response = match read(request, limits).await {
        Ok(request) => match tokio::time::timeout(limits.answer_timeout, answer(request)).await {
            Ok(response) => response,
            Err(_) => Response::text(StatusCode::SERVICE_UNAVAILABLE, "the answer took too long"),
        },
        Err(response) => response,
    };
    let mut built = hyper::Response::new(Full::new(response.body));
    *built.status_mut() = response.status;
    *built.headers_mut() = response.headers;
    built
}

/// Reads a request to its end.
async fn read(request: hyper::Request<Incoming>, limits: &Limits) -> Result<Request, Response> {
    let (head, body) = request.into_parts();
    let collected = tokio::time::timeout(limits.read_timeout, Limited::new(body, limits.max_body).collect());
    let body = match collected.await {
        Err(_) => return Err(Response::text(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let line = format!("the body is longer than {} bytes", limits.max_body);
            return Err(Response::text(StatusCode::PAYLOAD_TOO_LARGE, &line));
        }
        Ok(Err(error)) => return Err(Response::text(StatusCode::BAD_REQUEST, &format!("the body: {error}"))),
        Ok(Ok(body)) => body.to_bytes(),
    };
    Ok(Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(ToOwned::to_owned),
        headers: head.headers,
        body,
    })
}
