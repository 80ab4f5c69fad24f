//! Between what a pinned record holds and what the agent asks for.

use std::collections::BTreeMap;

use meter_ebpf::abi::{Network, PortRecord, PortUuid, SlotCounters, hooks};
use uuid::Uuid;

use super::{
    Attachment, Class, HookKind, IngressHook, PortReading, Target,
    ledger::{Ledger, Slots, total},
};
use crate::{
    meter::{DeviceId, PortId},
    netdev::{NamespaceId, NetdevId},
};

/// Rebuilds what an earlier agent attached from its records.
/// `network` tells the overlay network of a slot.
pub(super) fn adopted(ledger: &Ledger, network: impl Fn(u32) -> Network) -> BTreeMap<NetdevId, Attachment> {
    ledger
        .records()
        .iter()
        .filter(|(_, record)| record.ifindex != 0)
        .map(|(uuid, record)| {
            let ingress = hook_kind(record.hooks, hooks::INGRESS_CLSACT, hooks::INGRESS_XDP);
            let egress = hook_kind(record.hooks, hooks::EGRESS_CLSACT, 0);
            let target = recorded_target(*uuid, record, network(record.slot));
            let attachment = Attachment::new(target, [ingress, egress]);
            (netdev_of(record), Attachment { earlier: true, ..attachment })
        })
        .collect()
}

/// Returns the netdev of a record that has one.
pub(super) fn netdev_of(record: &PortRecord) -> NetdevId {
    NetdevId { namespace: NamespaceId(record.namespace), ifindex: record.ifindex }
}

fn recorded_target(uuid: PortUuid, record: &PortRecord, network: Network) -> Target {
    Target {
        id: netdev_of(record),
        netdev: String::new(),
        netns: String::new(),
        port: port_id(uuid),
        class: class_of(record.class),
        device: reported_device(record.device),
        underlay: record.uplink != 0,
        ingress: if record.hooks & hooks::INGRESS_XDP == 0 { IngressHook::Tc } else { IngressHook::Xdp },
        network,
    }
}

fn hook_kind(bits: u32, clsact: u32, xdp: u32) -> HookKind {
    if bits & clsact != 0 {
        HookKind::Clsact
    } else if bits & xdp != 0 {
        HookKind::Xdp
    } else {
        HookKind::Tcx
    }
}

pub(super) fn hook_bits([ingress, egress]: [HookKind; 2], clsact_ours: bool) -> u32 {
    let ingress = match ingress {
        HookKind::Tcx => hooks::INGRESS_TCX,
        HookKind::Clsact => hooks::INGRESS_CLSACT,
        HookKind::Xdp => hooks::INGRESS_XDP,
    };
    let egress = if egress == HookKind::Clsact { hooks::EGRESS_CLSACT } else { hooks::EGRESS_TCX };
    ingress | egress | if clsact_ours { hooks::CLSACT_OURS } else { 0 }
}

pub(super) fn port_reading(uuid: PortUuid, record: &PortRecord, slots: &impl Slots) -> PortReading {
    let totals: SlotCounters = total(record, slots);
    PortReading {
        port: port_id(uuid),
        class: class_of(record.class),
        netdev: (record.ifindex != 0).then_some(netdev_of(record)),
        device: reported_device(record.device),
        created_ns: record.created_ns,
        totals,
    }
}

pub(super) fn device_uuid(device: Option<DeviceId>) -> PortUuid {
    device.map_or_else(PortUuid::default, |device| PortUuid { uuid: *device.0.as_bytes() })
}

/// Returns the device of a record; zeros are none.
pub(super) fn reported_device(device: PortUuid) -> Option<DeviceId> {
    let device = Uuid::from_bytes(device.uuid);
    (!device.is_nil()).then_some(DeviceId(device))
}

pub(super) fn port_uuid(port: PortId) -> PortUuid {
    PortUuid { uuid: *port.0.as_bytes() }
}

pub(super) fn port_id(uuid: PortUuid) -> PortId {
    PortId(Uuid::from_bytes(uuid.uuid))
}

pub(super) const fn class_number(class: Class) -> u32 {
    match class {
        Class::Port => 0,
        Class::Uplink => 1,
        Class::Tunnel => 2,
    }
}

pub(super) const fn class_of(number: u32) -> Class {
    match number {
        1 => Class::Uplink,
        2 => Class::Tunnel,
        _ => Class::Port,
    }
}
