//! The command line of `mm-meter`, read as MidoNet's option parser (scallop 0.9) read it.
//!
//! So `-h` is the host; `--help` counts only as the first argument of its level; the first argument that is a
//! subcommand's name ends the options before it, even where it looks like a value; several options may follow each
//! other, values are whatever doesn't begin with a hyphen and a character that is no digit.

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// A help text.
    Help(&'static str),
    /// Something of an agent.
    Ask {
        /// The agent's host.
        host: String,
        /// The agent's port.
        port: i32,
        /// What to ask.
        question: Question,
    },
    /// There is no subcommand.
    Nothing,
}

/// A subcommand with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// The names of all meters.
    List,
    /// One meter, again and again.
    Get {
        /// Its name.
        meter: String,
        /// Seconds between reports; there is one report where it isn't positive.
        delay: i32,
        /// How many reports.
        count: i32,
    },
}

pub(super) const GENERAL_HELP: &str = "  -h, --host  <arg>   Host (default = localhost)
  -p, --port  <arg>   JMX port (default = 7200)
      --help          Show help message

Subcommand: list - list all active meters
      --help   Show help message
Subcommand: get
  -n, --meter-name  <arg>   name of the meter
      --help                Show help message

 trailing arguments:
  delay (not required)   delay between updates, in seconds. If no delay is
                     specified, only one report is printed. (default = 0)
  count (not required)   number of updates, defaults to infinity
                     (default = 2147483647)
";

const LIST_HELP: &str = "      --help   Show help message
";

const GET_HELP: &str = "  -n, --meter-name  <arg>   name of the meter
      --help                Show help message

 trailing arguments:
  delay (not required)   delay between updates, in seconds. If no delay is
                     specified, only one report is printed. (default = 0)
  count (not required)   number of updates, defaults to infinity
                     (default = 2147483647)
";

/// An argument that can't be taken, in scallop's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UsageError {
    /// There is no such option.
    #[error("Unknown option '{0}'")]
    Unknown(String),
    /// An option that must be given isn't.
    #[error("Required option '{0}' not found")]
    Missing(&'static str),
    /// An option's value is none of its type, or there is none or more than one.
    #[error("Bad arguments for option '{0}': '{1}' - {2}")]
    Bad(&'static str, String, &'static str),
    /// Arguments that belong to no option can't be taken.
    #[error("Failed to parse the trailing argument list: '{0}'")]
    Trailing(String),
    /// A file of arguments can't be read.
    #[error("cannot read arguments from {0}: {1}")]
    File(String, String),
}

/// Something that reads the file of an `@file` argument; `None` is standard input.
pub(super) type ReadFile<'a> = &'a dyn Fn(Option<&str>) -> Result<String, String>;

/// An option that takes a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opt {
    /// Behind two hyphens.
    pub(super) name: &'static str,
    /// Behind one.
    pub(super) short: char,
}

pub(super) const PORT: Opt = Opt { name: "port", short: 'p' };
pub(super) const HOST: Opt = Opt { name: "host", short: 'h' };
pub(super) const METER_NAME: Opt = Opt { name: "meter-name", short: 'n' };

/// Reads a command line.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub(super) fn parse(arguments: &[String], read_file: ReadFile<'_>) -> Result<Command, UsageError> {
    if is_help(arguments) {
        return Ok(Command::Help(GENERAL_HELP));
    }
    let arguments = expand(arguments, read_file)?;
    let at = arguments.iter().position(|argument| argument == "list" || argument == "get");
    let (own, subcommand) = arguments.split_at(at.unwrap_or(arguments.len()));
    let level = Level::parse(own, &[PORT, HOST], 0)?;
    let question = match subcommand.split_first() {
        Some((_, rest)) if is_help(rest) => {
            return Ok(Command::Help(if subcommand[0] == "list" { LIST_HELP } else { GET_HELP }));
        }
        Some((name, rest)) => {
            let rest = expand(rest, read_file)?;
            Some(if name == "list" { list(&rest)? } else { get(&rest)? })
        }
        None => None,
    };
    let port = level.number(&PORT)?.unwrap_or(7200);
    let host = level.text(&HOST)?.unwrap_or("localhost").to_owned();
    Ok(question.map_or(Command::Nothing, |question| Command::Ask { host, port, question }))
}

fn list(arguments: &[String]) -> Result<Question, UsageError> {
    Level::parse(arguments, &[], 0).map(|_| Question::List)
}

fn get(arguments: &[String]) -> Result<Question, UsageError> {
    let level = Level::parse(arguments, &[METER_NAME], 2)?;
    let meter = level.text(&METER_NAME)?.ok_or(UsageError::Missing(METER_NAME.name))?.to_owned();
    let trailing = |index: usize| level.trailing.get(index).copied();
    Ok(Question::Get { meter, delay: trailing(0).unwrap_or(0), count: trailing(1).unwrap_or(i32::MAX) })
}

fn is_help(arguments: &[String]) -> bool {
    arguments.first().is_some_and(|first| first == "--help")
}

/// Replaces arguments of which the first is `@file` or, for standard input, `@--` by the words of that file.
fn expand(arguments: &[String], read_file: ReadFile<'_>) -> Result<Vec<String>, UsageError> {
    let Some(name) = arguments.first().and_then(|first| first.strip_prefix('@')) else {
        return Ok(arguments.to_vec());
    };
    let text = read_file((name != "--").then_some(name)).map_err(|error| {
        UsageError::File(if name == "--" { "standard input" } else { name }.to_owned(), error)
    })?;
    Ok(text
        .lines()
        .flat_map(|line| line.split(' '))
        .filter(|word| !word.is_empty())
        .map(Into::into)
        .collect())
}

/// The arguments of the tool or of a subcommand, sorted by what they belong to.
#[derive(Debug, Default)]
struct Level {
    /// What was given to options, in order, each with all its values.
    given: Vec<(&'static str, Vec<String>)>,
    /// Numbers after all options.
    trailing: Vec<i32>,
}

impl Level {
    fn parse(arguments: &[String], options: &[Opt], most_trailing: usize) -> Result<Self, UsageError> {
        let mut level = Self::default();
        let mut rest = arguments.to_vec();
        while rest.first().is_some_and(|first| is_option(first) && first != "--") {
            let first = rest.remove(0);
            let (option, attached) = find(&first, options)?;
            if let Some(value) = attached {
                rest.insert(0, value);
            }
            let values = rest.iter().take_while(|argument| !is_option(argument)).count();
            let mut values: Vec<_> = rest.drain(..values).collect();
            // What follows the last option is its value and then trailing; what stands between two is all value.
            if rest.is_empty() {
                rest = values.split_off(1.min(values.len()));
                if values.is_empty() {
                    let what = "you should provide exactly one argument";
                    return Err(UsageError::Bad(option, String::new(), what));
                }
                level.given.push((option, values));
                break;
            }
            level.given.push((option, values));
        }
        if rest.first().is_some_and(|first| first == "--") {
            rest.remove(0);
        }
        let numbers: Option<Vec<i32>> = rest.iter().map(|argument| argument.parse().ok()).collect();
        match numbers {
            Some(numbers) if numbers.len() <= most_trailing => level.trailing = numbers,
            _ => return Err(UsageError::Trailing(rest.join(" "))),
        }
        Ok(level)
    }

    /// Returns an option's value.
    fn text(&self, option: &Opt) -> Result<Option<&str>, UsageError> {
        let given: Vec<_> = self.given.iter().filter(|(name, _)| *name == option.name).collect();
        match given.as_slice() {
            [] => Ok(None),
            [(_, values)] if values.len() == 1 => Ok(Some(&values[0])),
            _ => {
                let values: Vec<_> =
                    given.iter().flat_map(|(_, values)| values).map(String::as_str).collect();
                let what = "you should provide exactly one argument for this option";
                Err(UsageError::Bad(option.name, values.join(" "), what))
            }
        }
    }

    /// Returns an option's value as a number.
    fn number(&self, option: &Opt) -> Result<Option<i32>, UsageError> {
        let Some(text) = self.text(option)? else { return Ok(None) };
        let bad = |_| UsageError::Bad(option.name, text.to_owned(), "wrong arguments format");
        text.parse().map(Some).map_err(bad)
    }
}

/// Returns whether an argument names an option. A negative number doesn't, nor does a hyphen alone.
fn is_option(argument: &str) -> bool {
    argument.strip_prefix('-').and_then(|rest| rest.chars().next()).is_some_and(|next| !next.is_ascii_digit())
}

/// Finds an option by `--name`, `-n`, or `-nVALUE` with its value attached.
fn find(argument: &str, options: &[Opt]) -> Result<(&'static str, Option<String>), UsageError> {
    if let Some(name) = argument.strip_prefix("--") {
        let found = options.iter().find(|option| option.name == name);
        return found.map(|option| (option.name, None)).ok_or_else(|| UsageError::Unknown(name.to_owned()));
    }
    let mut rest = argument.chars().skip(1);
    let short = rest.next();
    let value: String = rest.collect();
    let found = options.iter().find(|option| Some(option.short) == short);
    let unknown = || UsageError::Unknown(argument.trim_start_matches('-').to_owned());
    found.map(|option| (option.name, (!value.is_empty()).then_some(value))).ok_or_else(unknown)
}

#[cfg(test)]
mod tests;
