//! A request's body: read to its end, within the bounds.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{
    StatusCode,
    body::{Body as _, Incoming},
};
use tokio::time::timeout;

use super::{Limits, Request, Response};

/// Reads a request to its end.
pub(super) async fn read(request: hyper::Request<Incoming>, limits: &Limits) -> Result<Request, Response> {
    let (head, body) = request.into_parts();
    let too_long = || {
        let line = format!("the body is longer than {} bytes", limits.max_body);
        Response::text(StatusCode::PAYLOAD_TOO_LARGE, &line)
    };
    if usize::try_from(body.size_hint().lower()).map_or(true, |length| length > limits.max_body) {
        return Err(too_long());
    }
    let body = match timeout(limits.body_timeout, collect(body, limits.max_body)).await {
        Err(_) => return Err(Response::text(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        Ok(Err(error)) => return Err(Response::text(StatusCode::BAD_REQUEST, &format!("the body: {error}"))),
        Ok(Ok(None)) => return Err(too_long()),
        Ok(Ok(Some(body))) => body,
    };
    Ok(Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(ToOwned::to_owned),
        headers: head.headers,
        body,
    })
}

/// Reads a body into one piece; `None` where it is longer than `max`.
///
/// Pieces are copied as they come: one of a single byte costs its client six, and would cost some forty to keep.
async fn collect(mut body: Incoming, max: usize) -> hyper::Result<Option<Bytes>> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        if piece.len() > max - bytes.len() {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes.freeze()))
}
