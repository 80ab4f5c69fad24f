//! Connections at the netdevs of ports: of which netdevs they are counted, what they are called, and which are shown.
//!
//! Pure, but for what a [`Board`] remembers.

mod board;
mod classify;
pub mod list;
mod series;
#[cfg(test)]
mod tests;

pub use self::{
    board::{Board, Row, Shown},
    classify::{Classifier, Tag},
    series::{Address, Label, Series, View, protocol_name},
};

use std::{collections::BTreeSet, sync::Arc};

use meter_ebpf::abi::connection::capture;

use crate::{
    datapath::{Capture, Class, Target},
    meter::PortId,
    netdev::{Netdev, Pattern},
    rules::MeterSet,
};

/// All that can be counted: every protocol, over either version of IP.
pub const EVERYTHING: u32 =
    capture::TCP | capture::UDP | capture::SCTP | capture::ICMP | capture::IPV4 | capture::IPV6;

/// Of which netdevs connections are counted, and which. Of none by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// By name, kind or driver.
    pub netdevs: Vec<Pattern>,
    /// By the port that they carry.
    pub ports: BTreeSet<PortId>,
    /// By what they are.
    pub roles: BTreeSet<Class>,
    /// Which protocols, and whether inside of tunnels at uplinks: bits of [`capture`].
    pub bits: u32,
    /// Which of those: of connections of which no frame matches one of these rules, none; without a rule, all.
    pub rules: Arc<MeterSet>,
    /// Connections that one netdev has at most.
    pub share: u32,
    /// Seconds without a frame after which a connection is taken out of the table.
    pub idle_s: u32,
    /// The same once it has ended.
    pub ended_s: u32,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            netdevs: Vec::new(),
            ports: BTreeSet::new(),
            roles: BTreeSet::new(),
            bits: EVERYTHING,
            rules: Arc::default(),
            share: u32::MAX,
            idle_s: 60,
            ended_s: 10,
        }
    }
}

impl Selection {
    /// Returns whether connections are counted anywhere.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !(self.netdevs.is_empty() && self.ports.is_empty() && self.roles.is_empty())
    }

    /// Returns whether the connections of a netdev are counted if it is metered so.
    #[must_use]
    pub fn has(&self, netdev: &Netdev, target: &Target) -> bool {
        self.roles.contains(&target.class)
            || self.ports.contains(&target.port)
            || self.netdevs.iter().any(|pattern| pattern.matches(netdev))
    }

    /// Returns what the datapath is to count at the netdevs of these ports; of others it is not known yet. Whether frames of one
    /// may be in tunnels is the survey's to say.
    #[must_use]
    pub fn of(&self, ports: BTreeSet<PortId>, undecided: BTreeSet<PortId>) -> Capture {
        let Self { bits, share, idle_s, ended_s, .. } = *self;
        // Without a netdev nobody asks for them.
        let nobody = ports.is_empty() && undecided.is_empty();
        let rules = if nobody { Arc::default() } else { Arc::clone(&self.rules) };
        Capture { ports, undecided, underlay: false, bits, rules, share, idle_s, ended_s }
    }
}
