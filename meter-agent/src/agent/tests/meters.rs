//! User-defined meters: at the start, by the configuration, and at run time.

use std::path::Path;

use super::*;
use crate::{
    datapath::MetersError,
    definitions::{Change, ChangeError, Definition, Origin, meter},
    meter::FlowStats,
    rules::Meter,
};

fn a(name: &str, line: &str) -> Meter {
    meter(name, &[line.to_owned()]).unwrap()
}

fn set(meters: Vec<Meter>) -> MeterSet {
    MeterSet { meters, ..MeterSet::default() }
}

/// A bench with a meter of the configuration, and what a directory keeps.
fn bench(datapath: FakeDatapath, directory: &Path) -> Bench {
    Bench::on(datapath, set(vec![a("web", "proto 6 dst-port 80")]), State::open(directory), false)
}

fn refusal() -> MetersError {
    MetersError("no room".to_owned())
}

impl Bench {
    fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        let (answer, mut answered) = oneshot::channel();
        self.send(Event::Change(change, answer)).settle();
        answered.try_recv().unwrap()
    }

    fn add(&mut self, name: &str, line: &str) -> Result<(), ChangeError> {
        self.change(Change::Add { meter: a(name, line), replace: false })
    }

    /// Names of the meters that count, of those that are shown, and whether the latter are in force.
    fn meters(&mut self) -> (Vec<String>, Vec<String>, bool) {
        self.settle();
        let snapshot = self.snapshot();
        let counting: Vec<_> =
            self.agent.datapath.meters.meters.iter().map(|meter| meter.name.clone()).collect();
        let mut read: Vec<_> = snapshot.user_meters.keys().cloned().collect();
        let mut sorted = counting.clone();
        sorted.sort();
        read.sort();
        assert_eq!(read, sorted, "what counts is what is read");
        let shown = snapshot.definitions.iter().map(|definition| definition.name.clone()).collect();
        (counting, shown, snapshot.health.user_meters_in_force)
    }
}

fn names(counting: &[&str], shown: &[&str], in_force: bool) -> (Vec<String>, Vec<String>, bool) {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    (owned(counting), owned(shown), in_force)
}

#[test]
fn meters_of_the_configuration_and_of_run_time_count_from_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = bench(FakeDatapath::default(), directory.path());
    assert_eq!(first.meters(), names(&["web"], &["web"], true));
    assert_eq!(first.add("my dns: \"é\"", "proto 17 dst-port 53"), Ok(()));
    let all = ["web", "my dns: \"é\""];
    assert_eq!(first.meters(), names(&all, &all, true));

    let counted = FlowStats { packets: 7, bytes: 700 };
    let mut datapath = FakeDatapath::default();
    datapath.user_meters.insert(all[1].to_owned(), counted);
    let mut second = bench(datapath, directory.path());
    assert_eq!(second.meters(), names(&all, &all, true));
    let snapshot = second.snapshot();
    assert_eq!(snapshot.user_meters[all[1]].stats, counted);
    let added = Definition {
        name: all[1].to_owned(),
        rules: vec!["proto 17 dst-port 53 fragment-policy header".to_owned()],
        origin: Origin::RunTime,
    };
    assert_eq!(snapshot.definitions[1], added);
    assert_eq!(second.change(Change::Remove(all[1].to_owned())), Ok(()));
    assert_eq!(second.meters(), names(&["web"], &["web"], true));
    assert_eq!(bench(FakeDatapath::default(), directory.path()).meters(), names(&["web"], &["web"], true));
}

#[test]
fn meters_that_are_refused_at_the_start_cost_no_other_and_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = bench(FakeDatapath::default(), directory.path());
    for name in ["a", "b", "c", "dns", "e"] {
        first.add(name, "proto 17").unwrap();
    }
    let mut refuses = FakeDatapath::default();
    refuses.meters_refused = ["b".to_owned(), "dns".to_owned()].into();
    let mut agent = bench(refuses, directory.path());
    let all = ["web", "a", "b", "c", "dns", "e"];
    assert_eq!(agent.meters(), names(&["web", "a", "c", "e"], &all, false));
    // Others may come and go beside them, and so may they with other rules.
    assert_eq!(agent.add("ssh", "proto 6 dst-port 22"), Ok(()));
    assert_eq!(agent.change(Change::Remove("e".to_owned())), Ok(()));
    let all = ["web", "a", "b", "c", "dns", "ssh"];
    assert_eq!(agent.meters(), names(&["web", "a", "c", "ssh"], &all, false));
    let replace = Change::Add { meter: a("b", "proto 6"), replace: true };
    assert_eq!(agent.change(replace.clone()), Err(ChangeError::Refused("refused".to_owned())));
    agent.agent.datapath.meters_refused.remove("b");
    assert_eq!(agent.change(replace), Ok(()));
    assert_eq!(agent.meters(), names(&["web", "a", "b", "c", "ssh"], &all, false));
    // They are tried again, and kept meanwhile.
    agent.netdevs(&[]).send(Event::Tick).settle();
    assert_eq!(agent.meters(), names(&["web", "a", "b", "c", "ssh"], &all, false));
    agent.agent.datapath.meters_refused.clear();
    agent.send(Event::Tick).send(Event::Tick).settle();
    assert_eq!(agent.meters(), names(&all, &all, true));
    assert_eq!(bench(FakeDatapath::default(), directory.path()).meters(), names(&all, &all, true));
}

#[test]
fn what_an_earlier_agent_left_in_force_ends_where_nothing_is_taken_and_all_is_given_again() {
    let directory = tempfile::tempdir().unwrap();
    bench(FakeDatapath::default(), directory.path()).add("dns", "proto 17").unwrap();
    let earlier = set(vec![a("theirs", "proto 1")]);
    let mut refuses = FakeDatapath::default();
    refuses.meters = earlier;
    refuses.meters_errors = [refusal(), refusal()].into();
    let mut agent = bench(refuses, directory.path());
    assert_eq!(agent.meters(), names(&[], &["web", "dns"], false));
    agent.agent.datapath.meters_errors.push_back(refusal());
    agent.netdevs(&[]).send(Event::Tick).settle();
    assert_eq!(agent.meters(), names(&[], &["web", "dns"], false));
    assert_eq!(agent.snapshot().health.user_meter_refusals, 3);
    // After twice the time it is given once more.
    agent.send(Event::Tick).settle();
    assert_eq!(agent.meters(), names(&[], &["web", "dns"], false));
    agent.send(Event::Tick).settle();
    let all = ["web", "dns"];
    assert_eq!(agent.meters(), names(&all, &all, true));
    assert_eq!(agent.snapshot().health.user_meter_refusals, 3);
}

#[test]
fn meters_that_the_datapath_ended_by_itself_are_given_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = bench(FakeDatapath::default(), directory.path());
    agent.netdevs(&[]).settle();
    assert_eq!(agent.meters(), names(&["web"], &["web"], true));
    let datapath = &mut agent.agent.datapath;
    (datapath.meters, datapath.meters_in_force) = (MeterSet::default(), false);
    assert_eq!(agent.meters(), names(&[], &["web"], false));
    agent.send(Event::Tick).settle();
    assert_eq!(agent.meters(), names(&["web"], &["web"], true));
    assert_eq!(agent.snapshot().health.user_meter_refusals, 0);
}

#[test]
fn attaches_that_follow_one_another_are_prepared_for_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = bench(FakeDatapath::default(), directory.path());
    agent.netdevs(&[(2, "tap0"), (3, "tap1"), (4, "tap2")]).settle();
    assert_eq!(agent.agent.datapath.prepared, ["tap0", "tap1", "tap2"]);
}

#[test]
fn configuration_whose_meters_are_refused_is_refused_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = bench(FakeDatapath::default(), directory.path());
    agent.add("dns", "proto 17").unwrap();
    agent.netdevs(&[(2, "tap0")]).settle();
    let derived = agent.snapshot().ports[0].port;
    let configured = |meter: Meter, read_s| {
        let policy = policy(vec![binding("tap0", port(5))]);
        Event::Configured(Box::new(Configured { policy, meters: set(vec![meter]), read_s }))
    };
    agent.agent.datapath.meters_errors.push_back(refusal());
    agent.send(configured(a("mail", "proto 6 dst-port 25"), 9)).settle();
    assert_eq!(agent.meters(), names(&["web", "dns"], &["web", "dns"], true));
    let snapshot = agent.snapshot();
    assert_eq!(snapshot.ports[0].port, derived);
    let Health { config_reload_ok, config_loaded_s, user_meter_refusals, .. } = snapshot.health;
    assert_eq!((config_reload_ok, config_loaded_s, user_meter_refusals), (false, 7, 1));

    agent.send(configured(a("mail", "proto 6 dst-port 25"), 10)).settle();
    assert_eq!(agent.meters(), names(&["mail", "dns"], &["mail", "dns"], true));
    let snapshot = agent.snapshot();
    assert!(snapshot.ports.iter().any(|carried| carried.port == port(5)));
    let Health { config_reload_ok, config_loaded_s, .. } = snapshot.health;
    assert_eq!((config_reload_ok, config_loaded_s), (true, 10));
    // A name of the configuration is the configuration's, and what it hides comes back behind it.
    agent.send(configured(a("dns", "proto 6"), 11)).settle();
    assert_eq!(agent.meters(), names(&["dns"], &["dns"], true));
    assert_eq!(
        agent.change(Change::Remove("dns".to_owned())),
        Err(ChangeError::Configured("dns".to_owned()))
    );
    agent.send(configured(a("mail", "proto 6"), 12)).settle();
    assert_eq!(agent.meters(), names(&["mail", "dns"], &["mail", "dns"], true));
}

#[test]
fn change_that_can_not_be_counted_or_kept_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut agent = bench(FakeDatapath::default(), directory.path());
    agent.add("dns", "proto 17").unwrap();
    let file = directory.path().join("meters.json");
    let kept = std::fs::read(&file).unwrap();

    agent.agent.datapath.meters_errors.push_back(refusal());
    assert_eq!(agent.add("ssh", "proto 6"), Err(ChangeError::Refused("no room".to_owned())));
    assert_eq!(agent.add("web", "proto 6"), Err(ChangeError::Configured("web".to_owned())));
    assert_eq!(agent.meters(), names(&["web", "dns"], &["web", "dns"], true));
    assert_eq!(agent.snapshot().health.user_meter_refusals, 1);
    let here: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!((here, std::fs::read(&file).unwrap()), (vec![file.clone()], kept));

    // It can be written and not put in its place.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    match agent.add("ssh", "proto 6") {
        Err(ChangeError::NotKept(what)) => assert!(what.starts_with("replace "), "{what}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(agent.meters(), names(&["web", "dns"], &["web", "dns"], true));
    directory.close().unwrap();
    match agent.add("ssh", "proto 6") {
        Err(ChangeError::NotKept(what)) => assert!(what.contains("there is no such directory"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(agent.meters(), names(&["web", "dns"], &["web", "dns"], true));
}
