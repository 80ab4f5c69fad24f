//! `meter-agent meter`, against an agent whose datapath is of memory: no root.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use meter_agent::{
    agent::{Agent, Configured, Event},
    binding::Bindings,
    connections::Selection,
    control::{self, Desk},
    datapath::{AttachError, Attachment, Capture, Datapath, Lost, MetersError, ReadError, Reading, Target},
    definitions::state::State,
    http::server::{Limits, serve},
    meter::FlowStats,
    netdev::{
        NamespaceId, NetdevEvent, NetdevId, NetdevTable,
        namespaces::{Entrance, Identity},
    },
    publish::SnapshotReader,
    roles::Rules,
    rules::{Meter, MeterSet, RuleLine},
    survey::Policy,
    totals::Totals,
};
use serde_json::{Value, json};

use crate::web::curl_is_there;

/// A datapath that has counted as many frames of 100 bytes for a meter as its name has bytes, and has room for three.
#[derive(Default)]
struct Memory {
    attached: BTreeMap<NetdevId, Attachment>,
    meters: MeterSet,
}

impl Datapath for Memory {
    fn attached(&self) -> &BTreeMap<NetdevId, Attachment> {
        &self.attached
    }

    fn unpinned(&self) -> Option<&str> {
        None
    }

    fn prepare(&mut self, _: &[Target]) {}
    fn enter(&mut self, _: Identity, _: Entrance) -> Result<NamespaceId, AttachError> {
        Ok(NamespaceId(1))
    }

    fn leave(&mut self, _: NamespaceId) {}

    fn attach(&mut self, _: &Target) -> Result<(), AttachError> {
        Ok(())
    }

    fn exchange(&mut self, _: &[Target]) -> Result<(), AttachError> {
        Ok(())
    }

    fn detach(&mut self, _: NetdevId) -> Result<(), AttachError> {
        Ok(())
    }

    fn verify(&mut self) -> Vec<Lost> {
        Vec::new()
    }

    fn tend(&mut self) {}

    fn set_meters(&mut self, meters: &MeterSet) -> Result<(), MetersError> {
        if meters.meters.len() > 3 {
            return Err(MetersError("there is room for 3 meters; remove one".to_owned()));
        }
        self.meters = meters.clone();
        Ok(())
    }

    fn capture_in_force(&self) -> bool {
        true
    }

    fn meters_in_force(&self) -> bool {
        true
    }

    fn set_capture(&mut self, _: &Capture) -> Result<(), MetersError> {
        Ok(())
    }

    fn totals(&mut self) -> Result<Totals, ReadError> {
        Ok(Totals::default())
    }

    fn read(&mut self) -> Result<Reading, ReadError> {
        let counted = |meter: &Meter| {
            let packets = u64::try_from(meter.name.len()).unwrap();
            (meter.name.clone(), FlowStats { packets, bytes: 100 * packets }.into())
        };
        Ok(Reading { user_meters: self.meters.meters.iter().map(counted).collect(), ..Reading::default() })
    }
}

/// An agent on a directory: its socket, its state, and the configuration that commands read.
struct Host {
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    events: mpsc::Sender<Event>,
}

impl Host {
    fn start(directory: tempfile::TempDir) -> Self {
        let path = directory.path();
        let config = format!(
            "host_id = '123e4567-e89b-12d3-a456-426614174000'\n[control]\nsocket = '{0}/sock'\n\
             [state]\ndirectory = '{0}/state'\n[[meter]]\nname = 'web'\nrules = ['proto 6 dst-port 80']\n",
            path.display()
        );
        std::fs::write(path.join("meter-agent.toml"), config).unwrap();
        let web = RuleLine::parse("proto 6 dst-port 80").unwrap().condition;
        let meters = vec![Meter { name: "web".to_owned(), rules: vec![web] }];
        let bindings = Bindings { configured: Vec::new(), host_id: uuid::Uuid::from_u128(7) };
        let configured = Configured {
            policy: Policy { bindings, rules: Rules::default(), connections: Selection::default() },
            meters: MeterSet { meters, ..MeterSet::default() },
            read_s: 0,
        };
        let latest = Arc::default();
        let added = State::open(&path.join("state"));
        let agent =
            Agent::new(Memory::default(), configured, added, "host".to_owned(), false, Arc::clone(&latest));
        let (events, channel) = mpsc::channel();
        thread::spawn(move || agent.run(&channel));
        events.send(Event::Netdev(NetdevEvent::All(NetdevTable::default()))).unwrap();
        let reader = SnapshotReader::new(latest, {
            let events = events.clone();
            move |wish| drop(events.send(Event::Refresh(wish)))
        });
        let change = {
            let events = events.clone();
            move |change, answer| drop(events.send(Event::Change(change, answer)))
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(async { control::bind(&path.join("sock")) }).unwrap();
        let desk = Desk::new(reader, tokio::sync::mpsc::channel(1).0, change);
        runtime.spawn(serve(listener, Limits::default(), move |request| {
            let desk = desk.clone();
            async move { control::answer(&desk, request).await }
        }));
        Self { directory, runtime, events }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Ends the agent as the daemon ends.
    fn stop(self) -> tempfile::TempDir {
        self.events.send(Event::Shutdown).unwrap();
        let Self { directory, runtime, .. } = self;
        runtime.shutdown_timeout(Duration::from_secs(5));
        std::fs::remove_file(directory.path().join("sock")).unwrap();
        directory
    }

    /// Ends the agent and starts another, on the same directory.
    fn restart(self) -> Self {
        Self::start(self.stop())
    }

    /// Runs `meter-agent meter`; returns what it leaves: standard output, standard error, exit code.
    fn meter(&self, arguments: &[&str]) -> (String, String, Option<i32>) {
        meter(self.path(), arguments)
    }
}

fn meter(directory: &Path, arguments: &[&str]) -> (String, String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meter-agent"));
    let config = directory.join("meter-agent.toml");
    let output = command.arg("meter").arg("--config").arg(config).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

fn done() -> (String, String, Option<i32>) {
    (String::new(), String::new(), Some(0))
}

fn refused(what: &str, code: i32) -> (String, String, Option<i32>) {
    (String::new(), format!("meter-agent: {what}\n"), Some(code))
}

/// A directory that an agent keeps its meters in.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    directory
}

const NAME: &str = "my \"dns\": é/ü %2F?#";

#[test]
fn meter_is_added_listed_explained_kept_and_removed() {
    let host = Host::start(directory());
    let rules =
        ["proto 17 dst-port 53 pos 1 type accept", "{proto = 6, dst_port = 53, src = \"!10.0.0.0/8\"}"];
    assert_eq!(host.meter(&["add", NAME, rules[0], rules[1]]), done());
    let host = host.restart();
    let table = format!(
        "web: configuration, 3 packets, 300 bytes\n  proto 6 dst-port 80 fragment-policy header\n\
         {NAME}: run time, 21 packets, 2100 bytes\n  proto 17 dst-port 53 fragment-policy header\n  \
         src !10.0.0.0/8 proto 6 dst-port 53 fragment-policy header\n"
    );
    assert_eq!(host.meter(&["list"]), (table, String::new(), Some(0)));
    let (list, said, code) = host.meter(&["list", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let expected = json!([
        {"name": "web", "origin": "configuration", "rules": ["proto 6 dst-port 80 fragment-policy header"],
         "packets": 3, "bytes": 300},
        {"name": NAME, "origin": "run-time", "rules": ["proto 17 dst-port 53 fragment-policy header",
         "src !10.0.0.0/8 proto 6 dst-port 53 fragment-policy header"], "packets": 21, "bytes": 2100},
    ]);
    assert_eq!((list, said, code), (expected, String::new(), Some(0)));
    let (explained, said, code) = host.meter(&["explain", "proto", "17", "dst-port", "53"]);
    assert!(explained.contains(&format!("{NAME}: counted\n")), "{explained}");
    assert_eq!((said, code), (String::new(), Some(0)));
    assert_eq!(host.meter(&["add", "--replace", NAME, "proto", "17"]), done());
    let (table, ..) = host.meter(&["list"]);
    assert!(table.ends_with(" 2100 bytes\n  proto 17 fragment-policy any\n"), "{table}");
    assert_eq!(host.meter(&["remove", NAME]), done());
    let host = host.restart();
    let (table, ..) = host.meter(&["list"]);
    assert_eq!(table.lines().count(), 2, "{table}");
}

#[test]
fn what_can_not_be_is_refused_with_what_is_allowed_and_nothing_changes() {
    let host = Host::start(directory());
    assert_eq!(host.meter(&["add", "b", "proto", "6"]), done());
    let before = host.meter(&["list"]);
    let many = format!("src 10.0.0.0/33 dst-port {}", "9-8");
    for (arguments, code, what) in [
        (
            &["add", "web", "proto", "6"][..],
            1,
            "meter \"web\" is in the configuration file; change it there, and reload the agent",
        ),
        (
            &["remove", "web"],
            1,
            "meter \"web\" is in the configuration file; change it there, and reload the agent",
        ),
        (
            &["add", "b", "proto", "6"],
            1,
            "meter \"b\" is there already; --replace gives it other rules and keeps its totals",
        ),
        (&["remove", "c"], 1, "no meter \"c\" was added at run time; meter-agent meter list says which were"),
        (
            &["add", "c", "proto 6 port-group nobody"],
            2,
            "rule 1: port-group: the configuration has no group with the name \"nobody\"",
        ),
        (
            &["add", "c", "proto 6", &many],
            2,
            "rule 2: column 5: src: \"10.0.0.0/33\" has no possible prefix length, expected /0 to /32\n\
             meter-agent: rule 2: column 26: dst-port: \"9-8\" is upside down; expected 8-9",
        ),
        (&["add", "c", "{proto = 256}"], 2, "rule 1: column 2: proto: \"256\" is out of range (0 to 255)"),
        (&["add", "", "proto", "6"], 2, "name: \"\" has 0 bytes, expected 1 to 255"),
        (
            &["add", "c", "proto 6 meter d"],
            2,
            "rule 1: column 1: meter: is \"d\", but this is a rule of \"c\"",
        ),
    ] {
        assert_eq!(host.meter(arguments), refused(what, code), "{arguments:?}");
    }
    assert_eq!(host.meter(&["list"]), before);
    assert_eq!(host.meter(&["add", "c", "proto", "6"]), done());
    let full = "the datapath refuses these meters: there is room for 3 meters; remove one";
    assert_eq!(host.meter(&["add", "d", "proto", "6"]), refused(full, 1));
    let (_, said, code) = host.meter(&["add", "c"]);
    assert!(said.contains("<RULE>...") && code == Some(2), "{said}");
}

#[test]
fn meter_that_can_not_be_kept_is_not_added() {
    let host = Host::start(tempfile::tempdir().unwrap());
    let state = host.path().join("state");
    let what = format!(
        "can't be kept across restarts, and the meters stay as they were: state.directory {}: there is no such directory; \
         make it for the agent's user, or set state.directory",
        state.display()
    );
    assert_eq!(host.meter(&["add", "b", "proto", "6"]), refused(&what, 1));
    assert_eq!(host.meter(&["list"]).0.lines().count(), 2);
    std::fs::create_dir(&state).unwrap();
    assert_eq!(host.meter(&["add", "b", "proto", "6"]), done());
}

#[test]
fn meters_need_an_agent_that_runs() {
    let directory = Host::start(directory()).stop();
    let what = format!("no agent runs with the socket {}/sock", directory.path().display());
    for arguments in [&["list"][..], &["remove", "b"], &["add", "b", "proto", "6"]] {
        assert_eq!(meter(directory.path(), arguments), refused(&what, 1), "{arguments:?}");
    }
    let (_, said, code) = meter(directory.path(), &["explain", "proto", "6"]);
    assert_eq!((said.as_str(), code), ("", Some(0)));
}

#[test]
fn socket_says_what_a_request_should_have_been() {
    if !curl_is_there() {
        return;
    }
    let host = Host::start(directory());
    for (arguments, expected) in [
        (
            &["-X", "POST", "http://a/meters"][..],
            "only GET /meters, PUT /meters/NAME and DELETE /meters/NAME\n405",
        ),
        (&["http://a/meters/b"], "only GET /meters, PUT /meters/NAME and DELETE /meters/NAME\n405"),
        (
            &["http://a/metersb"],
            "not found; there are /netdevs, /audit, /connections, /meters and /agent\n404",
        ),
        (
            &["-X", "PUT", "http://a/meters/%FF", "-d", "{}"],
            "the name is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0\n400",
        ),
        (
            &["-X", "PUT", "http://a/meters/b", "-d", "{\"rules\": 1}"],
            "the body: invalid type: integer `1`, expected a sequence at line 1 column 11\n400",
        ),
        (
            &["-X", "PUT", "http://a/meters/b", "-d", "{\"rules\": []}"],
            "rules: has no rules; say what it counts\n400",
        ),
        (
            &["-X", "PUT", "http://a/meters/web", "-d", "{\"rules\": [\"proto 6\"]}"],
            "meter \"web\" is in the configuration file; change it there, and reload the agent\n409",
        ),
        (
            &["-X", "DELETE", "http://a/meters/a%20b"],
            "no meter \"a b\" was added at run time; meter-agent meter list says which were\n404",
        ),
        (&["-X", "PUT", "http://a/meters/a%20b", "-d", "{\"rules\": [\"proto 6\"]}"], "204"),
        (&["-X", "DELETE", "http://a/meters/a%20b"], "204"),
    ] {
        let output = Command::new("curl")
            .args(["-s", "-w", "%{http_code}", "--unix-socket"])
            .arg(host.path().join("sock"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{arguments:?}");
    }
}
