//! A cable between two namespaces that counts each frame.
//!
//! Two taps and a thread for each direction. The kernel cuts what the hosts send into frames of the MTU before they
//! reach the cable, so one read is one frame as it is on a real wire.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    count::{Count, Stations, TunnelCount, TunnelKey, map_since, settled},
    error::Result,
    frame::{UdpPorts, stations, tunnelled},
    mac::Mac,
    netns::Netns,
    relay::Relay,
    tap::{Tap, TapMode, TapOptions},
};

/// One end of a wire: a netdev to make in a namespace.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Where it is.
    pub netns: &'a Netns,
    /// Its name.
    pub netdev: &'a str,
    /// Its hardware address.
    pub mac: Mac,
}

/// What a wire is like.
#[derive(Debug, Clone)]
pub struct WireOptions {
    /// MTU of both ends.
    pub mtu: u32,
    /// Whether the ends merge what they receive (GRO), as a NIC with NAPI does.
    pub gro: bool,
    /// UDP destination ports that carry VXLAN.
    pub vxlan_ports: Vec<u16>,
    /// UDP destination ports that carry GENEVE.
    pub geneve_ports: Vec<u16>,
}

impl Default for WireOptions {
    fn default() -> Self {
        Self { mtu: 1500, gro: true, vxlan_ports: vec![4789, 8472, 6677], geneve_ports: vec![6081] }
    }
}

/// What went through a wire in one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectionCounts {
    /// Every frame.
    pub total: Count,
    /// Frames by their Ethernet header.
    pub stations: BTreeMap<Stations, Count>,
    /// Frames that are tunnel packets.
    pub tunnels: BTreeMap<TunnelKey, TunnelCount>,
    /// Frames inside tunnels, by their own Ethernet header; bytes are inner bytes.
    pub inner_stations: BTreeMap<Stations, Count>,
    /// Bytes of the longest frame.
    pub longest: u64,
    /// Frames that the receiving end did not take, because it was down.
    pub write_errors: u64,
}

impl DirectionCounts {
    /// Returns what came after `earlier`; `longest` is that of all time.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            total: self.total.since(earlier.total),
            stations: map_since(&self.stations, &earlier.stations, Count::since),
            tunnels: map_since(&self.tunnels, &earlier.tunnels, TunnelCount::since),
            inner_stations: map_since(&self.inner_stations, &earlier.inner_stations, Count::since),
            longest: self.longest,
            write_errors: self.write_errors - earlier.write_errors,
        }
    }

    fn observe(&mut self, frame: &[u8], taken: bool, ports: &UdpPorts) {
        let length = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        self.total.add(1, length);
        self.longest = self.longest.max(length);
        self.write_errors += u64::from(!taken);
        if let Some(stations) = stations(frame) {
            self.stations.entry(stations).or_default().add(1, length);
        }
        if let Some(tunnelled) = tunnelled(frame, ports) {
            let count = self.tunnels.entry(tunnelled.key).or_default();
            count.frames += 1;
            count.inner_bytes += tunnelled.inner_bytes;
            count.outer_bytes += length;
            if let Some(stations) = tunnelled.stations {
                self.inner_stations.entry(stations).or_default().add(1, tunnelled.inner_bytes);
            }
        }
    }
}

/// What went through a wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireCounts {
    /// From the first end to the second.
    pub a_to_b: DirectionCounts,
    /// From the second end to the first.
    pub b_to_a: DirectionCounts,
}

impl WireCounts {
    /// Returns what came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self { a_to_b: self.a_to_b.since(&earlier.a_to_b), b_to_a: self.b_to_a.since(&earlier.b_to_a) }
    }
}

/// A wire; its netdevs live as long as this.
#[derive(Debug)]
pub struct Wire {
    a_to_b: Arc<Mutex<DirectionCounts>>,
    b_to_a: Arc<Mutex<DirectionCounts>>,
    _relays: [Relay; 2],
}

impl Wire {
    /// Makes both netdevs and starts to carry frames between them.
    ///
    /// # Errors
    ///
    /// When a name is taken.
    pub fn new(a: End<'_>, b: End<'_>, options: &WireOptions) -> Result<Self> {
        let mode = if options.gro { TapMode::WireGro } else { TapMode::Wire };
        let tap = |end: &End<'_>| {
            let tap = TapOptions { name: end.netdev, mode, mac: end.mac, mtu: options.mtu };
            Tap::new(end.netns, &tap).map(Arc::new)
        };
        let (tap_a, tap_b) = (tap(&a)?, tap(&b)?);
        let ports = UdpPorts { vxlan: options.vxlan_ports.clone(), geneve: options.geneve_ports.clone() };
        let relay = |name, from: &Arc<Tap>, to: &Arc<Tap>, counts: &Arc<Mutex<DirectionCounts>>| {
            let (counts, ports) = (Arc::clone(counts), ports.clone());
            Relay::start(name, Arc::clone(from), Arc::clone(to), move |frame, written| {
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                counts.observe(frame, written.is_ok(), &ports);
            })
        };
        let (a_to_b, b_to_a) = (Arc::default(), Arc::default());
        let relays =
            [relay("wire-a-to-b", &tap_a, &tap_b, &a_to_b)?, relay("wire-b-to-a", &tap_b, &tap_a, &b_to_a)?];
        Ok(Self { a_to_b, b_to_a, _relays: relays })
    }

    /// Returns what went through so far.
    #[must_use]
    pub fn counts(&self) -> WireCounts {
        let read =
            |counts: &Mutex<DirectionCounts>| counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        WireCounts { a_to_b: read(&self.a_to_b), b_to_a: read(&self.b_to_a) }
    }

    /// Waits until nothing went through for as long as `still`, and returns the counts.
    ///
    /// # Errors
    ///
    /// When something still does after `within`.
    pub fn wait_until_quiet(&self, still: Duration, within: Duration) -> Result<WireCounts> {
        settled("the traffic on the wire", still, within, || self.counts())
    }
}
