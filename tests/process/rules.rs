//! The recording rules and alerts of the package, as Prometheus' own tool finds them.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output},
};

use lab::require;

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus");
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/prometheus");

/// Runs `promtool`; `None` where there is none.
fn promtool(arguments: &[&str]) -> Option<Output> {
    let found = Command::new("promtool").arg("--version").output().is_ok();
    let is_met = require::met("promtool", found, "promtool (apt-get install prometheus)");
    is_met.then(|| Command::new("promtool").args(arguments).current_dir(RULES).output().unwrap())
}

fn assert_succeeds(arguments: &[&str]) {
    if let Some(output) = promtool(arguments) {
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}

#[test]
fn rules_and_alerts_are_well_formed() {
    assert_succeeds(&["check", "rules", "meter-agent.rules.yml", "meter-agent.alerts.yml"]);
}

#[test]
fn rules_give_the_right_numbers() {
    assert_succeeds(&["test", "rules", "tests/rules.yml"]);
}

#[test]
fn alerts_fire_when_they_must_and_only_then() {
    assert_succeeds(&["test", "rules", "tests/alerts.yml"]);
}

/// Returns the names in a text that begin like ours, without those of recording rules.
fn names(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let names = text.split(|c| !is_part(c)).filter(|name| !name.contains(':'));
    let is_ours =
        |name: &&str| ["meter_", "mndev_", "mnport_", "mntun_"].iter().any(|own| name.starts_with(own));
    names.filter(is_ours).collect()
}

#[test]
fn every_family_that_a_rule_names_is_served() {
    let read = |path: String| fs::read_to_string(path).unwrap();
    let golden = read(format!("{FIXTURES}/metrics.txt")) + &read(format!("{FIXTURES}/scraper.txt"));
    let served: BTreeSet<&str> = golden
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for (file, least) in [("meter-agent.rules.yml", 18), ("meter-agent.alerts.yml", 12)] {
        let text = read(format!("{RULES}/{file}"));
        let without_comments: String = text.lines().filter(|line| !line.trim().starts_with('#')).collect();
        let recorded: BTreeSet<&str> =
            text.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
        let named: Vec<&str> =
            names(&without_comments).into_iter().filter(|name| !recorded.contains(name)).collect();
        assert!(named.len() >= least, "{file}: only {named:?}");
        for name in named {
            assert!(served.contains(name), "{file}: nobody serves {name}");
        }
    }
}

#[test]
fn each_alert_says_what_is_wrong_and_has_a_test() {
    let alerts = fs::read_to_string(format!("{RULES}/meter-agent.alerts.yml")).unwrap();
    let tests = fs::read_to_string(format!("{RULES}/tests/alerts.yml")).unwrap();
    let count = |key: &str| alerts.lines().filter(|line| line.trim().starts_with(key)).count();
    let names: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 10, "{names:?}");
    for key in ["severity:", "summary:", "description:"] {
        assert_eq!(count(key), names.len(), "{key}");
    }
    for name in names {
        assert!(tests.contains(&format!("- alertname: {name}\n")), "{name} has no test");
    }
}
