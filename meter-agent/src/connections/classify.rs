//! Which way a connection goes, as Skydive's classifier by networks says it.

use std::net::IpAddr;

use crate::rules::Prefix;

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// Both ends are in the networks.
    Internal,
    /// Only the target is.
    Ingress,
    /// Only the initiator is.
    Egress,
    /// Neither is.
    Other,
}

impl Tag {
    /// All of them, in the order of their names' first mention in Skydive's documentation.
    pub const ALL: [Self; 4] = [Self::Internal, Self::Ingress, Self::Egress, Self::Other];

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Other => "other",
        }
    }
}

/// The networks that are inside; none makes every connection [`Tag::Other`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classifier(pub Vec<Prefix>);

impl Classifier {
    /// Returns which way a connection goes.
    #[must_use]
    pub fn tag(&self, initiator: IpAddr, target: IpAddr) -> Tag {
        let is_inside = |address| self.0.iter().any(|network| network.contains(address));
        match (is_inside(initiator), is_inside(target)) {
            (true, true) => Tag::Internal,
            (true, false) => Tag::Egress,
            (false, true) => Tag::Ingress,
            (false, false) => Tag::Other,
        }
    }
}
