//! Every frame is in the meters that it should be in, whatever is done to them meanwhile and wherever it comes from.

use lab::{mac::Mac, traffic::RawSocket};
use meter_agent::rules::MeterSet;
use meter_ebpf::abi::{VERSION, map, rules::MAX_RULES};

use super::{
    super::super::support::{
        becomes,
        frames::{IPV4, UDP, between, ethernet, ipv4, vxlan},
    },
    BYTES, Class, Direction, INVERSE, Meter, OUT, Pair, RULE, counted, meters, of_port, ready,
};
use crate::attach::Target;

#[test]
fn swaps_under_traffic_lose_nothing() {
    if !ready() {
        return;
    }
    // In the end all are in one set, which has at most 1,024.
    let swaps = lab::amount("METER_TEST_SWAPS", 1_000, 100);
    let pair = Pair::new("swaps");
    let mut meter = pair.host.open();
    let names: Vec<String> = (0..swaps).map(|number| format!("new {number}")).collect();
    let new = |number: usize| (names[number].as_str(), "direction rx");
    meter.set_meters(&meters(&[new(0), RULE, INVERSE, OUT]));
    meter.attach(&pair.port());
    let (frames, ()) = pair.while_sending(|| {
        for number in 1..swaps {
            // What stays is in another place each time; each frame is in one of those that come.
            let new = new(number);
            let sets =
                [vec![new, RULE, INVERSE, OUT], vec![OUT, new, RULE, INVERSE], vec![INVERSE, RULE, new, OUT]];
            meter.set_meters(&meters(&sets[number % 3]));
        }
    });
    becomes(|| of_port(&mut meter, Direction::Ingress), [frames, frames * BYTES]);
    assert!(frames > 0);
    assert_eq!(counted(&mut meter, RULE.0), [frames, frames * BYTES]);
    assert_eq!(counted(&mut meter, INVERSE.0), [0, 0]);
    assert_eq!(counted(&mut meter, OUT.0), [frames, frames * BYTES]);
    // All that came have their totals when they come again.
    let all: Vec<_> = (0..swaps).map(new).collect();
    meter.set_meters(&meters(&all));
    let all = meter.meters();
    assert_eq!(all.len(), swaps);
    let sum = all.values().fold([0, 0], |sum, counted| super::sum(sum, *counted));
    assert_eq!(sum, [frames, frames * BYTES], "each frame is in one of the sets");
}

#[test]
fn counters_that_serve_other_meters_keep_every_total() {
    if !ready() {
        return;
    }
    let pair = Pair::new("counters-reused");
    let mut meter = pair.host.open();
    meter.attach(&pair.port());
    // Three sets that are as large as can be need more counters than there are.
    let sets: Vec<MeterSet> = (0..3)
        .map(|of_set| {
            let names: Vec<String> = (0..MAX_RULES).map(|number| format!("{of_set} {number}")).collect();
            meters(&names.iter().map(|name| (name.as_str(), "direction rx")).collect::<Vec<_>>())
        })
        .collect();
    let mut expected = [0; 3];
    let check = |meter: &mut Meter<'_>, of_set: usize, frames: u64| {
        becomes(
            || {
                let mut counted = meter.meters();
                counted.retain(|_, counted| *counted != [frames, frames * BYTES]);
                counted
            },
            [].into(),
        );
        assert_eq!(meter.meters().len(), MAX_RULES, "{of_set}");
    };
    for (round, of_set) in [0, 1, 2, 0, 2, 1].into_iter().enumerate() {
        meter.set_meters(&sets[of_set]);
        check(&mut meter, of_set, expected[of_set]);
        let frames = u64::try_from(round).unwrap() + 1;
        pair.send(frames, 1);
        expected[of_set] += frames;
        check(&mut meter, of_set, expected[of_set]);
    }
    drop(meter);
    let mut meter = pair.host.open();
    for of_set in 0..3 {
        meter.set_meters(&sets[of_set]);
        check(&mut meter, of_set, expected[of_set]);
    }
    // What was saved is there when the counters are lost; what was in them is not.
    meter.detach(pair.port().id);
    drop(meter);
    std::fs::remove_file(pair.host.pins.join(format!("v{VERSION}/maps/{}", map::METER_COUNTERS))).unwrap();
    let mut meter = pair.host.open();
    check(&mut meter, 2, 0);
    meter.set_meters(&sets[0]);
    check(&mut meter, 0, expected[0]);
    meter.attach(&pair.port());
    pair.send(2, 0);
    check(&mut meter, 0, expected[0] + 2);
}

#[test]
fn port_that_is_an_uplink_as_well_has_its_meters() {
    if !ready() {
        return;
    }
    let pair = Pair::new("uplink-meters");
    let mut meter = pair.host.open();
    meter.set_meters(&meters(&[RULE, OUT, ("tunnelled", "proto 17 dst-port 4789")]));
    let target = Target { underlay: true, ..pair.port() };
    meter.attach(&target);
    let kind = super::auto_kind();
    let hooks: Vec<String> = super::hooks(kind, Class::Port)
        .into_iter()
        .map(|hook| hook.replace("meter_in", "meter_user_uin").replace("meter_out", "meter_user_uout"))
        .collect();
    assert_eq!(pair.host.hooks(), hooks);
    pair.send(3, 5);
    let frame = ethernet(&[], IPV4, &ipv4(UDP, &vxlan(4789, 7, &[0; 60])));
    let socket = RawSocket::open(&pair.peer, "peer0").unwrap();
    (0..4).for_each(|_| socket.send(&frame).unwrap());
    let bytes = u64::try_from(frame.len()).unwrap();
    let rows = [("experiments", 3, 3 * BYTES), ("out", 5, 5 * BYTES), ("tunnelled", 4, 4 * bytes)];
    becomes(|| meter.meters(), rows.map(|(name, packets, bytes)| (name.to_owned(), [packets, bytes])).into());
    assert_eq!(meter.reading().tunnels.iter().map(|tunnel| tunnel.packets).sum::<u64>(), 4);
    // And back: the same meters by the programs of a port.
    meter.attach(&pair.port());
    pair.send(1, 1);
    becomes(|| counted(&mut meter, "experiments"), [4, 4 * BYTES]);
    assert_eq!(meter.verify(), [""; 0]);
}

const TAGS: [(&str, &str); 4] =
    [("tagged", "vlan 7"), ("other", "vlan 8"), ("untagged", "no-vlan true"), ("inside", "ethertype 0x88b5")];

/// What so many frames with a tag, and as many without, count in [`TAGS`].
fn tags(tagged: u64, untagged: u64) -> std::collections::BTreeMap<String, [u64; 2]> {
    let (with, without) = ([tagged, tagged * (BYTES + 4)], [untagged, untagged * BYTES]);
    let rows =
        [("tagged", with), ("other", [0, 0]), ("untagged", without), ("inside", super::sum(with, without))];
    rows.map(|(name, counted)| (name.to_owned(), counted)).into()
}

#[test]
fn tag_that_the_kernel_took_out_of_a_frame_is_a_tag() {
    if !ready() {
        return;
    }
    let pair = Pair::new("tags-in");
    let mut meter = pair.host.open();
    meter.set_meters(&meters(&TAGS));
    meter.attach(&pair.port());
    let tagged = between(Mac::local(1), Mac::local(2), &[(0x8100, 7)], 0x88b5, &[0; 100]);
    let socket = RawSocket::open(&pair.peer, "peer0").unwrap();
    (0..3).for_each(|_| socket.send(&tagged).unwrap());
    pair.send(1, 1);
    becomes(|| meter.meters(), tags(3, 1));
}

#[test]
fn tag_that_the_netdev_puts_into_a_frame_is_a_tag() {
    if !ready() || !lab::require::netdev_kind("vlan") {
        return;
    }
    let pair = Pair::new("tags-out");
    let host = &pair.host.netns;
    host.vlan("vlan7", "eth0", 7).unwrap();
    let mut meter = pair.host.open();
    let sent = TAGS.map(|(name, line)| (name, format!("{line} direction tx")));
    meter.set_meters(&meters(&sent.each_ref().map(|(name, line)| (*name, line.as_str()))));
    meter.attach(&pair.port());
    let plain = between(Mac::local(1), Mac::local(2), &[], 0x88b5, &[0; 100]);
    let socket = RawSocket::open(host, "vlan7").unwrap();
    (0..4).for_each(|_| socket.send(&plain).unwrap());
    pair.send(1, 1);
    becomes(|| meter.meters(), tags(4, 1));
}
