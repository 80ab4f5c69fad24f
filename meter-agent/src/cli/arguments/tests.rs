use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::{Command, GENERAL_HELP, GET_HELP, LIST_HELP, Question, UsageError, parse};

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(ToOwned::to_owned).collect()
}

fn no_file(_: Option<&str>) -> Result<String, String> {
    Err("no file".to_owned())
}

fn ask(host: &str, port: i32, question: Question) -> Result<Command, UsageError> {
    Ok(Command::Ask { host: host.to_owned(), port, question })
}

fn get(meter: &str, delay: i32, count: i32) -> Question {
    Question::Get { meter: meter.to_owned(), delay, count }
}

#[test]
fn line_that_scallop_takes_is_taken() {
    for (line, expected) in [
        ("", Ok(Command::Nothing)),
        ("-p 1", Ok(Command::Nothing)),
        ("list", ask("localhost", 7200, Question::List)),
        ("-h a -p 1 list", ask("a", 1, Question::List)),
        ("--host a --port 1 list", ask("a", 1, Question::List)),
        ("-ha -p1 list", ask("a", 1, Question::List)),
        ("-p -1 list", ask("localhost", -1, Question::List)),
        ("-h ::1 list", ask("::1", 7200, Question::List)),
        ("-h - list", ask("-", 7200, Question::List)),
        ("get -n x", ask("localhost", 7200, get("x", 0, i32::MAX))),
        ("get --meter-name x 60", ask("localhost", 7200, get("x", 60, i32::MAX))),
        ("-- list", ask("localhost", 7200, Question::List)),
        ("get -n x 60 4", ask("localhost", 7200, get("x", 60, 4))),
        ("get -nx -- 60 4", ask("localhost", 7200, get("x", 60, 4))),
        ("get -n x -1 -2", ask("localhost", 7200, get("x", -1, -2))),
        ("get -n list", ask("localhost", 7200, get("list", 0, i32::MAX))),
        ("--help -x", Ok(Command::Help(GENERAL_HELP))),
        ("list --help -x", Ok(Command::Help(LIST_HELP))),
        ("-p 1 get --help", Ok(Command::Help(GET_HELP))),
    ] {
        assert_eq!(parse(&words(line), &no_file), expected, "{line}");
    }
}

#[test]
fn line_that_scallop_refuses_is_refused_in_its_words() {
    for (line, expected) in [
        ("-v list", "Unknown option 'v'"),
        ("-verbose list", "Unknown option 'verbose'"),
        ("--host=a list", "Unknown option 'host=a'"),
        ("-p 1 --help", "Unknown option 'help'"),
        ("get -n x --help", "Unknown option 'help'"),
        ("get 5 -n x", "Failed to parse the trailing argument list: '5 -n x'"),
        ("get -n x 2147483648", "Failed to parse the trailing argument list: '2147483648'"),
        (
            "-p 1 -p 2 list",
            "Bad arguments for option 'port': '1 2' - you should provide exactly one argument for this option",
        ),
        (
            "-p -h a list",
            "Bad arguments for option 'port': '' - you should provide exactly one argument for this option",
        ),
        ("-p 1.5 list", "Bad arguments for option 'port': '1.5' - wrong arguments format"),
        ("@-- list", "cannot read arguments from standard input: no file"),
    ] {
        let refused = parse(&words(line), &no_file).map_err(|error| error.to_string());
        assert_eq!(refused, Err(expected.to_owned()), "{line}");
    }
}

#[test]
fn file_takes_the_place_of_the_arguments_of_its_level() {
    let read = |name: Option<&str>| match name {
        Some("all") => Ok("-h  a\nget -n x 1".to_owned()),
        None => Ok("-n y\n\n2 3\n".to_owned()),
        Some(_) => Err("no such file".to_owned()),
    };
    assert_eq!(parse(&words("@all ignored"), &read), ask("a", 7200, get("x", 1, i32::MAX)));
    assert_eq!(parse(&words("get @--"), &read), ask("localhost", 7200, get("y", 2, 3)));
    let refused = UsageError::File("none".to_owned(), "no such file".to_owned());
    assert_eq!(parse(&words("@none"), &read), Err(refused));
}

proptest! {
    #[test]
    fn no_line_panics(line in prop::collection::vec("-{0,2}[a-z@]{0,6}[0-9]{0,3}|list|get|.*", 0..8)) {
        let parsed = parse(&line, &no_file);
        prop_assert!(parsed.is_ok() || parsed.is_err());
    }

    #[test]
    fn every_name_and_number_arrives(
        name in "[^-@].*", delay in any::<i32>(), count in any::<i32>(), host in "[a-z0-9.:]+", port in any::<i32>(),
    ) {
        let line = [
            "-h".to_owned(), format!("x{host}"), "-p".to_owned(), port.to_string(), "get".to_owned(), "-n".to_owned(),
            name.clone(), delay.to_string(), count.to_string(),
        ];
        prop_assert_eq!(parse(&line, &no_file), ask(&format!("x{host}"), port, get(&name, delay, count)));
    }
}
