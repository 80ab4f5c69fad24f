//! The end of a connection that hyper doesn't end: one that is refused, and one whose last answer has to arrive.

use std::{pin::Pin, task::Poll};

use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Stream;

/// Bytes that are thrown away after a request that was refused.
const MAX_REST: u64 = 8 * 1024 * 1024;

/// Ends a connection so that its client gets to read the last answer: a kernel that has bytes nobody read resets it.
pub(super) async fn leave<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, is_late: bool) {
    if is_late {
        let late = closing(StatusCode::REQUEST_TIMEOUT, "the head of the request took too long");
        // Whether it gets there or not, that was it.
        drop(stream.write_all(late.as_bytes()).await);
    }
    if stream.shutdown().await.is_ok() {
        drop(tokio::io::copy(&mut stream.take(MAX_REST), &mut tokio::io::sink()).await);
    }
}

/// Says no, if that can be done at once.
pub(super) fn refuse(mut stream: impl Stream) {
    let full = closing(StatusCode::SERVICE_UNAVAILABLE, "too many connections; try again");
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    if let Poll::Ready(Err(error)) = Pin::new(&mut stream).poll_write(&mut context, full.as_bytes()) {
        tracing::debug!(error = %error, "refused");
    }
}

/// Writes an answer that is none of hyper's.
fn closing(status: StatusCode, line: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n\
         {line}\n",
        line.len() + 1
    )
}
