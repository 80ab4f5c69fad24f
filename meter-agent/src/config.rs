//! The configuration: file and flags, read and checked to a [`Config`].
//!
//! Every key has a default, and whatever is wrong is reported at once, each mistake with its place.
//! [`Config::parse`] is pure; only [`Config::load`] and [`HostFacts::read`] touch files.

mod check;
mod document;
mod file;
mod flags;
mod report;
mod schema;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use tracing_subscriber::filter::LevelFilter;
use uuid::Uuid;

pub use self::{
    flags::Flags,
    report::{Mistake, Mistakes, Place},
    schema::rule_table,
};
use crate::{
    binding::Bindings, connections, datapath::Options, netdev::namespaces::Selection, roles::Rules,
    rules::MeterSet,
};

/// Where the configuration is unless `--config` says otherwise.
const DEFAULT_PATH: &str = "/etc/meter-agent/meter-agent.toml";

/// Everything that the operator decides, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name space of the UUIDs that this host derives; never nil.
    pub host_id: Uuid,
    /// Where `host_id` comes from.
    pub host_id_source: HostIdSource,
    /// What this host is called in what it serves.
    pub host_name: String,
    /// `[datapath]` and `[tunnels]`: the kernel half.
    pub datapath: Options,
    /// Where Prometheus and the other native endpoints are served; none where empty. See [`without_ipv6`].
    pub http_listen: Vec<SocketAddr>,
    /// The web configuration of `http_listen`: TLS, users, headers. What it says is not checked here.
    pub web_config: Option<PathBuf>,
    /// Where the Jolokia protocol is served; none where empty.
    pub jolokia_listen: Vec<SocketAddr>,
    /// `[metrics]`: how much `/metrics` shows.
    pub metrics: Metrics,
    /// `[compat]`: what is served for those who asked MidoNet.
    pub compat: Compat,
    /// How often the meters are held against the kernel's own statistics; `None` for only when asked.
    pub audit_interval: Option<Duration>,
    /// Where totals are kept for the time after a reboot; `None` for nowhere.
    pub state_file: Option<PathBuf>,
    /// How often they are written there; `None` for only at the end.
    pub state_interval: Option<Duration>,
    /// The Unix socket of local control: an absolute path that fits into a `sockaddr_un`.
    pub control_socket: PathBuf,
    /// Where the agent keeps what was added at run time: an absolute path.
    pub state_directory: PathBuf,
    /// What the agent says of itself.
    pub log: Log,
    /// Which netdev carries which port. Its `host_id` is this configuration's.
    pub bindings: Bindings,
    /// Which netdevs are ports, uplinks, or left alone.
    pub rules: Rules,
    /// `[namespaces]`: which named network namespaces are followed; none by default.
    pub namespaces: Selection,
    /// `[connections]`: of which netdevs connections are counted.
    pub connections: connections::Selection,
    /// How they are shown.
    pub connections_view: connections::View,
    /// `[[meter]]` and the groups: what the user-defined meters count.
    pub meters: MeterSet,
}

/// `[metrics]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// Series of a family that have a name of their own at most; at least 1.
    pub max_series: u32,
}

/// `[compat]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compat {
    /// Whether `/metrics` holds the families of MidoNet's agent.
    pub midonet: bool,
    /// Whether there is a page `/device_stats`.
    pub device_stats: bool,
    /// Whether `/metrics` holds the families of the JMX scraper.
    pub scraper: bool,
    /// Where the page of the JMX scraper is served; none where empty.
    pub scraper_listen: Vec<SocketAddr>,
    /// What the JMX scraper's families call this agent.
    pub scraper_agent: String,
    /// Whether `/metrics` holds the families of the Skydive-Prometheus connector.
    pub skydive: bool,
    /// Where the page of the Skydive-Prometheus connector is served; none where empty.
    pub skydive_listen: Vec<SocketAddr>,
}

/// Who said what this host's id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostIdSource {
    /// `host_id` of the configuration file.
    Config,
    /// Derived from `/etc/machine-id`.
    MachineId,
    /// Derived from the host's name, for want of a machine id: another host of the same name derives the same UUIDs.
    HostName,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level, or directives that `tracing_subscriber::EnvFilter` takes.
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
}

impl Log {
    /// Returns the directives that the level stands for. A level alone is the agent's: what its libraries have to say beyond
    /// `info`, thousands of lines about each program that is loaded, takes a directive that names them.
    #[must_use]
    pub fn directives(&self) -> Cow<'_, str> {
        match self.level.parse::<LevelFilter>() {
            Ok(own) if own > LevelFilter::INFO => format!("info,meter_agent={own}").into(),
            _ => Cow::Borrowed(&self.level),
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What the configuration takes from the host that it is read on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The text of `/etc/machine-id`; `None` where there is no such file.
    pub machine_id: Option<String>,
    /// The kernel's host name; empty where it has none.
    pub host_name: String,
}

impl HostFacts {
    /// Reads them from this host. What cannot be read counts as missing: the configuration can say it instead.
    #[must_use]
    pub fn read() -> Self {
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            machine_id: fs::read_to_string("/etc/machine-id").ok(),
            host_name: host_name.trim().to_owned(),
        }
    }
}

/// There is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was asked for is not there.
    #[error("{path}: there is no such file; make it, or leave out --config for the defaults")]
    Missing {
        /// As it was given.
        path: PathBuf,
    },
    /// It is something else than a file.
    #[error("{path}: is {found}, expected a TOML file")]
    NotAFile {
        /// As it was given.
        path: PathBuf,
        /// What it is, with its article.
        found: &'static str,
    },
    /// The file is longer than any configuration.
    #[error("{path}: is longer than {limit} bytes, which no configuration is")]
    TooLong {
        /// As it was given.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// The file could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is wrong, in one place or many: a line for each.
    #[error(transparent)]
    Wrong(#[from] Mistakes),
}

impl Config {
    /// Returns where the configuration is unless `--config` says otherwise.
    #[must_use]
    pub fn default_path() -> &'static Path {
        Path::new(DEFAULT_PATH)
    }

    /// Reads the file that the flags name, or the default one, which need not exist.
    ///
    /// # Errors
    ///
    /// What keeps the file from being read, or everything that is wrong with it and the flags.
    pub fn load(flags: &Flags, host: &HostFacts) -> Result<Self, ConfigError> {
        let path = flags.config.as_deref().unwrap_or(Self::default_path());
        let bytes = match file::read(path) {
            Err(ConfigError::Missing { .. }) if flags.config.is_none() => Vec::new(),
            read => read?,
        };
        Ok(Self::parse(&bytes, &path.display().to_string(), flags, host)?)
    }

    /// Checks the text of a configuration file, which should be UTF-8. `origin` names it in messages.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text and the flags, in the order of the text.
    pub fn parse(
        text: impl AsRef<[u8]>,
        origin: &str,
        flags: &Flags,
        host: &HostFacts,
    ) -> Result<Self, Mistakes> {
        schema::parse(text.as_ref(), origin, flags, host)
    }
}

/// Returns the address to listen on instead where the kernel has no IPv6 (`EAFNOSUPPORT`).
///
/// `[::]` stands for all addresses of the host, IPv4's included (its socket needs `IPV6_V6ONLY` off), so `0.0.0.0` is
/// what is left of it. Any other IPv6 address has no replacement.
#[must_use]
pub fn without_ipv6(addr: SocketAddr) -> Option<SocketAddr> {
    let is_any = addr.is_ipv6() && addr.ip().is_unspecified();
    is_any.then(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port()))
}
