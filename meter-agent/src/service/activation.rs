//! Sockets that systemd opened for the agent (`sd_listen_fds(3)`), by the names of the file descriptors.

use std::{env, net::TcpListener};

use listenfd::ListenFd;

/// Sockets that are listened on already. Where a server has one, its configured addresses are not used.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// For `/metrics` and the other native endpoints.
    pub(super) metrics: Vec<TcpListener>,
    /// For the Jolokia protocol.
    pub(super) jolokia: Vec<TcpListener>,
}

/// Whom a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heir {
    Metrics,
    Jolokia,
}

impl Inherited {
    /// Takes what was passed to this process, once. What can't be served is logged and closed.
    ///
    /// To be called while the process has one thread: it takes the variables out of the environment.
    pub(super) fn take() -> Self {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut passed = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..passed.len() {
            let name = names.get(index).copied().unwrap_or_default();
            let listener = match passed.take_tcp_listener(index) {
                Ok(Some(listener)) => listener,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(name, error = %error, "a socket that was passed is not one of TCP; it is not served");
                    continue;
                }
            };
            match heir(name) {
                Some(Heir::Metrics) => inherited.metrics.push(listener),
                Some(Heir::Jolokia) => inherited.jolokia.push(listener),
                None => tracing::error!(
                    name,
                    "a socket that was passed is named for nothing; it is not served. FileDescriptorName= is metrics \
                     or jolokia"
                ),
            }
        }
        inherited
    }
}

/// Returns whom a name means. systemd names a socket like its unit unless it is told otherwise.
fn heir(name: &str) -> Option<Heir> {
    match name {
        "metrics" | "" | "unknown" => Some(Heir::Metrics),
        "jolokia" => Some(Heir::Jolokia),
        unit if unit.ends_with(".socket") => {
            Some(if unit.contains("jolokia") { Heir::Jolokia } else { Heir::Metrics })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Heir, heir};

    #[test]
    fn names_say_whose_a_socket_is() {
        for (name, expected) in [
            ("metrics", Some(Heir::Metrics)),
            ("", Some(Heir::Metrics)),
            ("unknown", Some(Heir::Metrics)),
            ("meter-agent.socket", Some(Heir::Metrics)),
            ("jolokia", Some(Heir::Jolokia)),
            ("meter-agent-jolokia.socket", Some(Heir::Jolokia)),
            ("metric", None),
        ] {
            assert_eq!(heir(name), expected, "{name}");
        }
    }
}
