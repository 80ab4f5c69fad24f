//! Conditions and packets of a small world, in which they often meet.

use meter_ebpf::{abi::Network, packet::Fragment};

use super::*;

const GROUPS: &[&str] = &["a", "b", "é\"\\", "3f2a1b6c-0d4e-4f5a-8b7c-9d0e1f2a3b4c"];

fn test<T: std::fmt::Debug + Clone + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Test<T>> {
    // An inversion without a value is a case of its own.
    (prop::option::weighted(0.4, value), any::<bool>())
        .prop_map(|(value, inverted)| Test { value, inverted })
        .boxed()
}

fn macs() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![known_macs(), prop::array::uniform6(prop::sample::select(vec![0, 1, 2, 0xff]))]
}

fn known_macs() -> impl Strategy<Value = [u8; 6]> {
    prop::sample::select(vec![[0, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 1, 1, 1, 1, 1]])
}

/// Routers on bridges, some of which have ports.
pub(crate) fn routers() -> impl Strategy<Value = Vec<Router>> {
    let router = (
        prop::collection::btree_set(known_macs(), 1..3),
        prop::collection::btree_set(uuids().prop_map(DeviceId), 1..3),
    );
    prop::collection::btree_map(uuids().prop_map(DeviceId), router, 0..3).prop_map(|routers| {
        routers.into_iter().map(|(device, (macs, bridges))| Router { device, macs, bridges }).collect()
    })
}

fn uuids() -> impl Strategy<Value = Uuid> {
    (1..5_u128).prop_map(Uuid::from_u128)
}

fn ports() -> impl Strategy<Value = PortId> {
    uuids().prop_map(PortId)
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        prop::array::uniform4(0..3_u8).prop_map(IpAddr::from),
        prop::array::uniform8(0..3_u16).prop_map(IpAddr::from),
        any::<IpAddr>(),
    ]
}

fn prefixes() -> impl Strategy<Value = Prefix> {
    (addresses(), 0..=128_u8).prop_map(|(address, length)| {
        let most = Prefix::host(address).length;
        Prefix { address, length: length % (most + 1) }
    })
}

fn port_ranges() -> impl Strategy<Value = PortRange> {
    (prop::option::of(1..20_u16), prop::option::of(0..20_u16)).prop_map(|bounds| match bounds {
        (None, None) => PortRange { start: Some(1), end: None },
        (Some(start), more) => PortRange { start: Some(start), end: more.map(|more| start + more) },
        (None, end) => PortRange { start: None, end: end.map(|end| end + 1) },
    })
}

fn group_names() -> impl Strategy<Value = String> {
    prop::sample::select(GROUPS).prop_map(ToOwned::to_owned)
}

fn flows() -> impl Strategy<Value = Flow> {
    prop::sample::select(vec![Flow::Forward, Flow::Return])
}

fn directions() -> impl Strategy<Value = Direction> {
    prop::sample::select(vec![Direction::Rx, Direction::Tx])
}

/// Mostly those of ports: rules without a VNI count only there.
fn networks() -> impl Strategy<Value = Network> {
    prop_oneof![
        3 => Just(Network::NONE),
        2 => (0..3_u32).prop_map(Network::new),
        1 => Just(Network::UNKNOWN),
    ]
}

prop_compose! {
    pub(crate) fn groups()(
        ports in prop::collection::btree_map(group_names(), prop::collection::btree_set(ports(), 0..3), 0..4),
        addresses in prop::collection::btree_map(group_names(), prop::collection::vec(prefixes(), 0..3), 0..4),
    ) -> Groups {
        Groups { ports, addresses }
    }
}

/// Groups of every name that a condition may have.
pub(crate) fn every_group() -> impl Strategy<Value = Groups> {
    let member = (prop::collection::btree_set(ports(), 0..3), prop::collection::vec(prefixes(), 0..3));
    prop::collection::vec(member, GROUPS.len()).prop_map(|members| {
        let mut groups = Groups::default();
        for (name, (ports, addresses)) in GROUPS.iter().zip(members) {
            groups.ports.insert((*name).to_owned(), ports);
            groups.addresses.insert((*name).to_owned(), addresses);
        }
        groups
    })
}

prop_compose! {
    fn policies()(
        [inverted, no_vlan] in any::<[bool; 2]>(),
        policy in prop::sample::select(vec![
            FragmentPolicy::Any, FragmentPolicy::Header, FragmentPolicy::Nonheader, FragmentPolicy::Unfragmented,
        ]),
        flow in prop::option::weighted(0.3, flows()),
        vlan in prop::option::weighted(0.3, 1..4_u16),
        direction in prop::option::weighted(0.3, directions()),
        vni in test(0..3_u32),
        traversed_device in test(uuids()),
    ) -> Condition {
        Condition {
            inverted,
            fragment_policy: policy,
            flow,
            no_vlan: no_vlan && vlan.is_none(),
            vlan,
            direction,
            vni,
            traversed_device,
            ..Condition::default()
        }
    }
}

prop_compose! {
    fn members()(
        port_group in test(group_names()),
        in_port_group in test(group_names()),
        out_port_group in test(group_names()),
        in_ports in test(prop::collection::btree_set(ports(), 1..3)),
        out_ports in test(prop::collection::btree_set(ports(), 1..3)),
        ip_address_group_src in test(group_names()),
        ip_address_group_dst in test(group_names()),
    ) -> Condition {
        Condition {
            port_group,
            in_port_group,
            out_port_group,
            in_ports,
            out_ports,
            ip_address_group_src,
            ip_address_group_dst,
            ..Condition::default()
        }
    }
}

prop_compose! {
    /// Any condition that can be written down.
    pub(crate) fn conditions()(
        policy in policies(),
        members in members(),
        ethertype in test(prop::sample::select(vec![0x800, 0x806, 0x86dd])),
        hw_src in test((macs(), macs()).prop_map(|(address, mask)| MacMatch { address, mask })),
        hw_dst in test((macs(), Just([0xff; 6])).prop_map(|(address, mask)| MacMatch { address, mask })),
        tos in test(0..3_u8),
        proto in test(prop::sample::select(vec![0, 1, 6, 17])),
        src in test(prefixes()),
        dst in test(prefixes()),
        src_port in test(port_ranges()),
        dst_port in test(port_ranges()),
    ) -> Condition {
        let has_ports = src_port.value.is_some() || dst_port.value.is_some();
        let fragment_policy = match policy.fragment_policy {
            FragmentPolicy::Any | FragmentPolicy::Nonheader if has_ports => FragmentPolicy::Header,
            policy => policy,
        };
        Condition {
            inverted: policy.inverted,
            fragment_policy,
            flow: policy.flow,
            no_vlan: policy.no_vlan,
            vlan: policy.vlan,
            direction: policy.direction,
            vni: policy.vni,
            traversed_device: policy.traversed_device,
            ethertype,
            hw_src,
            hw_dst,
            tos,
            proto,
            src,
            dst,
            src_port,
            dst_port,
            ..members
        }
    }
}

prop_compose! {
    /// Any packet, also one that no wire carries.
    pub(crate) fn packets()(
        hw in prop::array::uniform2(prop::option::of(macs())),
        ethertype in prop::option::of(prop::sample::select(vec![0x800, 0x806, 0x86dd])),
        vlan in prop::option::of(0..4_u16),
        [src, dst] in prop::array::uniform2(prop::option::of(addresses())),
        [proto, tos] in prop::array::uniform2(prop::option::of(prop::sample::select(vec![0, 1, 2, 6, 17]))),
        [src_port, dst_port] in prop::array::uniform2(prop::option::of(0..40_u16)),
        fragment in prop::sample::select(vec![Fragment::Whole, Fragment::First, Fragment::Later]),
        flow in flows(),
        [in_port, out_port, origin_port] in prop::array::uniform3(prop::option::of(ports())),
        traversed in prop::collection::btree_set(uuids(), 0..3),
        network in networks(),
        direction in prop::option::of(directions()),
    ) -> Packet {
        let [hw_src, hw_dst] = hw;
        Packet {
            hw_src, hw_dst, ethertype, vlan, src, dst, proto, tos, src_port, dst_port, fragment, flow, in_port,
            out_port, origin_port, traversed, network, direction,
        }
    }
}
