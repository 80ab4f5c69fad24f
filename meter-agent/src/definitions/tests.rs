use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use proptest::{collection::btree_map, collection::vec, prelude::prop_assert_eq, proptest};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Change, ChangeError, Definition, Definitions, Origin, meter,
    state::{Found, State, StateError},
};
use crate::{
    meter::{DeviceId, PortId},
    rules::{Attribute, Groups, MAX_RULES, Meter, MeterSet, Router, tests::strategies::conditions},
};

fn a(name: &str, lines: &[&str]) -> Meter {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    meter(name, &lines).unwrap()
}

fn set(meters: Vec<Meter>) -> MeterSet {
    let group = ("tenant".to_owned(), [PortId(Uuid::from_u128(1))].into());
    MeterSet { meters, groups: Groups { ports: [group].into(), ..Groups::default() }, ..MeterSet::default() }
}

/// Meters of the configuration, and others.
fn definitions() -> Definitions {
    Definitions::new(set(vec![a("web", &["proto 6 dst-port 80"])]), vec![a("dns", &["proto 17 dst-port 53"])])
}

fn add(meter: Meter, replace: bool) -> Change {
    Change::Add { meter, replace }
}

fn names(definitions: &Definitions) -> Vec<String> {
    definitions.set().unwrap().meters.into_iter().map(|meter| meter.name).collect()
}

#[test]
fn change_makes_a_set_or_says_why_not() {
    let other = a("dns", &["proto 6 dst-port 53"]);
    let ssh = a("ssh: \"é\"", &["proto 6 dst-port 22", "proto 6 src-port 22 in-port-group tenant"]);
    let no_group = a("x", &["proto 6", "proto 6 out-port-group nobody"]);
    let many = a("many", &vec!["proto 6"; MAX_RULES - 1]);
    let web = definitions().configured().meters[0].clone();
    for (change, expected) in [
        (add(ssh.clone(), false), Ok(vec![a("dns", &["proto 17 dst-port 53"]), ssh.clone()])),
        (add(ssh.clone(), true), Ok(vec![a("dns", &["proto 17 dst-port 53"]), ssh])),
        (add(other.clone(), true), Ok(vec![other.clone()])),
        (add(other, false), Err(ChangeError::Exists("dns".to_owned()))),
        (add(web, true), Err(ChangeError::Configured("web".to_owned()))),
        (
            add(no_group, false),
            Err(ChangeError::NoGroup {
                rule: 2,
                attribute: Attribute::OutPortGroup,
                group: "nobody".to_owned(),
            }),
        ),
        (add(many, false), Err(ChangeError::TooManyRules(MAX_RULES + 1))),
        (Change::Remove("dns".to_owned()), Ok(vec![])),
        (Change::Remove("web".to_owned()), Err(ChangeError::Configured("web".to_owned()))),
        (Change::Remove("ssh".to_owned()), Err(ChangeError::Unknown("ssh".to_owned()))),
    ] {
        let changed = definitions().changed(&change).and_then(|changed| changed.set().map(|_| changed));
        assert_eq!(changed.map(|changed| changed.added().to_vec()), expected, "{change:?}");
    }
}

/// A router counts by a rule for each of its MAC addresses on each of its bridges.
#[test]
fn rules_of_routers_count_as_well() {
    let ids = [1, 2, 3].map(|id| DeviceId(Uuid::from_u128(id)));
    let router = Router {
        device: ids[0],
        macs: [1, 2, 3].map(|last| [2, 0, 0, 0, 0, last]).into(),
        bridges: ids[1..].iter().copied().collect(),
    };
    let definitions = Definitions::new(MeterSet { routers: vec![router], ..MeterSet::default() }, vec![]);
    for (rules, expected) in [(MAX_RULES - 6, Ok(())), (MAX_RULES - 5, Err(MAX_RULES + 1))] {
        let changed = definitions.changed(&add(a("many", &vec!["proto 6"; rules]), false)).unwrap();
        assert_eq!(changed.set().map(drop), expected.map_err(ChangeError::TooManyRules));
    }
}

#[test]
fn configuration_hides_what_was_added_under_the_same_name_until_it_gives_it_up() {
    let hidden = definitions().reconfigured(set(vec![a("dns", &["proto 6"])]));
    assert_eq!(hidden.set().unwrap(), set(vec![a("dns", &["proto 6"])]));
    assert_eq!(hidden.hidden().collect::<Vec<_>>(), [&a("dns", &["proto 17 dst-port 53"])]);
    let definition =
        |rule: &str, origin| Definition { name: "dns".to_owned(), rules: vec![rule.to_owned()], origin };
    assert_eq!(hidden.list(), [definition("proto 6 fragment-policy any", Origin::Configuration)]);
    let shown = hidden.reconfigured(set(vec![]));
    assert_eq!((names(&shown), shown.hidden().count()), (vec!["dns".to_owned()], 0));
    assert_eq!(shown.list(), [definition("proto 17 dst-port 53 fragment-policy header", Origin::RunTime)]);
}

#[test]
fn groups_that_a_configuration_takes_away_are_told_with_the_meters_that_name_them() {
    let with = definitions().changed(&add(a("x", &["port-group tenant"]), false)).unwrap();
    assert_eq!(with.missing_groups().count(), 0);
    let without = with.reconfigured(MeterSet::default());
    assert_eq!(without.missing_groups().collect::<Vec<_>>(), [("x", "tenant")]);
    assert_eq!(names(&without), ["dns", "x"]);
}

#[test]
fn everything_that_is_wrong_with_a_meter_is_said() {
    let wrong = |name: &str, lines: &[&str]| {
        meter(name, &lines.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap_err()
    };
    assert_eq!(
        wrong("a\nb", &["proto 6 dst-port 0", "proto 6", "src 10.0.0.0/33 nope 1"]),
        [
            "name: \"a\\nb\" has a control character in it",
            "rule 1: column 18: dst-port: port 0 is out of range (1 to 65535); 0 is a type or code of proto 1 or 58",
            "rule 3: column 5: src: \"10.0.0.0/33\" has no possible prefix length, expected /0 to /32",
            &wrong("a", &["nope 1"])[0].replace("rule 1: column 1", "rule 3: column 17"),
        ]
    );
    assert_eq!(wrong("a", &[]), ["rules: has no rules; say what it counts"]);
    assert_eq!(
        wrong("a", &["proto 6 meter b"]),
        ["rule 1: column 1: meter: is \"b\", but this is a rule of \"a\""]
    );
    assert_eq!(wrong("a", &vec!["proto 6"; MAX_RULES + 1]).len(), 1);
}

/// Returns the files of a directory with what is in them.
fn files(directory: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap_or_default())
        })
        .collect();
    files.sort();
    files
}

fn file(name: &str, text: &str) -> (String, String) {
    (name.to_owned(), text.to_owned())
}

const KEPT: &str = r#"{
  "version": 1,
  "meters": [
    {
      "name": "dns \"é\"",
      "rules": [
        "proto 17 dst-port 53 fragment-policy header"
      ]
    }
  ]
}
"#;

#[test]
fn what_is_kept_is_there_after_a_restart_and_what_is_not_put_in_its_place_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let Found { state, meters, trouble } = State::open(path);
    assert!(meters.is_empty() && trouble.is_none(), "{trouble:?}");
    let kept = [a("dns \"é\"", &["proto 17 dst-port 53"])];
    state.prepare(&kept).unwrap().commit().unwrap();
    assert_eq!(files(path), [file("meters.json", KEPT)]);
    assert_eq!(fs::metadata(path.join("meters.json")).unwrap().permissions().mode() & 0o777, 0o600);
    drop(state.prepare(&[]).unwrap());
    assert_eq!(files(path), [file("meters.json", KEPT)]);
    // What an agent leaves that is killed while it writes.
    fs::write(path.join("meters.json.new"), "{\"vers").unwrap();
    let Found { state, meters, trouble } = State::open(path);
    assert!(meters == kept && trouble.is_none(), "{trouble:?}");
    state.prepare(&[]).unwrap().commit().unwrap();
    assert_eq!(files(path), [file("meters.json", "{\n  \"version\": 1,\n  \"meters\": []\n}\n")]);
}

#[test]
fn broken_file_is_set_aside_and_never_trusted() {
    for (text, what) in [
        ("", "is no list of meters: EOF while parsing"),
        ("{\"version\": 1, \"met", "is no list of meters: EOF while parsing"),
        (&KEPT.replace("\"version\": 1", "\"version\": 2"), "has version 2, and this agent writes version 1"),
        (&KEPT.replace("\"meters\"", "\"rules\""), "is no list of meters: unknown field `rules`"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("meters.json"), text).unwrap();
        let Found { state, meters, trouble } = State::open(directory.path());
        assert_eq!(meters, [], "{text}");
        match trouble.unwrap() {
            StateError::Broken { what: said, .. } => assert!(said.starts_with(what), "{said}"),
            other => panic!("{text}: {other:?}"),
        }
        assert_eq!(files(directory.path()), [file("meters.json.broken", text)]);
        state.prepare(&[a("x", &["proto 6"])]).unwrap().commit().unwrap();
        assert_eq!(State::open(directory.path()).meters, [a("x", &["proto 6"])]);
    }
}

#[test]
fn entry_that_is_no_meter_stays_in_the_file_and_the_others_count() {
    let good = json!({"name": "web", "rules": ["proto 6 dst-port 80 fragment-policy header"]});
    let named = |rules: Value| json!({"name": "x", "rules": rules});
    for (bad, what) in [
        (json!(7), "entry 1: is no meter: "),
        (json!({"name": "x", "lines": []}), "entry 1: is no meter: unknown field `lines`"),
        (named(json!(["proto 6 dst-port 65536"])), "meter \"x\": rule 1: column 18: dst-port: "),
        (named(json!(["from a newer agent"])), "meter \"x\": rule 1: column 1: "),
        (named(json!([])), "meter \"x\": rules: has no rules"),
        (json!({"name": "", "rules": ["proto 6"]}), "meter \"\": name: \"\" has 0 bytes"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meters.json");
        let read = || -> Value { serde_json::from_slice(&fs::read(&path).unwrap()).unwrap() };
        fs::write(&path, json!({"version": 1, "meters": [bad, good, good]}).to_string()).unwrap();
        let Found { state, meters, trouble } = State::open(directory.path());
        assert_eq!(meters, [a("web", &["proto 6 dst-port 80"])]);
        match trouble.unwrap() {
            StateError::NoMeters { what: said, .. } => {
                assert!(said[0].starts_with(what), "{said:?}");
                assert_eq!(said[1..], ["meter \"web\": is there twice"]);
            }
            other => panic!("{bad}: {other:?}"),
        }
        // Whatever is added or removed, it stays, until there is a meter of its name.
        let y = a("y", &["proto 6"]);
        state.prepare(std::slice::from_ref(&y)).unwrap().commit().unwrap();
        let y = json!({"name": "y", "rules": ["proto 6 fragment-policy any"]});
        assert_eq!(read(), json!({"version": 1, "meters": [y, bad, good]}));
        let x = a("x", &["proto 17"]);
        State::open(directory.path()).state.prepare(&[x]).unwrap().commit().unwrap();
        let is_named = bad["name"] == "x";
        assert_eq!(read()["meters"].as_array().unwrap().contains(&bad), !is_named);
    }
}

#[test]
fn file_that_can_not_be_read_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meters.json");
    fs::create_dir(&path).unwrap();
    let Found { state, meters, trouble } = State::open(directory.path());
    let expected = format!(
        "{}: can't be read: it is no file; repair or remove it, and start the agent again",
        path.display()
    );
    assert_eq!((meters, trouble.unwrap().to_string()), (vec![], expected.clone()));
    assert_eq!(state.prepare(&[]).unwrap_err().to_string(), expected);
    assert_eq!(files(directory.path()), [file("meters.json", "")]);
}

#[test]
fn directory_that_is_not_there_or_is_none_is_told_at_the_start_and_of_each_change() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let no_directory = directory.path().join("file");
    fs::write(&no_directory, "").unwrap();
    for (path, expected) in [
        (&missing, "there is no such directory; make it for the agent's user, or set state.directory"),
        (&no_directory, ""),
    ] {
        let Found { state, meters, trouble } = State::open(path);
        let said = trouble.unwrap().to_string();
        assert!(meters.is_empty() && said.ends_with(expected), "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
        let refused = state.prepare(&[]).unwrap_err().to_string();
        assert_eq!(refused, said);
    }
    assert!(!missing.exists());
    assert_eq!(State::nowhere().prepare(&[]).unwrap_err().to_string(), "this agent has no state directory");
}

proptest! {
    #[test]
    fn any_meters_are_kept_as_they_are(meters in btree_map("\\PC{1,9}", vec(conditions(), 1..4), 0..4)) {
        let meters: Vec<_> = meters.into_iter().map(|(name, rules)| Meter { name, rules }).collect();
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).state;
        state.prepare(&meters).unwrap().commit().unwrap();
        let Found { meters: found, trouble, .. } = State::open(directory.path());
        prop_assert_eq!(trouble.map(|trouble| trouble.to_string()), None);
        prop_assert_eq!(found, meters);
    }
}
