//! Asking a server in a namespace.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    error::{Doing as _, Error, Result},
    netns::Netns,
};

/// How long each step of an exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Sends `GET path`, with these further header lines, to a server in the namespace.
///
/// # Errors
///
/// When nobody listens, or the answer isn't HTTP.
pub fn get(netns: &Netns, server: SocketAddr, path: &str, headers: &[&str]) -> Result<Answer> {
    let more: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    // HTTP/1.0 ends with the connection: no chunks to put together.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n{more}\r\n");
    exchange(netns, server, request.as_bytes())
}

/// Sends these bytes, whatever they are, and reads until the server hangs up.
///
/// # Errors
///
/// When nobody listens, or the answer isn't HTTP.
pub fn exchange(netns: &Netns, server: SocketAddr, request: &[u8]) -> Result<Answer> {
    let place = || format!("talk to {server} in {}", netns.name());
    let mut stream = netns.run_in(|| TcpStream::connect_timeout(&server, PATIENCE))?.doing(place)?;
    stream.set_read_timeout(Some(PATIENCE)).doing(place)?;
    stream.set_write_timeout(Some(PATIENCE)).doing(place)?;
    stream.write_all(request).doing(place)?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).doing(place)?;
    let response = String::from_utf8_lossy(&response);
    let parts = response.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
    });
    parts.ok_or_else(|| Error::Command {
        command: place(),
        message: format!("not an HTTP answer: {:?}", response.chars().take(80).collect::<String>()),
    })
}
