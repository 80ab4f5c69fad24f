//! Routers: devices that frames are sent to by MAC address, through the ports of a bridge.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{Condition, Direction, MacMatch, Meter, MeterSet, Packet, Test, value};
use crate::{
    meter::{DeviceId, PortId},
    netdev::MacAddress,
};

/// A virtual router, as frames see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// Its UUID.
    pub device: DeviceId,
    /// The MAC addresses of its ports.
    pub macs: BTreeSet<MacAddress>,
    /// The bridges that they are on.
    pub bridges: BTreeSet<DeviceId>,
}

impl Router {
    /// Returns whether a frame that comes in through a port of `device` is sent to it, or was sent by it where it goes out
    /// through such a port. A tagged frame is of another network.
    fn is_met(&self, packet: &Packet, device: Option<DeviceId>, mac: Option<MacAddress>) -> bool {
        packet.vlan.is_none()
            && device.is_some_and(|device| self.bridges.contains(&device))
            && mac.is_some_and(|mac| self.macs.contains(&mac))
    }
}

/// What the names of routers' meters begin with. No user-defined meter has it: it is no text on a line.
const MARK: char = '\u{1}';

/// Returns the router whose meter has this name; `None` of a user-defined meter.
#[must_use]
pub fn router_of(name: &str) -> Option<DeviceId> {
    name.strip_prefix(MARK)?.parse().ok().map(DeviceId)
}

impl MeterSet {
    /// Returns the set with a meter for each router, which counts what is sent to the router.
    #[must_use]
    pub fn with_routers(&self) -> Self {
        let mut set = self.clone();
        set.meters.extend(self.routers.iter().map(meter));
        set
    }

    /// Returns how many rules the set has, with those of [`MeterSet::with_routers`].
    #[must_use]
    pub fn rules(&self) -> usize {
        let of_routers = self.routers.iter().map(|router| router.bridges.len() * router.macs.len());
        self.meters.iter().map(|meter| meter.rules.len()).chain(of_routers).sum()
    }

    /// Adds the routers that a packet meets to what it has come through. `of` tells the device of a port.
    pub fn meet_routers(&self, packet: &mut Packet, of: impl Fn(PortId) -> Option<DeviceId>) {
        let [came, went] = [packet.in_port, packet.out_port].map(|port| port.and_then(&of));
        let met: Vec<Uuid> = self
            .routers
            .iter()
            .filter(|router| {
                router.is_met(packet, came, packet.hw_dst) || router.is_met(packet, went, packet.hw_src)
            })
            .map(|router| router.device.0)
            .collect();
        packet.traversed.extend(met);
    }
}

/// Returns what counts the frames that are sent to a router.
fn meter(router: &Router) -> Meter {
    let rules = router.bridges.iter().flat_map(|bridge| router.macs.iter().map(|mac| rule(*bridge, *mac)));
    Meter { name: format!("{MARK}{}", router.device), rules: rules.collect() }
}

fn rule(bridge: DeviceId, mac: MacAddress) -> Condition {
    Condition {
        direction: Some(Direction::Rx),
        no_vlan: true,
        hw_dst: Test { value: Some(MacMatch { address: mac, mask: value::ALL_ONES }), inverted: false },
        traversed_device: Test { value: Some(bridge.0), inverted: false },
        ..Condition::default()
    }
}
