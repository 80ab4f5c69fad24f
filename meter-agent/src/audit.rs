//! Whether the meters are right: what the hooks count, held against what the kernel itself counts.
//!
//! Pure: [`Auditor::judge`] takes one [`Sample`] after another and returns a [`Report`]. `service` takes the samples.
//!
//! # The law
//!
//! Nothing reads the kernel's statistics and our counters at one instant, and frames are on their way between the two.
//! So a sample is a bracket: the kernel's counters, a pause, ours twice, a pause, the kernel's again. All of them only
//! grow, so at some time in between the difference `kernel - ours` was in `[first - second ours, last - first ours]`,
//! provided that no frame takes longer than a pause from the one counter to the other. Where nothing is lost this
//! difference is the same for ever: the base line. It is the intersection of the intervals of all samples that agree;
//! hence
//!
//! 1. traffic is no drift, however much there is of it, and a quiet moment makes the base line exact;
//! 2. drift is the distance of an interval from the base line, so it is never more than what was lost, and less by at
//!    most what the widths of the two are;
//! 3. what was counted before the base line is no drift. It is told as [`Cause::AttachedLater`] where the hooks are
//!    younger than the netdev. An agent that takes over the hooks of an earlier one begins a new base line, and so does a
//!    netdev that gets another port: neither can look drifted for it, and neither vouches for what was before. What passes
//!    while a hook is missing is drift, [`Cause::HookLost`].
//!
//! The causes of one netdev and direction add up to `kernel - ours`.
//!
//! # Which units
//!
//! What the kernel counts as one packet, and which bytes of it, is each driver's choice. In the kernel's sources:
//!
//! | netdev | receives | sends |
//! |---|---|---|
//! | veth | what the other end sends, counted there before our ingress hook: an skb as it is, so a super-packet is one (`veth_xmit`, `veth_get_stats64`). With XDP or GRO on it: before XDP and GRO, without the 14 bytes of Ethernet (`veth_xdp_rcv`) | behind our egress hook, if the other end took it; else `tx_dropped` |
//! | tap | what was written, behind our ingress hook; what XDP drops is not in it (`tun_get_user`) | when it is read, in frames if the reader takes no super-packets, with the VLAN tag (`tun_put_user`); a full queue is `tx_dropped` (`tun_net_xmit`) |
//! | vxlan, geneve | inner frames before our ingress hook and before GRO merges them, without Ethernet header (`vxlan_rcv`, `geneve_rx`) | from the inner IP header on, one for each copy (`iptunnel_xmit`) |
//! | gretap | inner frames with their Ethernet header (`ip_tunnel_rcv`; `ip6gretap` without) | as vxlan |
//! | physical | by its driver: before GRO, so frames or super-packets; with or without FCS and VLAN tags | frames or super-packets |
//!
//! XDP on a veth or NIC runs behind the driver's counter. `bpf_redirect_peer` passes by both hook and counter of the end
//! that it is told, and since Linux 6.8 is counted as received by the other (`skb_do_redirect`). A packet that a queueing
//! discipline drops is in its own statistics only. Between counter and ingress hook only `gro_cells` of tunnel netdevs
//! drops by itself, as `rx_dropped`.
//!
//! So a direction has no drift where one of the few ways to count explains it exactly: super-packets as one or as their
//! frames, with or without the Ethernet header. Tunnel and physical netdevs may mix the first two, in one direction and at
//! one time, and so may all in egress: what a netdev has no feature for is segmented behind our hook
//! (`validate_xmit_skb`), such as datagrams on a veth or vxlan of Linux 5.10, whose TCP stays whole. There a loss smaller
//! than the frames in super-packets can hide.

mod base;
mod judge;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use meter_ebpf::abi::{Counter, Direction, HookCounter};

pub use self::table::table;
use self::{base::Base, judge::Judged};
use crate::{
    datapath::Class,
    meter::PortId,
    netdev::{NetdevId, NetdevSample},
};

/// Why the kernel counts something else than the hooks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The netdev had traffic before it was metered.
    AttachedLater,
    /// A hook was missing for a while.
    HookLost,
    /// An XDP program stands before the hook.
    Xdp,
    /// Another TC program stands on the same side of the netdev.
    ForeignProgram,
    /// `bpf_redirect_peer` led past the netdev.
    RedirectPeer,
    /// A switch in hardware forwards.
    HardwareOffload,
    /// The driver counts other bytes.
    DriverUnits,
    /// The kernel dropped what it had received, before the hook.
    RxDropped,
    /// The queueing discipline or the driver dropped what was offered.
    TxDropped,
    /// The driver's reader has not fetched it yet.
    Queued,
    /// A tunnel netdev sent a frame to several end points.
    Copies,
    /// Nothing that is known here.
    Unknown,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 12] = [
        Self::AttachedLater,
        Self::HookLost,
        Self::Xdp,
        Self::ForeignProgram,
        Self::RedirectPeer,
        Self::HardwareOffload,
        Self::DriverUnits,
        Self::RxDropped,
        Self::TxDropped,
        Self::Queued,
        Self::Copies,
        Self::Unknown,
    ];

    /// Returns the word that operators see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AttachedLater => "attached_later",
            Self::HookLost => "hook_lost",
            Self::Xdp => "xdp",
            Self::ForeignProgram => "foreign_program",
            Self::RedirectPeer => "redirect_peer",
            Self::HardwareOffload => "hardware_offload",
            Self::DriverUnits => "driver_units",
            Self::RxDropped => "rx_dropped",
            Self::TxDropped => "tx_dropped",
            Self::Queued => "queued",
            Self::Copies => "copies",
            Self::Unknown => "unknown",
        }
    }

    /// Returns what it means, in a sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::AttachedLater => {
                "the netdev had this traffic before it was metered; no meter has it, and none should."
            }
            Self::HookLost => {
                "a hook was removed by another tool, or changed, and attached again; what passed meanwhile is in no meter."
            }
            Self::Xdp => {
                "an XDP program on the netdev drops, answers or redirects frames before they reach the hook."
            }
            Self::ForeignProgram => {
                "another TC program on this side of the netdev drops or redirects frames: before the hook on receive, \
                 behind it on transmit."
            }
            Self::RedirectPeer => {
                "a program hands frames to the other end of this veth by bpf_redirect_peer, past the hook; meter the netdev \
                 that they come from, or switch that off (Cilium: host routing through the stack)."
            }
            Self::HardwareOffload => {
                "the netdev is a port of a hardware switch that forwards flows by itself; what it forwards is in the \
                 driver's statistics only."
            }
            Self::DriverUnits => {
                "the packets agree, and the driver counts other bytes of each: with the FCS, or without a VLAN tag or the \
                 Ethernet header."
            }
            Self::RxDropped => {
                "the kernel dropped these frames between the driver and the hook (rx_dropped)."
            }
            Self::TxDropped => {
                "the queue or the driver dropped these frames after the hook had counted them as offered (tx_dropped)."
            }
            Self::Queued => "whoever reads the tap has not fetched these frames yet.",
            Self::Copies => {
                "the tunnel netdev sends some frames to several end points, and counts each copy."
            }
            Self::Unknown => {
                "nothing that the audit knows: a way around the hook (XDP_REDIRECT, AF_XDP, a packet socket with \
                 PACKET_QDISC_BYPASS, a redirect into the netdev), or a fault of the meter. Report it with this line."
            }
        }
    }
}

/// A netdev that is metered, as the agent sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    /// Whose counters it feeds.
    pub port: PortId,
    /// Their family.
    pub class: Class,
    /// The netdev.
    pub netdev_id: NetdevId,
    /// Its name.
    pub netdev: String,
    /// The name of its namespace, empty for the host's.
    pub netns: String,
    /// Its kind, by the kernel's word.
    pub kind: String,
    /// Differs after each attach behind which counting began; 0 where an earlier agent's hooks were taken over.
    pub attach: u64,
    /// Times that a hook was missing since then.
    pub gaps: u64,
    /// Whether the program of ingress is XDP, and so the one that the kernel shows is ours.
    pub by_xdp: bool,
    /// The port's totals: ingress and egress.
    pub hooks: [HookCounter; 2],
    /// For an uplink what its tunnels and buckets add up to, in wire units: ingress and egress.
    pub parts: Option<[Counter; 2]>,
}

/// What was read for one audit, in the order of the fields.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// When: seconds since the Unix epoch.
    pub at_s: u64,
    /// The kernel's statistics.
    pub kernel_first: BTreeMap<NetdevId, NetdevSample>,
    /// Our counters.
    pub ours_first: Vec<Metered>,
    /// Our counters again.
    pub ours_second: Vec<Metered>,
    /// The kernel's statistics again.
    pub kernel_second: BTreeMap<NetdevId, NetdevSample>,
}

/// A difference with its cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Drift {
    /// Why.
    pub cause: Cause,
    /// Packets that the kernel counts and the hooks do not; negative the other way round.
    pub packets: i64,
    /// The same for bytes; 0 where the kernel does not count them, as with what it drops.
    pub bytes: i64,
}

/// One netdev and direction.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// The port's, uplink's or tunnel netdev's UUID.
    pub id: String,
    /// `port`, `uplink` or `tunnel`.
    pub class: String,
    /// The netdev's name.
    pub netdev: String,
    /// The name of its namespace, empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// Its number.
    pub ifindex: u32,
    /// `receive` or `transmit`, from the netdev's side.
    pub direction: String,
    /// Packets that the hook counted since the base line, in the kernel's units where it can be told which those are.
    pub ours: i64,
    /// Packets that the kernel counted since the base line.
    pub kernel: i64,
    /// What explains the difference; empty where there is none.
    pub drifts: Vec<Drift>,
}

impl Row {
    /// Returns whether there is a difference that nothing explains.
    #[must_use]
    pub fn is_unexplained(&self) -> bool {
        self.drifts.iter().any(|drift| drift.cause == Cause::Unknown)
    }
}

/// Whether an uplink's tunnels and buckets add up to what its hook saw.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Closure {
    /// The uplink's UUID, or the port's where it is both.
    pub id: String,
    /// The netdev's name.
    pub netdev: String,
    /// `receive` or `transmit`.
    pub direction: String,
    /// Packets at the hook that are in no tunnel and no bucket; negative where there are too many in these.
    pub packets: i64,
    /// The same for bytes.
    pub bytes: i64,
}

/// What the kernel dropped of what a port offered, since the agent began to look.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dropped {
    /// The port's, uplink's or tunnel netdev's UUID.
    pub id: String,
    /// `port`, `uplink` or `tunnel`.
    pub class: String,
    /// Packets. Only grows, over all netdevs that carried the port.
    pub packets: u64,
}

/// What an audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// When the sample was taken: seconds since the Unix epoch.
    pub at_s: u64,
    /// Every netdev and direction that is audited, in the order of the netdevs' numbers.
    pub rows: Vec<Row>,
    /// Every uplink and direction.
    pub closures: Vec<Closure>,
    /// Every port that ever was audited.
    pub transmit_dropped: Vec<Dropped>,
}

impl Report {
    /// Returns whether everything is explained.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        let closes = |closure: &Closure| (closure.packets, closure.bytes) == (0, 0);
        !self.rows.iter().any(Row::is_unexplained) && self.closures.iter().all(closes)
    }
}

/// Which hooks a base line is for: those of one netdev from one attach on, while they feed one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hooked {
    netdev: NetdevId,
    attach: u64,
    port: PortId,
}

impl Metered {
    const fn hooked(&self) -> Hooked {
        Hooked { netdev: self.netdev_id, attach: self.attach, port: self.port }
    }
}

/// Remembers base lines; bounded by the netdevs that are metered and the ports that ever were.
#[derive(Debug, Default)]
pub struct Auditor {
    bases: BTreeMap<Hooked, Base>,
    /// What each port had in total when it was looked at last.
    totals: BTreeMap<PortId, [HookCounter; 2]>,
    dropped: BTreeMap<PortId, (Class, u64)>,
}

impl Auditor {
    /// Returns whether some of these have no base line yet.
    #[must_use]
    pub fn lacks(&self, metered: &[Metered]) -> bool {
        metered.iter().any(|metered| !self.bases.contains_key(&metered.hooked()))
    }

    /// Compares. `is_shared` tells whether another TC program is at this hook of a netdev; it is asked only where there
    /// is drift.
    ///
    /// A netdev that was attached, detached or moved to another port during the sample is left to the next one.
    pub fn judge(&mut self, sample: &Sample, is_shared: &dyn Fn(NetdevId, Direction) -> bool) -> Report {
        let second: BTreeMap<Hooked, &Metered> =
            sample.ours_second.iter().map(|metered| (metered.hooked(), metered)).collect();
        let known: BTreeSet<NetdevId> = self.bases.keys().map(|hooked| hooked.netdev).collect();
        self.bases.retain(|hooked, _| second.contains_key(hooked));
        let mut report = Report { at_s: sample.at_s, ..Report::default() };
        let mut first: Vec<&Metered> = sample.ours_first.iter().collect();
        first.sort_by_key(|metered| metered.netdev_id);
        for first in first {
            let hooked = first.hooked();
            let id = first.netdev_id;
            let (Some(second), Some(kernel_first), Some(kernel_second)) =
                (second.get(&hooked), sample.kernel_first.get(&id), sample.kernel_second.get(&id))
            else {
                continue;
            };
            let bracket = judge::Bracket { first, second, kernel: [kernel_first, kernel_second] };
            let begins = !self.bases.contains_key(&hooked);
            if begins {
                let totals = self.totals.get(&first.port).copied().unwrap_or_default();
                // A netdev that carried another port was metered before.
                let is_young = first.attach != 0 && !known.contains(&id);
                self.bases.insert(hooked, Base::new(&bracket, is_young.then_some(&totals)));
            }
            let Some(base) = self.bases.get_mut(&hooked) else { continue };
            let Judged { rows, closures, dropped } = judge::judge(&bracket, base, is_shared);
            report.rows.extend(rows);
            report.closures.extend(closures);
            let entry = self.dropped.entry(first.port).or_insert((first.class, 0));
            *entry = (first.class, entry.1.wrapping_add(dropped));
        }
        self.totals.extend(sample.ours_second.iter().map(|metered| (metered.port, metered.hooks)));
        report.transmit_dropped = self
            .dropped
            .iter()
            .map(|(port, (class, packets))| Dropped {
                id: port.to_string(),
                class: class.name().to_owned(),
                packets: *packets,
            })
            .collect();
        report
    }
}

/// Returns the word of a direction, as the metrics have it.
const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "receive",
        Direction::Egress => "transmit",
    }
}
