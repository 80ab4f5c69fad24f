//! What the kernel says exists: netdevs, their addresses and the default routes.
//!
//! Pure: filled by [`monitor`], or by a test.

pub mod monitor;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
};

/// A netdev's hardware address.
pub type MacAddress = [u8; 6];

/// What a netdev is, by the kernel's own word (`IFLA_INFO_KIND`) and, where that leaves a choice, its details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// No `IFLA_INFO_KIND` and an Ethernet address: a physical or virtio NIC.
    Physical,
    /// The loopback netdev.
    Loopback,
    /// A tap: Ethernet frames of a guest.
    Tap,
    /// A tun, or any other netdev without an Ethernet header: no L2 bytes to count.
    Layer3,
    /// One end of a veth pair.
    Veth {
        /// Whether the other end is in another network namespace (`IFLA_LINK_NETNSID`).
        peer_elsewhere: bool,
    },
    /// A VXLAN, GENEVE or GRE netdev that carries Ethernet frames.
    Tunnel(TunnelNetdev),
    /// A bridge.
    Bridge,
    /// A bond or team.
    Bond,
    /// An 802.1Q netdev on top of `Netdev::lower`.
    Vlan,
    /// A macvlan or macvtap on top of `Netdev::lower`.
    Macvlan,
    /// A dummy netdev.
    Dummy,
    /// Anything else, by the kernel's word.
    Other(String),
}

impl Kind {
    /// Returns the kernel's word for it, as `ip -d link` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Physical => "physical",
            Self::Loopback => "loopback",
            Self::Tap => "tap",
            Self::Layer3 => "layer3",
            Self::Veth { .. } => "veth",
            Self::Tunnel(tunnel) => &tunnel.kind,
            Self::Bridge => "bridge",
            Self::Bond => "bond",
            Self::Vlan => "vlan",
            Self::Macvlan => "macvlan",
            Self::Dummy => "dummy",
            Self::Other(kind) => kind,
        }
    }
}

/// What is known of a tunnel netdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelNetdev {
    /// `vxlan`, `geneve`, `gretap`, `ip6gretap`.
    pub kind: String,
    /// Its fixed VNI or key; `None` for an external (collect metadata) netdev, which carries many.
    pub vni: Option<u32>,
    /// The VTEP address that it sends from, where it is configured.
    pub local: Option<IpAddr>,
    /// UDP destination port, where the kind has one.
    pub udp_port: Option<u16>,
}

/// One netdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netdev {
    /// Unique in its network namespace while the netdev exists.
    pub ifindex: u32,
    /// `IFLA_IFNAME`, made valid UTF-8.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The kernel driver of a physical netdev, such as `virtio_net`; `None` where the kind says it all.
    pub driver: Option<String>,
    /// `None` where the address is not six bytes.
    pub mac: Option<MacAddress>,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// The ifindex of the bridge, bond or OVS datapath that it belongs to.
    pub master: Option<u32>,
    /// The ifindex of the netdev below (`IFLA_LINK`), where that one is in this namespace.
    pub lower: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Maximum transmission unit, in bytes of L3.
    pub mtu: u32,
}

#[cfg(test)]
impl Netdev {
    /// Returns a netdev of which nothing else is known: what tests begin with.
    pub(crate) fn bare(ifindex: u32, name: &str, kind: Kind) -> Self {
        Self {
            ifindex,
            name: name.to_owned(),
            kind,
            driver: None,
            mac: None,
            alias: None,
            altnames: Vec::new(),
            master: None,
            lower: None,
            up: true,
            mtu: 1500,
        }
    }
}

/// Which netdevs are meant: by name (`tap*`), by kind (`kind:veth`) or by driver (`driver:mlx5_core`).
///
/// `*` stands for any run of characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    field: Field,
    glob: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Kind,
    Driver,
}

/// A text is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a netdev pattern: expected a name such as \"tap*\", \"kind:…\" or \"driver:…\"")]
pub struct ParsePatternError(String);

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (field, glob) = match text.split_once(':') {
            None => (Field::Name, text),
            Some(("kind", glob)) => (Field::Kind, glob),
            Some(("driver", glob)) => (Field::Driver, glob),
            Some(_) => return Err(ParsePatternError(text.to_owned())),
        };
        // The kernel takes no white space and no slash in a name.
        if glob.is_empty() || glob.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(ParsePatternError(text.to_owned()));
        }
        Ok(Self { field, glob: glob.to_owned() })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.field {
            Field::Name => "",
            Field::Kind => "kind:",
            Field::Driver => "driver:",
        };
        write!(f, "{prefix}{}", self.glob)
    }
}

impl Pattern {
    /// Returns whether the netdev is meant.
    #[must_use]
    pub fn matches(&self, netdev: &Netdev) -> bool {
        match self.field {
            Field::Name => glob_matches(&self.glob, &netdev.name),
            Field::Kind => glob_matches(&self.glob, netdev.kind.name()),
            Field::Driver => netdev.driver.as_deref().is_some_and(|driver| glob_matches(&self.glob, driver)),
        }
    }
}

/// Matches greedily and goes back to the last `*` only, which is enough: time is at most the product of the lengths.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if glob.get(g) == Some(&'*') {
            star = Some((g, t));
            g += 1;
        } else if glob.get(g).is_some_and(|&c| c == '?' || c == text[t]) {
            g += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            g = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|&c| c == '*')
}

/// All netdevs of one network namespace with what decides their role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetdevTable {
    /// By ifindex.
    pub netdevs: BTreeMap<u32, Netdev>,
    /// Addresses, by ifindex.
    pub addresses: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// The netdevs that a default route (IPv4 or IPv6, main table) leaves by.
    pub default_routes: BTreeSet<u32>,
}

impl NetdevTable {
    /// Finds the netdev with this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Netdev> {
        self.netdevs.values().find(|netdev| netdev.name == name)
    }

    /// Takes a change over. A netdev that is gone takes its addresses and its part of the default routes with it.
    pub fn apply(&mut self, event: NetdevEvent) {
        match event {
            NetdevEvent::All(table) => *self = table,
            NetdevEvent::New(netdev) => {
                self.netdevs.insert(netdev.ifindex, netdev);
            }
            NetdevEvent::Gone(ifindex) => {
                self.netdevs.remove(&ifindex);
                self.addresses.remove(&ifindex);
                self.default_routes.remove(&ifindex);
            }
            NetdevEvent::Overrun => {}
        }
    }
}

/// A change that the kernel announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetdevEvent {
    /// A complete dump: at the start, after an overrun, and now and then.
    All(NetdevTable),
    /// A netdev is new or has changed.
    New(Netdev),
    /// The netdev with this ifindex is gone.
    Gone(u32),
    /// The kernel dropped messages (`ENOBUFS`). A complete dump follows.
    Overrun,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::{Kind, Netdev, Pattern, glob_matches};

    #[test]
    fn patterns_ask_for_name_kind_or_driver() {
        let netdev =
            Netdev { driver: Some("mlx5_core".to_owned()), ..Netdev::bare(2, "eth0", Kind::Physical) };
        for (pattern, expected) in [
            ("eth0", true),
            ("eth?", true),
            ("*", true),
            ("eth", false),
            ("eth0?", false),
            ("kind:physical", true),
            ("kind:veth", false),
            ("driver:mlx*", true),
            ("driver:virtio_net", false),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(&netdev), expected, "{pattern}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for text in ["", "name:eth0", "kind:", "a b", "a/b"] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }

    /// The definition, which takes exponential time.
    fn plainly_matches(glob: &[u8], text: &[u8]) -> bool {
        match (glob.first(), text.first()) {
            (None, _) => text.is_empty(),
            (Some(b'*'), _) => (0..=text.len()).any(|skip| plainly_matches(&glob[1..], &text[skip..])),
            (Some(b'?'), Some(_)) => plainly_matches(&glob[1..], &text[1..]),
            (Some(g), Some(t)) => g == t && plainly_matches(&glob[1..], &text[1..]),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn globs_match_as_they_are_defined(glob in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(glob_matches(&glob, &text), plainly_matches(glob.as_bytes(), text.as_bytes()));
        }
    }
}
