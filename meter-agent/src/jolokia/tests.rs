use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Agent, AgentInfo, Totals, request};
use crate::{
    meter::{DeviceId, FlowStats},
    publish::SnapshotReader,
    snapshot::Snapshot,
};

const READ: &str = "/read/org.midonet.midolman:type=Metering";

/// Returns the answers to paths, over one device with 1 packet of `u64::MAX` bytes.
fn answers(paths: &[(&str, &str)], max: usize) -> Vec<Json> {
    let stats = FlowStats { packets: 1, bytes: u64::MAX };
    let devices = BTreeMap::from([(DeviceId(uuid::Uuid::nil()), stats)]);
    let totals = Totals::latest(&SnapshotReader::fixed(Snapshot { devices, ..Snapshot::default() }));
    let info = AgentInfo { id: "host-1".to_owned(), version: "0.1.0".to_owned() };
    let all: Vec<_> = paths.iter().map(|&(path, query)| request::from_path(path, Some(query))).collect();
    let agent = Agent { totals: &totals, info: &info, now: 7 };
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
        value("/read/*:*/ConsolidatedMeters", ""),
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
        ("*:*", &names),
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
