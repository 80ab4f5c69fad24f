//! The calls that `mm-meter` makes: `listMeters` and `getMeter` of the Metering bean, by `exec`.

use std::{io, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, StatusCode,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value as Json, json};
use tokio::{net::TcpStream, time::timeout};

use super::BASE;
use crate::jmx::metering::{GET_METER, LIST_METERS, NAME};

/// Bytes of an answer. A host with 100,000 meters lists them in a tenth of it.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// How long an agent may take, each: to take the connection, and to answer a call.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Packets and bytes of one meter, as Java has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct FlowStats {
    /// Frames.
    pub packets: i64,
    /// L2 bytes.
    pub bytes: i64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The port is no TCP port.
    #[error("port {0} is not between 1 and 65535")]
    Port(i32),
    /// No address for the host, or no connection to any.
    #[error("cannot reach {0}: {1}")]
    Connect(String, io::Error),
    /// Something takes too long.
    #[error("{0} does not answer: nothing within {1:?}")]
    Silent(String, Duration),
    /// The connection ended, or what came isn't HTTP.
    #[error("{0} does not answer as an agent does: {1}")]
    Http(String, String),
    /// It is HTTP, but nothing of this protocol.
    #[error("{0} is not a Jolokia agent: {1}")]
    NotJolokia(String, String),
    /// The agent answers with an error.
    #[error("{0} answers: {1}")]
    Agent(String, String),
}

/// An agent, seen from afar.
#[derive(Debug)]
pub struct Client {
    host: String,
    port: u16,
    patience: Duration,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// The part of an answer's envelope that a caller needs.
#[derive(Deserialize)]
struct Envelope {
    status: u16,
    #[serde(default)]
    value: Json,
    error: Option<String>,
}

/// Why a connection brought no answer.
enum Lost {
    /// It was closed before anything came back: the agent took it for idle, or was started anew.
    Closed(hyper::Error),
    /// Another connection would do no better.
    Final(ClientError),
}

impl Client {
    /// Connects. A host may be a name, an IPv4 address, or an IPv6 address with or without brackets.
    ///
    /// # Errors
    ///
    /// That the host has no address, or none at which something listens.
    pub async fn connect(host: &str, port: i32, patience: Duration) -> Result<Self, ClientError> {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let number = u16::try_from(port).ok().filter(|&port| port > 0).ok_or(ClientError::Port(port))?;
        let mut client = Self { host: host.to_owned(), port: number, patience, connection: None };
        client.connection = Some(client.open().await?);
        Ok(client)
    }

    /// Returns the names of all meters.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub async fn list_meters(&mut self) -> Result<Vec<String>, ClientError> {
        self.exec(LIST_METERS, &[]).await
    }

    /// Returns one meter; zeros where the agent knows none of this name.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub async fn get_meter(&mut self, name: &str) -> Result<FlowStats, ClientError> {
        self.exec(GET_METER, &[name]).await
    }

    async fn exec<T: DeserializeOwned>(
        &mut self,
        operation: &str,
        arguments: &[&str],
    ) -> Result<T, ClientError> {
        let call = json!({"type": "exec", "mbean": NAME, "operation": operation, "arguments": arguments});
        let answer = self.post(Bytes::from(call.to_string())).await?;
        let not_jolokia = |why: String| ClientError::NotJolokia(self.agent(), why);
        let envelope: Envelope =
            serde_json::from_slice(&answer).map_err(|error| not_jolokia(error.to_string()))?;
        if envelope.status != 200 {
            let error = envelope.error.unwrap_or_else(|| format!("status {}", envelope.status));
            return Err(ClientError::Agent(self.agent(), error));
        }
        serde_json::from_value(envelope.value)
            .map_err(|_| not_jolokia("the value is of another type".to_owned()))
    }

    /// Sends a body and returns the answer's, on the connection that there is or, where that was closed, another.
    async fn post(&mut self, body: Bytes) -> Result<Bytes, ClientError> {
        if let Some(connection) = self.connection.take_if(|connection| !connection.is_closed()) {
            match self.post_on(connection, body.clone()).await {
                // Asking changes nothing, so it may be asked again.
                Err(Lost::Closed(_)) => {}
                Err(Lost::Final(error)) => return Err(error),
                Ok(answer) => return Ok(answer),
            }
        }
        let connection = self.open().await?;
        self.post_on(connection, body).await.map_err(|lost| match lost {
            Lost::Closed(error) => ClientError::Http(self.agent(), causes(&error)),
            Lost::Final(error) => error,
        })
    }

    async fn post_on(
        &mut self,
        mut connection: SendRequest<Full<Bytes>>,
        body: Bytes,
    ) -> Result<Bytes, Lost> {
        let request = hyper::Request::builder()
            .method(Method::POST)
            .uri(format!("{BASE}/"))
            .header(header::HOST, self.agent())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(body))
            .map_err(|error| Lost::Final(ClientError::Http(self.agent(), error.to_string())))?;
        let exchange = async {
            // After an exchange, the connection takes a moment to be ready for the next, or to find its end.
            connection.ready().await.map_err(Lost::Closed)?;
            let response = connection.send_request(request).await.map_err(|error| {
                if is_closed(&error) {
                    Lost::Closed(error)
                } else {
                    Lost::Final(ClientError::Http(self.agent(), causes(&error)))
                }
            })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| Lost::Final(ClientError::Http(self.agent(), error.to_string())))?;
            Ok((status, body.to_bytes()))
        };
        let (status, body) = timeout(self.patience, exchange)
            .await
            .map_err(|_| Lost::Final(ClientError::Silent(self.agent(), self.patience)))??;
        if status != StatusCode::OK {
            return Err(Lost::Final(ClientError::NotJolokia(self.agent(), format!("HTTP status {status}"))));
        }
        self.connection = Some(connection);
        Ok(body)
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let stream = timeout(self.patience, TcpStream::connect((self.host.as_str(), self.port)))
            .await
            .map_err(|_| ClientError::Silent(self.agent(), self.patience))?
            .map_err(|error| ClientError::Connect(self.agent(), error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ClientError::Http(self.agent(), causes(&error)))?;
        // Whatever ends the connection ends the exchange on it as well, which reports it.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Returns the agent as messages and the `Host` header name it.
    fn agent(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// Returns whether the agent closed the connection before it answered. Where it closes while a request is on its way, the
/// kernel resets the connection.
fn is_closed(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe
            );
        }
        source = cause.source();
    }
    error.is_canceled() || error.is_incomplete_message() || error.is_closed()
}

/// Returns an error with its causes, which hyper keeps apart.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
