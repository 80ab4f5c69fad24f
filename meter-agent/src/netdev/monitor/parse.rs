//! rtnetlink messages of the kernel, as far as they say something of netdevs, their addresses and default routes.
//!
//! Pure. Only the attributes that are needed are looked at: what a driver adds, or a newer kernel, can't make a netdev
//! unreadable. Layouts: `linux/if_link.h`, `linux/if_addr.h`, `linux/rtnetlink.h`.

mod kind;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use netlink_packet_core::{NLA_HEADER_SIZE, NlasIterator};

use crate::netdev::Netdev;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_NEW_NETNSID: u16 = 45;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;

const FAMILY_UNSPEC: u8 = 0;
const FAMILY_INET: u8 = 2;
const FAMILY_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const RTM_F_CLONED: u32 = 0x200;

/// What a message says.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// A netdev is new, or something of it has changed.
    Netdev(Link),
    /// A netdev is gone.
    NetdevGone {
        /// Its number.
        ifindex: u32,
        /// It lives on in another network namespace.
        moved: bool,
    },
    /// A netdev has an address.
    Address(u32, IpAddr),
    /// A netdev has an address no longer.
    AddressGone(u32, IpAddr),
    /// There is a default route in the main table, by these netdevs.
    DefaultRoute(Vec<u32>),
    /// A default route of the main table is gone.
    DefaultRouteGone,
    /// Something else: a bridge port, another route, another namespace.
    Other,
}

/// A netdev as a message tells it, without what has to be looked up elsewhere: `netdev.driver` is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// The netdev.
    pub(super) netdev: Netdev,
    /// The device that it is the netdev of.
    pub(super) parent: Option<Parent>,
}

/// A device on a bus, such as `virtio`'s `virtio2` (Linux 5.14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parent {
    /// `IFLA_PARENT_DEV_BUS_NAME`.
    pub(super) bus: String,
    /// `IFLA_PARENT_DEV_NAME`.
    pub(super) name: String,
}

/// A message does not have the shape that its type asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("netlink message of type {message_type} is malformed")]
pub(super) struct Malformed {
    /// `RTM_…`.
    pub(super) message_type: u16,
}

/// Reads the payload of a message of this type (`RTM_…`).
pub(super) fn message(message_type: u16, payload: &[u8]) -> Result<Message, Malformed> {
    let read = match message_type {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => link(payload, message_type == libc::RTM_DELLINK),
        libc::RTM_NEWADDR => address(payload, Message::Address),
        libc::RTM_DELADDR => address(payload, Message::AddressGone),
        libc::RTM_NEWROUTE => route(payload, Message::DefaultRoute),
        libc::RTM_DELROUTE => route(payload, |_| Message::DefaultRouteGone),
        _ => Some(Message::Other),
    };
    read.ok_or(Malformed { message_type })
}

/// `struct ifinfomsg`, 16 bytes, and attributes.
fn link(payload: &[u8], gone: bool) -> Option<Message> {
    // A port that leaves its bridge is announced as RTM_DELLINK of family AF_BRIDGE: the netdev itself stays.
    if *payload.first()? != FAMILY_UNSPEC {
        return Some(Message::Other);
    }
    let hardware = u16::from_ne_bytes(bytes(payload, 2)?);
    let ifindex = u32::from_ne_bytes(bytes(payload, 4)?);
    let flags = u32::from_ne_bytes(bytes(payload, 8)?);
    let attributes = Attributes::read(payload.get(16..)?)?;
    if attributes.first(IFLA_TARGET_NETNSID).is_some() {
        return Some(Message::Other);
    }
    if gone {
        let moved = attributes.first(IFLA_NEW_NETNSID).is_some();
        return Some(Message::NetdevGone { ifindex, moved });
    }
    let elsewhere = attributes.first(IFLA_LINK_NETNSID).is_some();
    // Without its kind a netdev would pass for a physical one.
    let info = attributes.first(IFLA_LINKINFO).map_or(Some(Attributes::default()), Attributes::read)?;
    let word = info.text(IFLA_INFO_KIND);
    let data = info.nested(IFLA_INFO_DATA);
    let lower = attributes
        .u32(IFLA_LINK)
        .or_else(|| kind::underlay(word.as_deref(), &data))
        .filter(|&lower| !elsewhere && lower != 0 && lower != ifindex);
    let altnames = attributes.nested(IFLA_PROP_LIST);
    let netdev = Netdev {
        ifindex,
        name: attributes.text(IFLA_IFNAME)?,
        kind: kind::of(word.as_deref(), hardware, &data, elsewhere),
        driver: None,
        mac: attributes.first(IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        alias: attributes.text(IFLA_IFALIAS),
        altnames: altnames.all(IFLA_ALT_IFNAME).filter_map(text).collect(),
        master: attributes.u32(IFLA_MASTER).filter(|&master| master != 0),
        lower,
        up: flags & IFF_UP != 0,
        mtu: attributes.u32(IFLA_MTU).unwrap_or(0),
    };
    let parent = attributes
        .text(IFLA_PARENT_DEV_BUS_NAME)
        .zip(attributes.text(IFLA_PARENT_DEV_NAME))
        .map(|(bus, name)| Parent { bus, name });
    Some(Message::Netdev(Link { netdev, parent }))
}

fn address(payload: &[u8], says: impl FnOnce(u32, IpAddr) -> Message) -> Option<Message> {
    if !matches!(*payload.first()?, FAMILY_INET | FAMILY_INET6) {
        return Some(Message::Other);
    }
    let (ifindex, address, _) = own_address(payload)?;
    Some(says(ifindex, address))
}

/// Returns whose address a message of IPv4 or IPv6 names, which, and its prefix length: of `struct ifaddrmsg`, 8 bytes, and
/// attributes.
pub(super) fn own_address(payload: &[u8]) -> Option<(u32, IpAddr, u8)> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let [_, prefix] = bytes(payload, 0)?;
    let ifindex = u32::from_ne_bytes(bytes(payload, 4)?);
    let attributes = Attributes::read(payload.get(8..)?)?;
    // On a point-to-point netdev IFA_ADDRESS is the peer's.
    let own = attributes.first(IFA_LOCAL).or_else(|| attributes.first(IFA_ADDRESS))?;
    Some((ifindex, ip(own)?, prefix))
}

/// `struct rtmsg`, 12 bytes, and attributes.
fn route(payload: &[u8], says: impl FnOnce(Vec<u32>) -> Message) -> Option<Message> {
    const RTA_OIF: u16 = 4;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_TABLE: u16 = 15;
    let [family, prefix, _, _, table, _, _, route_type] = bytes(payload, 0)?;
    let flags = u32::from_ne_bytes(bytes(payload, 8)?);
    // `unreachable default` leaves by no netdev, although IPv6 says `dev lo`.
    let is_default = matches!(family, FAMILY_INET | FAMILY_INET6)
        && prefix == 0
        && route_type == libc::RTN_UNICAST
        && flags & RTM_F_CLONED == 0;
    if !is_default {
        return Some(Message::Other);
    }
    let attributes = Attributes::read(payload.get(12..)?)?;
    if attributes.u32(RTA_TABLE).unwrap_or(table.into()) != u32::from(libc::RT_TABLE_MAIN) {
        return Some(Message::Other);
    }
    let mut netdevs: Vec<u32> = attributes.u32(RTA_OIF).into_iter().collect();
    netdevs.extend(nexthops(attributes.first(RTA_MULTIPATH).unwrap_or_default()));
    Some(says(netdevs))
}

/// Returns the netdevs of an `RTA_MULTIPATH`: each `struct rtnexthop`, 8 bytes, is followed by attributes.
fn nexthops(mut list: &[u8]) -> Vec<u32> {
    let mut netdevs = Vec::new();
    while let (Some(length), Some(ifindex)) = (bytes(list, 0), bytes(list, 4)) {
        netdevs.push(u32::from_ne_bytes(ifindex));
        let length = usize::from(u16::from_ne_bytes(length)).max(8).next_multiple_of(4);
        list = list.get(length..).unwrap_or_default();
    }
    netdevs
}

/// The attributes at one level of a message.
#[derive(Debug, Default)]
pub(super) struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Returns `None` where a length is wrong.
    pub(super) fn read(list: &'a [u8]) -> Option<Self> {
        let attributes = NlasIterator::new(list).map(|attribute| {
            let attribute = attribute.ok()?;
            let (number, length) = (attribute.kind(), usize::from(attribute.length()));
            Some((number, attribute.into_inner().get(NLA_HEADER_SIZE..length)?))
        });
        attributes.collect::<Option<_>>().map(Self)
    }

    fn all(&self, number: u16) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(found, _)| *found == number).map(|(_, value)| *value)
    }

    pub(super) fn first(&self, number: u16) -> Option<&'a [u8]> {
        self.all(number).next()
    }

    /// Returns those inside another; none where that is absent or unreadable, so that a netdev isn't lost by a detail.
    pub(super) fn nested(&self, number: u16) -> Self {
        self.first(number).and_then(Self::read).unwrap_or_default()
    }

    pub(super) fn u8(&self, number: u16) -> Option<u8> {
        self.first(number)?.first().copied()
    }

    /// In the byte order of the network.
    fn be16(&self, number: u16) -> Option<u16> {
        self.first(number)?.try_into().map(u16::from_be_bytes).ok()
    }

    pub(super) fn u32(&self, number: u16) -> Option<u32> {
        self.first(number)?.try_into().map(u32::from_ne_bytes).ok()
    }

    /// In the byte order of the network.
    fn be32(&self, number: u16) -> Option<u32> {
        self.first(number)?.try_into().map(u32::from_be_bytes).ok()
    }

    /// Returns an address, unless it is the unspecified one.
    fn ip(&self, number: u16) -> Option<IpAddr> {
        ip(self.first(number)?).filter(|ip| !ip.is_unspecified())
    }

    pub(super) fn text(&self, number: u16) -> Option<String> {
        text(self.first(number)?)
    }
}

/// The kernel takes any bytes for a name or an alias: what isn't UTF-8 becomes U+FFFD. `None` for an empty text.
fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    let text = String::from_utf8_lossy(&value[..end]).into_owned();
    (!text.is_empty()).then_some(text)
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => bytes::<4>(value, 0).map(IpAddr::from),
        16 => bytes::<16>(value, 0).map(IpAddr::from),
        _ => None,
    }
}

pub(super) fn bytes<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}
