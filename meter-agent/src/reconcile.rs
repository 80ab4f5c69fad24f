//! What is, what should be, and the steps from one to the other.
//!
//! Pure and level-triggered: a lost event, a failed attach and a start-up are the same case.

use std::collections::{BTreeMap, BTreeSet};

use meter_ebpf::abi::Network;

use crate::{
    binding::{Bound, Conflict},
    datapath::{Attachment, Class, Target},
    meter::PortId,
    netdev::{Kind, NetdevId, Netdevs},
    roles::Role,
};

/// One step towards what should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Let these netdevs, all of them attached, exchange their ports.
    Exchange(Vec<Target>),
    /// Attach this netdev, or change how it is attached.
    Attach(Target),
    /// Detach a netdev.
    Detach {
        /// Which.
        id: NetdevId,
    },
}

/// Returns how each netdev should be attached; nothing for what is not metered.
#[must_use]
pub fn desired(
    netdevs: &Netdevs,
    bound: &BTreeMap<NetdevId, Result<Bound, Conflict>>,
    roles: &BTreeMap<NetdevId, Role>,
) -> BTreeMap<NetdevId, Target> {
    let target = |(id, netns, netdev): (NetdevId, &str, &crate::netdev::Netdev)| {
        let role = roles.get(&id)?;
        let class = role.class?;
        let bound = bound.get(&id)?.as_ref().ok()?;
        let target = Target {
            id,
            netdev: netdev.name.clone(),
            netns: netns.to_owned(),
            port: bound.port,
            class,
            // What comes through an uplink or a tunnel was counted for its device where it entered the network.
            device: if class == Class::Port { bound.device } else { None },
            underlay: role.underlay,
            ingress: role.ingress,
            network: if class == Class::Tunnel { network(&netdev.kind) } else { Network::NONE },
        };
        Some((id, target))
    };
    netdevs.all().filter_map(target).collect()
}

/// Returns the overlay network whose frames come through a netdev.
fn network(kind: &Kind) -> Network {
    match kind {
        Kind::Tunnel(tunnel) => tunnel.vni.map_or(Network::EXTERNAL, Network::new),
        _ => Network::NONE,
    }
}

/// Returns the steps: detaches first, since a port's new netdev may wait for its old one; then uplinks, of which there
/// are few and which carry everything; then the rest. Between netdevs that stay, a port is left before it is taken, so
/// that no step takes a port away from a netdev that counts; where that goes in a circle they exchange their ports.
///
/// The netdevs that are `gone` took their hooks along, whatever is attached and whoever has their numbers now.
#[must_use]
pub fn plan(
    desired: &BTreeMap<NetdevId, Target>,
    attached: &BTreeMap<NetdevId, Attachment>,
    gone: &BTreeSet<NetdevId>,
) -> Vec<Step> {
    let stays = |id: &NetdevId| desired.contains_key(id) && !gone.contains(id);
    let mut steps: Vec<Step> =
        attached.keys().filter(|id| !stays(id)).map(|&id| Step::Detach { id }).collect();
    let staying = attached.iter().filter(|(id, _)| stays(id)).map(|(&id, is)| (id, is));
    let staying: BTreeMap<NetdevId, &Attachment> = staying.collect();
    let is_right =
        |target: &Target| staying.get(&target.id).is_some_and(|is| !is.is_stale() && is.target == *target);
    let mut order = Order {
        holders: staying.iter().map(|(&id, is)| (is.target.port, id)).collect(),
        waiting: desired
            .iter()
            .filter(|(_, target)| !is_right(target))
            .map(|(&i, target)| (i, target))
            .collect(),
        staying,
        steps: Vec::new(),
    };
    let mut first: Vec<&Target> = order.waiting.values().copied().collect();
    first.sort_by_key(|target| (!target.underlay, target.id));
    first.into_iter().for_each(|target| order.take(target));
    steps.append(&mut order.steps);
    steps
}

/// Puts attaches into an order in which every port is free when its netdev takes it.
struct Order<'a> {
    staying: BTreeMap<NetdevId, &'a Attachment>,
    /// Which of them carries a port.
    holders: BTreeMap<PortId, NetdevId>,
    /// The targets that have no step yet.
    waiting: BTreeMap<NetdevId, &'a Target>,
    steps: Vec<Step>,
}

impl<'a> Order<'a> {
    /// Adds the steps for a target: first those of the netdevs that have to leave their ports for it.
    fn take(&mut self, target: &'a Target) {
        let mut chain: Vec<&Target> = Vec::new();
        let mut next = self.waiting.remove(&target.id);
        while let Some(target) = next {
            chain.push(target);
            let holder = self.holders.get(&target.port);
            next = holder.and_then(|holder| self.waiting.remove(holder));
        }
        let Some(last) = chain.last() else { return };
        // The last one waits for one of the chain: from there on it goes in a circle.
        let holder = self.holders.get(&last.port).filter(|holder| **holder != last.id);
        let circle = holder.and_then(|holder| chain.iter().position(|target| target.id == *holder));
        if let Some(circle) = circle {
            let targets = chain.split_off(circle);
            self.steps.push(Step::Exchange(targets.iter().map(|&target| target.clone()).collect()));
            // What more than their ports differs comes after.
            let differs = |target: &&Target| {
                let is = self.staying.get(&target.id);
                is.is_none_or(|is| is.is_stale() || is.with_port_of(target) != **target)
            };
            self.steps.extend(targets.into_iter().filter(differs).cloned().map(Step::Attach));
        }
        self.steps.extend(chain.into_iter().rev().cloned().map(Step::Attach));
    }
}

#[cfg(test)]
mod tests;
