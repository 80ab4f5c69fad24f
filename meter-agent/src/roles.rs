//! What each netdev is to the meters: a port, an uplink, a tunnel netdev, or nothing; and why.
//!
//! Pure. Each frame is counted at one netdev of each family: an uplink is the lowest netdev of its path (a bond's and a
//! bridge's members, a VLAN's lower netdev), and what only passes frames on is not counted.

use crate::{
    datapath::{Class, IngressHook},
    netdev::Pattern,
};

/// What the operator says of roles. The first rule that matches decides; without one the kind does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Netdevs that are left alone, whatever else matches.
    pub ignore: Vec<Pattern>,
    /// Netdevs that are ports although their kind does not say so.
    pub ports: Vec<Pattern>,
    /// The uplinks; empty to find them by VTEP addresses and default routes.
    pub uplinks: Vec<Pattern>,
    /// Which hook counts the ingress of uplinks.
    pub uplink_ingress: IngressHook,
}

/// What a netdev is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its family; `None` where it is not metered.
    pub class: Option<Class>,
    /// Whether tunnel headers are read here: an uplink, or a port that is one as well.
    pub underlay: bool,
    /// Which hook counts ingress.
    pub ingress: IngressHook,
    /// Why, in words for the operator.
    pub reason: String,
}
