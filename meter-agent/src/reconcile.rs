//! What is, what should be, and the steps from one to the other.
//!
//! Pure and level-triggered: a lost event, a failed attach and a start-up are the same case.

use std::collections::BTreeMap;

use crate::{
    binding::{Bound, Conflict},
    datapath::{Attachment, Class, Target},
    netdev::NetdevTable,
    roles::Role,
};

/// One step towards what should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Attach this netdev, or change how it is attached.
    Attach(Target),
    /// Detach the netdev with this ifindex.
    Detach {
        /// Its ifindex.
        ifindex: u32,
    },
}

/// Returns how each netdev should be attached, by ifindex; nothing for what is not metered.
#[must_use]
pub fn desired(
    table: &NetdevTable,
    bound: &BTreeMap<u32, Result<Bound, Conflict>>,
    roles: &BTreeMap<u32, Role>,
) -> BTreeMap<u32, Target> {
    let target = |netdev: &crate::netdev::Netdev| {
        let role = roles.get(&netdev.ifindex)?;
        let class = role.class?;
        let bound = bound.get(&netdev.ifindex)?.as_ref().ok()?;
        Some(Target {
            ifindex: netdev.ifindex,
            netdev: netdev.name.clone(),
            port: bound.port,
            class,
            // What comes through an uplink or a tunnel was counted for its device where it entered the network.
            device: bound.device.filter(|_| class == Class::Port),
            underlay: role.underlay,
            ingress: role.ingress,
        })
    };
    table.netdevs.values().filter_map(|netdev| Some((netdev.ifindex, target(netdev)?))).collect()
}

/// Returns the steps: detaches first, since a port's new netdev may wait for its old one; then uplinks, of which there
/// are few and which carry everything; then the rest.
#[must_use]
pub fn plan(desired: &BTreeMap<u32, Target>, attached: &BTreeMap<u32, Attachment>) -> Vec<Step> {
    let detach = attached
        .keys()
        .filter(|ifindex| !desired.contains_key(ifindex))
        .map(|&ifindex| Step::Detach { ifindex });
    let mut attach: Vec<&Target> = desired
        .values()
        .filter(|target| attached.get(&target.ifindex).is_none_or(|is| is.target != **target))
        .collect();
    attach.sort_by_key(|target| (!target.underlay, target.ifindex));
    detach.chain(attach.into_iter().cloned().map(Step::Attach)).collect()
}

#[cfg(test)]
mod tests;
