//! The bounds on what clients decide.

use std::time::Duration;

/// What clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time.
    pub max_connections: usize,
    /// Connections of one peer at a time.
    pub max_connections_of_peer: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Answers that are made at a time; further requests wait.
    pub max_answers: usize,
    /// Answers that are made at a time for one peer.
    pub max_answers_of_peer: usize,
    /// Bytes of all answers that are on their way to clients; one answer alone may be longer.
    pub max_unsent: usize,
    /// How long a request's head may take, TLS included, from its first byte or the connection's beginning.
    pub head_timeout: Duration,
    /// How long a request's body may take.
    pub body_timeout: Duration,
    /// How long an answer may take to be made.
    pub answer_timeout: Duration,
    /// How long a client may take nothing of its answer.
    pub stall_timeout: Duration,
    /// How long an answer may take to be taken.
    pub send_timeout: Duration,
    /// How long a client may take to ask again; a scraper comes back within a minute.
    pub idle_timeout: Duration,
    /// How long what a client still sends is thrown away, so that it gets to read what was wrong with it.
    pub leave_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_connections_of_peer: 64,
            max_body: 1024 * 1024,
            max_answers: 16,
            max_answers_of_peer: 4,
            max_unsent: 128 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(120),
            leave_timeout: Duration::from_secs(2),
        }
    }
}
