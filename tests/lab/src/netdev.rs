//! Netdevs, addresses, neighbours and statistics in a namespace.
//!
//! By iproute2 in batches, because that is what an operator would type. What is read comes from `/proc`.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use crate::{
    error::{Doing as _, Error, Result},
    mac::Mac,
    netns::{Netns, failure},
};

/// What the kernel itself counted on a netdev, in skbs: a super-packet is one packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetdevStats {
    /// Received bytes, Ethernet header included.
    pub rx_bytes: u64,
    /// Received skbs.
    pub rx_packets: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Sent bytes.
    pub tx_bytes: u64,
    /// Sent skbs.
    pub tx_packets: u64,
    /// Dropped instead of being sent.
    pub tx_dropped: u64,
}

/// A tunnel netdev to make.
#[derive(Debug, Clone)]
pub struct Tunnel<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it speaks.
    pub encap: TunnelKind,
    /// Where it sends to, and under which id.
    pub mode: TunnelMode,
    /// Its MTU, in bytes of the inner L3.
    pub mtu: u32,
}

/// What a tunnel netdev speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelKind {
    /// VXLAN to this UDP port.
    Vxlan {
        /// Destination port; 4789 is the standard's.
        udp_port: u16,
    },
    /// GENEVE to this UDP port.
    Geneve {
        /// Destination port; 6081 is the standard's.
        udp_port: u16,
    },
    /// GRE with Ethernet inside, over IPv4 (`gretap`) or IPv6 (`ip6gretap`), as the addresses are.
    Gretap,
}

/// Where a tunnel netdev sends to, and under which id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelMode {
    /// One peer.
    Fixed {
        /// VNI, or GRE's key.
        vni: u32,
        /// Outer source address.
        local: IpAddr,
        /// Outer destination address.
        remote: IpAddr,
    },
    /// Peers by inner destination address, see [`Netns::tunnel_fdb`]; VXLAN only.
    Fdb {
        /// VNI.
        vni: u32,
        /// Outer source address.
        local: IpAddr,
    },
    /// Peers and ids come with each packet, from a route or a program.
    External,
}

impl Netns {
    /// Runs lines of `ip -batch`, all or up to the first that fails.
    ///
    /// # Errors
    ///
    /// With what `ip` said.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.batch("ip", batch)
    }

    /// Runs lines of `bridge -batch`.
    ///
    /// # Errors
    ///
    /// With what `bridge` said.
    pub fn bridge(&self, batch: &str) -> Result<()> {
        self.batch("bridge", batch)
    }

    fn batch(&self, program: &str, batch: &str) -> Result<()> {
        let line = || format!("{program} -batch in {} of {batch:?}", self.name());
        let mut command = Command::new(program);
        command.args(["-batch", "-"]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self
            .run_in(|| command.spawn())?
            .doing(|| format!("start {program} (apt-get install iproute2)"))?;
        let written = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(batch.as_bytes()));
        let output = child.wait_with_output().doing(line)?;
        if !output.status.success() {
            return Err(failure(line(), &output));
        }
        written.doing(line)
    }

    /// Gives a netdev an address with its prefix length, `192.0.2.1/24` or `2001:db8::1/64`.
    ///
    /// # Errors
    ///
    /// When there is no such netdev, or the kernel refuses the address.
    pub fn address(&self, netdev: &str, address: IpAddr, prefix: u8) -> Result<()> {
        if address.is_ipv6() {
            self.sysctl(&format!("net/ipv6/conf/{netdev}/disable_ipv6"), "0")?;
            return self.ip(&format!("addr add {address}/{prefix} dev {netdev} nodad"));
        }
        self.ip(&format!("addr add {address}/{prefix} dev {netdev}"))
    }

    /// Makes a neighbour entry that never expires, so that nobody asks for it by ARP or neighbour discovery.
    ///
    /// # Errors
    ///
    /// When there is no such netdev.
    pub fn neighbour(&self, netdev: &str, address: IpAddr, mac: Mac) -> Result<()> {
        self.ip(&format!("neigh replace {address} lladdr {mac} dev {netdev} nud permanent"))
    }

    /// Makes a veth pair, one end here and the other there, both up.
    ///
    /// # Errors
    ///
    /// When a name is taken.
    pub fn veth(&self, name: &str, there: &Self, peer: &str, mtu: u32) -> Result<()> {
        let place = if std::ptr::eq(self, there) { String::new() } else { format!("netns {}", there.name()) };
        self.ip(&format!(
            "link add {name} mtu {mtu} type veth peer name {peer} mtu {mtu} {place}\nlink set {name} up"
        ))?;
        there.ip(&format!("link set {peer} up"))
    }

    /// Makes a bridge that is up and says nothing by itself: no spanning tree, no multicast snooping.
    ///
    /// # Errors
    ///
    /// When the name is taken.
    pub fn add_bridge(&self, name: &str, mtu: u32) -> Result<()> {
        self.ip(&format!(
            "link add {name} mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set {name} up"
        ))
    }

    /// Makes a netdev a port of a bridge that floods and learns, as a bridge does.
    ///
    /// # Errors
    ///
    /// When there is no such netdev or bridge.
    pub fn enslave(&self, netdev: &str, bridge: &str) -> Result<()> {
        self.ip(&format!("link set {netdev} master {bridge}"))
    }

    /// Makes a netdev a port of a bridge that gets only what is for these stations and learns nothing: a frame goes
    /// to one port, and never to all.
    ///
    /// # Errors
    ///
    /// When there is no such netdev or bridge.
    pub fn enslave_static(&self, netdev: &str, bridge: &str, stations: &[Mac]) -> Result<()> {
        self.enslave(netdev, bridge)?;
        self.ip(&format!(
            "link set {netdev} type bridge_slave flood off mcast_flood off bcast_flood off learning off"
        ))?;
        let mut batch = String::new();
        for mac in stations {
            // Writing to a `String` can't fail.
            writeln!(batch, "fdb replace {mac} dev {netdev} master static").unwrap_or_default();
        }
        self.bridge(&batch)
    }

    /// Makes a tunnel netdev that is up.
    ///
    /// # Errors
    ///
    /// When the name or the UDP port is taken, or the kernel does not have the kind.
    pub fn tunnel(&self, tunnel: &Tunnel<'_>) -> Result<()> {
        let Tunnel { name, encap, mode, mtu } = tunnel;
        let kind = match (encap, mode) {
            (TunnelKind::Vxlan { .. }, _) => "vxlan",
            (TunnelKind::Geneve { .. }, _) => "geneve",
            (TunnelKind::Gretap, TunnelMode::Fixed { local: IpAddr::V6(_), .. }) => "ip6gretap",
            (TunnelKind::Gretap, _) => "gretap",
        };
        let id = if *encap == TunnelKind::Gretap { "key" } else { "id" };
        let mut line = format!("link add {name} mtu {mtu} type {kind}");
        match mode {
            TunnelMode::Fixed { vni, local, remote } => {
                line.push_str(&format!(" {id} {vni} remote {remote}"));
                if kind != "geneve" {
                    line.push_str(&format!(" local {local}"));
                }
            }
            TunnelMode::Fdb { vni, local } => line.push_str(&format!(" {id} {vni} local {local}")),
            TunnelMode::External => line.push_str(" external"),
        }
        match encap {
            TunnelKind::Vxlan { udp_port } => line.push_str(&format!(" dstport {udp_port} nolearning")),
            TunnelKind::Geneve { udp_port } => line.push_str(&format!(" dstport {udp_port}")),
            TunnelKind::Gretap => {}
        }
        line.push_str(&format!("\nlink set {name} up"));
        self.ip(&line)
    }

    /// Makes a VXLAN netdev send frames for `station` to the peer `to`, under another VNI than its own if one is given.
    ///
    /// The station of zeros is everything that has no entry; several peers for it get a copy each.
    ///
    /// # Errors
    ///
    /// When there is no such netdev.
    pub fn tunnel_fdb(&self, netdev: &str, station: Mac, to: IpAddr, vni: Option<u32>) -> Result<()> {
        let vni = vni.map_or_else(String::new, |vni| format!(" vni {vni}"));
        self.bridge(&format!("fdb append {station} dev {netdev} dst {to}{vni}"))
    }

    /// Makes an 802.1Q netdev on top of another, up.
    ///
    /// # Errors
    ///
    /// When the kernel has no such kind, or there is no such netdev.
    pub fn vlan(&self, name: &str, lower: &str, vlan: u16) -> Result<()> {
        self.ip(&format!("link add {name} link {lower} type vlan id {vlan}\nlink set {name} up"))
    }

    /// Switches an offload of a netdev by ethtool's word, such as `tso off`.
    ///
    /// # Errors
    ///
    /// When ethtool is missing, or the netdev does not have the offload.
    pub fn offload(&self, netdev: &str, setting: &[&str]) -> Result<()> {
        let mut args = vec!["-K", netdev];
        args.extend(setting);
        self.run("ethtool", &args).map(drop)
    }

    /// Reads what the kernel counted on a netdev.
    ///
    /// # Errors
    ///
    /// [`Error::NoNetdev`].
    pub fn stats(&self, netdev: &str) -> Result<NetdevStats> {
        self.proc_net_dev()?
            .into_iter()
            .find(|(name, _)| name == netdev)
            .map(|(_, stats)| stats)
            .ok_or_else(|| Error::NoNetdev { netdev: netdev.to_owned(), netns: self.name().to_owned() })
    }

    /// Returns the names of all netdevs here.
    ///
    /// # Errors
    ///
    /// When `/proc` can't be read.
    pub fn netdevs(&self) -> Result<Vec<String>> {
        Ok(self.proc_net_dev()?.into_iter().map(|(name, _)| name).collect())
    }

    fn proc_net_dev(&self) -> Result<Vec<(String, NetdevStats)>> {
        // Below `self` it would be the namespace of the process's first thread.
        let path = "/proc/thread-self/net/dev";
        let text = self.run_in(|| std::fs::read_to_string(path))?.doing(|| format!("read {path}"))?;
        Ok(text.lines().filter_map(parse_proc_net_dev).collect())
    }
}

fn parse_proc_net_dev(line: &str) -> Option<(String, NetdevStats)> {
    let (name, numbers) = line.rsplit_once(": ").or_else(|| line.rsplit_once(':'))?;
    let n: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    (n.len() == 16).then(|| {
        let stats = NetdevStats {
            rx_bytes: n[0],
            rx_packets: n[1],
            rx_dropped: n[3],
            tx_bytes: n[8],
            tx_packets: n[9],
            tx_dropped: n[11],
        };
        (name.trim().to_owned(), stats)
    })
}

/// Returns whether the kernel can make netdevs of this kind; loads the module that has it, as making one does.
#[must_use]
pub fn kind_exists(kind: &str) -> bool {
    let Ok(netns) = Netns::new("probe") else { return false };
    let details = match kind {
        // The loopback netdev takes no VLANs, and the one below has to be up.
        "vlan" => {
            return netns.ip("link add probe1 type veth peer name probe2\nlink set probe1 up").is_ok()
                && netns.vlan("probe0", "probe1", 2).is_ok();
        }
        "vxlan" => "type vxlan id 1 dstport 4789",
        "geneve" => "type geneve id 1 remote 192.0.2.1",
        "gretap" => "type gretap local 192.0.2.1 remote 192.0.2.2",
        "ip6gretap" => "type ip6gretap local 2001:db8::1 remote 2001:db8::2",
        other => return netns.ip(&format!("link add probe0 type {other}")).is_ok(),
    };
    netns.ip(&format!("link add probe0 {details}")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{NetdevStats, parse_proc_net_dev};

    #[test]
    fn statistics_are_read_from_their_columns() {
        let line = "  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16";
        let stats = NetdevStats {
            rx_bytes: 1,
            rx_packets: 2,
            rx_dropped: 4,
            tx_bytes: 9,
            tx_packets: 10,
            tx_dropped: 12,
        };
        assert_eq!(parse_proc_net_dev(line), Some(("eth0".to_owned(), stats)));
        assert_eq!(parse_proc_net_dev(" face |bytes packets"), None);
    }
}
