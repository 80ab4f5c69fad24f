//! A guest on a host: behind a tap as a virtual machine would be, or behind a veth as a container is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    count::{Count, Flow, Stations, map_since, settled},
    error::Result,
    frame::{VnetHeader, flow, stations},
    mac::Mac,
    netns::Netns,
    relay::Relay,
    tap::{Tap, TapMode, TapOptions},
};

/// The name that every guest's own netdev has.
pub const NETDEV: &str = "eth0";

/// A guest to make.
#[derive(Debug, Clone, Copy)]
pub struct GuestOptions<'a> {
    /// Label of its namespace.
    pub label: &'a str,
    /// Its netdev on the host.
    pub host_netdev: &'a str,
    /// The hardware address of its own netdev, [`NETDEV`]. The host's gets the same with `fe` in front, as a hypervisor
    /// does it.
    pub mac: Mac,
    /// MTU of both.
    pub mtu: u32,
}

impl GuestOptions<'_> {
    fn host_mac(&self) -> Mac {
        let Mac([_, rest @ ..]) = self.mac;
        let [b, c, d, e, f] = rest;
        Mac([0xfe, b, c, d, e, f])
    }
}

/// What crossed between a guest and its host in one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelayCounts {
    /// Frames as they would be on a wire.
    pub total: Count,
    /// The same by Ethernet header.
    pub stations: BTreeMap<Stations, Count>,
    /// The same by connection, for frames that are of one.
    pub flows: BTreeMap<Flow, Count>,
    /// What crossed: super-packets as one.
    pub skbs: Count,
    /// Super-packets.
    pub super_packets: u64,
    /// Bytes of the longest that crossed.
    pub longest: u64,
    /// Super-packets of a kind that could not be counted in frames; they are in `skbs` only.
    pub unknown: u64,
    /// What the receiver did not take.
    pub write_errors: u64,
}

impl RelayCounts {
    /// Returns what came after `earlier`; `longest` is that of all time.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            total: self.total.since(earlier.total),
            stations: map_since(&self.stations, &earlier.stations, Count::since),
            flows: map_since(&self.flows, &earlier.flows, Count::since),
            skbs: self.skbs.since(earlier.skbs),
            super_packets: self.super_packets - earlier.super_packets,
            longest: self.longest,
            unknown: self.unknown - earlier.unknown,
            write_errors: self.write_errors - earlier.write_errors,
        }
    }

    fn observe(&mut self, data: &[u8], taken: bool) {
        self.write_errors += u64::from(!taken);
        let Some((header, frame)) = VnetHeader::split(data) else {
            self.unknown += 1;
            return;
        };
        let length = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        self.skbs.add(1, length);
        self.longest = self.longest.max(length);
        self.super_packets += u64::from(header.is_super_packet());
        let Some((frames, bytes)) = header.on_the_wire(frame) else {
            self.unknown += 1;
            return;
        };
        self.total.add(frames, bytes);
        if let Some(stations) = stations(frame) {
            self.stations.entry(stations).or_default().add(frames, bytes);
        }
        if let Some(flow) = flow(frame) {
            self.flows.entry(flow).or_default().add(frames, bytes);
        }
    }
}

/// What crossed between a guest and its host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestCounts {
    /// The host's tap ingress, the port's rx.
    pub from_guest: RelayCounts,
    /// The host's tap egress, the port's tx.
    pub to_guest: RelayCounts,
}

impl GuestCounts {
    /// Returns what came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            from_guest: self.from_guest.since(&earlier.from_guest),
            to_guest: self.to_guest.since(&earlier.to_guest),
        }
    }
}

/// A guest behind a tap, with segmentation and checksums left to the host in both directions.
///
/// The guest's namespace has a tap too, and threads carry frames with their virtio-net headers between the two, which
/// is a hypervisor's part: the host sees super-packets without a number of segments.
#[derive(Debug)]
pub struct Guest {
    netns: Netns,
    mac: Mac,
    from_guest: Arc<Mutex<RelayCounts>>,
    to_guest: Arc<Mutex<RelayCounts>>,
    _relays: [Relay; 2],
}

impl Guest {
    /// Makes a guest on this host.
    ///
    /// # Errors
    ///
    /// When the name of its netdev is taken.
    pub fn new(host: &Netns, options: &GuestOptions<'_>) -> Result<Self> {
        let netns = Netns::new(options.label)?;
        let tap = |name, mac| TapOptions { name, mode: TapMode::Vnet, mac, mtu: options.mtu };
        let inside = Arc::new(Tap::new(&netns, &tap(NETDEV, options.mac))?);
        let outside = Arc::new(Tap::new(host, &tap(options.host_netdev, options.host_mac()))?);
        let relay = |name: &str, from: &Arc<Tap>, to: &Arc<Tap>, counts: &Arc<Mutex<RelayCounts>>| {
            let counts = Arc::clone(counts);
            Relay::start(name, Arc::clone(from), Arc::clone(to), move |data, written| {
                counts.lock().unwrap_or_else(PoisonError::into_inner).observe(data, written.is_ok());
            })
        };
        let (from_guest, to_guest) = (Arc::default(), Arc::default());
        let relays = [
            relay("from-guest", &inside, &outside, &from_guest)?,
            relay("to-guest", &outside, &inside, &to_guest)?,
        ];
        Ok(Self { netns, mac: options.mac, from_guest, to_guest, _relays: relays })
    }

    /// The guest's own namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The hardware address of the guest's netdev.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Returns what crossed so far.
    #[must_use]
    pub fn counts(&self) -> GuestCounts {
        let read =
            |counts: &Mutex<RelayCounts>| counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        GuestCounts { from_guest: read(&self.from_guest), to_guest: read(&self.to_guest) }
    }

    /// Waits until nothing crossed for as long as `still`, and returns the counts.
    ///
    /// # Errors
    ///
    /// When something still does after `within`.
    pub fn wait_until_quiet(&self, still: Duration, within: Duration) -> Result<GuestCounts> {
        settled("the guest's traffic", still, within, || self.counts())
    }
}

/// A guest behind a veth.
#[derive(Debug)]
pub struct VethGuest {
    netns: Netns,
    mac: Mac,
}

impl VethGuest {
    /// Makes a guest on this host.
    ///
    /// # Errors
    ///
    /// When the name of its netdev is taken.
    pub fn new(host: &Netns, options: &GuestOptions<'_>) -> Result<Self> {
        let netns = Netns::new(options.label)?;
        host.veth(options.host_netdev, &netns, NETDEV, options.mtu)?;
        netns.ip(&format!("link set {NETDEV} address {}", options.mac))?;
        host.ip(&format!("link set {} address {}", options.host_netdev, options.host_mac()))?;
        Ok(Self { netns, mac: options.mac })
    }

    /// The guest's own namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The hardware address of the guest's netdev.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }
}
