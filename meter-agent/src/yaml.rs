//! YAML, read to a tree that knows where everything stands.
//!
//! Only what a configuration needs: one document of scalars, lists and maps with plain keys. Anchors, aliases and tags
//! are mistakes, so what is read is no larger than the text.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// Levels of lists and maps in each other; a web configuration has three.
const MAX_DEPTH: usize = 8;

/// Where something stands: line and column, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// Something wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mistake {
    pub(crate) place: Place,
    pub(crate) message: String,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Nothing,
    /// A text without quotes: a word, a number, a boolean.
    Plain(String),
    /// A text in quotes, or a block of it.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

impl Node {
    /// Returns what it is, with its article.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Nothing => "nothing",
            Value::Plain(_) | Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// Returns its text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Plain(text) | Value::Text(text) => Some(text),
            Value::Nothing | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// Reads a text. An empty one is [`Value::Nothing`].
pub(crate) fn parse(text: &str) -> Result<Node, Mistake> {
    let mut events = Events { parser: Parser::new_from_str(text) };
    let mut root = None;
    loop {
        let (event, place) = events.next()?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(_) if root.is_some() => {
                return Err(mistake(place, "a second document begins here"));
            }
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
            event => root = Some(events.node(event, place, MAX_DEPTH)?),
        }
    }
    Ok(root.unwrap_or(Node { place: Place { line: 1, column: 1 }, value: Value::Nothing }))
}

struct Events<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
}

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Place), Mistake> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, place(&span.start))),
            Some(Err(error)) => Err(mistake(place(error.marker()), &format!("not YAML: {}", error.info()))),
            None => Ok((Event::StreamEnd, Place { line: 1, column: 1 })),
        }
    }

    fn node(&mut self, event: Event<'a>, place: Place, depth: usize) -> Result<Node, Mistake> {
        let value = match event {
            Event::Alias(_) => return Err(mistake(place, "an alias; write what it stands for")),
            Event::Scalar(_, _, 1.., _) | Event::SequenceStart(1.., _) | Event::MappingStart(1.., _) => {
                return Err(mistake(place, "an anchor; write the value where it is used"));
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                return Err(mistake(place, "a tag; values have their types from their keys"));
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if depth == 0 => {
                return Err(mistake(place, "too many lists and maps in each other"));
            }
            Event::Scalar(text, ScalarStyle::Plain, ..) => match text.as_ref() {
                "" | "~" | "null" | "Null" | "NULL" => Value::Nothing,
                text => Value::Plain(text.to_owned()),
            },
            Event::Scalar(text, ..) => Value::Text(text.into_owned()),
            Event::SequenceStart(..) => self.list(depth - 1)?,
            Event::MappingStart(..) => self.map(depth - 1)?,
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(mistake(place, "not YAML: it ends too early")),
        };
        Ok(Node { place, value })
    }

    fn list(&mut self, depth: usize) -> Result<Value, Mistake> {
        let mut items = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, place, depth)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Mistake> {
        let mut items: Vec<(Node, Node)> = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Map(items));
            }
            let key = self.node(event, place, depth)?;
            if key.text().is_none() {
                return Err(mistake(place, &format!("the key is {}, expected a text", key.kind())));
            }
            let (event, place) = self.next()?;
            let value = self.node(event, place, depth)?;
            items.push((key, value));
        }
    }
}

fn place(marker: &Marker) -> Place {
    Place { line: marker.line().max(1), column: marker.col() + 1 }
}

fn mistake(place: Place, message: &str) -> Mistake {
    Mistake { place, message: message.replace('\n', " ") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Node, Value, parse};

    fn refused(text: &str) -> String {
        let mistake = parse(text).unwrap_err();
        format!("{}:{}: {}", mistake.place.line, mistake.place.column, mistake.message)
    }

    #[test]
    fn everything_has_its_place() {
        let Node { value: Value::Map(items), .. } = parse("# a\nx:\n  - \"1\"\n  - b\ny: {z: ~}\n").unwrap()
        else {
            panic!("no map");
        };
        let seen: Vec<_> = items
            .iter()
            .map(|(key, value)| (key.text().unwrap(), key.place.line, key.place.column, value.kind()))
            .collect();
        assert_eq!(seen, [("x", 2, 1, "a list"), ("y", 5, 1, "a map")]);
        let Value::List(list) = &items[0].1.value else { panic!("no list") };
        assert_eq!(list[0].value, Value::Text("1".to_owned()));
        assert_eq!((list[1].place.line, list[1].place.column), (4, 5));
    }

    #[test]
    fn what_makes_more_of_a_text_than_it_is_long_is_a_mistake() {
        assert_eq!(refused("a: &x 1\nb: *x\n"), "1:4: an anchor; write the value where it is used");
        assert_eq!(refused("a: !!binary x\n"), "1:4: a tag; values have their types from their keys");
        assert_eq!(refused("a: 1\n---\nb: 1\n"), "2:1: a second document begins here");
        assert!(refused(&"[".repeat(20)).contains("too many lists"));
        assert!(refused(&"[".repeat(100_000)).contains("not YAML"));
        assert!(refused("a: [\n").contains("not YAML"));
        assert!(refused("? [a]\n: b\n").contains("the key is a list"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), yaml in "[-:?&*!|>'\"%@`\\[\\]{},#\n\ta0 ~]{0,200}") {
            drop(parse(&text));
            drop(parse(&yaml));
        }
    }
}
