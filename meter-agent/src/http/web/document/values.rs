//! Values of the web configuration by what they have to be, each with its mistakes.

use super::{Reader, Section};
use crate::yaml::Value;

impl Reader<'_> {
    /// Notes a mistake in a key's value, or, where the key is missing, in its section.
    pub(super) fn at(&mut self, section: &Section<'_>, key: &str, what: &str) {
        let place = section.get(key).map_or(section.place, |node| node.place);
        self.wrong(place, &format!("{}.{key}", section.name), what);
    }

    /// Reads a text; `None` where there is none.
    pub(super) fn text(&mut self, section: &Section<'_>, key: &'static str) -> Option<String> {
        let node = section.get(key)?;
        if node.text().is_none() && node.value != Value::Nothing {
            self.at(section, key, &format!("expected a text, found {}", node.kind()));
        }
        node.text().map(ToOwned::to_owned)
    }

    /// Reads what YAML has for yes and no.
    pub(super) fn boolean(&mut self, section: &Section<'_>, key: &'static str, default: bool) -> bool {
        let Some(node) = section.get(key) else { return default };
        match &node.value {
            Value::Nothing => default,
            Value::Plain(word)
                if matches!(word.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "y") =>
            {
                true
            }
            Value::Plain(word)
                if matches!(word.to_ascii_lowercase().as_str(), "false" | "no" | "off" | "n") =>
            {
                false
            }
            _ => {
                self.at(section, key, "expected true or false");
                default
            }
        }
    }

    /// Reads a list of texts.
    pub(super) fn texts(&mut self, section: &Section<'_>, key: &'static str) -> Vec<String> {
        let Some(node) = section.get(key) else { return Vec::new() };
        let items = match &node.value {
            Value::Nothing => return Vec::new(),
            Value::List(items) => items,
            _ => {
                self.at(section, key, &format!("expected a list, found {}", node.kind()));
                return Vec::new();
            }
        };
        let mut texts = Vec::new();
        for item in items {
            match item.text() {
                Some(text) => texts.push(text.to_owned()),
                None => {
                    let full = format!("{}.{key}", section.name);
                    self.wrong(item.place, &full, &format!("expected a text, found {}", item.kind()));
                }
            }
        }
        texts
    }

    /// Reads a list of words, each of which is known.
    pub(super) fn among(&mut self, section: &Section<'_>, key: &'static str, known: &[&str]) -> Vec<String> {
        let words = self.texts(section, key);
        for word in words.iter().filter(|word| !known.contains(&word.as_str())) {
            self.at(section, key, &format!("{} is not one of {}", quoted(word), known.join(", ")));
        }
        words
    }
}

/// Returns a text as it may stand in a message: on one line, and not long.
pub(super) fn quoted(text: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !text.is_empty() && text.len() <= 60 && text.chars().all(is_bare) {
        return text.to_owned();
    }
    format!("{:?}", text.chars().take(60).collect::<String>())
}
