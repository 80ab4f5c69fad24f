//! Every exchange that was recorded with the Java agent, replayed: the bodies compared as whole JSON.

use std::collections::BTreeSet;

use meter_agent::{
    jmx::facts::Registry,
    meter::{FlowStats, MeterKey},
};
use serde_json::{Value, json};

use crate::served::Served;

const EXCHANGES: &str = include_str!("../../fixtures/jolokia/exchanges.txt");

const BEAN_OF_A_JVM: &str = "asks for a bean that only a Java virtual machine has";
const VALUE_OF_A_JVM: &str = "the value is a fact about the recorded Java process";
const NOTHING_IS_WRITTEN: &str = "no attribute can be written here, the recorded one can";
const CUT_OFF: &str = "the recording ends in the middle of the answer; its parts are in other exchanges";
const INTO_A_SECTION: &str = "a path into a section is followed, as by Jolokia 1";
const PATH_AS_ARRAY: &str =
    "a path may be an array; the recorded agent fails on it with a ClassCastException";
const OTHER_METHOD: &str = "not of the protocol: HTTP's own status 405, in HTTP's own words";

/// Exchanges whose answer differs, and why that is right. Each does differ: one that no longer does fails the test.
const DIFFERENT: &[(&str, &str)] = &[
    ("search POST canonicalNaming=false", BEAN_OF_A_JVM),
    ("list overloaded op (Threading)", BEAN_OF_A_JVM),
    ("exec overloaded without signature", BEAN_OF_A_JVM),
    ("exec overloaded with signature", BEAN_OF_A_JVM),
    ("GET search space", BEAN_OF_A_JVM),
    ("search canonicalNaming false", BEAN_OF_A_JVM),
    ("search canonicalNaming true", BEAN_OF_A_JVM),
    ("read pattern canonicalNaming false", BEAN_OF_A_JVM),
    ("read name prop order kept in request echo", BEAN_OF_A_JVM),
    ("list noncanonical path", BEAN_OF_A_JVM),
    ("list canonical path", BEAN_OF_A_JVM),
    ("read double attr", BEAN_OF_A_JVM),
    ("read long attr", VALUE_OF_A_JVM),
    ("read string array", VALUE_OF_A_JVM),
    (
        "list op void noargs",
        "the Memory bean here has a class of its own, no notifications, and nothing to write",
    ),
    ("write ok (java.lang Memory Verbose)", NOTHING_IS_WRITTEN),
    ("write wrong type", NOTHING_IS_WRITTEN),
    ("POST write null", NOTHING_IS_WRITTEN),
    ("read POST attr null", CUT_OFF),
    ("POST attr empty array", CUT_OFF),
    ("GET read attr '*'", CUT_OFF),
    (
        "read ignoreErrors missing attr",
        "an array's text has its address in the Java process, here its elements",
    ),
    ("list bean attr one GET", INTO_A_SECTION),
    ("list bean op one", INTO_A_SECTION),
    ("list missing attr", INTO_A_SECTION),
    ("POST path array", PATH_AS_ARRAY),
    ("list POST path array", PATH_AS_ARRAY),
    ("POST exec args not array", "said in words about the request, not about classes and their loaders"),
    ("bulk with bad entry", "one bad request costs its own answer, the recorded agent fails the whole bulk"),
    ("proxy target", "this agent answers for itself only"),
    ("notification register", "no bean sends notifications; answered as by Jolokia 1"),
    ("HEAD version", "answered as GET is, without a body"),
    ("OPTIONS preflight", OTHER_METHOD),
    ("OPTIONS plain", OTHER_METHOD),
    ("PUT", OTHER_METHOD),
    ("GET root", "not of the protocol: a page of its own"),
];

struct Exchange<'a> {
    title: &'a str,
    method: &'a str,
    path: &'a str,
    headers: Vec<&'a str>,
    body: &'a str,
    status: &'a str,
    answer: &'a str,
}

fn exchanges() -> impl Iterator<Item = Exchange<'static>> {
    EXCHANGES.split("### ").skip(1).map(|block| {
        let (request, answer) = block.split_once("\n=> ").unwrap();
        let (status, answer) = answer.split_once('\n').unwrap();
        let mut lines = request.lines();
        let title = lines.next().unwrap();
        let (method, path) = lines.next().unwrap().split_once(' ').unwrap();
        let rest: Vec<&str> = lines.collect();
        let headers = rest.iter().filter_map(|line| line.strip_prefix("header: ")).collect();
        let body = rest.iter().find_map(|line| line.strip_prefix("body:")).unwrap_or_default().trim_start();
        Exchange { title, method, path, headers, body, status, answer: answer.trim() }
    })
}

/// Returns the registries that the recorded agent had.
fn registries() -> Vec<Registry> {
    let registry = |meters: &[(&str, u64, u64)]| -> Registry {
        let stats = |&(name, packets, bytes): &(&str, u64, u64)| {
            (name.parse::<MeterKey>().unwrap(), FlowStats { packets, bytes })
        };
        meters.iter().map(stats).collect()
    };
    vec![
        registry(&[
            ("meters:device:7d1a2b3c-0000-4000-8000-000000000001", 10, 1000),
            ("meters:user:alice", 20, 2000),
        ]),
        registry(&[
            ("meters:user:alice", 30, 3000),
            ("meters:tunnel:167772169:167772170", 9_007_199_254_740_993, u64::MAX / 2),
        ]),
    ]
}

/// Reads an answer without what is honestly different: the time, what the agent is, the domains that a list of all has
/// beside MidoNet's, and the class of the recorded bean, which stood in for MidoNet's.
fn comparable(answer: &str) -> Value {
    let json = answer.strip_prefix("cb(").and_then(|rest| rest.strip_suffix(");")).unwrap_or(answer);
    // A page of text is one as well, and compared as that.
    let mut answer: Value = serde_json::from_str(json).unwrap_or_else(|_| json!(answer));
    match &mut answer {
        Value::Array(answers) => answers.iter_mut().for_each(normalise),
        one => normalise(one),
    }
    answer
}

fn normalise(answer: &mut Value) {
    let Some(object) = answer.as_object_mut() else { return };
    object.remove("timestamp");
    let request = object.get("request").cloned().unwrap_or_default();
    let Some(value) = object.get_mut("value") else { return };
    match request["type"].as_str() {
        Some("version") => replace(value, &["agent", "id", "details", "config", "info"]),
        Some("config") => replace(value, &["agent", "id"]),
        Some("list") => {
            rename_class(value);
            if let (Some(domains), None) = (value.as_object_mut(), request.get("path")) {
                domains.retain(|domain, _| domain == "org.midonet.midolman");
            }
        }
        _ => {}
    }
}

/// Takes out what is there under these names.
fn replace(value: &mut Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "{name}: {value}");
        value[name] = json!("...");
    }
}

fn rename_class(value: &mut Value) {
    const MIDONETS: &str = "org.midonet.midolman.management.Metering$";
    match value {
        Value::String(text) if text == MIDONETS => *value = json!("Metering"),
        Value::Object(items) => items.values_mut().for_each(rename_class),
        _ => {}
    }
}

/// Returns whether an answer refuses a request as the recorded agent does, which says by HTTP status 400 in a page what
/// is a JSON object here. What follows a colon says more.
fn is_refusal(answer: &Value, words: &str) -> bool {
    let error = answer["error"].as_str().unwrap_or_default();
    let expected = json!({"error_type": "java.lang.IllegalArgumentException", ".error": true, "error": error,
        "status": 400});
    let mut answer = answer.clone();
    answer.as_object_mut().map(|object| object.remove("request"));
    answer == expected && (error == words || error.starts_with(&format!("{words}: ")))
}

#[test]
fn recorded_exchanges_are_answered_as_recorded() {
    let served = Served::recorded(registries());
    let mut different: BTreeSet<&str> = DIFFERENT.iter().map(|(title, _)| *title).collect();
    let mut wrong = Vec::new();
    let mut replayed = 0;
    for Exchange { title, method, path, headers, body, status, answer } in exchanges() {
        replayed += 1;
        let (got_status, got) = served.exchange_with(method, path, &headers, body);
        let answered = comparable(&got);
        let is_same = got_status == 200
            && if status == "400" { is_refusal(&answered, answer) } else { answered == comparable(answer) };
        if is_same == different.remove(title) {
            wrong.push(format!(
                "{title}: HTTP {got_status}\n  {got}\n  recorded: HTTP {status}\n  {answer}\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {replayed}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(different.is_empty(), "not recorded: {different:?}");
    assert_eq!(replayed, 183);
}
