//! The protocol over HTTP: recorded exchanges, replayed, and the bounds.

use serde_json::{Value, json};

use crate::served::{DEVICE, Served, device, snapshot};

const EXCHANGES: &str = include_str!("../fixtures/jolokia/exchanges.txt");

struct Exchange<'a> {
    title: &'a str,
    method: &'a str,
    path: &'a str,
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
        let body = lines.next().map_or("", |line| line.strip_prefix("body:").unwrap().trim_start());
        Exchange { title, method, path, body, status, answer: answer.trim() }
    })
}

/// Reads an answer, without what differs from call to call: the time, and the order that MidoNet's list doesn't have.
fn comparable(answer: &str) -> Value {
    let mut answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    if let Some(object) = answer.as_object_mut() {
        object.remove("timestamp");
    }
    if let Some(value) = answer.get_mut("value") {
        sort(value);
    }
    answer
}

fn sort(value: &mut Value) {
    match value {
        Value::Array(items) => items.sort_by_key(ToString::to_string),
        Value::Object(items) => items.values_mut().for_each(sort),
        _ => {}
    }
}

#[test]
fn recorded_exchanges_are_answered_as_recorded() {
    let served = Served::start(snapshot());
    let mut replayed = 0;
    for Exchange { title, method, path, body, status, answer } in exchanges() {
        let (got_status, got) = served.exchange(method, path, body);
        assert_eq!(got_status, 200, "{title}");
        let got = comparable(&got);
        if status == "400" {
            // Said with status 400 in the body, so that a bulk is not lost for one of its requests.
            assert_eq!(got["status"], 400, "{title}: {got}");
            assert_eq!(got["error_type"], "java.lang.IllegalArgumentException", "{title}");
            let error = got["error"].as_str().unwrap();
            assert!(error.starts_with(answer), "{title}: {error}\n instead of {answer}");
        } else {
            assert_eq!(got, comparable(answer), "{title}");
        }
        replayed += 1;
    }
    assert_eq!(replayed, 59);
}

#[test]
fn version_says_what_the_agent_is() {
    let served = Served::start(snapshot());
    let expected = json!({
        "request": {"type": "version"},
        "value": {
            "agent": "0.1.0",
            "protocol": "7.2",
            "id": "host-1",
            "details": {
                "agent_id": "host-1", "agent_version": "0.1.0", "server_product": "meter-agent", "secured": false
            },
            "config": {},
            "info": {},
        },
        "status": 200,
    });
    for path in ["/jolokia", "/jolokia/", "/jolokia//version", "/jolokia/version/", "/jolokia?p=version"] {
        let (status, answer) = served.exchange("GET", path, "");
        assert_eq!((status, comparable(&answer)), (200, expected.clone()), "{path}");
    }
    let (status, answer) =
        served.exchange("POST", "/jolokia", r#"{"type":"version","config":{},"mbean":null}"#);
    assert_eq!((status, comparable(&answer)), (200, expected));
    assert_eq!(served.asked(), 0, "the version costs no reading of the maps");
}

#[test]
fn requests_of_a_bulk_see_one_snapshot_and_fail_alone() {
    let served = Served::sequence(vec![device(1, 64), device(2, 128)]);
    let get = json!({"type": "exec", "mbean": "org.midonet.midolman:type=Metering", "operation": "getMeter",
        "arguments": [DEVICE]});
    let mut bulk = vec![get; 1000];
    bulk[500] = json!({"foo": 1});
    bulk[501] = json!(7);
    let (status, answer) = served.exchange("POST", "/jolokia/", &Value::from(bulk).to_string());
    assert_eq!((status, served.asked()), (200, 1));
    let answers: Vec<Value> = serde_json::from_str(&answer).unwrap();
    assert_eq!(answers.len(), 1000);
    for (index, answer) in answers.iter().enumerate() {
        match index {
            500 => assert_eq!(answer["error"], "No type given"),
            501 => assert_eq!(answer["error"], "Invalid JSON Request. Expected Object"),
            _ => assert_eq!(answer["value"], json!({"bytes": 64, "packets": 1})),
        }
    }
}

#[test]
fn hostile_bodies_get_an_error_and_the_next_request_an_answer() {
    let served = Served::start(snapshot());
    for (body, error) in [
        ("[".repeat(100_000), "Invalid JSON request: recursion limit exceeded"),
        ("\u{0}".to_owned(), "Invalid JSON request: expected value"),
        (
            format!("[{}7]", "7,".repeat(10_000)),
            "10001 requests in one bulk: at most 10000 are answered; split it",
        ),
    ] {
        let (status, answer) = served.exchange("POST", "/jolokia/", &body);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["status"]), (200, &json!(400)));
        assert!(answer["error"].as_str().unwrap().starts_with(error), "{answer}");
    }
    assert_eq!(served.exchange("POST", "/jolokia/", &" ".repeat(2 * 1024 * 1024)).0, 413);
    assert_eq!(served.exchange("GET", "/jolokia/version", "").0, 200);
}

#[test]
fn what_is_not_there_says_where_to_look() {
    let served = Served::start(snapshot());
    let elsewhere = "nothing here: the Jolokia protocol is served below /jolokia/, try /jolokia/version\n";
    for path in ["/", "/jolokiax", "/metrics"] {
        assert_eq!(served.exchange("GET", path, ""), (404, elsewhere.to_owned()), "{path}");
    }
    let (status, line) = served.exchange("PUT", "/jolokia/", "{}");
    assert_eq!((status, line.as_str()), (405, "HTTP method PUT is not supported: GET or POST\n"));
    for kind in ["list", "write", "notification", "config"] {
        let (status, answer) = served.exchange("GET", &format!("/jolokia/{kind}"), "");
        let error =
            format!("{kind} requests are not answered by this agent: read, exec, search and version are");
        let expected = json!({"request": {"type": kind}, "error_type": "java.lang.UnsupportedOperationException",
            ".error": true, "error": error, "status": 500});
        assert_eq!((status, comparable(&answer)), (200, expected));
    }
}
