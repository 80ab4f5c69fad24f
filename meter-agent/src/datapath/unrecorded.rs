//! Netdevs that count though no record says so: an agent was killed while netdevs exchanged their ports, when a port was
//! written down for its new netdev and its old one had no other yet.

use std::{collections::BTreeSet, path::Path};

use meter_ebpf::abi::{PortUuid, SlotRef};

use super::{
    Class, HookKind, IngressHook, Target,
    failure::describe,
    hook::Hook,
    hooks::{self, Site},
    ledger::Ledger,
    maps::Maps,
    record::hook_bits,
};
use crate::meter::PortId;

/// Gives each of these netdevs a port: the one that it counts for, or one of those that were `left` when others took
/// their netdevs. What is none of ours any more is only forgotten.
pub(super) fn record(maps: &mut Maps, ledger: &mut Ledger, links: &Path, mut left: Vec<PortUuid>) {
    let known: BTreeSet<u32> = ledger.records().values().map(|record| record.ifindex).collect();
    for (ifindex, slot) in maps.bound().into_iter().filter(|(ifindex, _)| !known.contains(ifindex)) {
        let claimed = hook_kinds(ifindex, links).and_then(|kinds| {
            let port = ledger.idle_port_of(slot.slot()).or_else(|| left.pop())?;
            ledger.carry(port, ifindex, hook_bits(kinds, false))
        });
        let (slot, write) = claimed.map_or((SlotRef::UNBOUND, None), |(slot, write)| (slot, Some(write)));
        let written =
            write.map_or(Ok(()), |write| maps.write(&write)).and_then(|()| maps.set_slot(ifindex, slot));
        match written {
            Ok(()) => {
                tracing::warn!(ifindex, slot = slot.slot(), "netdev that counts has no record; it gets one")
            }
            Err(error) => tracing::error!(ifindex, error = %describe(&error), "netdev not recorded"),
        }
    }
}

/// Returns how a netdev is hooked by us; `None` where it is not on both sides.
fn hook_kinds(ifindex: u32, links: &Path) -> Option<[HookKind; 2]> {
    let target = Target {
        ifindex,
        netdev: String::new(),
        port: PortId(uuid::Uuid::nil()),
        class: Class::Port,
        device: None,
        underlay: false,
        ingress: IngressHook::Tc,
    };
    // Which program a hook has does not matter for whether it is there.
    let [ingress, egress] = hooks::both(&target, Site { links, meters: false });
    let found = |hook: Hook<'_>| {
        let is_there = |kind: &HookKind| hook.is_there(*kind, None).unwrap_or(false);
        [HookKind::Tcx, HookKind::Xdp, HookKind::Clsact].into_iter().find(is_there)
    };
    Some([found(ingress)?, found(egress)?])
}
