//! What the kernel counts of netdevs, for audits and for the Skydive connector's page.
//!
//! One dump of all netdevs and one of all queueing disciplines, whatever is asked; and for veths whose other end is
//! elsewhere one dump of that network namespace, of [`MOST_NAMESPACES`] at most. A dump that was interrupted may lack
//! netdevs: those are left to the next one.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkMessage},
    tc::TcMessage,
};

use super::{
    MonitorError,
    parse::{Attributes, bytes, own_address},
    socket::{RawMessage, Requests},
    socket_error,
};
use crate::netdev::{NetdevSample, NetdevState, NetdevStats};

/// Namespaces of other ends that are looked at. A dump of one takes some 50 µs.
const MOST_NAMESPACES: usize = 4096;

const IFLA_LINK: u16 = 5;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_STATS64: u16 = 23;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_PHYS_SWITCH_ID: u16 = 36;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;

/// Queueing discipline of the netdev itself, not of a class.
const TC_H_ROOT: u32 = u32::MAX;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;

/// Asks the kernel for statistics, again and again.
#[derive(Debug)]
pub struct Sampler {
    requests: Requests,
}

/// The other end of a veth: its namespace by the number that this one has for it, and its ifindex there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    namespace: Option<u32>,
    ifindex: u32,
}

impl Sampler {
    /// Opens a socket in the calling thread's network namespace. The result may be used on any thread.
    ///
    /// # Errors
    ///
    /// When a socket can't be made.
    pub fn open() -> Result<Self, MonitorError> {
        Ok(Self { requests: Requests::open().map_err(socket_error("open a netlink socket"))? })
    }

    /// Returns the statistics of these netdevs, as far as they exist.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. Queues and other ends that can't be asked are left out instead.
    pub fn sample(&mut self, netdevs: &BTreeSet<u32>) -> Result<BTreeMap<u32, NetdevSample>, MonitorError> {
        let mut samples = BTreeMap::new();
        let mut received = BTreeMap::new();
        let mut peers = BTreeMap::new();
        self.links(None, |ifindex, attributes| {
            let Some(stats) = stats(attributes) else { return };
            received.insert((None, ifindex), (stats.rx_packets, stats.rx_bytes));
            if netdevs.contains(&ifindex) {
                samples.insert(ifindex, sample(stats, attributes));
                peers.extend(peer(attributes).map(|peer| (ifindex, peer)));
            }
        })
        .map_err(|source| MonitorError::Dump { what: "statistics", source })?;
        let namespaces: BTreeSet<u32> = peers.values().filter_map(|peer| peer.namespace).collect();
        for namespace in namespaces.into_iter().take(MOST_NAMESPACES) {
            let dumped = self.links(Some(namespace), |ifindex, attributes| {
                if let Some(stats) = stats(attributes) {
                    received.insert((Some(namespace), ifindex), (stats.rx_packets, stats.rx_bytes));
                }
            });
            if let Err(error) = dumped {
                tracing::debug!(namespace, error = %error, "other ends of veths not looked at");
            }
        }
        for (ifindex, peer) in peers {
            if let Some(sample) = samples.get_mut(&ifindex) {
                sample.peer_received = received.get(&(peer.namespace, peer.ifindex)).copied();
            }
        }
        self.queues(&mut samples);
        Ok(samples)
    }

    /// Returns statistics and first addresses of these netdevs, as far as they exist.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn states(&mut self, netdevs: &BTreeSet<u32>) -> Result<BTreeMap<u32, NetdevState>, MonitorError> {
        let mut states: BTreeMap<u32, NetdevState> = BTreeMap::new();
        self.links(None, |ifindex, attributes| {
            if let Some(stats) = stats(attributes).filter(|_| netdevs.contains(&ifindex)) {
                states.insert(ifindex, NetdevState { stats, ipv4: None, ipv6: None });
            }
        })
        .map_err(|source| MonitorError::Dump { what: "statistics", source })?;
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let each = |(message_type, payload): RawMessage<'_>| {
            let own = (message_type == libc::RTM_NEWADDR).then(|| own_address(payload)).flatten();
            if let Some((ifindex, address, prefix)) = own
                && let Some(state) = states.get_mut(&ifindex)
            {
                let first = if address.is_ipv4() { &mut state.ipv4 } else { &mut state.ipv6 };
                first.get_or_insert((address, prefix));
            }
        };
        self.requests
            .dump(request, each)
            .map_err(|source| MonitorError::Dump { what: "addresses", source })?;
        Ok(states)
    }

    /// Hands out each netdev of a namespace, `None` for this one.
    fn links(
        &mut self,
        namespace: Option<u32>,
        mut each: impl FnMut(u32, &Attributes<'_>),
    ) -> std::io::Result<()> {
        let mut message = LinkMessage::default();
        if let Some(namespace) = namespace {
            message.attributes.push(LinkAttribute::IfNetnsId(namespace.cast_signed()));
        }
        let each = |(message_type, payload): RawMessage<'_>| {
            // `struct ifinfomsg`, 16 bytes, and attributes.
            let link = (message_type == libc::RTM_NEWLINK)
                .then(|| Some((bytes(payload, 4)?, Attributes::read(payload.get(16..)?)?)));
            if let Some((ifindex, attributes)) = link.flatten() {
                each(u32::from_ne_bytes(ifindex), &attributes);
            }
        };
        self.requests.dump(RouteNetlinkMessage::GetLink(message), each).map(drop)
    }

    fn queues(&mut self, samples: &mut BTreeMap<u32, NetdevSample>) {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let dumped = self.requests.dump(request, |(message_type, payload)| {
            let queue = (message_type == libc::RTM_NEWQDISC).then(|| queue(payload)).flatten();
            if let Some((ifindex, waiting, dropped)) = queue
                && let Some(sample) = samples.get_mut(&ifindex)
            {
                sample.queue_waiting = waiting;
                sample.queue_dropped = dropped;
            }
        });
        if let Err(error) = dumped {
            tracing::debug!(error = %error, "queueing disciplines not looked at");
        }
    }
}

fn sample(stats: NetdevStats, attributes: &Attributes<'_>) -> NetdevSample {
    let queues = attributes.u32(IFLA_NUM_TX_QUEUES).unwrap_or(1);
    NetdevSample {
        stats,
        peer_received: None,
        queue_dropped: 0,
        queue_waiting: 0,
        queue_limit: attributes.u32(IFLA_TXQLEN).unwrap_or_default().saturating_mul(queues),
        has_xdp: attributes.nested(IFLA_XDP).u8(IFLA_XDP_ATTACHED).unwrap_or_default() != 0,
        is_switched: attributes.first(IFLA_PHYS_SWITCH_ID).is_some(),
    }
}

/// `struct rtnl_link_stats64`.
fn stats(attributes: &Attributes<'_>) -> Option<NetdevStats> {
    let data = attributes.first(IFLA_STATS64)?;
    let field = |place: usize| bytes(data, place * 8).map(u64::from_ne_bytes);
    Some(NetdevStats {
        rx_packets: field(0)?,
        tx_packets: field(1)?,
        rx_bytes: field(2)?,
        tx_bytes: field(3)?,
        rx_dropped: field(6)?,
        tx_dropped: field(7)?,
        rx_errors: field(4)?,
        tx_errors: field(5)?,
        rx_missed_errors: field(15)?,
        collisions: field(9)?,
    })
}

fn peer(attributes: &Attributes<'_>) -> Option<Peer> {
    let is_veth = attributes.nested(IFLA_LINKINFO).text(IFLA_INFO_KIND).as_deref() == Some("veth");
    let ifindex = attributes.u32(IFLA_LINK).filter(|_| is_veth)?;
    Some(Peer { namespace: attributes.u32(IFLA_LINK_NETNSID), ifindex })
}

/// Returns ifindex, packets that wait, and packets that were dropped: of `struct tcmsg`, 20 bytes, and `struct
/// gnet_stats_queue` in its attributes.
fn queue(payload: &[u8]) -> Option<(u32, u32, u32)> {
    let ifindex = bytes(payload, 4).map(u32::from_ne_bytes)?;
    let parent = bytes(payload, 12).map(u32::from_ne_bytes)?;
    if parent != TC_H_ROOT {
        return None;
    }
    let stats = Attributes::read(payload.get(20..)?)?.nested(TCA_STATS2);
    let queue = stats.first(TCA_STATS_QUEUE)?;
    Some((ifindex, bytes(queue, 0).map(u32::from_ne_bytes)?, bytes(queue, 8).map(u32::from_ne_bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), number.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn words(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    #[test]
    fn statistics_are_read_from_their_places() {
        let list = [
            attribute(IFLA_TXQLEN, &1000_u32.to_ne_bytes()),
            attribute(IFLA_NUM_TX_QUEUES, &2_u32.to_ne_bytes()),
            attribute(IFLA_STATS64, &words(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17])),
            attribute(IFLA_XDP, &attribute(IFLA_XDP_ATTACHED, &[1])),
            attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"veth\0")),
            attribute(IFLA_LINK, &7_u32.to_ne_bytes()),
            attribute(IFLA_LINK_NETNSID, &3_u32.to_ne_bytes()),
        ]
        .concat();
        let attributes = Attributes::read(&list).unwrap();
        let expected = NetdevStats {
            rx_packets: 1,
            tx_packets: 2,
            rx_bytes: 3,
            tx_bytes: 4,
            rx_dropped: 7,
            tx_dropped: 8,
            rx_errors: 5,
            tx_errors: 6,
            rx_missed_errors: 16,
            collisions: 10,
        };
        assert_eq!(stats(&attributes), Some(expected));
        let sample = sample(expected, &attributes);
        assert_eq!((sample.queue_limit, sample.has_xdp, sample.is_switched), (2000, true, false));
        assert_eq!(peer(&attributes), Some(Peer { namespace: Some(3), ifindex: 7 }));
        let short = attribute(IFLA_STATS64, &words(&[1, 2]));
        assert_eq!(stats(&Attributes::read(&short).unwrap()), None);
    }

    #[test]
    fn only_the_root_of_a_netdev_is_its_queue() {
        let stats = attribute(TCA_STATS_QUEUE, &[3, 4, 5_u32, 6, 7].map(u32::to_ne_bytes).concat());
        let message = |parent: u32| {
            let head = [0, 9, 1, parent, 0_u32].map(u32::to_ne_bytes).concat();
            [head, attribute(TCA_STATS2, &stats)].concat()
        };
        assert_eq!(queue(&message(TC_H_ROOT)), Some((9, 3, 5)));
        assert_eq!(queue(&message(0x10001)), None);
        assert_eq!(queue(&[0; 20]), None);
    }
}
