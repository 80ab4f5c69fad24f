//! One request to a server of ours, and its answer, within bounds.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes of an answer that are read; 20,000 meters take about 2 MB.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// What to ask.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The method.
    pub method: Method,
    /// Path and query, percent-encoded.
    pub target: &'a str,
    /// The `host` header.
    pub host: &'a str,
    /// The body, empty for none.
    pub body: Bytes,
    /// How long the whole exchange may take.
    pub timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server hung up, or does not speak HTTP.
    #[error("not an HTTP answer: {0}")]
    Protocol(#[from] hyper::Error),
    /// The request can't be written.
    #[error("not a request: {0}")]
    Request(String),
    /// The body is too long or broke off.
    #[error("read the answer: {0}")]
    Body(String),
    /// The server took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// Sends one request over a connection and reads the answer to its end.
///
/// # Errors
///
/// When there is no complete answer; a status of failure is an answer.
pub async fn exchange<S>(stream: S, call: Call<'_>) -> Result<(StatusCode, Bytes), ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let timeout = call.timeout;
    match tokio::time::timeout(timeout, exchange_in_any_time(stream, call)).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Timeout(timeout)),
    }
}

async fn exchange_in_any_time<S>(stream: S, call: Call<'_>) -> Result<(StatusCode, Bytes), ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::builder()
        .method(call.method)
        .uri(call.target)
        .header(hyper::header::HOST, call.host)
        .header(hyper::header::CONNECTION, "close")
        .body(Full::new(call.body))
        .map_err(|error| ClientError::Request(error.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| ClientError::Body(error.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    // The connection only moves bytes; what goes wrong with it ends the answer as well.
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}
