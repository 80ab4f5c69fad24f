//! Since when each netdev's frames count for its port, and how often that was interrupted.

use std::collections::BTreeMap;

use crate::{datapath::Attachment, netdev::NetdevId, snapshot::Since};

/// Of each netdev whose counting began, or was interrupted, under this agent.
#[derive(Debug, Default)]
pub(super) struct Attaches {
    since: BTreeMap<NetdevId, Since>,
    last: u64,
}

impl Attaches {
    /// Remembers what an attach changed.
    pub(super) fn attached(&mut self, before: Option<&Attachment>, is: &Attachment) {
        let id = is.target.id;
        match before.filter(|before| before.target.port == is.target.port) {
            None => self.began(id),
            Some(before) if (before.lost && !is.lost) || before.kinds() != is.kinds() => {
                self.since.entry(id).or_default().gaps += 1;
            }
            Some(_) => {}
        }
    }

    /// Remembers that a netdev's frames count anew, or for another port.
    pub(super) fn began(&mut self, id: NetdevId) {
        self.last += 1;
        self.since.insert(id, Since { attach: self.last, gaps: 0 });
    }

    pub(super) fn detached(&mut self, id: NetdevId) {
        self.since.remove(&id);
    }

    pub(super) fn of(&self, id: NetdevId) -> Since {
        self.since.get(&id).copied().unwrap_or_default()
    }
}
