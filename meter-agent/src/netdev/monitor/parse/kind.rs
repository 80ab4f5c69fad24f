//! What a netdev is, from `IFLA_LINKINFO` and the hardware type.

use super::Attributes;
use crate::netdev::{Kind, TunnelNetdev};

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// `ARPHRD_LOOPBACK`.
const LOOPBACK: u16 = 772;

/// Returns the kind of a netdev with this `IFLA_INFO_KIND`, hardware type (`ARPHRD_…`) and `IFLA_INFO_DATA`.
pub(super) fn of(word: Option<&str>, hardware: u16, data: &Attributes<'_>, peer_elsewhere: bool) -> Kind {
    let word = match (word, hardware) {
        (Some("tun"), _) => return tun(hardware, data),
        (_, LOOPBACK) => return Kind::Loopback,
        (None, ETHERNET) => return Kind::Physical,
        (Some(word), ETHERNET) => word,
        // GRE, IPIP, WireGuard, VXLAN-GPE, InfiniBand …
        _ => return Kind::Layer3,
    };
    match word {
        "veth" => Kind::Veth { peer_elsewhere },
        "vxlan" => Kind::Tunnel(vxlan(data)),
        "geneve" => Kind::Tunnel(geneve(data)),
        "gretap" | "ip6gretap" | "erspan" | "ip6erspan" => Kind::Tunnel(gre(word, data)),
        "bridge" => Kind::Bridge,
        "bond" | "team" => Kind::Bond,
        "vlan" => Kind::Vlan,
        "macvlan" | "macvtap" => Kind::Macvlan,
        "dummy" => Kind::Dummy,
        other => Kind::Other(other.to_owned()),
    }
}

/// Returns the netdev that a tunnel netdev is told to send through: the kernel gives a VXLAN netdev no `IFLA_LINK`.
pub(super) fn underlay(word: Option<&str>, data: &Attributes<'_>) -> Option<u32> {
    const IFLA_VXLAN_LINK: u16 = 3;
    word.filter(|&word| word == "vxlan").and_then(|_| data.u32(IFLA_VXLAN_LINK))
}

/// `linux/if_link.h`, `IFLA_TUN_*` (Linux 4.16), and `linux/if_tun.h`.
fn tun(hardware: u16, data: &Attributes<'_>) -> Kind {
    const TYPE: u16 = 3;
    const IFF_TUN: u8 = 1;
    const IFF_TAP: u8 = 2;
    match data.u8(TYPE) {
        Some(IFF_TAP) => Kind::Tap,
        Some(IFF_TUN) => Kind::Layer3,
        _ if hardware == ETHERNET => Kind::Tap,
        _ => Kind::Layer3,
    }
}

/// `linux/if_link.h`, `IFLA_VXLAN_*`.
fn vxlan(data: &Attributes<'_>) -> TunnelNetdev {
    const ID: u16 = 1;
    const LOCAL: u16 = 4;
    const PORT: u16 = 15;
    const LOCAL6: u16 = 17;
    const COLLECT_METADATA: u16 = 25;
    let external = data.u8(COLLECT_METADATA).is_some_and(|on| on != 0);
    TunnelNetdev {
        kind: "vxlan".to_owned(),
        vni: data.u32(ID).filter(|_| !external),
        local: data.ip(LOCAL).or_else(|| data.ip(LOCAL6)),
        udp_port: data.be16(PORT),
    }
}

/// `linux/if_link.h`, `IFLA_GENEVE_*`: the source address is the route's.
fn geneve(data: &Attributes<'_>) -> TunnelNetdev {
    const ID: u16 = 1;
    const PORT: u16 = 5;
    const COLLECT_METADATA: u16 = 6;
    // A flag: its presence says yes.
    let external = data.first(COLLECT_METADATA).is_some();
    TunnelNetdev {
        kind: "geneve".to_owned(),
        vni: data.u32(ID).filter(|_| !external),
        local: None,
        udp_port: data.be16(PORT),
    }
}

/// `linux/if_tunnel.h`, `IFLA_GRE_*`. The key is the one that it sends, else the one that it expects, and 0 without.
fn gre(word: &str, data: &Attributes<'_>) -> TunnelNetdev {
    const IFLAGS: u16 = 2;
    const OFLAGS: u16 = 3;
    const IKEY: u16 = 4;
    const OKEY: u16 = 5;
    const LOCAL: u16 = 6;
    const COLLECT_METADATA: u16 = 18;
    const GRE_KEY: u16 = 0x2000;
    let key = |flags, key| data.be16(flags).filter(|flags| flags & GRE_KEY != 0).and_then(|_| data.be32(key));
    let external = data.first(COLLECT_METADATA).is_some();
    TunnelNetdev {
        kind: word.to_owned(),
        vni: (!external).then(|| key(OFLAGS, OKEY).or_else(|| key(IFLAGS, IKEY)).unwrap_or(0)),
        local: data.ip(LOCAL),
        udp_port: None,
    }
}
