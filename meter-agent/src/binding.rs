//! Which netdev carries which port, and which device the port belongs to.
//!
//! Pure: the configuration file's bindings, and those derived from aliases, altnames and names.

use std::{collections::BTreeMap, fmt};

use uuid::Uuid;

use crate::{
    meter::{DeviceId, PortId},
    netdev::{Glob, Kind, MacAddress, NamespaceId, Netdev, NetdevId, NetdevTable, Netdevs, Pattern},
};

/// Who said which port a netdev carries, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A `[[binding]]` of the configuration file.
    Config,
    /// A UUID in the netdev's alias.
    Alias,
    /// A UUID in one of the netdev's alternative names.
    Altname,
    /// A UUIDv5 of the host's id and the netdev's name.
    Derived,
}

impl Source {
    /// Returns the word that operators see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Alias => "alias",
            Self::Altname => "altname",
            Self::Derived => "derived",
        }
    }
}

/// One `[[binding]]`: what is said of the netdevs that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Which netdevs, by name, kind or driver; `None` for any.
    pub netdev: Option<Pattern>,
    /// Which netdev, by hardware address; `None` for any. With a name both must match.
    pub mac: Option<MacAddress>,
    /// In which namespaces, by name; `None` for the host's own alone.
    pub netns: Option<Glob>,
    /// The port that the netdev carries; `None` leaves it to the weaker sources.
    pub port: Option<PortId>,
    /// The device that the port belongs to; `None` leaves it to the netdev's bridge.
    pub device: Option<DeviceId>,
}

/// All bindings of a host: those of the configuration file, in its order, and what the weaker sources need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    /// Of the file; the first one that matches counts.
    pub configured: Vec<Binding>,
    /// Name space of derived UUIDs: the same on every start of this host, another one on every other host.
    pub host_id: Uuid,
}

/// A netdev's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The port.
    pub port: PortId,
    /// The device that it belongs to.
    pub device: Option<DeviceId>,
    /// What the device is called on this host: the bridge's name.
    pub device_name: Option<String>,
    /// Who said so.
    pub source: Source,
}

/// Two netdevs claim one port; this one does not get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The port that both claim.
    pub port: PortId,
    /// The netdev that has it.
    pub holder: String,
    /// Who said that this netdev carries it too.
    pub source: Source,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, holder, source } = self;
        write!(f, "its port {port} (by {}) is carried by {holder}; give one of them another", source.name())
    }
}

impl Bindings {
    /// Returns the port of each netdev.
    ///
    /// Only a netdev that `is_metered` with the port that it names keeps another one from that port; of two, the
    /// stronger source does.
    #[must_use]
    pub fn resolve(
        &self,
        netdevs: &Netdevs,
        is_metered: impl Fn(NetdevId, &Netdev, &Bound) -> bool,
    ) -> BTreeMap<NetdevId, Result<Bound, Conflict>> {
        let mut all: Vec<(NetdevId, &Netdev, Bound)> = Vec::new();
        for (namespace, netns, table) in netdevs.tables() {
            let id = |ifindex| NetdevId { namespace, ifindex };
            let bound = |netdev| self.bind(netdev, table, netns);
            all.extend(table.netdevs.values().map(|netdev| (id(netdev.ifindex), netdev, bound(netdev))));
        }
        // The strongest claim to a port comes first; among equals the host's, and the netdev that is there longest.
        all.sort_by_key(|(id, _, bound)| (bound.source, *id));
        let mut holders: BTreeMap<PortId, (NetdevId, &str)> = BTreeMap::new();
        let mut resolved = BTreeMap::new();
        for (id, netdev, bound) in all {
            let result = if is_metered(id, netdev, &bound) {
                match *holders.entry(bound.port).or_insert((id, &netdev.name)) {
                    (holder, _) if holder == id => Ok(bound),
                    (holder, name) => {
                        let (port, source) = (bound.port, bound.source);
                        let holder = match holder.namespace {
                            NamespaceId::HOST => name.to_owned(),
                            namespace => format!("{name} of namespace {}", netdevs.name(namespace)),
                        };
                        Err(Conflict { port, holder, source })
                    }
                }
            } else {
                Ok(bound)
            };
            resolved.insert(id, result);
        }
        resolved
    }

    /// Returns the port of a netdev in the namespace of this name, empty for the host's.
    fn bind(&self, netdev: &Netdev, table: &NetdevTable, netns: &str) -> Bound {
        let configured = self.configured.iter().find(|binding| binding.matches(netdev, netns));
        let named = identity(netdev);
        let (port, source) = match (configured.and_then(|binding| binding.port), named) {
            (Some(port), _) => (port, Source::Config),
            (None, Some((uuid, source))) => (PortId(uuid), source),
            (None, None) => (PortId(self.derive("port", netns, &netdev.name)), Source::Derived),
        };
        let bridge = netdev
            .master
            .and_then(|master| table.netdevs.get(&master))
            .filter(|master| master.kind == Kind::Bridge);
        let device = configured.and_then(|binding| binding.device).or_else(|| {
            let bridge = bridge?;
            let uuid = identity(bridge).map(|(uuid, _)| uuid);
            Some(DeviceId(uuid.unwrap_or_else(|| self.derive("device", netns, &bridge.name))))
        });
        Bound { port, device, device_name: bridge.map(|bridge| bridge.name.clone()), source }
    }

    /// Returns a UUIDv5 (RFC 9562) of this host for a thing that nobody gave one.
    fn derive(&self, what: &str, netns: &str, name: &str) -> Uuid {
        // The kernel takes no colon in a netdev's name, so that no two of these are the same.
        let text = if netns.is_empty() { format!("{what}:{name}") } else { format!("{what}:{netns}:{name}") };
        Uuid::new_v5(&self.host_id, text.as_bytes())
    }
}

impl Binding {
    fn matches(&self, netdev: &Netdev, netns: &str) -> bool {
        let is_there = match &self.netns {
            None => netns.is_empty(),
            Some(glob) => !netns.is_empty() && glob.matches(netns),
        };
        is_there
            && self.netdev.as_ref().is_none_or(|pattern| pattern.matches(netdev))
            && self.mac.is_none_or(|mac| netdev.mac == Some(mac))
    }
}

/// Returns the UUID that a netdev's alias or one of its alternative names carries.
fn identity(netdev: &Netdev) -> Option<(Uuid, Source)> {
    let alias = netdev.alias.as_deref().and_then(only_uuid).map(|uuid| (uuid, Source::Alias));
    alias.or_else(|| {
        netdev.altnames.iter().find_map(|name| only_uuid(name)).map(|uuid| (uuid, Source::Altname))
    })
}

/// Returns the UUID in a text, alone or among other words (`port 3f2a…-…, web`); `None` where there are two or none.
fn only_uuid(text: &str) -> Option<Uuid> {
    let mut uuids = text
        .split(|c: char| !c.is_ascii_hexdigit() && c != '-')
        .filter(|word| word.len() == 36)
        .filter_map(|word| Uuid::try_parse(word).ok())
        .filter(|uuid| !uuid.is_nil());
    let first = uuids.next()?;
    uuids.all(|uuid| uuid == first).then_some(first)
}

#[cfg(test)]
mod tests;
