//! The protocol over HTTP: what the agent says of itself, bulks, and the bounds.

mod clients;
mod replay;

use serde_json::{Value, json};

use crate::served::{DEVICE, Served, device, snapshot};

/// Reads an answer, without the time.
fn comparable(answer: &str) -> Value {
    let mut answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    if let Some(object) = answer.as_object_mut() {
        object.remove("timestamp");
    }
    answer
}

#[test]
fn version_says_what_the_agent_is() {
    let served = Served::start(snapshot());
    let expected = json!({
        "request": {"type": "version"},
        "value": {
            "agent": "0.1.0",
            "protocol": "8.2",
            "decorators": {},
            "id": "host-1-42",
            "details": {
                "agent_id": "host-1-42", "agent_version": "0.1.0", "server_product": "meter-agent", "secured": false
            },
            "config": {},
            "info": {"jmx": {}},
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
    assert_eq!((status, line.as_str()), (405, "HTTP Method PUT is not supported: use GET or POST.\n"));
}

#[test]
fn requests_as_telegraf_and_metricbeat_write_them_get_the_echo_that_they_match_answers_by() {
    let served = Served::start(snapshot());
    let mbean = "org.midonet.midolman:type=Metering";
    let timer = "metrics:name=meter-agent.JolokiaTimer.requests";
    let statuses_and_echoes = |path: &str, body: Value| -> Vec<(u64, Value)> {
        let (status, answer) = served.exchange("POST", path, &body.to_string());
        assert_eq!(status, 200);
        let answers: Vec<Value> = serde_json::from_str(&answer).unwrap();
        let matched = |answer: &Value| {
            let mut echo = answer["request"].clone();
            echo.as_object_mut().unwrap().remove("type");
            (answer["status"].as_u64().unwrap(), echo)
        };
        answers.iter().map(matched).collect()
    };
    // Telegraf posts below the base, and skips what has status 404 without a word.
    let asked = [
        json!({"mbean": mbean, "attribute": "ConsolidatedMeters", "path": "meters"}),
        json!({"mbean": mbean, "attribute": ["Meters", "ConsolidatedMeters"]}),
        json!({"mbean": "metrics:name=meter-agent.*", "attribute": "Count"}),
        json!({"mbean": "no.such:type=X", "attribute": "Y"}),
    ];
    let with_type = |one: &Value, config: Option<Value>| {
        let mut one = one.clone();
        one["type"] = json!("read");
        if let Some(config) = config {
            one["config"] = config;
        }
        one
    };
    let bulk: Vec<Value> = asked.iter().map(|one| with_type(one, None)).collect();
    let expected: Vec<(u64, Value)> = [200, 200, 200, 404].into_iter().zip(asked).collect();
    assert_eq!(statuses_and_echoes("/jolokia/read", bulk.into()), expected);
    // Metricbeat drops an answer whose attribute is null.
    let asked = json!({"mbean": timer, "attribute": ["Count", "OneMinuteRate", "Nope"]});
    let config = json!({"ignoreErrors": true, "canonicalNaming": true});
    let bulk = json!([with_type(&asked, Some(config))]);
    assert_eq!(statuses_and_echoes("/jolokia/", bulk), [(200, asked)]);
    let path = "/jolokia/read/metrics:name=meter-agent!.JolokiaTimer!.requests/Count,OneMinuteRate";
    let (status, answer) =
        served.exchange("GET", &format!("{path}?ignoreErrors=true&canonicalNaming=false"), "");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["status"]), (200, &json!(200)));
    assert_eq!(
        answer["request"],
        json!({"type": "read", "mbean": timer, "attribute": ["Count", "OneMinuteRate"]})
    );
}

#[test]
fn answer_comes_in_the_form_that_is_asked_for() {
    let served = Served::start(snapshot());
    for (query, content_type, before, after) in [
        ("", "application/json; charset=utf-8", "", ""),
        ("?mimeType=application/json", "application/json; charset=utf-8", "", ""),
        ("?mimeType=text/plain", "text/plain; charset=utf-8", "", ""),
        ("?callback=a.b", "text/javascript; charset=utf-8", "a.b(", ");"),
    ] {
        let (head, body) = served.whole("GET", &format!("/jolokia/version{query}"), &[], "");
        assert!(head.contains(&format!("content-type: {content_type}\r\n")), "{query}: {head}");
        let json = body.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)).unwrap();
        assert_eq!(serde_json::from_str::<Value>(json).unwrap()["status"], 200, "{query}");
    }
}
