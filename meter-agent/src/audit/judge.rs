//! What one netdev's counters say, and what explains it.

use meter_ebpf::abi::{Counter, Direction};

use super::{
    Cause, Closure, Drift, Metered, Row,
    base::{Base, FCS, NO_ETHERNET, Range, Relations, SKB, WHOLE, WIRE, received_or_sent},
    word,
};
use crate::{
    datapath::Class,
    netdev::{NetdevId, NetdevSample},
};

/// Headers of a frame that a super-packet has once: Ethernet, IPv4 and UDP at least; tags, IPv6 and TCP's options at most.
const FRAME_HEADERS: [i64; 2] = [42, 134];

/// One netdev's part of a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bracket<'a> {
    pub(super) first: &'a Metered,
    pub(super) second: &'a Metered,
    pub(super) kernel: [&'a NetdevSample; 2],
}

impl Bracket<'_> {
    /// Returns what the other end of a veth received beyond what this one sent: packets and bytes.
    ///
    /// Both are the kernel's, and for all but redirected frames the same counter: the first reading of the one and the
    /// second of the other enclose it.
    pub(super) fn beyond(&self) -> Option<[Range; 2]> {
        let [first, second] = self.kernel;
        let (received, later) = (first.peer_received?, second.peer_received?);
        let sent = |sample: &NetdevSample| (sample.stats.tx_packets, sample.stats.tx_bytes);
        let (earlier_sent, sent) = (sent(first), sent(second));
        Some([
            Range::difference([received.0, later.0], [earlier_sent.0, sent.0]),
            Range::difference([received.1, later.1], [earlier_sent.1, sent.1]),
        ])
    }

    /// Returns what an uplink's hook saw beyond its tunnels and buckets.
    pub(super) fn open(&self) -> Option<[[Range; 2]; 2]> {
        let parts = [self.first.parts?, self.second.parts?];
        Some(Direction::ALL.map(|direction| {
            let hooks = [self.first, self.second].map(|metered| metered.hooks[direction as usize].wire());
            let parts = parts.map(|parts| parts[direction as usize]);
            let range = |value: fn(Counter) -> u64| Range::difference(hooks.map(value), parts.map(value));
            [range(|counter| counter.packets), range(|counter| counter.bytes)]
        }))
    }
}

/// What is said of one netdev.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) rows: [Row; 2],
    pub(super) closures: Vec<Closure>,
    /// What `tx_dropped` grew by since it was looked at last.
    pub(super) dropped: u64,
}

/// Judges both directions, and makes the base line narrower.
pub(super) fn judge(
    bracket: &Bracket<'_>,
    base: &mut Base,
    is_shared: &dyn Fn(NetdevId, Direction) -> bool,
) -> Judged {
    let rows = Direction::ALL.map(|direction| row(bracket, base, direction, is_shared));
    let closures = closures(bracket, base);
    let now = bracket.kernel[1].stats.tx_dropped;
    let dropped = now.saturating_sub(base.dropped);
    base.dropped = now;
    base.gaps = bracket.second.gaps;
    base.narrow(bracket);
    Judged { rows, closures, dropped }
}

fn row(
    bracket: &Bracket<'_>,
    base: &mut Base,
    direction: Direction,
    is_shared: &dyn Fn(NetdevId, Direction) -> bool,
) -> Row {
    let mut blamed = std::mem::take(&mut base.blamed[direction as usize]);
    let metered = bracket.second;
    let case = Case {
        moved: Relations::of(bracket, direction).since(&base.relations[direction as usize]),
        driver: Driver::of(&metered.kind, metered.class),
        direction,
        bracket,
        base,
        is_shared,
    };
    let mut drifts = case.drifts(&mut blamed);
    let (now, then) =
        (received_or_sent(bracket.kernel[1], direction).0, received_or_sent(&base.kernel, direction).0);
    base.blamed[direction as usize] = blamed;
    let mut kernel = now.wrapping_sub(then).cast_signed();
    if let Some(before) = base.before {
        let (packets, bytes) = before[direction as usize];
        kernel = now.cast_signed();
        if packets > 0 {
            drifts.insert(0, Drift { cause: Cause::AttachedLater, packets, bytes });
        }
    }
    // What went past this end is counted at the other.
    kernel += drifts
        .iter()
        .filter(|drift| drift.cause == Cause::RedirectPeer)
        .map(|drift| drift.packets)
        .sum::<i64>();
    let sum: i64 = drifts.iter().map(|drift| drift.packets).sum();
    Row {
        id: metered.port.to_string(),
        class: metered.class.name().to_owned(),
        netdev: metered.netdev.clone(),
        netns: metered.netns.clone(),
        ifindex: metered.netdev_id.ifindex,
        direction: word(direction).to_owned(),
        ours: kernel - sum,
        kernel,
        drifts,
    }
}

fn closures(bracket: &Bracket<'_>, base: &Base) -> Vec<Closure> {
    let (Some(now), Some(then)) = (bracket.open(), base.open) else { return Vec::new() };
    let closure = |direction: Direction| {
        let [packets, bytes] = [0, 1].map(|place| {
            let place: usize = place;
            now[direction as usize][place].since(then[direction as usize][place]).nearest()
        });
        Closure {
            id: bracket.second.port.to_string(),
            netdev: bracket.second.netdev.clone(),
            direction: word(direction).to_owned(),
            packets,
            bytes,
        }
    };
    Direction::ALL.into_iter().map(closure).collect()
}

/// How a netdev's driver counts: the table in [`crate::audit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    Veth,
    Tap,
    Tunnel,
    Other,
}

impl Driver {
    fn of(kind: &str, class: Class) -> Self {
        match kind {
            "veth" => Self::Veth,
            "tap" => Self::Tap,
            _ if class == Class::Tunnel => Self::Tunnel,
            _ => Self::Other,
        }
    }

    /// Returns the places of the headers that it may leave out of every packet, without this being worth a word.
    const fn headers(self) -> &'static [usize] {
        match self {
            Self::Veth | Self::Tunnel => &[WHOLE, NO_ETHERNET],
            Self::Tap | Self::Other => &[WHOLE],
        }
    }

    /// Returns the places of the headers that it may leave out where some of its super-packets count as one and others as
    /// their frames; none where all count alike.
    const fn mixes(self, direction: Direction) -> &'static [usize] {
        match (self, direction) {
            // Only GRO merges what a veth has counted, and with it all count without their header.
            (Self::Veth, Direction::Ingress) => &[NO_ETHERNET],
            (Self::Tunnel, _) => &[WHOLE, NO_ETHERNET],
            (Self::Veth | Self::Tap, Direction::Egress) | (Self::Other, _) => &[WHOLE],
            (Self::Tap, Direction::Ingress) => &[],
        }
    }
}

/// One direction of one netdev.
struct Case<'a> {
    moved: Relations,
    driver: Driver,
    direction: Direction,
    bracket: &'a Bracket<'a>,
    base: &'a Base,
    is_shared: &'a dyn Fn(NetdevId, Direction) -> bool,
}

impl Case<'_> {
    fn drifts(&self, blamed: &mut Vec<Drift>) -> Vec<Drift> {
        let mut drifts = self.past_this_end();
        if !self.agrees() {
            drifts.extend(self.driver_units().map_or_else(|| self.lost(blamed), |drift| vec![drift]));
        }
        drifts
    }

    /// Returns whether one way to count, or a mixture that its driver makes, explains both numbers.
    fn agrees(&self) -> bool {
        let Relations { packets, bytes } = self.moved;
        let headers = self.driver.headers();
        [SKB, WIRE].into_iter().any(|unit| {
            packets[unit].is_zero()
                && (headers.iter().any(|&header| bytes[unit][header].is_zero()) || self.is_between(unit))
        }) || self.has_some_tags()
            || self.driver.mixes(self.direction).iter().any(|&header| self.is_mixed(header))
    }

    /// Returns whether some packets were counted with their Ethernet header and some without: those before and those after
    /// an XDP program came to a veth.
    const fn is_between(&self, unit: usize) -> bool {
        let bytes = &self.moved.bytes[unit];
        matches!(self.driver, Driver::Veth) && bytes[WHOLE].low <= 0 && bytes[NO_ETHERNET].high >= 0
    }

    /// Returns whether the kernel counted the VLAN tags of some packets, and none of others.
    fn has_some_tags(&self) -> bool {
        let Relations { packets, bytes } = self.moved;
        let tags = 4 * self.seen().0;
        packets[SKB].is_zero()
            && bytes[SKB][WHOLE].high >= 0
            && bytes[SKB][WHOLE].low <= tags
            && bytes[WIRE][WHOLE].low <= 0
    }

    /// Returns whether the kernel counted some super-packets as one and some as their frames: each frame more adds its
    /// headers, and nothing else.
    fn is_mixed(&self, header: usize) -> bool {
        let Relations { packets, bytes } = self.moved;
        let (more, bytes) = (packets[SKB], bytes[SKB][header]);
        let [least, most] = FRAME_HEADERS;
        more.high >= 0
            && packets[WIRE].low <= 0
            && bytes.high >= more.low.max(0).saturating_mul(least)
            && bytes.low <= more.high.saturating_mul(most)
    }

    /// Returns packets and bytes that the kernel counted since the base line.
    fn seen(&self) -> (i64, i64) {
        let now = received_or_sent(self.bracket.kernel[1], self.direction);
        let then = received_or_sent(&self.base.kernel, self.direction);
        (now.0.wrapping_sub(then.0).cast_signed(), now.1.wrapping_sub(then.1).cast_signed())
    }

    /// Returns what explains bytes alone.
    fn driver_units(&self) -> Option<Drift> {
        let Relations { packets, bytes } = self.moved;
        let fits = |unit: &usize| {
            packets[*unit].is_zero()
                && [FCS, NO_ETHERNET].into_iter().any(|header| bytes[*unit][header].is_zero())
        };
        let unit = [SKB, WIRE].into_iter().filter(|_| self.driver == Driver::Other).find(fits)?;
        Some(Drift { cause: Cause::DriverUnits, packets: 0, bytes: bytes[unit][WHOLE].nearest() })
    }

    /// Returns what the other end of a veth received past this one.
    fn past_this_end(&self) -> Vec<Drift> {
        let (Direction::Egress, Some(now), Some(then)) =
            (self.direction, self.bracket.beyond(), self.base.beyond)
        else {
            return Vec::new();
        };
        let [packets, bytes] = [now[0].since(then[0]).nearest(), now[1].since(then[1]).nearest()];
        let drift = Drift { cause: Cause::RedirectPeer, packets, bytes };
        (packets > 0).then_some(drift).into_iter().collect()
    }

    /// Returns where packets went, or came from, that only one side has counted.
    fn lost(&self, blamed: &mut Vec<Drift>) -> Vec<Drift> {
        let explained = [SKB, WIRE].map(|unit| self.explained(unit));
        let size = |(_, rest): &(Vec<Drift>, i64)| rest.unsigned_abs();
        let unit = if size(&explained[WIRE]) < size(&explained[SKB]) { WIRE } else { SKB };
        let [skb, wire] = explained;
        let (mut drifts, mut packets) = if unit == SKB { skb } else { wire };
        let header = match self.driver {
            Driver::Tunnel => NO_ETHERNET,
            Driver::Veth if self.bracket.kernel[1].has_xdp => NO_ETHERNET,
            _ => WHOLE,
        };
        // Of what was dropped nobody knows the bytes.
        let knows_bytes = drifts.is_empty();
        let mut bytes = if knows_bytes { self.moved.bytes[unit][header].nearest() } else { 0 };
        for known in blamed.iter() {
            let taken = known.packets.signum() * known.packets.abs().min(packets.abs());
            if known.packets.signum() != packets.signum() || taken == 0 {
                continue;
            }
            let share =
                if taken == known.packets { known.bytes } else { known.bytes / known.packets * taken };
            packets -= taken;
            bytes -= if knows_bytes { share } else { 0 };
            drifts.push(Drift { cause: known.cause, packets: taken, bytes: share });
        }
        if packets == 0 && (bytes == 0 || !drifts.is_empty()) {
            return drifts;
        }
        let drift = Drift { cause: self.cause(packets), packets, bytes };
        if drift.cause != Cause::Unknown {
            add(blamed, drift);
        }
        add(&mut drifts, drift);
        drifts
    }

    /// Returns what the kernel itself says of lost packets, and how many are left.
    fn explained(&self, unit: usize) -> (Vec<Drift>, i64) {
        let [first, now] = [&self.base.kernel, self.bracket.kernel[1]];
        let grown =
            |value: fn(&NetdevSample) -> u64| value(now).wrapping_sub(value(first)).cast_signed().max(0);
        let queue_dropped = i64::from(now.queue_dropped.wrapping_sub(first.queue_dropped));
        let mut rest = self.moved.packets[unit].nearest();
        let causes = match self.direction {
            Direction::Egress if rest < 0 => {
                let dropped =
                    grown(|sample| sample.stats.tx_dropped) + grown(|sample| sample.stats.tx_errors);
                let in_driver = if self.driver == Driver::Tap { now.queue_limit } else { 0 };
                let waiting = i64::from(now.queue_waiting) + i64::from(in_driver);
                vec![(Cause::TxDropped, dropped + queue_dropped), (Cause::Queued, waiting)]
            }
            Direction::Ingress if rest > 0 && self.driver == Driver::Tunnel => {
                vec![(Cause::RxDropped, grown(|sample| sample.stats.rx_dropped))]
            }
            _ => Vec::new(),
        };
        let sign = rest.signum();
        let mut drifts = Vec::new();
        for (cause, most) in causes {
            let packets = sign * rest.abs().min(most);
            if packets != 0 {
                drifts.push(Drift { cause, packets, bytes: 0 });
                rest -= packets;
            }
        }
        (drifts, rest)
    }

    fn cause(&self, packets: i64) -> Cause {
        let sample = self.bracket.kernel[1];
        let has_xdp = sample.has_xdp && !self.bracket.second.by_xdp;
        let was_missing = self.bracket.second.gaps != self.base.gaps;
        let is_shared = || (self.is_shared)(self.bracket.second.netdev_id, self.direction);
        match self.direction {
            _ if packets > 0 && was_missing => Cause::HookLost,
            Direction::Ingress if packets > 0 && has_xdp => Cause::Xdp,
            Direction::Ingress if packets > 0 && sample.is_switched => Cause::HardwareOffload,
            Direction::Ingress if packets > 0 && is_shared() => Cause::ForeignProgram,
            Direction::Egress if packets < 0 && is_shared() => Cause::ForeignProgram,
            Direction::Egress if packets > 0 && self.bracket.second.kind == "vxlan" => Cause::Copies,
            Direction::Egress if packets > 0 && has_xdp => Cause::Xdp,
            _ => Cause::Unknown,
        }
    }
}

/// Adds a drift to the one of the same cause.
fn add(drifts: &mut Vec<Drift>, drift: Drift) {
    match drifts.iter_mut().find(|known| known.cause == drift.cause) {
        Some(known) => {
            known.packets += drift.packets;
            known.bytes += drift.bytes;
        }
        None => drifts.push(drift),
    }
}
