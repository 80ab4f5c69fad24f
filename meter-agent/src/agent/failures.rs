//! Attaches that failed: when to try again, and what to say of them.

use std::{borrow::Cow, collections::BTreeMap};

use crate::{
    datapath::{AttachError, Retry, Target},
    netdev::NetdevId,
};

/// Ticks before the second attempt; each further one waits twice as long.
const FIRST_WAIT: u32 = 1;
/// Ticks that an attempt waits at most.
const LONGEST_WAIT: u32 = 64;

#[derive(Debug)]
struct Failure {
    target: Target,
    error: AttachError,
    attempt: u32,
    /// Ticks until the next attempt; 0 when it is due.
    wait: u32,
}

/// What a netdev should be, which was refused for good, and what it is to be instead.
#[derive(Debug)]
struct Refused {
    wanted: Target,
    error: AttachError,
    instead: Target,
}

/// The netdevs that should be attached and could not be, or not as they should.
#[derive(Debug, Default)]
pub(super) struct Failures {
    by_netdev: BTreeMap<NetdevId, Failure>,
    /// Those that are something else until something else is wanted of them.
    refused: BTreeMap<NetdevId, Refused>,
    /// Detaches that failed, with what was said.
    detaches: BTreeMap<NetdevId, AttachError>,
}

impl Failures {
    pub(super) fn len(&self) -> usize {
        let refused = self.refused.keys().filter(|id| !self.by_netdev.contains_key(id));
        self.by_netdev.len() + refused.count()
    }

    /// Returns why a netdev is not attached, or not as it should be.
    pub(super) fn reason(&self, id: NetdevId) -> Option<String> {
        let refused = || self.refused.get(&id).map(|refused| &refused.error);
        let error = self.by_netdev.get(&id).map(|failure| &failure.error).or_else(refused)?;
        Some(error.message.clone())
    }

    /// Returns how each netdev can be attached: as it should be, or as it was where that was refused for good.
    pub(super) fn possible<'a>(
        &self,
        desired: &'a BTreeMap<NetdevId, Target>,
    ) -> Cow<'a, BTreeMap<NetdevId, Target>> {
        let mut possible = Cow::Borrowed(desired);
        for (id, refused) in &self.refused {
            if desired.get(id) == Some(&refused.wanted) {
                possible.to_mut().insert(*id, refused.instead.clone());
            }
        }
        possible
    }

    /// Takes note of a failed attach, which may leave something to be `instead`; returns whether it is to be that from now on. Logs
    /// it when it is new or another than before, and counts on silently.
    pub(super) fn failed(&mut self, target: Target, error: AttachError, instead: Option<Target>) -> bool {
        let before = self.by_netdev.remove(&target.id).filter(|before| before.target == target);
        let attempt = before.as_ref().map_or(0, |before| before.attempt) + 1;
        if error.retry != Retry::Gone && before.is_none_or(|before| before.error != error) {
            let next = if error.retry == Retry::Never { "not tried again" } else { "will retry" };
            tracing::error!(
                netdev = %target.netdev,
                netns = target.netns,
                ifindex = target.id.ifindex,
                port = %target.port,
                attempt,
                error = %error,
                next,
                "attach failed"
            );
        }
        let is_last = self.refused.get(&target.id).is_some_and(|refused| refused.instead == target);
        let is_other = |instead: &Target| instead.port == target.port && *instead != target;
        if let Some(instead) = instead.filter(is_other)
            && error.retry == Retry::Never
            && !is_last
        {
            self.refused.insert(target.id, Refused { wanted: target, error, instead });
            return true;
        }
        let wait =
            FIRST_WAIT.checked_shl(attempt - 1).unwrap_or(LONGEST_WAIT).clamp(FIRST_WAIT, LONGEST_WAIT);
        self.by_netdev.insert(target.id, Failure { target, error, attempt, wait });
        false
    }

    /// Takes note of a failed detach, which is tried again at each tick. Logs it when it is new or another than before.
    pub(super) fn detach_failed(&mut self, id: NetdevId, error: AttachError) {
        if self.detaches.get(&id) != Some(&error) {
            tracing::error!(netdev = %id, error = %error, "detach failed; will retry");
            self.detaches.insert(id, error);
        }
    }

    /// Forgets a detach: it is done, or not wanted any more.
    pub(super) fn detached(&mut self, id: NetdevId) {
        self.detaches.remove(&id);
    }

    /// Returns whether an attach is to be tried now: it never failed, another one failed, or its time has come.
    pub(super) fn is_due(&self, target: &Target) -> bool {
        self.by_netdev.get(&target.id).is_none_or(|failure| {
            failure.target != *target || (failure.wait == 0 && failure.error.retry != Retry::Never)
        })
    }

    /// Lets a second pass; returns whether something became due.
    pub(super) fn tick(&mut self) -> bool {
        let mut due = !self.detaches.is_empty();
        for failure in self.by_netdev.values_mut().filter(|failure| failure.wait > 0) {
            failure.wait -= 1;
            due |= failure.wait == 0 && failure.error.retry != Retry::Never;
        }
        due
    }

    /// Forgets those that nobody wants attached any more, and refusals of what nobody wants any more.
    pub(super) fn keep(&mut self, desired: &BTreeMap<NetdevId, Target>) {
        self.by_netdev.retain(|id, _| desired.contains_key(id));
        self.refused.retain(|id, refused| desired.get(id) == Some(&refused.wanted));
    }

    /// Forgets an attach that failed: it is done.
    pub(super) fn attached(&mut self, id: NetdevId) {
        self.by_netdev.remove(&id);
    }

    /// Forgets a netdev: it is gone, or nothing is attached to it any more.
    pub(super) fn forget(&mut self, id: NetdevId) {
        self.by_netdev.remove(&id);
        self.refused.remove(&id);
    }

    pub(super) fn forget_all(&mut self) {
        self.by_netdev.clear();
        self.refused.clear();
    }
}
