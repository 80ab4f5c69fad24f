//! Routers: a frame that is sent to one counts for it and for the bridge, and rules see both.

use std::collections::BTreeMap;

use meter_agent::{
    meter::{DeviceId, FlowStats},
    rules::{Direction, MeterSet, Router},
};
use uuid::Uuid;

use super::{World, meters};
use crate::support::{
    frames::{IPV4, UDP, ethernet, ipv4, udp},
    ready,
};

/// The device of the ports on `d2` and on `d3`, which are bridges here, and two routers.
const BRIDGE: u128 = 4;
const OTHER_BRIDGE: u128 = 1;
const ROUTER: u128 = 100;
const SECOND: u128 = 101;

const OF_ROUTER: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 2, 3];
const ALSO: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 2, 4];
const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fn device(number: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(number))
}

fn routers() -> Vec<Router> {
    let router = |number, macs: &[[u8; 6]], bridges: &[u128]| Router {
        device: device(number),
        macs: macs.iter().copied().collect(),
        bridges: bridges.iter().copied().map(device).collect(),
    };
    vec![router(ROUTER, &[OF_ROUTER, ALSO], &[BRIDGE]), router(SECOND, &[OF_ROUTER], &[OTHER_BRIDGE, 77])]
}

fn frame(src: [u8; 6], dst: [u8; 6], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut frame = ethernet(tags, IPV4, &ipv4(UDP, &udp(53, &[0; 30])));
    frame[..6].copy_from_slice(&dst);
    frame[6..12].copy_from_slice(&src);
    frame
}

/// Returns the packets of each device that has some.
fn devices(world: &mut World<'_>) -> BTreeMap<u128, u64> {
    let devices = world.meter.reading().devices;
    let packets = |(device, stats): (DeviceId, FlowStats)| (device.0.as_u128(), stats.packets);
    devices.into_iter().map(packets).filter(|(_, packets)| *packets > 0).collect()
}

fn with_routers(lines: &[(&str, &str)]) -> MeterSet {
    MeterSet { routers: routers(), ..meters(lines) }
}

#[test]
fn what_is_sent_to_a_router_counts_for_it_and_for_its_bridge() {
    if !ready() {
        return;
    }
    World::with_options(
        "routers",
        |_| {},
        |mut world| {
            let own = Uuid::from_u128(ROUTER).to_string();
            let through = format!("traversed-device {own}");
            let not = format!("traversed-device !{own}");
            let out = format!("traversed-device {own} direction tx");
            let lines = [("through", &*through), ("not through", &*not), ("from", &*out)];
            world.meter.set_meters(&with_routers(&lines));
            // To the router from a port of its bridge, by either address; and what is not.
            for (frame, direction, own) in [
                (frame(GUEST, OF_ROUTER, &[]), Direction::Rx, 1),
                (frame(GUEST, ALSO, &[]), Direction::Rx, 1),
                (frame(GUEST, [0xff; 6], &[]), Direction::Rx, 1),
                (frame(GUEST, OF_ROUTER, &[(0x8100, 5)]), Direction::Rx, 1),
                (frame(OF_ROUTER, GUEST, &[]), Direction::Rx, 1),
                // Another bridge, and a port of none: there the address is the second router's, or nobody's.
                (frame(GUEST, OF_ROUTER, &[]), Direction::Rx, 2),
                (frame(GUEST, ALSO, &[]), Direction::Rx, 2),
                (frame(GUEST, ALSO, &[]), Direction::Rx, 0),
                // From the router out through a port.
                (frame(OF_ROUTER, GUEST, &[]), Direction::Tx, 1),
                (frame(OF_ROUTER, GUEST, &[(0x8100, 5)]), Direction::Tx, 1),
                (frame(GUEST, OF_ROUTER, &[]), Direction::Tx, 1),
            ] {
                world.run(&frame, direction, None, own);
            }
            // Of the port without a device nothing is a device's.
            let expected = BTreeMap::from([(BRIDGE, 5), (OTHER_BRIDGE, 2), (ROUTER, 2), (SECOND, 1)]);
            assert_eq!(devices(&mut world), expected);
            let meters = |world: &mut World<'_>| -> Vec<(String, u64)> {
                world.meter.meters().into_iter().map(|(name, [packets, _])| (name, packets)).collect()
            };
            let expected_meters = [("from", 1), ("not through", 6), ("through", 2)]
                .map(|(name, packets)| (name.to_owned(), packets));
            assert_eq!(meters(&mut world), expected_meters);

            // A router counts without any user-defined meter, goes on after a restart, and ends when nobody wants it.
            let mut world = world.reopen();
            world.meter.set_meters(&with_routers(&[]));
            assert_eq!(meters(&mut world), []);
            world.run(&frame(GUEST, OF_ROUTER, &[]), Direction::Rx, None, 1);
            assert_eq!(
                devices(&mut world),
                BTreeMap::from([(BRIDGE, 6), (OTHER_BRIDGE, 2), (ROUTER, 3), (SECOND, 1)])
            );
            world.meter.set_meters(&MeterSet::default());
            assert_eq!(devices(&mut world), BTreeMap::from([(BRIDGE, 6), (OTHER_BRIDGE, 2)]));
        },
    );
}
