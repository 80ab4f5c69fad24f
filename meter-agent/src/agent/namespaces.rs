//! The named namespaces that are followed: which number each has, and when it is given back.

use std::collections::{BTreeMap, BTreeSet};

use super::Agent;
use crate::{
    datapath::{AttachError, Datapath},
    netdev::{
        Namespace, NamespaceId, NetdevEvent, NetdevTable,
        namespaces::{DIRECTORY, Entrance, Identity, NamespaceEvent},
    },
};

/// Ticks before a namespace that was refused is tried again; each further time twice as many.
const FIRST_WAIT: u32 = 1;
/// Ticks that it waits at most.
const LONGEST_WAIT: u32 = 64;

/// What is known of them beside their netdevs.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// Whether any are followed.
    follows: bool,
    /// Whether all names have been looked at.
    looked: bool,
    /// Whether that was tried.
    tried: bool,
    /// Those that are followed.
    numbers: BTreeMap<Identity, NamespaceId>,
    /// Those whose first dump is not in yet: nothing in them is gone before.
    undumped: BTreeSet<NamespaceId>,
    /// Those that are followed no longer, and in which something may still be attached.
    leaving: BTreeSet<NamespaceId>,
    /// Those that could not be given a number.
    refused: BTreeMap<Identity, Refused>,
    /// What was said last of those that can't be followed.
    failed: BTreeMap<String, String>,
}

/// A namespace that could not be given a number, to be given one later.
#[derive(Debug)]
struct Refused {
    name: String,
    entrance: Entrance,
    why: String,
    /// What is in it, heard meanwhile.
    table: NetdevTable,
    dumped: bool,
    /// Ticks until it is tried again, and the ticks after that.
    wait: u32,
    next_wait: u32,
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

    /// Returns whether everything has been looked at that was there at the start, or can't be.
    pub(super) fn are_looked_at(&self) -> bool {
        (self.tried || self.are_listed()) && self.undumped.is_empty()
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
            NamespaceEvent::Looked(failed) => {
                self.namespaces.failed = failed;
                self.stale |= !self.namespaces.looked;
                self.namespaces.looked = true;
            }
            NamespaceEvent::NotLooked(why) => {
                self.namespaces.failed.insert(DIRECTORY.to_owned(), why);
                self.namespaces.tried = true;
            }
        }
        self.count_namespaces();
    }

    /// Says how many are followed, and which can't be.
    fn count_namespaces(&mut self) {
        let Namespaces { numbers, refused, failed, .. } = &self.namespaces;
        self.health.namespaces = u64::try_from(numbers.len()).ok();
        self.health.namespaces_failed.clone_from(failed);
        let refused = refused.values().map(|refused| (refused.name.clone(), refused.why.clone()));
        self.health.namespaces_failed.extend(refused);
        self.health.attach_pending = self.pending();
    }

    fn follow(&mut self, identity: Identity, name: String, entrance: Entrance) {
        self.stale = true;
        let before = self.namespaces.refused.remove(&identity);
        match self.datapath.enter(identity, entrance.clone()) {
            Ok(number) => {
                self.namespaces.leaving.remove(&number);
                let is_dumped = before.as_ref().is_some_and(|before| before.dumped);
                if self.namespaces.numbers.insert(identity, number).is_none() && !is_dumped {
                    self.namespaces.undumped.insert(number);
                }
                let known = self.netdevs.namespaces.entry(number).or_default();
                known.name = name;
                if let Some(before) = before {
                    tracing::info!(netns = known.name, "namespace followed after all");
                    known.table = before.table;
                }
            }
            Err(AttachError { message: why, reason, .. }) => {
                if before.as_ref().is_none_or(|before| before.why != why) {
                    tracing::error!(netns = name, error = why, "namespace not followed; will retry");
                }
                *self.health.attach_failures.entry(reason).or_default() += 1;
                let (table, dumped, wait) = before
                    .map_or((NetdevTable::default(), false, FIRST_WAIT), |before| {
                        (before.table, before.dumped, before.next_wait)
                    });
                let next_wait = (wait * 2).min(LONGEST_WAIT);
                let refused = Refused { name, entrance, why, table, dumped, wait, next_wait };
                self.namespaces.refused.insert(identity, refused);
            }
        }
    }

    /// Lets a second pass: a namespace that was refused is given a number later, if there is one then.
    pub(super) fn tick_namespaces(&mut self) {
        let mut due = Vec::new();
        for (identity, refused) in &mut self.namespaces.refused {
            refused.wait = refused.wait.saturating_sub(1);
            if refused.wait == 0 {
                due.push((*identity, refused.name.clone(), refused.entrance.clone()));
            }
        }
        if due.is_empty() {
            return;
        }
        due.into_iter().for_each(|(identity, name, entrance)| self.follow(identity, name, entrance));
        self.count_namespaces();
    }

    fn apply_in(&mut self, identity: Identity, event: NetdevEvent) {
        let Some(&number) = self.namespaces.numbers.get(&identity) else {
            if let Some(refused) = self.namespaces.refused.get_mut(&identity) {
                refused.dumped |= matches!(event, NetdevEvent::All(_));
                refused.table.apply(event);
            }
            return;
        };
        if matches!(event, NetdevEvent::All(_)) {
            self.namespaces.undumped.remove(&number);
        }
        self.note(number, &event);
        if let Some(Namespace { table, .. }) = self.netdevs.namespaces.get_mut(&number) {
            table.apply(event);
        }
    }

    fn unfollow(&mut self, identity: Identity) {
        self.namespaces.refused.remove(&identity);
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
