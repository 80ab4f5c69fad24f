//! The rule line of `midonet-cli`: `proto 6 dst-port 80 fragment-policy header pos 1 type accept meter web`.
//!
//! Words and values by turns. What a rule does to a packet (`type`, `action`, `target` …) and where it stands (`pos`,
//! `chain`) is read and left out: a meter counts what the condition matches, whatever happens then. A value may stand
//! in quotes, as in a shell.

use std::fmt;

use super::{
    attribute::Attribute,
    condition::Condition,
    draft::{Draft, Form},
    value,
};

/// Bytes of the longest line.
const MAX_LINE: usize = 16 * 1024;
/// Mistakes of a line that are kept.
const MAX_MISTAKES: usize = 20;
/// What a rule line has beside its condition.
const LEFT_OUT: &[&str] = &[
    "rule",
    "chain",
    "pos",
    "action",
    "jump-to",
    "target-port",
    "ingress",
    "fail-open",
    "pop-vlan",
    "push-vlan",
    "traceid",
    "tracelimit",
];
const TYPES: &[(&str, Type)] = &[
    ("accept", Type::Filter),
    ("continue", Type::Filter),
    ("drop", Type::Filter),
    ("jump", Type::Filter),
    ("redirect", Type::Filter),
    ("reject", Type::Filter),
    ("return", Type::Filter),
    ("trace", Type::Filter),
    ("rev_dnat", Type::Filter),
    ("rev_snat", Type::Filter),
    ("dnat", Type::Nat),
    ("snat", Type::Nat),
];
/// Attributes of MidoNet that can't be asked of a frame at a netdev, and why.
const IMPOSSIBLE: &[(&str, &str)] = &[
    ("match-nw-dst-rewritten", "can't be metered: a frame at a netdev doesn't tell what was rewritten"),
    ("icmp-data-src", "can't be metered: headers that an ICMP error quotes are not read"),
    ("icmp-data-dst", "can't be metered: headers that an ICMP error quotes are not read"),
];

/// What is done to the packet, as far as it decides about the fragment policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Filter,
    Nat,
}

/// A rule line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleLine {
    /// What it matches.
    pub condition: Condition,
    /// Which meter counts that, if the line says so.
    pub meter: Option<String>,
}

/// Something that is wrong with a rule line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct LineError {
    /// Where, in characters from 1.
    pub column: usize,
    /// The word that it is about, if there is one.
    pub word: Option<&'static str>,
    /// What is wrong, and what is allowed.
    pub what: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: ", self.column)?;
        if let Some(word) = self.word {
            write!(f, "{word}: ")?;
        }
        f.write_str(&self.what)
    }
}

impl RuleLine {
    /// Reads a line.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, in the order of the line; at most 20 mistakes.
    pub fn parse(line: &str) -> Result<Self, Vec<LineError>> {
        let words = words(line).map_err(|error| vec![error])?;
        let mut reader = Reader::default();
        let mut rest = words.as_slice();
        while let Some((word, behind)) = rest.split_first() {
            rest = reader.read(word, behind);
            if reader.errors.len() >= MAX_MISTAKES {
                return Err(reader.errors);
            }
        }
        reader.finish()
    }

    /// Reads the line of a rule that belongs to this meter, if it is known; the line may name it, but no other.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, in the order of the line; at most 20 mistakes.
    pub fn parse_for(line: &str, meter: Option<&str>) -> Result<Condition, Vec<LineError>> {
        let rule = Self::parse(line)?;
        match (rule.meter, meter) {
            (Some(named), Some(meter)) if named != meter => {
                let what =
                    format!("is {}, but this is a rule of {}", value::quote(&named), value::quote(meter));
                Err(vec![LineError { column: 1, word: Some("meter"), what }])
            }
            _ => Ok(rule.condition),
        }
    }

    /// Reads the line of a rule that belongs to no meter.
    ///
    /// # Errors
    ///
    /// As [`RuleLine::parse_for`], and that it names one.
    pub fn parse_alone(line: &str) -> Result<Condition, Vec<LineError>> {
        let rule = Self::parse(line)?;
        if rule.meter.is_some() {
            let what = "has no place here: this is a rule of no meter".to_owned();
            return Err(vec![LineError { column: 1, word: Some("meter"), what }]);
        }
        Ok(rule.condition)
    }
}

impl fmt::Display for RuleLine {
    /// Writes the line as `midonet-cli` does, the fragment policy always and the meter last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt(f)?;
        match &self.meter {
            Some(meter) => write!(f, " meter {}", quoted(meter)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Condition {
    /// Writes the attributes that are set, and the fragment policy, as they stand in a rule line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut blank = "";
        for attribute in Attribute::ALL {
            if let Some(value) = self.value_of(attribute) {
                write!(f, "{blank}{attribute} {}", quoted(&value))?;
                blank = " ";
            }
        }
        Ok(())
    }
}

/// What a word of a line is about.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Attribute(Attribute),
    Meter,
    Type,
    Target,
    LeftOut,
}

/// Returns what a word is about, and the word itself.
fn kind_of(word: &str) -> Option<(Kind, &'static str)> {
    if let Some(attribute) = Attribute::of_word(word) {
        return Some((Kind::Attribute(attribute), attribute.word()));
    }
    match word {
        "meter" => Some((Kind::Meter, "meter")),
        "type" => Some((Kind::Type, "type")),
        "target" => Some((Kind::Target, "target")),
        _ => LEFT_OUT.iter().find(|known| **known == word).map(|known| (Kind::LeftOut, *known)),
    }
}

/// One word of a line.
#[derive(Debug)]
struct Word {
    text: String,
    column: usize,
}

/// Reads a line word by word.
#[derive(Debug)]
struct Reader {
    draft: Draft,
    /// Where each attribute is.
    columns: Vec<(Attribute, usize)>,
    meter: Option<String>,
    does: Option<Type>,
    target: Option<String>,
    errors: Vec<LineError>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            draft: Draft::new(Form::Line),
            columns: Vec::new(),
            meter: None,
            does: None,
            target: None,
            errors: Vec::new(),
        }
    }
}

impl Reader {
    /// Reads a word and the value behind it; returns what is behind both.
    fn read<'w>(&mut self, word: &Word, behind: &'w [Word]) -> &'w [Word] {
        let value = behind.first();
        // The one word that may stand alone.
        let is_alone = word.text == Attribute::Inverted.word()
            && value.is_none_or(|value| !matches!(value.text.as_str(), "true" | "false"));
        if is_alone {
            self.set(Attribute::Inverted, word.column, "true", word.column);
            return behind;
        }
        let Some((kind, name)) = kind_of(&word.text) else { return self.unknown(word, behind) };
        let Some(value) = value else {
            self.error(word.column, Some(name), "has no value".to_owned());
            return behind;
        };
        match kind {
            Kind::Attribute(attribute) => self.set(attribute, word.column, &value.text, value.column),
            Kind::Meter if self.meter.is_some() => {
                self.error(word.column, Some(name), "is set twice".to_owned());
            }
            Kind::Meter => match value::meter_name(&value.text) {
                Ok(meter) => self.meter = Some(meter),
                Err(what) => self.error(value.column, Some(name), what),
            },
            Kind::Type => match value::word(&value.text, TYPES) {
                Ok(does) => self.does = Some(does),
                Err(what) => self.error(value.column, Some(name), what),
            },
            Kind::Target => self.target = Some(value.text.clone()),
            Kind::LeftOut => {}
        }
        behind.get(1..).unwrap_or_default()
    }

    /// Reports a word that is none of a rule; returns what is behind it and its value.
    fn unknown<'w>(&mut self, word: &Word, behind: &'w [Word]) -> &'w [Word] {
        if let Some((name, why)) = IMPOSSIBLE.iter().find(|(impossible, _)| *impossible == word.text) {
            self.error(word.column, Some(name), (*why).to_owned());
        } else {
            let words = Attribute::ALL.map(Attribute::word).join(", ");
            let what = format!("unknown attribute {}; known are: {words}, meter", value::quote(&word.text));
            self.error(word.column, None, what);
        }
        // A word that is known is no value of one that isn't.
        let is_value = behind.first().is_some_and(|value| kind_of(&value.text).is_none());
        if is_value { behind.get(1..).unwrap_or_default() } else { behind }
    }

    fn set(&mut self, attribute: Attribute, column: usize, text: &str, text_column: usize) {
        match self.draft.set(attribute, text) {
            Ok(()) => self.columns.push((attribute, text_column)),
            // What is set twice is wrong where its word is, everything else where its value is.
            Err(what) if self.columns.iter().any(|(set, _)| *set == attribute) => {
                self.error(column, Some(attribute.word()), what);
            }
            Err(what) => self.error(text_column, Some(attribute.word()), what),
        }
    }

    fn finish(mut self) -> Result<RuleLine, Vec<LineError>> {
        if self.does == Some(Type::Nat) {
            let target = self.target.unwrap_or_default();
            self.draft.translates(!target.contains(['-', ':', ',']));
        }
        let column = |attribute| {
            let place = self.columns.iter().find(|(set, _)| *set == attribute);
            place.map_or(1, |(_, column)| *column)
        };
        let condition = match self.draft.finish() {
            Ok(condition) => condition,
            Err(mistakes) => {
                self.errors.extend(mistakes.into_iter().map(|(attribute, what)| LineError {
                    column: column(attribute),
                    word: Some(attribute.word()),
                    what,
                }));
                Condition::default()
            }
        };
        self.errors.sort_by_key(|error| error.column);
        if self.errors.is_empty() { Ok(RuleLine { condition, meter: self.meter }) } else { Err(self.errors) }
    }

    fn error(&mut self, column: usize, word: Option<&'static str>, what: String) {
        self.errors.push(LineError { column, word, what });
    }
}

/// Takes a line apart as a shell would: blanks separate words, quotes and backslashes hold them together.
fn words(line: &str) -> Result<Vec<Word>, LineError> {
    let error = |column, what: String| LineError { column, word: None, what };
    if line.len() > MAX_LINE {
        return Err(error(1, format!("has {} bytes, at most {MAX_LINE} are possible", line.len())));
    }
    let mut words: Vec<Word> = Vec::new();
    let mut current: Option<Word> = None;
    let mut quote: Option<(char, usize)> = None;
    let mut characters = line.chars().zip(1..).peekable();
    while let Some((c, column)) = characters.next() {
        let is_end = c.is_whitespace() && quote.is_none();
        if is_end {
            words.extend(current.take());
            continue;
        }
        let word = current.get_or_insert_with(|| Word { text: String::new(), column });
        match (c, quote) {
            ('"' | '\'', None) => quote = Some((c, column)),
            (_, Some((open, _))) if c == open => quote = None,
            ('\\', None | Some(('"', _))) => match characters.next() {
                Some((escaped, _)) => word.text.push(escaped),
                None => return Err(error(column, "a backslash has nothing behind it".to_owned())),
            },
            _ => word.text.push(c),
        }
    }
    if let Some((open, column)) = quote {
        return Err(error(column, format!("the quote {open} is not closed")));
    }
    words.extend(current);
    Ok(words)
}

/// Writes a value so that it reads as one word.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\'' | '\\');
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
