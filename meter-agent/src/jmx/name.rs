//! Names of beans: `domain:key=value,...`, and patterns of them.

use std::{collections::BTreeMap, fmt};

use super::bean::Exception;

/// A bean's name, or a pattern that names may match.
///
/// Keys come in any order, which is kept for messages and else means nothing. In a pattern, `*` and `?` stand for
/// characters of the domain and of values, and a `*` among the keys for further ones.
#[derive(Debug, Clone)]
pub struct ObjectName {
    /// As it was written.
    text: String,
    domain: String,
    keys: BTreeMap<String, String>,
    open: bool,
}

impl ObjectName {
    /// Reads a name or a pattern.
    ///
    /// # Errors
    ///
    /// What is missing, in Java's words.
    pub fn parse(text: &str) -> Result<Self, Exception> {
        let bad = |what: &str| Exception::illegal_argument(what);
        let (domain, properties) =
            text.split_once(':').ok_or_else(|| bad("Key properties cannot be empty"))?;
        let mut name =
            Self { text: text.to_owned(), domain: domain.to_owned(), keys: BTreeMap::new(), open: false };
        if properties.is_empty() {
            return Err(bad("Key properties cannot be empty"));
        }
        for property in split_properties(properties) {
            match property.split_once('=') {
                None if property == "*" => name.open = true,
                None => return Err(bad("Unterminated key property part")),
                Some(("", _)) => return Err(bad("Invalid key (empty)")),
                Some((key, value)) => {
                    if name.keys.insert(key.to_owned(), value.to_owned()).is_some() {
                        return Err(bad(&format!("key `{key}' already defined")));
                    }
                }
            }
        }
        Ok(name)
    }

    /// Makes the name of a bean with one key.
    pub fn of(domain: impl Into<String>, key: &str, value: impl Into<String>) -> Self {
        let (domain, value) = (domain.into(), value.into());
        let text = format!("{domain}:{key}={value}");
        Self { text, domain, keys: [(key.to_owned(), value)].into(), open: false }
    }

    /// Returns the domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the keys with their values.
    #[must_use]
    pub const fn keys(&self) -> &BTreeMap<String, String> {
        &self.keys
    }

    /// Returns it with its keys in order: Java's canonical name.
    #[must_use]
    pub fn canonical(&self) -> String {
        format!("{}:{}", self.domain, self.properties())
    }

    /// Returns the keys with their values as a canonical name has them behind its domain.
    #[must_use]
    pub fn properties(&self) -> String {
        let keys = self.keys.iter().map(|(key, value)| format!("{key}={value}"));
        keys.chain(self.open.then(|| "*".to_owned())).collect::<Vec<_>>().join(",")
    }

    /// Returns whether it may match more than one name.
    #[must_use]
    pub fn is_pattern(&self) -> bool {
        let wild = |text: &str| text.contains(['*', '?']);
        self.open || wild(&self.domain) || self.keys.values().any(|value| wild(value))
    }

    /// Returns whether it is this name, or a pattern that this name matches.
    #[must_use]
    pub fn matches(&self, name: &Self) -> bool {
        let keys = self.keys.iter().all(|(key, pattern)| {
            name.keys.get(key).is_some_and(|value| glob(pattern.as_bytes(), value.as_bytes()))
        });
        keys && (self.open || self.keys.len() == name.keys.len())
            && glob(self.domain.as_bytes(), name.domain.as_bytes())
    }
}

impl PartialEq for ObjectName {
    fn eq(&self, other: &Self) -> bool {
        self.open == other.open && self.domain == other.domain && self.keys == other.keys
    }
}

impl Eq for ObjectName {}

/// Writes it as it was written.
impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Splits at the commas that stand in no quoted value.
fn split_properties(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        let is_escaped = escaped;
        escaped = quoted && character == '\\' && !is_escaped;
        if character == '"' && !is_escaped {
            quoted = !quoted;
        }
        character == ',' && !quoted
    })
}

/// Matches by remembering the last `*`, so that a pattern of many costs length times length and no more.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::{Exception, ObjectName, glob};

    #[test]
    fn pattern_matches_domain_keys_and_further_keys() {
        let name = ObjectName::parse("org.midonet.midolman:type=Metering,host=a").unwrap();
        for (pattern, matches) in [
            ("org.midonet.midolman:host=a,type=Metering", true),
            ("org.midonet.midolman:type=Metering", false),
            ("org.midonet.midolman:type=Metering,*", true),
            ("org.midonet.*:*", true),
            ("*:type=Meter*,host=?", true),
            ("*:type=Meter?,*", false),
            ("other:*", false),
            ("*:type=Metering,colour=red,*", false),
        ] {
            assert_eq!(ObjectName::parse(pattern).unwrap().matches(&name), matches, "{pattern}");
        }
    }

    #[test]
    fn canonical_name_has_its_keys_in_order() {
        for (given, canonical) in [
            ("a:type=T,name=\"x,y\\\",z\"", "a:name=\"x,y\\\",z\",type=T"),
            ("*:type=Metering,*", "*:type=Metering,*"),
            ("a:*", "a:*"),
        ] {
            let name = ObjectName::parse(given).unwrap();
            assert_eq!((name.canonical().as_str(), name.to_string().as_str()), (canonical, given));
            assert_eq!(ObjectName::parse(canonical), Ok(name));
        }
        let name = ObjectName::of("metrics", "name", "a.b");
        assert_eq!(
            (name.to_string(), name.canonical()),
            ("metrics:name=a.b".to_owned(), "metrics:name=a.b".to_owned())
        );
    }

    #[test]
    fn text_that_is_no_name_is_refused() {
        for (text, what) in [
            ("foo", "Key properties cannot be empty"),
            ("foo:", "Key properties cannot be empty"),
            ("foo:bar", "Unterminated key property part"),
            ("foo:=x", "Invalid key (empty)"),
            ("foo:a=1,a=2", "key `a' already defined"),
        ] {
            assert_eq!(ObjectName::parse(text), Err(Exception::illegal_argument(what)));
        }
    }

    proptest! {
        #[test]
        fn text_matches_itself_and_a_star(text in "[^*?]*") {
            prop_assert!(glob(text.as_bytes(), text.as_bytes()));
            prop_assert!(glob(b"*", text.as_bytes()));
        }
    }
}
