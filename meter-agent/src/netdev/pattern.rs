//! Patterns by which the configuration means netdevs.

use std::{fmt, str::FromStr};

use super::Netdev;

/// Which netdevs are meant: by name (`tap*`), by kind (`kind:veth`) or by driver (`driver:mlx5_core`).
///
/// `*` stands for any run of characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    field: Field,
    glob: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Kind,
    Driver,
}

/// A text is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a netdev pattern: expected a name such as \"tap*\", \"kind:…\" or \"driver:…\"")]
pub struct ParsePatternError(String);

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (field, glob) = match text.split_once(':') {
            None => (Field::Name, text),
            Some(("kind", glob)) => (Field::Kind, glob),
            Some(("driver", glob)) => (Field::Driver, glob),
            Some(_) => return Err(ParsePatternError(text.to_owned())),
        };
        // The kernel takes no white space and no slash in a name.
        if glob.is_empty() || glob.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(ParsePatternError(text.to_owned()));
        }
        Ok(Self { field, glob: glob.to_owned() })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.field {
            Field::Name => "",
            Field::Kind => "kind:",
            Field::Driver => "driver:",
        };
        write!(f, "{prefix}{}", self.glob)
    }
}

impl Pattern {
    /// Returns whether the netdev is meant.
    #[must_use]
    pub fn matches(&self, netdev: &Netdev) -> bool {
        match self.field {
            Field::Name => glob_matches(&self.glob, &netdev.name),
            Field::Kind => glob_matches(&self.glob, netdev.kind.name()),
            Field::Driver => netdev.driver.as_deref().is_some_and(|driver| glob_matches(&self.glob, driver)),
        }
    }
}

/// Which names are meant: `*` stands for any run of characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Takes a text for a pattern of names; each is one.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Returns whether the name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        glob_matches(&self.0, name)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Matches greedily and goes back to the last `*` only, which is enough: time is at most the product of the lengths.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if glob.get(g) == Some(&'*') {
            star = Some((g, t));
            g += 1;
        } else if glob.get(g).is_some_and(|&c| c == '?' || c == text[t]) {
            g += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            g = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::{Pattern, glob_matches};
    use crate::netdev::{Kind, Netdev};

    #[test]
    fn patterns_ask_for_name_kind_or_driver() {
        let netdev =
            Netdev { driver: Some("mlx5_core".to_owned()), ..Netdev::bare(2, "eth0", Kind::Physical) };
        for (pattern, expected) in [
            ("eth0", true),
            ("eth?", true),
            ("*", true),
            ("eth", false),
            ("eth0?", false),
            ("kind:physical", true),
            ("kind:veth", false),
            ("driver:mlx*", true),
            ("driver:virtio_net", false),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(&netdev), expected, "{pattern}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for text in ["", "name:eth0", "kind:", "a b", "a/b"] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }

    /// The definition, which takes exponential time.
    fn plainly_matches(glob: &[u8], text: &[u8]) -> bool {
        match (glob.first(), text.first()) {
            (None, _) => text.is_empty(),
            (Some(b'*'), _) => (0..=text.len()).any(|skip| plainly_matches(&glob[1..], &text[skip..])),
            (Some(b'?'), Some(_)) => plainly_matches(&glob[1..], &text[1..]),
            (Some(g), Some(t)) => g == t && plainly_matches(&glob[1..], &text[1..]),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn globs_match_as_they_are_defined(glob in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(glob_matches(&glob, &text), plainly_matches(glob.as_bytes(), text.as_bytes()));
        }
    }
}
