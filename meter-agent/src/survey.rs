//! What every netdev is, which port it carries and how it should be metered: one look at the whole host.
//!
//! Pure: the same answer for the same netdevs and the same [`Policy`]. The agent acts on it, `meter-agent ls` prints it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    binding::{Bindings, Bound, Conflict},
    connections::Selection,
    datapath::{Attachment, Class, IngressHook, Target},
    meter::PortId,
    netdev::{NamespaceId, Netdev, NetdevId, Netdevs},
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
    /// Of which netdevs connections are counted.
    pub connections: Selection,
}

/// The answer for each netdev.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Which port it carries.
    pub bound: BTreeMap<NetdevId, Result<Bound, Conflict>>,
    /// What it is, and why.
    pub roles: BTreeMap<NetdevId, Role>,
    /// How it should be attached; nothing for what is not metered.
    pub desired: BTreeMap<NetdevId, Target>,
    /// The ports of those of them whose connections are counted.
    pub captured: BTreeSet<PortId>,
}

impl Survey {
    /// Looks at all netdevs.
    #[must_use]
    pub fn new(netdevs: &Netdevs, policy: &Policy) -> Self {
        let judges: BTreeMap<NamespaceId, Judge<'_>> = netdevs
            .tables()
            .map(|(namespace, _, table)| (namespace, Judge::new(namespace, table, &policy.rules)))
            .collect();
        let bound = policy.bindings.resolve(netdevs, |id, netdev, bound| {
            judges.get(&id.namespace).is_some_and(|judge| judge.is_metered(netdev, bound))
        });
        let mut roles: BTreeMap<NetdevId, Role> =
            judges.values().flat_map(|judge| judge.roles(&bound)).collect();
        let mut desired = reconcile::desired(netdevs, &bound, &roles);
        let mut captured = BTreeSet::new();
        for (id, target) in &mut desired {
            if !netdevs.get(*id).is_some_and(|netdev| policy.connections.has(netdev, target)) {
                continue;
            }
            captured.insert(target.port);
            // Programs of XDP know no connections.
            target.ingress = IngressHook::Tc;
            if let Some(role) = roles.get_mut(id).filter(|role| role.ingress == IngressHook::Xdp) {
                role.ingress = IngressHook::Tc;
                role.reason.push_str("; ingress by tc: its connections are counted");
            }
        }
        Self { bound, roles, desired, captured }
    }

    /// Returns the netdevs that would be metered if their port were not another's.
    pub fn conflicts(&self) -> impl Iterator<Item = (NetdevId, &Conflict)> {
        self.bound.iter().filter_map(|(id, bound)| Some((*id, bound.as_ref().err()?)))
    }

    /// Returns what `meter-agent ls` says of each netdev: the host's in the order of their ifindexes, then the others.
    ///
    /// `failed` holds why a netdev that should be attached is not.
    #[must_use]
    pub fn statuses(
        &self,
        netdevs: &Netdevs,
        attached: &BTreeMap<NetdevId, Attachment>,
        failed: impl Fn(NetdevId) -> Option<String>,
    ) -> Vec<NetdevStatus> {
        netdevs
            .all()
            .map(|(id, netns, netdev)| self.status(id, netns, netdev, attached.get(&id), &failed))
            .collect()
    }

    fn status(
        &self,
        id: NetdevId,
        netns: &str,
        netdev: &Netdev,
        attachment: Option<&Attachment>,
        failed: &impl Fn(NetdevId) -> Option<String>,
    ) -> NetdevStatus {
        let role = self.roles.get(&id);
        let class = role.and_then(|role| role.class);
        let bound = class.and(self.bound.get(&id)).and_then(|bound| bound.as_ref().ok());
        let reason = failed(id)
            .or_else(|| role.map(|role| role.reason.clone()))
            .unwrap_or_else(|| "not looked at yet".to_owned());
        NetdevStatus {
            ifindex: netdev.ifindex,
            netdev: netdev.name.clone(),
            netns: netns.to_owned(),
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
