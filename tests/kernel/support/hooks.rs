//! What hangs on netdevs, as iproute2 and the kernel say it: nothing of this is the agent's word.

use aya::programs::{SchedClassifier, TcAttachType};
use lab::netns::Netns;

/// Returns every hook of a netdev of a namespace, whoever's it is.
pub(crate) fn hooks_in(netns: &Netns, netdev: &str) -> lab::Result<Vec<String>> {
    Look::at(netns)?.hooks(netdev)
}

/// What iproute2 says of all netdevs of a namespace, asked once.
pub(crate) struct Look<'a> {
    netns: &'a Netns,
    qdiscs: String,
    links: String,
}

impl<'a> Look<'a> {
    /// Asks.
    pub(crate) fn at(netns: &'a Netns) -> lab::Result<Self> {
        let qdiscs = netns.run("tc", &["qdisc", "show"])?;
        Ok(Self { netns, qdiscs, links: netns.run("ip", &["-oneline", "link", "show"])? })
    }

    /// Returns every hook of one of them: `eth0 tcx ingress meter_in` and the like.
    pub(crate) fn hooks(&self, netdev: &str) -> lab::Result<Vec<String>> {
        // `qdisc clsact ffff: dev eth0 parent ffff:fff1`, `3: eth0@if2: <BROADCAST> mtu 1500 xdp …`
        let of_netdev = format!(" dev {netdev} ");
        let has_qdisc = |kind: &str| {
            let mut qdiscs = self.qdiscs.lines().filter(|line| line.contains(&of_netdev));
            qdiscs.any(|line| line.starts_with(&format!("qdisc {kind} ")))
        };
        let named = |line: &&str| {
            let name = line.split(": ").nth(1).unwrap_or_default();
            name.split('@').next() == Some(netdev)
        };
        let mut hooks = Vec::new();
        for (direction, attach_type) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)]
        {
            // Before Linux 6.6 there is nothing to ask for.
            let found = self.netns.run_in(|| SchedClassifier::query_tcx(netdev, attach_type)).unwrap();
            let programs = found.map(|(_, programs)| programs).unwrap_or_default();
            hooks.extend(
                programs.iter().map(|program| {
                    format!("{netdev} tcx {direction} {}", program.name_as_str().unwrap_or("?"))
                }),
            );
            if !has_qdisc("clsact") && !has_qdisc("ingress") {
                continue;
            }
            let filters = self.netns.run("tc", &["filter", "show", "dev", netdev, direction])?;
            hooks.extend(filters.lines().filter(|line| line.contains("handle")).map(|line| {
                // `filter protocol all pref 2 bpf chain 0 handle 0x1 meter_in direct-action …`
                let words: Vec<&str> = line.split_whitespace().collect();
                let after = |word| {
                    let at = words.iter().position(|&other| other == word);
                    at.and_then(|at| words.get(at + 1)).copied().unwrap_or("?")
                };
                format!("{netdev} clsact {direction} {}", after("pref"))
            }));
        }
        if has_qdisc("clsact") {
            hooks.push(format!("{netdev} qdisc clsact"));
        }
        if self.links.lines().filter(named).any(|line| line.contains("prog/xdp")) {
            hooks.push(format!("{netdev} xdp"));
        }
        Ok(hooks)
    }
}
