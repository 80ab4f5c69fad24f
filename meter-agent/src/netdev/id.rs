//! Which netdev of which network namespace.

use std::{collections::BTreeMap, fmt};

use super::{Netdev, NetdevTable};

/// A network namespace by the number that the datapath gave it. Nobody else has it while the namespace is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// The namespace that the agent itself is in.
    pub const HOST: Self = Self(0);
}

/// A netdev: an ifindex is unique only within its namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetdevId {
    /// The namespace.
    pub namespace: NamespaceId,
    /// Its number there.
    pub ifindex: u32,
}

impl From<u32> for NetdevId {
    /// Makes the id of a netdev of the host's own namespace.
    fn from(ifindex: u32) -> Self {
        Self { namespace: NamespaceId::HOST, ifindex }
    }
}

impl fmt::Display for NetdevId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace {
            NamespaceId::HOST => write!(f, "ifindex {}", self.ifindex),
            NamespaceId(number) => write!(f, "ifindex {} of namespace {number}", self.ifindex),
        }
    }
}

/// The netdevs of one namespace that is followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name in the directory of namespaces.
    pub name: String,
    /// What is in it.
    pub table: NetdevTable,
}

/// The netdevs of the host and of every namespace that is followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Netdevs {
    /// The agent's own namespace.
    pub host: NetdevTable,
    /// The others, by number.
    pub namespaces: BTreeMap<NamespaceId, Namespace>,
}

impl From<NetdevTable> for Netdevs {
    fn from(host: NetdevTable) -> Self {
        Self { host, namespaces: BTreeMap::new() }
    }
}

impl Netdevs {
    /// Returns every namespace with its name, the host's first, whose name is empty.
    pub fn tables(&self) -> impl Iterator<Item = (NamespaceId, &str, &NetdevTable)> {
        let others = self.namespaces.iter().map(|(&id, other)| (id, other.name.as_str(), &other.table));
        std::iter::once((NamespaceId::HOST, "", &self.host)).chain(others)
    }

    /// Returns every netdev with the name of its namespace.
    pub fn all(&self) -> impl Iterator<Item = (NetdevId, &str, &Netdev)> {
        self.tables().flat_map(|(namespace, name, table)| {
            let id = move |ifindex| NetdevId { namespace, ifindex };
            table.netdevs.values().map(move |netdev| (id(netdev.ifindex), name, netdev))
        })
    }

    /// Returns the table of a namespace.
    #[must_use]
    pub fn table(&self, namespace: NamespaceId) -> Option<&NetdevTable> {
        match namespace {
            NamespaceId::HOST => Some(&self.host),
            other => self.namespaces.get(&other).map(|other| &other.table),
        }
    }

    /// Returns the name of a namespace, empty for the host's.
    #[must_use]
    pub fn name(&self, namespace: NamespaceId) -> &str {
        self.namespaces.get(&namespace).map_or("", |namespace| &namespace.name)
    }

    /// Returns a netdev.
    #[must_use]
    pub fn get(&self, id: NetdevId) -> Option<&Netdev> {
        self.table(id.namespace)?.netdevs.get(&id.ifindex)
    }
}
