//! A rule as a table of keys: the attributes of a rule line with underscores, each with its value's text.

use super::{
    attribute::Attribute,
    condition::Condition,
    draft::{Draft, Form},
};

/// Reads a rule key by key.
#[derive(Debug)]
pub struct RuleTable(Draft);

impl Default for RuleTable {
    fn default() -> Self {
        Self(Draft::new(Form::Table))
    }
}

impl RuleTable {
    /// Sets an attribute to what a text says: `!` before a value inverts it, commas separate the values of a list.
    ///
    /// # Errors
    ///
    /// What is wrong with the text, and what is allowed.
    pub fn set(&mut self, attribute: Attribute, text: &str) -> Result<(), String> {
        self.0.set(attribute, text)
    }

    /// Returns the condition.
    ///
    /// # Errors
    ///
    /// Each attribute that contradicts another, and how.
    pub fn finish(self) -> Result<Condition, Vec<(Attribute, String)>> {
        self.0.finish()
    }
}
