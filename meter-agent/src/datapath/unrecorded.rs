//! Netdevs that count though no record says so: an agent was killed while netdevs exchanged their ports, when a port was
//! written down for its new netdev and its old one had no other yet.

use std::collections::BTreeSet;

use meter_ebpf::abi::{Network, PortUuid, SlotRef};

use super::{
    Class, HookKind, IngressHook, Target,
    failure::describe,
    hook::Hook,
    hooks::{self, Site},
    ledger::Ledger,
    links::Links,
    maps::Maps,
    record::{hook_bits, netdev_of},
};
use crate::{
    meter::PortId,
    netdev::{NamespaceId, NetdevId},
};

/// Gives each of these netdevs a port: the one that it counts for, or one of those that were `left` when others took
/// their netdevs. What is none of ours any more is only forgotten.
pub(super) fn record(maps: &mut Maps, ledger: &mut Ledger, links: &Links, mut left: Vec<PortUuid>) {
    let known: BTreeSet<NetdevId> = ledger.records().values().map(netdev_of).collect();
    for (id, slot) in maps.bound().into_iter().filter(|(id, _)| !known.contains(id)) {
        let claimed = hook_kinds(id, links).and_then(|kinds| {
            let port = ledger.idle_port_of(slot.slot()).or_else(|| left.pop())?;
            ledger.carry(port, id, hook_bits(kinds, false))
        });
        let (slot, write) = claimed.map_or((SlotRef::UNBOUND, None), |(slot, write)| (slot, Some(write)));
        let written = write.map_or(Ok(()), |write| maps.write(&write)).and_then(|()| maps.set_slot(id, slot));
        match written {
            Ok(()) => {
                tracing::warn!(netdev = %id, slot = slot.slot(), "netdev that counts has no record; it gets one")
            }
            Err(error) => tracing::error!(netdev = %id, error = %describe(&error), "netdev not recorded"),
        }
    }
}

/// Returns how a netdev is hooked by us; `None` where it is not on both sides.
fn hook_kinds(id: NetdevId, links: &Links) -> Option<[HookKind; 2]> {
    let target = Target {
        id,
        netdev: String::new(),
        netns: String::new(),
        port: PortId(uuid::Uuid::nil()),
        class: Class::Port,
        device: None,
        underlay: false,
        ingress: IngressHook::Tc,
        network: Network::NONE,
    };
    // Which program a hook has does not matter for whether it is there.
    let none = BTreeSet::new();
    let site = Site { links, meters: false, captured: &none };
    let [ingress, egress] = hooks::both(&target, site);
    let found = |hook: Hook<'_>| {
        let is_there = |kind: &HookKind| hook.is_there(*kind, None).unwrap_or(false);
        // A filter is looked for in this namespace, and would be another netdev's.
        let kinds: &[_] = if id.namespace == NamespaceId::HOST {
            &[HookKind::Tcx, HookKind::Xdp, HookKind::Clsact]
        } else {
            &[HookKind::Tcx]
        };
        kinds.iter().copied().find(is_there)
    };
    Some([found(ingress)?, found(egress)?])
}
