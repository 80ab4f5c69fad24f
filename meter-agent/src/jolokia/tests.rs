use serde_json::{Value as Json, json};

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::{Just, Strategy as _, any, prop, prop_assert, prop_oneof, proptest};

use super::{Agent, answer_from, request};
use crate::{
    http::Request,
    jmx::{BeanServer, Identity, facts::Facts},
    meter::{DeviceId, FlowStats},
    snapshot::Snapshot,
};

const READ: &str = "/read/org.midonet.midolman:type=Metering";

fn server() -> BeanServer {
    let identity = Identity { host: "host-1".to_owned(), pid: 42, version: "0.1.0".to_owned() };
    BeanServer::new(identity, Duration::from_secs(5))
}

/// Returns the answers to paths, over one device with 1 packet of `u64::MAX` bytes.
fn answers(paths: &[(&str, &str)], max: usize) -> Vec<Json> {
    let stats = FlowStats { packets: 1, bytes: u64::MAX };
    let devices = BTreeMap::from([(DeviceId(uuid::Uuid::nil()), stats)]);
    let snapshot = Snapshot { devices, ..Snapshot::default() };
    let (server, facts) = (server(), Facts::new(Arc::new(snapshot), Duration::from_secs(7)));
    let all: Vec<_> = paths.iter().map(|&(path, query)| request::from_path(path, Some(query))).collect();
    let agent = Agent { server: &server, facts: &facts };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    serde_json::from_str(&runtime.block_on(agent.bulk(&all, max))).unwrap()
}

fn value(path: &str, query: &str) -> Json {
    answers(&[(path, query)], usize::MAX).remove(0)["value"].take()
}

#[test]
fn registry_has_index_0_and_the_sum_of_registries_index_minus_1() {
    let meters =
        json!({"meters:device:00000000-0000-0000-0000-000000000000": {"bytes": i64::MAX, "packets": 1}});
    let consolidated = json!({"index": -1, "meters": meters});
    let all = json!({"Meters": [{"index": 0, "meters": meters}], "ConsolidatedMeters": consolidated});
    assert_eq!(value(READ, ""), all);
    assert_eq!(value(&format!("{READ}/*"), ""), all);
    assert_eq!(value(&format!("{READ}/ConsolidatedMeters,Meters,Meters"), ""), all);
    assert_eq!(value(&format!("{READ}/ConsolidatedMeters"), ""), consolidated);
    assert_eq!(
        value("/read/*:type=M*/ConsolidatedMeters", ""),
        json!({"org.midonet.midolman:type=Metering": {"ConsolidatedMeters": consolidated}})
    );
    assert_eq!(value(&format!("{READ}/Meters/*/index"), ""), json!([0]));
    assert_eq!(
        value(&format!("{READ}/Meters/0/meters/*/bytes"), "serializeLong=string"),
        json!({"meters:device:00000000-0000-0000-0000-000000000000": "9223372036854775807"})
    );
}

#[test]
fn attribute_that_is_missing_fails_the_request_or_stands_as_a_text() {
    let path = format!("{READ}/Meters,Nope/Nope");
    let error = r#"{"error_type":"javax.management.AttributeNotFoundException",".error":true,"error_type_jmx":"javax.management.AttributeNotFoundException","error":"No such attribute: Nope"}"#;
    assert_eq!(value(&path, "ignoreErrors=true"), json!(error));
    let failed = answers(&[(&path, "includeRequest=false")], usize::MAX).remove(0);
    let mut expected: Json = serde_json::from_str(error).unwrap();
    expected["status"] = 404.into();
    assert_eq!(failed, expected);
}

#[test]
fn search_finds_what_matches() {
    let names = json!(["org.midonet.midolman:type=Metering"]);
    for (pattern, found) in [
        ("*:type=Metering", &names),
        ("org.midonet.*:type=M*", &names),
        ("no.such:*", &json!([])),
        ("*:type=Metering,a=b", &json!([])),
    ] {
        assert_eq!(value(&format!("/search/{pattern}"), ""), *found, "{pattern}");
    }
}

#[test]
fn what_makes_an_answer_too_long_is_left_out_with_an_error() {
    let answers = answers(&[(READ, ""), ("/version", ""), (READ, ""), ("/version", "")], 900);
    let statuses: Vec<_> = answers.iter().map(|answer| answer["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 200, 500, 500], "{answers:?}");
    assert_eq!(answers[2]["error"], "the answer to this bulk is longer than 900 bytes; split it");
    assert_eq!(answers[2]["request"]["mbean"], "org.midonet.midolman:type=Metering");
}

#[test]
fn list_is_unmodified_for_whoever_saw_it_since_the_start() {
    let answer = |query: &str| answers(&[("/list", query)], usize::MAX).remove(0);
    assert_eq!(
        answer("ifModifiedSince=5"),
        json!({"request": {"type": "list"}, "status": 304, "timestamp": 7})
    );
    assert_eq!(answer("ifModifiedSince=4")["status"], 200);
    let late = answer("ifModifiedSince=4102444800");
    assert_eq!((&late["status"], &late["error"]), (&json!(500), &json!("For input string: \"4102444800\"")));
}

#[test]
fn list_has_every_domain_and_follows_a_path_to_its_end() {
    assert_eq!(
        value("/list", "maxDepth=1"),
        json!({"org.midonet.midolman": "1", "java.lang": "1", "metrics": "1"})
    );
    assert_eq!(value("/list/java.lang", "maxDepth=2"), json!({"type=Runtime": 1, "type=Memory": 1}));
    assert_eq!(
        value("/list/java.lang/type=Memory/op", ""),
        json!({"gc": {"args": [], "ret": "void", "desc": "gc"}})
    );
    assert_eq!(value("/list/java.lang/type=Memory/op/gc/ret", ""), json!("void"));
    assert_eq!(value("/list/java.lang/type=Memory/attr/Verbose/is", ""), json!(true));
    assert_eq!(value("/list/org.midonet.midolman/type=Metering/op/getMeter/args/0/name", ""), json!("p0"));
    assert_eq!(value("/list/java.lang/type=Runtime/op", ""), json!({}));
    assert_eq!(
        value("/list/java.*/type=Mem*/class", ""),
        json!({"java.lang": {"type=Memory": {"class": "meter-agent"}}})
    );
    for (path, status, error) in [
        ("/list/java.lang/type=Memory/op/nope", 400, "Path given but extracted value is empty"),
        ("/list/java.lang/type=Memory/class/x", 400, "Path given but extracted value is empty"),
        ("/list/java.lang/type=Memory/nope", 400, "Illegal path element for updater selection: nope"),
        ("/list/java.lang/keys", 400, "Unterminated key property part"),
    ] {
        let answer = answers(&[(path, "")], usize::MAX).remove(0);
        assert_eq!((&answer["status"], &answer["error"]), (&json!(status), &json!(error)), "{path}");
    }
}

#[test]
fn request_for_a_target_is_refused_rather_than_answered_by_another_agent() {
    let body = json!({"type": "version", "target": {"url": "service:jmx:rmi:///jndi/rmi://other/jmxrmi"}});
    let answer: Json = serde_json::from_str(&answer("POST", "/jolokia", None, &body.to_string())).unwrap();
    assert_eq!(answer["error_type"], "java.lang.UnsupportedOperationException");
}

#[test]
fn errors_have_a_stack_trace_and_an_exception_where_asked() {
    let answer = |query: &str| answers(&[("/read/no.such:type=X/Y", query)], usize::MAX).remove(0);
    assert_eq!(answer("includeStackTrace=true")["stacktrace"], "");
    assert_eq!(answer("includeStackTrace=runtime")["stacktrace"], Json::Null);
    assert_eq!(
        answer("serializeException=true")["error_value"],
        json!({"message": "no.such:type=X", "localizedMessage": "no.such:type=X", "cause": null, "suppressed": []})
    );
}

/// Returns the body of the answer to an HTTP request, over no meters.
fn answer(method: &str, path: &str, query: Option<&str>, body: &str) -> String {
    let request = Request {
        method: method.parse().unwrap(),
        path: path.to_owned(),
        query: query.map(ToOwned::to_owned),
        headers: <_>::default(),
        body: body.as_bytes().to_vec().into(),
    };
    let facts = Facts::new(Arc::new(Snapshot::default()), Duration::from_secs(7));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let response = runtime.block_on(answer_from(&server(), &facts, request));
    String::from_utf8(response.body.to_vec()).unwrap()
}

/// Returns whether a body is JSON, or JSONP, of answers that each have a status.
fn is_answer(body: &str) -> bool {
    let inner = body.strip_prefix("cb(").and_then(|rest| rest.strip_suffix(");")).unwrap_or(body);
    let has_status = |answer: &Json| answer["status"].is_u64();
    match serde_json::from_str::<Json>(inner) {
        Ok(Json::Array(answers)) => answers.iter().all(has_status),
        Ok(answer) => has_status(&answer),
        Err(_) => false,
    }
}

fn words() -> impl proptest::strategy::Strategy<Value = String> {
    prop_oneof![
        Just("org.midonet.midolman:type=Metering".to_owned()),
        Just("*:*".to_owned()),
        Just("metrics:name=meter-agent.JolokiaTimer.requests".to_owned()),
        Just("ConsolidatedMeters".to_owned()),
        Just("getMeter".to_owned()),
        Just("values()".to_owned()),
        Just("*".to_owned()),
        "[a-z!/*?:=,\"%0-9]{0,12}",
        ".{0,12}",
    ]
}

fn queries() -> impl proptest::strategy::Strategy<Value = String> {
    let name = prop_oneof![
        Just("maxDepth"),
        Just("maxObjects"),
        Just("maxCollectionSize"),
        Just("ifModifiedSince"),
        Just("listCache"),
        Just("openTypes"),
        Just("ignoreErrors"),
        Just("serializeLong"),
        Just("mimeType"),
        Just("p"),
    ];
    let value = prop_oneof![Just("true".to_owned()), "[0-9]{0,11}", ".{0,8}"];
    let pairs = prop::collection::vec((name, value), 0..4);
    (pairs, any::<bool>()).prop_map(|(pairs, is_script)| {
        let pairs = pairs.into_iter().map(|(name, value)| format!("{name}={value}"));
        pairs.chain(is_script.then(|| "callback=cb".to_owned())).collect::<Vec<_>>().join("&")
    })
}

proptest! {
    #[test]
    fn every_get_has_an_answer(
        kind in "read|exec|list|search|write|version|config|notification|.{0,5}",
        segments in prop::collection::vec(words(), 0..6),
        query in queries(),
    ) {
        let body = answer("GET", &format!("/jolokia/{kind}/{}", segments.join("/")), Some(&query), "");
        prop_assert!(is_answer(&body), "{body}");
    }

    #[test]
    fn every_body_has_an_answer(body in prop::collection::vec(any::<u8>(), 0..100), query in queries()) {
        let body = answer("POST", "/jolokia/x", Some(&query), &String::from_utf8_lossy(&body));
        prop_assert!(is_answer(&body), "{body}");
    }

    #[test]
    fn every_json_has_an_answer(
        kind in "read|exec|list|search|write|version|config|x",
        [mbean, attribute, operation, path, argument] in [words(), words(), words(), words(), words()],
        depth in any::<i64>(),
        query in queries(),
        is_bulk in any::<bool>(),
    ) {
        let one = json!({"type": kind, "mbean": mbean, "attribute": [attribute.clone()], "operation": operation,
            "path": path, "arguments": [argument, depth], "value": depth, "config": {"maxDepth": depth}});
        let other = json!({"type": kind, "mbean": mbean, "attribute": attribute, "operation": operation,
            "arguments": null, "path": null});
        let asked = if is_bulk { json!([one, other, depth]) } else { other };
        let body = answer("POST", "/jolokia/", Some(&query), &asked.to_string());
        prop_assert!(is_answer(&body), "{body}");
    }
}
