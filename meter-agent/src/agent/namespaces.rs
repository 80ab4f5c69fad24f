//! The named namespaces that are followed: which number each has, and when it is given back.

use std::collections::{BTreeMap, BTreeSet};

use super::Agent;
use crate::{
    datapath::Datapath,
    netdev::{
        Namespace, NamespaceId, NetdevEvent,
        namespaces::{Entrance, Identity, NamespaceEvent},
    },
};

/// What is known of them beside their netdevs.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// Whether any are followed.
    follows: bool,
    /// Whether all names have been looked at.
    looked: bool,
    /// Those that are followed.
    numbers: BTreeMap<Identity, NamespaceId>,
    /// Those whose first dump is not in yet: nothing in them is gone before.
    undumped: BTreeSet<NamespaceId>,
    /// Those that are followed no longer, and in which something may still be attached.
    leaving: BTreeSet<NamespaceId>,
    /// Those that could not be given a number.
    refused: BTreeMap<String, String>,
}

impl Namespaces {
    /// `left` are the namespaces in which an earlier agent left something attached.
    pub(super) fn new(follows: bool, left: &BTreeSet<NamespaceId>) -> Self {
        let mut leaving = left.clone();
        leaving.remove(&NamespaceId::HOST);
        Self { follows, leaving, ..Self::default() }
    }

    /// Returns whether it is known what there is in a namespace: a dump of it, or that nobody follows it.
    pub(super) fn is_known(&self, namespace: NamespaceId) -> bool {
        namespace == NamespaceId::HOST || (self.are_listed() && !self.undumped.contains(&namespace))
    }

    /// Returns whether everything has been looked at that was there at the start.
    pub(super) fn are_looked_at(&self) -> bool {
        self.are_listed() && self.undumped.is_empty()
    }

    fn are_listed(&self) -> bool {
        self.looked || !self.follows
    }
}

impl<D: Datapath> Agent<D> {
    pub(super) fn apply_namespace(&mut self, event: NamespaceEvent) {
        match event {
            NamespaceEvent::Here { identity, name, entrance } => self.follow(identity, name, entrance),
            NamespaceEvent::Netdev(identity, event) => self.apply_in(identity, event),
            NamespaceEvent::Gone(identity) => self.unfollow(identity),
            NamespaceEvent::Looked(mut failed) => {
                let refused = self.namespaces.refused.iter();
                failed.extend(refused.map(|(name, why)| (name.clone(), why.clone())));
                self.health.namespaces_failed = failed;
                self.health.attach_pending = self.pending();
                self.stale |= !self.namespaces.looked;
                self.namespaces.looked = true;
            }
        }
        self.health.namespaces = u64::try_from(self.namespaces.numbers.len()).ok();
    }

    fn follow(&mut self, identity: Identity, name: String, entrance: Entrance) {
        self.stale = true;
        match self.datapath.enter(identity, entrance) {
            Ok(number) => {
                self.namespaces.refused.remove(&name);
                self.namespaces.leaving.remove(&number);
                if self.namespaces.numbers.insert(identity, number).is_none() {
                    self.namespaces.undumped.insert(number);
                }
                let known = self.netdevs.namespaces.entry(number).or_default();
                known.name = name;
            }
            Err(error) => {
                tracing::error!(netns = name, error = %error, "namespace not followed");
                *self.health.attach_failures.entry(error.reason).or_default() += 1;
                self.namespaces.refused.insert(name, error.message);
            }
        }
    }

    fn apply_in(&mut self, identity: Identity, event: NetdevEvent) {
        let Some(&number) = self.namespaces.numbers.get(&identity) else { return };
        if matches!(event, NetdevEvent::All(_)) {
            self.namespaces.undumped.remove(&number);
        }
        self.note(number, &event);
        if let Some(Namespace { table, .. }) = self.netdevs.namespaces.get_mut(&number) {
            table.apply(event);
        }
    }

    fn unfollow(&mut self, identity: Identity) {
        let Some(number) = self.namespaces.numbers.remove(&identity) else { return };
        self.stale = true;
        self.netdevs.namespaces.remove(&number);
        self.namespaces.undumped.remove(&number);
        self.namespaces.leaving.insert(number);
        let attached = self.datapath.attached().keys().filter(|id| id.namespace == number);
        self.gone.extend(attached.copied());
    }

    /// Gives the numbers back in which nothing is attached any more.
    pub(super) fn leave_namespaces(&mut self) {
        if self.namespaces.leaving.is_empty() {
            return;
        }
        let attached: BTreeSet<NamespaceId> =
            self.datapath.attached().keys().map(|id| id.namespace).collect();
        let left: Vec<NamespaceId> =
            self.namespaces.leaving.iter().copied().filter(|number| !attached.contains(number)).collect();
        for number in left {
            self.namespaces.leaving.remove(&number);
            self.datapath.leave(number);
        }
    }
}
