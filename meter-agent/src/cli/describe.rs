//! What `mm-meter` takes, in clap's terms: for manual pages and completions. [`super::arguments`] reads it.

use clap::{Arg, ArgAction, Command};

use super::arguments::{GENERAL_HELP, HOST, METER_NAME, Opt, PORT};

/// Returns the command line of `mm-meter`. What it says of each option is what `mm-meter --help` says.
#[must_use]
pub fn command() -> Command {
    let trailing = |name: &'static str| Arg::new(name).help(help_of(&format!("{name} (not required)")));
    let get = Command::new("get")
        .about("Print the totals of a meter, then what is added from report to report")
        .disable_help_flag(true)
        .arg(option(&METER_NAME).required(true))
        .arg(trailing("delay"))
        .arg(trailing("count"));
    Command::new("mm-meter")
        .about("Read the meters of a meter-agent as MidoNet's mm-meter did")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .arg(option(&HOST))
        .arg(option(&PORT))
        .arg(Arg::new("help").long("help").action(ArgAction::SetTrue).help(help_of("--help")))
        .subcommand(Command::new("list").about(help_of("Subcommand: list -")).disable_help_flag(true))
        .subcommand(get)
}

fn option(option: &Opt) -> Arg {
    Arg::new(option.name)
        .short(option.short)
        .long(option.name)
        .value_name("arg")
        .help(help_of(&format!("-{}, --{}", option.short, option.name)))
}

/// Returns what the help text says behind some words, to the next line that is not its continuation.
fn help_of(words: &str) -> String {
    let mut lines = GENERAL_HELP.lines().skip_while(|line| !line.trim_start().starts_with(words));
    let first = lines.next().unwrap_or_default().trim_start().trim_start_matches(words).trim_start();
    let first = first.trim_start_matches("<arg>").trim_start();
    let continued = lines.take_while(|line| line.starts_with("          ")).map(str::trim);
    std::iter::once(first).chain(continued).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::command;

    #[test]
    fn description_says_what_the_help_text_says() {
        let mut command = command();
        command.build();
        let mut said = BTreeMap::new();
        for level in std::iter::once(&command).chain(command.get_subcommands()) {
            for argument in level.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                said.insert(format!("{} {}", level.get_name(), argument.get_id()), help);
            }
        }
        let expected = [
            ("get count", "number of updates, defaults to infinity (default = 2147483647)"),
            (
                "get delay",
                "delay between updates, in seconds. If no delay is specified, only one report is printed. (default = 0)",
            ),
            ("get meter-name", "name of the meter"),
            ("mm-meter help", "Show help message"),
            ("mm-meter host", "Host (default = localhost)"),
            ("mm-meter port", "JMX port (default = 7200)"),
        ];
        assert_eq!(said, expected.map(|(name, help)| (name.to_owned(), help.to_owned())).into());
        let list = command.find_subcommand("list").and_then(|list| list.get_about()).map(ToString::to_string);
        assert_eq!(list.as_deref(), Some("list all active meters"));
    }
}
