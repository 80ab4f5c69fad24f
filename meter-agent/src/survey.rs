//! What every netdev is, which port it carries and how it should be metered: one look at the whole host.
//!
//! Pure: the same answer for the same netdevs and the same [`Policy`]. The agent acts on it, `meter-agent ls` prints it.

use std::collections::BTreeMap;

use crate::{
    binding::{Bindings, Bound, Conflict},
    datapath::{Attachment, Class, Target},
    netdev::{Netdev, NetdevTable},
    reconcile,
    roles::{Judge, Role, Rules},
    snapshot::NetdevStatus,
};

/// What the operator wants: the part of the configuration that a reload changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Which netdev carries which port.
    pub bindings: Bindings,
    /// Which netdevs are metered, and as what.
    pub rules: Rules,
}

/// The answer for each netdev, by ifindex.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Which port it carries.
    pub bound: BTreeMap<u32, Result<Bound, Conflict>>,
    /// What it is, and why.
    pub roles: BTreeMap<u32, Role>,
    /// How it should be attached; nothing for what is not metered.
    pub desired: BTreeMap<u32, Target>,
}

impl Survey {
    /// Looks at all netdevs.
    #[must_use]
    pub fn new(table: &NetdevTable, policy: &Policy) -> Self {
        let judge = Judge::new(table, &policy.rules);
        let bound = policy.bindings.resolve(table, |netdev, bound| judge.is_metered(netdev, bound));
        let roles = judge.roles(&bound);
        let desired = reconcile::desired(table, &bound, &roles);
        Self { bound, roles, desired }
    }

    /// Returns the netdevs, by ifindex, that would be metered if their port were not another's.
    pub fn conflicts(&self) -> impl Iterator<Item = (u32, &Conflict)> {
        self.bound.iter().filter_map(|(ifindex, bound)| Some((*ifindex, bound.as_ref().err()?)))
    }

    /// Returns what `meter-agent ls` says of each netdev, in the order of their ifindexes.
    ///
    /// `failed` holds why a netdev that should be attached is not.
    #[must_use]
    pub fn statuses(
        &self,
        table: &NetdevTable,
        attached: &BTreeMap<u32, Attachment>,
        failed: impl Fn(u32) -> Option<String>,
    ) -> Vec<NetdevStatus> {
        table
            .netdevs
            .values()
            .map(|netdev| self.status(netdev, attached.get(&netdev.ifindex), &failed))
            .collect()
    }

    fn status(
        &self,
        netdev: &Netdev,
        attachment: Option<&Attachment>,
        failed: &impl Fn(u32) -> Option<String>,
    ) -> NetdevStatus {
        let role = self.roles.get(&netdev.ifindex);
        let class = role.and_then(|role| role.class);
        let bound = class.and(self.bound.get(&netdev.ifindex)).and_then(|bound| bound.as_ref().ok());
        let reason = failed(netdev.ifindex)
            .or_else(|| role.map(|role| role.reason.clone()))
            .unwrap_or_else(|| "not looked at yet".to_owned());
        NetdevStatus {
            ifindex: netdev.ifindex,
            netdev: netdev.name.clone(),
            kind: netdev.kind.name().to_owned(),
            role: class.map_or("-", Class::name).to_owned(),
            port: bound.map(|bound| bound.port.to_string()),
            device: bound.and_then(|bound| bound.device).map(|device| device.to_string()),
            source: bound.map(|bound| bound.source.name().to_owned()),
            ingress: attachment.map(|attachment| attachment.ingress.to_string()),
            egress: attachment.map(|attachment| attachment.egress.to_string()),
            reason,
        }
    }
}
