//! Which netdev carries which port, and which device the port belongs to.
//!
//! Pure: the configuration file's bindings, and those derived from aliases, altnames and names.

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
