//! Since when each netdev's frames count for its port, and how often that was interrupted.

use std::collections::BTreeMap;

use crate::{datapath::Attachment, snapshot::Since};

/// Of each netdev whose counting began, or was interrupted, under this agent.
#[derive(Debug, Default)]
pub(super) struct Attaches {
    since: BTreeMap<u32, Since>,
    last: u64,
}

impl Attaches {
    /// Remembers what an attach changed.
    pub(super) fn attached(&mut self, before: Option<&Attachment>, is: &Attachment) {
        let ifindex = is.target.ifindex;
        match before.filter(|before| before.target.port == is.target.port) {
            None => self.began(ifindex),
            Some(before) if before.lost || before.kinds() != is.kinds() => {
                self.since.entry(ifindex).or_default().gaps += 1;
            }
            Some(_) => {}
        }
    }

    /// Remembers that a netdev's frames count anew, or for another port.
    pub(super) fn began(&mut self, ifindex: u32) {
        self.last += 1;
        self.since.insert(ifindex, Since { attach: self.last, gaps: 0 });
    }

    pub(super) fn detached(&mut self, ifindex: u32) {
        self.since.remove(&ifindex);
    }

    pub(super) fn of(&self, ifindex: u32) -> Since {
        self.since.get(&ifindex).copied().unwrap_or_default()
    }
}
