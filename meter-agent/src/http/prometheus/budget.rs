//! Which series have a name of their own: a bound on how many a family has, and sums that stay exact.
//!
//! Each family has at most so many named series. Whatever comes when they are taken is *pooled*: its totals are in one
//! more series, which is called `other`. The law of it:
//!
//! 1. What has a name keeps it, and what is pooled stays pooled, for as long as the agent runs.
//! 2. Of what comes at the same time the oldest is named, and of the same age the one with the smallest identity. So
//!    an agent that starts again chooses as the one before it did, wherever the age is known.
//! 3. `other` is the sum, over all that were ever pooled, of the most that each has shown. So it never goes back: not
//!    when something joins the pool, which it does with its past, nor when something leaves the host and comes back.
//! 4. Hence the sum over a family is that of all meters, as long as none has gone; and each series is a counter.
//! 5. A user-defined meter whose own name is `other` is always of the pool, though no name is wanting: a series is there
//!    once.
//!
//! Pure, but for what it remembers: identities that the kernel half's maps had room for, and names of user-defined
//! meters.

use std::collections::{BTreeMap, BTreeSet};

use meter_ebpf::abi::Counter;

use crate::{
    datapath::Class,
    meter::{DeviceId, FlowStats, MeterKey, PortId},
    snapshot::{Port, Snapshot, TunnelId, TunnelTotals},
};

/// What a sample of the pool has as its label.
pub(super) const OTHER: &str = "other";

/// Something with a number of totals, one for each of its families.
struct Entry<K, const N: usize> {
    id: K,
    /// Nanoseconds since the Unix epoch; 0 where nobody knows.
    created_ns: u64,
    values: [u64; N],
    /// Whether its own name is [`OTHER`], which can only be the pool's: it is pooled although a name is free.
    is_other: bool,
}

/// What has been seen in the families of one kind of thing.
#[derive(Debug)]
struct Group<K, const N: usize> {
    named: BTreeSet<K>,
    pooled: BTreeMap<K, [u64; N]>,
    /// When the first of the pool began.
    created_ns: u64,
}

/// The families of one kind of thing in one exposition.
#[derive(Debug)]
pub(super) struct Pool<K, const N: usize> {
    hidden: BTreeSet<K>,
    other: Option<Other<N>>,
    /// How many are hidden for want of a name.
    over: usize,
}

/// The series `other`, in each family of one kind of thing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Other<const N: usize> {
    /// Its totals, by family.
    pub(super) values: [u64; N],
    /// When it began: nanoseconds since the Unix epoch, 0 where nobody knows.
    pub(super) created_ns: u64,
}

impl<K, const N: usize> Default for Group<K, N> {
    fn default() -> Self {
        Self { named: BTreeSet::new(), pooled: BTreeMap::new(), created_ns: 0 }
    }
}

impl<K: Ord + Clone, const N: usize> Group<K, N> {
    /// Takes up what there is now; at most `most` are named.
    fn admit(&mut self, most: usize, entries: impl Iterator<Item = Entry<K, N>>) -> Pool<K, N> {
        let mut hidden = BTreeSet::new();
        let mut over = 0;
        let mut new = Vec::new();
        for entry in entries.filter(|entry| !self.named.contains(&entry.id)) {
            if let Some(values) = self.pooled.get_mut(&entry.id) {
                // An exposition of an older snapshot may come later.
                values.iter_mut().zip(entry.values).for_each(|(most, value)| *most = value.max(*most));
                over += usize::from(!entry.is_other);
                hidden.insert(entry.id);
            } else {
                new.push(entry);
            }
        }
        new.sort_by(|a, b| (a.created_ns, &a.id).cmp(&(b.created_ns, &b.id)));
        for Entry { id, created_ns, values, is_other } in new {
            if !is_other && self.named.len() < most {
                self.named.insert(id);
                continue;
            }
            if self.pooled.is_empty() {
                self.created_ns = created_ns;
            }
            over += usize::from(!is_other);
            hidden.insert(id.clone());
            self.pooled.insert(id, values);
        }
        let other = (!self.pooled.is_empty()).then(|| Other {
            values: self.pooled.values().fold([0; N], |sum, values| {
                std::array::from_fn(|family| sum[family].wrapping_add(values[family]))
            }),
            created_ns: self.created_ns,
        });
        Pool { hidden, other, over }
    }
}

impl<K: Ord, const N: usize> Pool<K, N> {
    /// Returns whether something has series of its own.
    pub(super) fn is_named(&self, id: &K) -> bool {
        self.hidden.is_empty() || !self.hidden.contains(id)
    }

    /// Returns the series of all others, where there are some.
    pub(super) const fn other(&self) -> Option<Other<N>> {
        self.other
    }

    /// Returns how many have no series of their own because all names are taken.
    pub(super) const fn len(&self) -> usize {
        self.over
    }
}

/// Kinds of MidoNet's meters, as their names begin; in the order of [`MeterKey`].
pub(super) const METER_KINDS: [&str; 5] =
    ["meters:device", "meters:port:rx", "meters:port:tx", "meters:tunnel", "meters:user"];

/// Returns the place of a meter's kind in [`METER_KINDS`].
pub(super) const fn meter_kind(key: &MeterKey) -> usize {
    match key {
        MeterKey::Device(_) => 0,
        MeterKey::PortRx(_) => 1,
        MeterKey::PortTx(_) => 2,
        MeterKey::Tunnel { .. } => 3,
        MeterKey::User(_) => 4,
    }
}

/// Everything that has been seen.
#[derive(Debug, Default)]
pub(super) struct Budget {
    ports: Group<PortId, 8>,
    tunnel_netdevs: Group<PortId, 8>,
    uplinks: Group<PortId, 8>,
    devices: Group<DeviceId, 2>,
    user_meters: Group<String, 2>,
    tunnels_transmit: Group<TunnelId, 3>,
    tunnels_receive: Group<TunnelId, 3>,
    /// What is in no connection with a name, by port.
    others: Group<PortId, 4>,
    meters: [Group<MeterKey, 2>; METER_KINDS.len()],
    meters_over: Option<[usize; METER_KINDS.len()]>,
}

/// What has series of its own in one exposition.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) ports: Pool<PortId, 8>,
    pub(super) tunnel_netdevs: Pool<PortId, 8>,
    pub(super) uplinks: Pool<PortId, 8>,
    pub(super) devices: Pool<DeviceId, 2>,
    pub(super) user_meters: Pool<String, 2>,
    pub(super) tunnels_transmit: Pool<TunnelId, 3>,
    pub(super) tunnels_receive: Pool<TunnelId, 3>,
}

/// Pools of MidoNet's meters, by kind.
pub(super) type MeterPools = [Pool<MeterKey, 2>; METER_KINDS.len()];

impl Budget {
    /// Chooses for the native families.
    pub(super) fn choose(&mut self, most: usize, snapshot: &Snapshot) -> Choice {
        let ports = |class| snapshot.ports.iter().filter(move |port| port.class == class).map(port);
        Choice {
            ports: self.ports.admit(most, ports(Class::Port)),
            tunnel_netdevs: self.tunnel_netdevs.admit(most, ports(Class::Tunnel)),
            uplinks: self.uplinks.admit(most, ports(Class::Uplink)),
            devices: self.devices.admit(most, snapshot.devices.iter().map(|(&id, stats)| meter(id, stats))),
            user_meters: self.user_meters.admit(
                most,
                snapshot.user_meters.iter().map(|(name, user)| Entry {
                    is_other: name == OTHER,
                    created_ns: user.created_ns,
                    ..meter(name.clone(), &user.stats)
                }),
            ),
            tunnels_transmit: self.tunnels_transmit.admit(most, snapshot.tunnels_transmit.iter().map(tunnel)),
            tunnels_receive: self.tunnels_receive.admit(most, snapshot.tunnels_receive.iter().map(tunnel)),
        }
    }

    /// Chooses for the families of what no connection with a name shows: of each port two series, one for each direction.
    pub(super) fn choose_others(
        &mut self,
        most: usize,
        ports: &[Port],
        others: &[(PortId, [Counter; 2])],
    ) -> Pool<PortId, 4> {
        let entries = others.iter().map(|(id, [ingress, egress])| Entry {
            id: *id,
            created_ns: created_ns(ports, *id),
            values: [ingress.packets, egress.packets, ingress.bytes, egress.bytes],
            is_other: false,
        });
        self.others.admit(most.div_ceil(2), entries)
    }

    /// Chooses for the families that MidoNet's meters are in. A port's meters, the one as a device among them, are as
    /// old as the port, which is one of `ports`; of others nobody knows.
    pub(super) fn choose_meters(
        &mut self,
        most: usize,
        ports: &[Port],
        meters: &BTreeMap<MeterKey, FlowStats>,
    ) -> MeterPools {
        let age = |key: &MeterKey| {
            let id = match key {
                MeterKey::PortRx(port) | MeterKey::PortTx(port) => *port,
                MeterKey::Device(device) => PortId(*device),
                MeterKey::Tunnel { .. } | MeterKey::User(_) => return 0,
            };
            created_ns(ports, id)
        };
        let pools: MeterPools = std::array::from_fn(|kind| {
            let meters = meters.iter().filter(|(key, _)| meter_kind(key) == kind);
            let entries = meters.map(|(key, stats)| Entry {
                created_ns: age(key),
                is_other: matches!(key, MeterKey::User(name) if name == OTHER),
                ..meter(key.clone(), stats)
            });
            self.meters[kind].admit(most, entries)
        });
        self.meters_over = Some(pools.each_ref().map(Pool::len));
        pools
    }

    /// Returns how many meters of each kind were pooled when they were chosen last; `None` where they never were.
    pub(super) const fn meters_over(&self) -> Option<[usize; METER_KINDS.len()]> {
        self.meters_over
    }
}

impl Choice {
    /// Returns the pool of a class of netdevs.
    pub(super) const fn netdevs(&self, class: Class) -> &Pool<PortId, 8> {
        match class {
            Class::Port => &self.ports,
            Class::Tunnel => &self.tunnel_netdevs,
            Class::Uplink => &self.uplinks,
        }
    }

    /// Returns how many are pooled, by how the names of their families begin.
    pub(super) fn over(&self) -> [(&'static str, usize); 7] {
        [
            ("meter_port", self.ports.len()),
            ("meter_device", self.devices.len()),
            ("meter_user", self.user_meters.len()),
            ("meter_tunnel_transmit", self.tunnels_transmit.len()),
            ("meter_tunnel_receive", self.tunnels_receive.len()),
            ("meter_tunnel_netdev", self.tunnel_netdevs.len()),
            ("meter_uplink", self.uplinks.len()),
        ]
    }
}

/// Returns when a port began, of ports in the order of their UUIDs; 0 where nobody knows.
fn created_ns(ports: &[Port], id: PortId) -> u64 {
    let found = ports.binary_search_by_key(&id, |port| port.port).ok();
    found.and_then(|index| ports.get(index)).map_or(0, |port| port.created_ns)
}

/// Returns the totals of a port: ingress, then egress, each in wire units and in the kernel's.
fn port(port: &Port) -> Entry<PortId, 8> {
    let [ingress, egress] = [&port.ingress, &port.egress].map(|hook| (hook.wire(), hook.skb()));
    let values = [ingress.0, ingress.1, egress.0, egress.1].map(|counter| [counter.packets, counter.bytes]);
    let [a, b, c, d] = values;
    Entry {
        id: port.port,
        created_ns: port.created_ns,
        values: [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]],
        is_other: false,
    }
}

fn tunnel((id, totals): (&TunnelId, &TunnelTotals)) -> Entry<TunnelId, 3> {
    let values = [totals.packets, totals.inner_bytes, totals.outer_bytes];
    Entry { id: id.clone(), created_ns: 0, values, is_other: false }
}

const fn meter<K>(id: K, stats: &FlowStats) -> Entry<K, 2> {
    Entry { id, created_ns: 0, values: [stats.packets, stats.bytes], is_other: false }
}

#[cfg(test)]
mod tests;
