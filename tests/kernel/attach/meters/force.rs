//! What counts is a set that the agent gave, or nothing.

use std::{fs, net::Ipv6Addr};

use meter_agent::{
    datapath::Datapath as _,
    rules::{Groups, MeterSet, Prefix},
};
use meter_ebpf::abi::{VERSION, map};

use super::{
    super::super::support::{becomes, leads_nowhere},
    BYTES, Class, Meter, OUT, Pair, RULE, meters, ready,
};

/// A rule that names the port.
const BY_PORT: (&str, &str) = ("by port", "in-ports 00000000-0000-0000-0000-000000000001");

/// Fills the tables with addresses until a port more has no room; returns that set.
fn full(meter: &mut Meter<'_>) -> MeterSet {
    // Each has nodes of its own for nearly every half byte.
    let prefix = |number: u32, length| {
        let half = |salt: u64| (u64::from(number) + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
        let bits = u128::from(half(1)) << 64 | u128::from(half(9_999));
        Prefix { address: Ipv6Addr::from_bits(bits).into(), length }
    };
    let of = |addresses: u32, last: Option<u8>| {
        let prefixes = (0..addresses).map(|number| prefix(number, 128));
        let group = prefixes.chain(last.map(|length| prefix(addresses, length))).collect();
        let groups = Groups { addresses: [("many".to_owned(), group)].into(), ..Groups::default() };
        MeterSet { groups, ..meters(&[BY_PORT, ("many", "ip-address-group-src many")]) }
    };
    let (mut fits, mut full) = (0_u32, 4_000_u32);
    while full - fits > 1 {
        let middle = fits.midpoint(full);
        if meter.try_set_meters(&of(middle, None)).is_ok() { fits = middle } else { full = middle }
    }
    // What is left is too little for an address; a prefix takes most of it.
    let mut last = (4..=124_u8).rev().step_by(4).map(|length| of(fits, Some(length)));
    last.find(|set| meter.try_set_meters(set).is_ok()).unwrap()
}

#[test]
fn rules_that_can_not_follow_a_port_end_and_count_when_they_are_given_again() {
    if !ready() {
        return;
    }
    let pair = Pair::new("no-room-for-port");
    let mut meter = pair.host.open();
    let set_of_all = full(&mut meter);
    meter.set_meters(&set_of_all);
    assert!(meter.meters_in_force());
    // The port gets a slot that the rules have no room for.
    meter.attach(&pair.port());
    assert!(!meter.meters_in_force());
    pair.count(&mut meter, Class::Port, "the port counts all the same");
    assert!(meter.meters().values().all(|counted| *counted == [0, 0]), "nothing counts by stale rules");
    meter.try_set_meters(&set_of_all).unwrap_err();
    assert!(!meter.meters_in_force());
    pair.count(&mut meter, Class::Port, "refused again");
    meter.set_meters(&meters(&[BY_PORT, OUT]));
    assert!(meter.meters_in_force());
    pair.count(&mut meter, Class::Port, "with rules that fit");
    let rows = [("by port", 3), ("out", 5)].map(|(name, n)| (name.to_owned(), [n, n * BYTES]));
    assert_eq!(meter.meters(), rows.into());
}

#[test]
fn rules_of_an_earlier_agent_are_held_until_others_are_in_their_place() {
    if !ready() {
        return;
    }
    let pair = Pair::new("held");
    let pin = |name: &str| pair.host.pins.join(format!("v{VERSION}/maps/{name}"));
    let mut meter = pair.host.open();
    meter.set_meters(&meters(&[RULE, OUT]));
    meter.attach(&pair.port());
    let inner = [map::RULES, map::VERDICTS].map(|name| pin(&format!("{name}_NOW")));
    let ids = || inner.each_ref().map(|pin| aya::maps::MapInfo::from_pin(pin).unwrap().id());
    let first = ids();
    pair.count(&mut meter, Class::Port, "the first agent");
    drop(meter);

    // By their pins, and where those are gone by their numbers.
    let mut counted = [3, 5];
    for unpinned in [false, true] {
        if unpinned {
            inner.iter().for_each(|pin| fs::remove_file(pin).unwrap());
        }
        let mut meter = pair.host.open();
        let (frames, ()) = pair.while_sending(|| meter.set_meters(&meters(&[OUT, RULE])));
        counted = counted.map(|before| before + frames);
        let rows = [("experiments", counted[0]), ("out", counted[1])];
        becomes(|| meter.meters(), rows.map(|(name, n)| (name.to_owned(), [n, n * BYTES])).into());
        assert!(first.iter().zip(ids()).all(|(first, now)| *first != now));
        if unpinned {
            meter.set_meters(&meters(&[]));
            assert_eq!(inner.each_ref().map(|pin| pin.exists()), [false; 2], "their memory is given back");
            let nowhere = [map::RULES, map::VERDICTS].map(|name| leads_nowhere(&pair.host.pins, name));
            assert_eq!(nowhere, [true; 2], "their memory is given back");
        }
    }
}

#[test]
fn rules_are_compiled_once_for_ports_that_are_attached_together() {
    /// Ports that the rules name.
    const PORTS: u128 = 6;
    if !ready() {
        return;
    }
    let pair = Pair::new("batch");
    let mut meter = pair.host.open();
    let netdev = |port: u128| if port == 1 { "eth0".to_owned() } else { format!("more{port}") };
    (2..=PORTS).for_each(|port| {
        pair.host.netns.veth(&netdev(port), &pair.peer, &format!("peer{port}"), 1_500).unwrap();
    });
    let ports: Vec<String> = (1..=PORTS).map(|port| uuid::Uuid::from_u128(port).to_string()).collect();
    meter.set_meters(&meters(&[("by port", &format!("in-ports {}", ports.join(",")))]));
    let targets: Vec<_> =
        (1..=PORTS).map(|port| pair.host.target(&netdev(port), port, Class::Port)).collect();
    meter.datapath.prepare(&targets);
    targets.iter().for_each(|target| drop(meter.attach(target)));
    assert_eq!(meter.datapath.rules_compiled(), 1);
    pair.count(&mut meter, Class::Port, "all ports are known");
    assert_eq!(meter.meters(), [("by port".to_owned(), [3, 3 * BYTES])].into());
    // One that comes by itself has its rules as well.
    meter.detach(targets[0].id);
    meter.attach(&pair.host.target("eth0", 99, Class::Port));
    meter.attach(&pair.port());
    assert!(meter.meters_in_force());
    pair.send(1, 0);
    becomes(|| meter.meters()["by port"], [4, 4 * BYTES]);
}
