//! Mistakes: where they are, which key they are about, and what is wrong.

use std::fmt;

/// Mistakes that are kept; a file that has more is not a configuration.
const MAX_MISTAKES: usize = 100;
/// Characters of a wrong value that a message shows.
const MAX_SHOWN: usize = 60;

/// Where a mistake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nowhere in particular: something is missing.
    File,
    /// In the file, both counted from 1; the column in characters.
    Position {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In a flag, by its name with the dashes.
    Flag(&'static str),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What is wrong, with the full name of the key unless it is a flag.
    pub message: String,
}

/// Everything that is wrong with a configuration. Displays as one line for each mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// What the file is called.
    pub origin: String,
    /// In the order of the file, then flags; at most 100.
    pub list: Vec<Mistake>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, list, more } = self;
        for (index, Mistake { place, message }) in list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            match place {
                Place::File => write!(f, "{separator}{origin}: {message}")?,
                Place::Position { line, column } => {
                    write!(f, "{separator}{origin}:{line}:{column}: {message}")?;
                }
                Place::Flag(flag) => write!(f, "{separator}{flag}: {message}")?,
            }
        }
        if *more > 0 {
            write!(f, "\n{origin}: and {more} more mistakes")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nobody set it.
    Default,
    /// The file, at this byte.
    File(usize),
    /// The flag of this name.
    Flag(&'static str),
}

/// A value, and who set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

/// Collects mistakes while a configuration is read.
#[derive(Debug)]
pub(super) struct Report<'a> {
    origin: &'a str,
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
    list: Vec<Mistake>,
    more: usize,
}

impl<'a> Report<'a> {
    pub(super) fn new(origin: &'a str, text: &'a str) -> Self {
        let lines = [0].into_iter().chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Self { origin, text, lines, list: Vec::new(), more: 0 }
    }

    /// Adds a mistake about a key.
    pub(super) fn key(&mut self, origin: Origin, key: &str, what: impl fmt::Display) {
        if self.is_full() {
            self.more += 1;
            return;
        }
        match origin {
            Origin::Default => self.push(Place::File, format!("{key}: {what}")),
            Origin::File(offset) => self.push(self.position(offset), format!("{key}: {what}")),
            Origin::Flag(flag) => self.push(Place::Flag(flag), what.to_string()),
        }
    }

    /// Adds a mistake of the text itself.
    pub(super) fn text(&mut self, offset: usize, what: impl fmt::Display) {
        if self.is_full() {
            self.more += 1;
        } else {
            self.push(self.position(offset), what.to_string());
        }
    }

    /// Returns the line that a byte of the text is in, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|&start| start <= offset)
    }

    /// Returns whether nothing is wrong so far.
    pub(super) fn is_clean(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn finish(mut self) -> Mistakes {
        self.list.sort();
        self.list.dedup();
        Mistakes { origin: self.origin.to_owned(), list: self.list, more: self.more }
    }

    /// Returns whether further mistakes are only counted.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= MAX_MISTAKES
    }

    fn push(&mut self, place: Place, message: String) {
        self.list.push(Mistake { place, message });
    }

    fn position(&self, offset: usize) -> Place {
        let line = self.line(offset);
        let start = self.lines.get(line - 1).copied().unwrap_or_default();
        let chars = self.text.get(start..).unwrap_or_default().char_indices();
        let column = 1 + chars.take_while(|(at, c)| start + at + c.len_utf8() <= offset).count();
        Place::Position { line, column }
    }
}

/// Returns a text in quotes on one line, shortened where it is long.
pub(super) fn quote(text: &str) -> String {
    let shown = text.char_indices().nth(MAX_SHOWN).and_then(|(end, _)| text.get(..end));
    shown.map_or_else(|| format!("{text:?}"), |shown| format!("{shown:?}…"))
}

/// Returns the digits of a number, shortened where there are many.
pub(super) fn shorten(digits: &str) -> String {
    match digits.split_at_checked(MAX_SHOWN) {
        Some((shown, rest)) if !rest.is_empty() => format!("{shown}…"),
        _ => digits.to_owned(),
    }
}
