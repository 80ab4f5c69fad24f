//! The table of connections at the shell: which are asked for, in which order, and how they are written.

use std::{net::IpAddr, str::FromStr};

use meter_ebpf::abi::Counter;
use serde::{Deserialize, Serialize};

use super::protocol_name;
use crate::{
    columns::{self, printable},
    datapath::ConnectionReading,
    meter::PortId,
    rules::{self, Prefix},
};

/// By what the list is sorted: the largest first; by age the oldest, and by idle time the one that had a frame last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// By bytes of both ends.
    #[default]
    Bytes,
    /// By frames of both ends.
    Packets,
    /// By round trip.
    Rtt,
    /// By when they began.
    Age,
    /// By their last frame.
    Idle,
}

impl Order {
    const ALL: [(&str, Self); 5] = [
        ("bytes", Self::Bytes),
        ("packets", Self::Packets),
        ("rtt", Self::Rtt),
        ("age", Self::Age),
        ("idle", Self::Idle),
    ];
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        let known = || Self::ALL.map(|(name, _)| name).join(", ");
        found
            .map(|(_, order)| order)
            .ok_or_else(|| format!("{text:?} is no order; expected one of {}", known()))
    }
}

/// Which connections are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// In which order.
    pub order: Order,
    /// How many at most.
    pub most: Option<usize>,
    /// Those of this port.
    pub port: Option<PortId>,
    /// Those of this protocol, by its name.
    pub protocol: Option<String>,
    /// Those of which an end has such an address.
    pub address: Option<Prefix>,
    /// Those of which an end has this port.
    pub number: Option<u16>,
}

impl Question {
    /// Returns it as the query of a request.
    #[must_use]
    pub fn query(&self) -> String {
        let order = Order::ALL.into_iter().find(|(_, order)| *order == self.order).map(|(name, _)| name);
        let pairs = [
            ("sort", order.map(ToOwned::to_owned)),
            ("limit", self.most.map(|most| most.to_string())),
            ("port", self.port.map(|port| port.to_string())),
            ("protocol", self.protocol.clone()),
            ("address", self.address.map(|address| address.to_string())),
            ("number", self.number.map(|number| number.to_string())),
        ];
        let given = pairs.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        given.collect::<Vec<_>>().join("&")
    }

    /// Reads the query of a request.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut question = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = |what: &str| format!("{key}: {value:?} is no {what}");
            match key {
                "sort" => question.order = value.parse()?,
                "limit" => question.most = Some(value.parse().map_err(|_| number("number"))?),
                "port" => question.port = Some(PortId(value.parse().map_err(|_| number("UUID"))?)),
                "protocol" => question.protocol = Some(protocol(value)?),
                "address" => question.address = Some(rules::prefix(value)?),
                "number" => question.number = Some(value.parse().map_err(|_| number("port number"))?),
                _ => return Err(format!("unknown key {key:?}")),
            }
        }
        Ok(question)
    }

    /// Returns whether a connection is asked for.
    fn is_met(&self, connection: &ConnectionReading) -> bool {
        let ends = [connection.initiator, connection.target];
        let holds = |address: &Prefix| ends.iter().any(|end| address.contains(end.ip()));
        self.port.is_none_or(|port| port == connection.port)
            && self
                .protocol
                .as_ref()
                .is_none_or(|name| protocol_name(connection.protocol).eq_ignore_ascii_case(name))
            && self.address.as_ref().is_none_or(holds)
            && self.number.is_none_or(|number| ends.iter().any(|end| end.port() == number))
    }

    /// Returns the connections that are asked for; `netdev` tells which carries a port.
    #[must_use]
    pub fn answer(
        &self,
        connections: &[ConnectionReading],
        netdev: impl Fn(PortId) -> Option<String>,
    ) -> Vec<ConnectionStatus> {
        let mut met: Vec<&ConnectionReading> =
            connections.iter().filter(|connection| self.is_met(connection)).collect();
        met.sort_by_key(|connection| {
            let sum = |value: fn(&Counter) -> u64| {
                connection
                    .counts
                    .as_flattened()
                    .iter()
                    .fold(0_u64, |sum, count| sum.wrapping_add(value(count)))
            };
            let first = match self.order {
                Order::Bytes => u64::MAX - sum(|count| count.bytes),
                Order::Packets => u64::MAX - sum(|count| count.packets),
                Order::Rtt => u64::MAX - connection.rtt_ns,
                Order::Age => u64::from(connection.began_s),
                Order::Idle => u64::from(connection.idle_s),
            };
            (
                first,
                connection.port,
                connection.protocol,
                connection.overlay,
                connection.initiator,
                connection.target,
            )
        });
        let shown = met.into_iter().take(self.most.unwrap_or(usize::MAX));
        shown.map(|connection| status(connection, netdev(connection.port))).collect()
    }
}

/// Reads the name of a protocol.
///
/// # Errors
///
/// What is wrong with it.
pub fn protocol(name: &str) -> Result<String, String> {
    const KNOWN: [&str; 5] = ["tcp", "udp", "sctp", "icmp", "icmpv6"];
    let found = KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(name));
    found.map(ToOwned::to_owned).ok_or_else(|| {
        format!("{name:?} is no protocol of connections; expected one of {}", KNOWN.join(", "))
    })
}

/// What one end of a connection is, and has sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndStatus {
    /// Its address.
    pub ip: IpAddr,
    /// Its port; of ICMP the identifier.
    pub port: u16,
    /// Frames.
    pub packets: u64,
    /// L2 bytes of them.
    pub bytes: u64,
}

/// One connection as `meter-agent connections` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// The port's UUID.
    pub port: String,
    /// The netdev that carries it now.
    pub netdev: Option<String>,
    /// The protocol.
    pub protocol: String,
    /// The tunnel that it is inside of, as `vxlan:7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<String>,
    /// Who began it.
    pub initiator: EndStatus,
    /// To whom.
    pub target: EndStatus,
    /// Nanoseconds of the handshake's round trip; `None` where it was not seen.
    pub rtt_ns: Option<u64>,
    /// When its first frame came: seconds since the host was started.
    pub began_s: u32,
    /// Seconds since the last frame.
    pub idle_s: u32,
    /// `new` until the target has sent, then `open`, `ended` after the last of both.
    pub state: String,
}

fn status(connection: &ConnectionReading, netdev: Option<String>) -> ConnectionStatus {
    let end = |address: std::net::SocketAddr, hooks: &[Counter; 2]| EndStatus {
        ip: address.ip(),
        port: address.port(),
        packets: hooks[0].packets.wrapping_add(hooks[1].packets),
        bytes: hooks[0].bytes.wrapping_add(hooks[1].bytes),
    };
    let [initiator, target] = &connection.counts;
    let state = match (connection.ended, connection.answered) {
        (true, _) => "ended",
        (false, true) => "open",
        (false, false) => "new",
    };
    ConnectionStatus {
        port: connection.port.to_string(),
        netdev,
        protocol: protocol_name(connection.protocol).to_owned(),
        overlay: connection.overlay.map(|(encap, vni)| format!("{}:{vni}", encap.name())),
        initiator: end(connection.initiator, initiator),
        target: end(connection.target, target),
        rtt_ns: (connection.rtt_ns != 0).then_some(connection.rtt_ns),
        began_s: connection.began_s,
        idle_s: connection.idle_s,
        state: state.to_owned(),
    }
}

/// Writes the list as a table: one line each, columns as wide as their widest value.
#[must_use]
pub fn table(connections: &[ConnectionStatus]) -> String {
    const HEAD: [&str; 10] = [
        "PORT",
        "OVERLAY",
        "PROTO",
        "INITIATOR",
        "TARGET",
        "SENT_BYTES",
        "RECEIVED_BYTES",
        "RTT_US",
        "IDLE",
        "STATE",
    ];
    let end = |end: &EndStatus| std::net::SocketAddr::new(end.ip, end.port).to_string();
    let mut rows = vec![HEAD.map(ToOwned::to_owned).to_vec()];
    rows.extend(connections.iter().map(|connection| {
        [
            connection.netdev.as_deref().map_or_else(|| connection.port.clone(), printable),
            connection.overlay.clone().unwrap_or_else(|| "-".to_owned()),
            connection.protocol.clone(),
            end(&connection.initiator),
            end(&connection.target),
            connection.initiator.bytes.to_string(),
            connection.target.bytes.to_string(),
            connection.rtt_ns.map_or_else(|| "-".to_owned(), |rtt| (rtt / 1_000).to_string()),
            format!("{}s", connection.idle_s),
            connection.state.clone(),
        ]
        .to_vec()
    }));
    columns::table(&rows, |_| false)
}
