use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use serde_json::json;

use super::{
    Attributes, Call, ObjectName, Posted, Request, from_body, from_path, join_path,
    parameters::{Form, ListOptions, Options},
    split_path,
};
use crate::jolokia::response::{Failure, LongForm, StackTrace};

const NAME: &str = "org.midonet.midolman:type=Metering";

fn beans() -> ObjectName {
    ObjectName::parse(NAME).unwrap()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn get_and_post_of_one_request_are_the_same() {
    let read = |attributes, path: &[&str]| Call::Read { beans: beans(), attributes, path: texts(path) };
    let exec = |operation: &str, arguments: serde_json::Value| Call::Exec {
        beans: beans(),
        operation: operation.to_owned(),
        arguments: arguments.as_array().unwrap().clone(),
        path: Vec::new(),
    };
    for (path, body, call) in [
        ("/version/", json!({"type": "VERSION", "mbean": null, "config": {}}), Call::Version),
        (
            "/read/org.midonet.midolman%3Atype%3DMetering/Meters/0/a!%2Fb!!c%20d",
            json!({"type": "read", "mbean": NAME, "attribute": "Meters", "path": "0/a!/b!!c d"}),
            read(Attributes::One("Meters".to_owned()), &["0", "a/b!c d"]),
        ),
        (
            "//read//org.midonet.midolman:type=Metering/*",
            json!({"type": "read", "mbean": NAME, "attribute": null, "path": ""}),
            read(Attributes::All, &[]),
        ),
        (
            "/read/org.midonet.midolman:type=Metering/A,B/x",
            json!({"type": "read", "mbean": NAME, "attribute": ["A", "B"], "path": ["x"]}),
            read(Attributes::Several(texts(&["A", "B"])), &["x"]),
        ),
        (
            "/exec/org.midonet.midolman:type=Metering/getMeter(java.lang.String)/%5Bnull%5D/%22%22/a+b/%C3%A9",
            json!({"type": "exec", "mbean": NAME, "operation": "getMeter(java.lang.String)",
                "arguments": [null, "", "a+b", "\u{e9}"]}),
            exec("getMeter(java.lang.String)", json!([null, "", "a+b", "\u{e9}"])),
        ),
        (
            "/exec/org.midonet.midolman:type=Metering/listMeters",
            json!({"type": "exec", "mbean": NAME, "operation": "listMeters", "arguments": null, "unknown": 1}),
            exec("listMeters", json!([])),
        ),
        (
            "/search/*:*",
            json!({"type": "search", "mbean": "*:*"}),
            Call::Search { beans: ObjectName::parse("*:*").unwrap() },
        ),
        ("/list/a/b", json!({"type": "list", "path": "a/b"}), Call::List { path: texts(&["a", "b"]) }),
        (
            "/write/org.midonet.midolman:type=Metering/Meters/%5Bnull%5D",
            json!({"type": "write", "mbean": NAME, "attribute": "Meters", "value": null}),
            Call::Write { bean: beans(), attribute: "Meters".to_owned() },
        ),
        ("/config", json!({"type": "config"}), Call::Config),
    ] {
        let got = from_path(path, None).unwrap();
        assert_eq!((&got.call, &got.options), (&call, &Options::default()), "{path}");
        assert_eq!(
            from_body(body.to_string().as_bytes(), None),
            Ok(Posted::One(Box::new(Ok(got)))),
            "{path}"
        );
    }
}

#[test]
fn body_overrides_the_query_and_unknown_parameters_are_ignored() {
    let options = |query, config: serde_json::Value| {
        let body = json!({"type": "version", "config": config}).to_string();
        match from_body(body.as_bytes(), Some(query)).unwrap() {
            Posted::One(one) => one.unwrap().options,
            Posted::Bulk(_) => panic!("not a bulk"),
        }
    };
    let text = Options { long_form: LongForm::Text, ..Options::default() };
    assert_eq!(options("serializeLong=string&foo", json!({"maxDepth": null})), text);
    assert_eq!(options("serializeLong=string", json!({"serializeLong": "number"})), Options::default());
    let all = Options { ignore_errors: true, include_request: false, ..Options::default() };
    assert_eq!(options("includeRequest=false", json!({"ignoreErrors": true})), all);
    assert_eq!(options("includeRequest=false", json!({"ignoreErrors": "true"})), all);
    let every = Options {
        max_depth: 1,
        max_collection_size: 2,
        max_objects: 3,
        if_modified_since: Some("4".to_owned()),
        long_form: LongForm::Text,
        stack_trace: StackTrace::Always,
        serialize_exception: true,
        ignore_errors: true,
        include_request: false,
        canonical_naming: true,
        list: ListOptions { keys: true, cache: true, interfaces: true, open_types: true },
        broken: None,
    };
    let config = json!({"maxDepth": 1, "maxCollectionSize": "2", "maxObjects": 3, "ifModifiedSince": 4,
        "serializeLong": "string", "includeStackTrace": true, "serializeException": "true", "ignoreErrors": true,
        "includeRequest": false, "canonicalNaming": true, "listKeys": true, "listCache": true,
        "listInterfaces": "true", "openTypes": true});
    assert_eq!(options("", config.clone()), every);
    let query: Vec<_> = config
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| {
            format!("{name}={}", value.as_str().map_or(value.to_string(), ToOwned::to_owned))
        })
        .collect();
    assert_eq!(options(&query.join("&"), json!({})), every);
}

#[test]
fn parameter_that_is_no_number_or_flag_fails_at_once_in_the_query_and_later_in_the_body() {
    for (query, name) in [
        ("maxDepth=abc", "maxDepth"),
        ("maxObjects=", "maxObjects"),
        ("ignoreErrors=yes", "ignoreErrors"),
        ("ifModifiedSince=-1", "ifModifiedSince"),
    ] {
        let invalid = Failure::bad_request(format!("Invalid value of {name} parameter"));
        assert_eq!(from_path("/version", Some(query)), Err(invalid.clone()));
        assert_eq!(from_body(b"{}", Some(query)), Err(invalid));
    }
    let body = json!({"type": "version", "config": {"maxDepth": 4_102_444_800_u64, "maxObjects": "x"}});
    let Posted::One(one) = from_body(body.to_string().as_bytes(), None).unwrap() else {
        panic!("not a bulk")
    };
    let broken = one.unwrap().options.broken.unwrap();
    assert_eq!((broken.status, broken.message.as_str()), (500, "For input string: \"4102444800\""));
}

#[test]
fn form_takes_functions_and_two_types_and_nothing_else() {
    let form = |query| Form::from_query(Some(query)).map_err(|failure| failure.status);
    let function = |name: &str| Ok(Form { callback: Some(name.to_owned()), plain: false });
    assert_eq!(form("callback=jQuery_1.$cb"), function("jQuery_1.$cb"));
    assert_eq!(form("mimeType=text/plain"), Ok(Form { callback: None, plain: true }));
    assert_eq!(form("mimeType=application%2Fjson&x"), Ok(Form::default()));
    for query in ["callback=", "callback=alert(1)", "callback=a..b", "callback=1a", "mimeType=text/html"] {
        assert_eq!(form(query), Err(400), "{query}");
    }
}

#[test]
fn incomplete_request_says_what_is_missing() {
    for (body, message) in [
        (json!({}), "No type given"),
        (json!({"type": 1}), "type must be a text"),
        (json!({"type": "nope"}), "No type with name 'nope' exists"),
        (json!({"type": "read"}), "Read POST requests require an ObjectName to read from (may be a pattern)"),
        (json!({"type": "read", "mbean": "foo"}), "Key properties cannot be empty"),
        (
            json!({"type": "read", "mbean": NAME, "attribute": [1]}),
            "each element of attribute must be a text",
        ),
        (
            json!({"type": "read", "mbean": NAME, "attribute": 1}),
            "attribute must be a text or an array of texts",
        ),
        (json!({"type": "read", "mbean": NAME, "path": 1}), "path must be a text"),
        (json!({"type": "exec", "mbean": NAME}), "Exec POST requests require an operation name to invoke"),
        (
            json!({"type": "exec", "mbean": NAME, "operation": "x", "arguments": "a"}),
            "arguments must be an array",
        ),
        (json!({"type": "search"}), "Search POST requests require an ObjectName pattern"),
        (json!({"type": "write", "mbean": NAME}), "Write POST requests require an attribute name to write"),
        (json!({"type": "notification", "command": "register"}), "No type with name 'notification' exists"),
    ] {
        let Posted::One(one) = from_body(body.to_string().as_bytes(), None).unwrap() else {
            panic!("not a bulk")
        };
        let failure = one.unwrap_err();
        assert_eq!((failure.status, failure.message.as_str()), (400, message));
    }
    let failure = from_path("/read", None).unwrap_err();
    assert_eq!(
        (failure.status, failure.message.as_str()),
        (400, "Read GET requests require at least 1 path element for ObjectName to read from")
    );
}

proptest! {
    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200), path in ".*", query in ".*") {
        let posted = from_body(&body, Some(&query));
        prop_assert!(posted.is_ok() || posted.is_err());
        let got = from_path(&path, Some(&query));
        prop_assert!(got.is_ok() || got.is_err());
    }

    #[test]
    fn no_json_panics(
        kind in "read|exec|search|version|list|x", mbean in ".*|[a-z]*:[a-z*=,?]*", path in ".*", argument in any::<f64>(),
    ) {
        let body = json!([{"type": kind, "mbean": mbean, "path": path, "attribute": [path], "operation": path,
            "arguments": [argument]}]);
        prop_assert!(from_body(body.to_string().as_bytes(), None).is_ok());
    }

    #[test]
    fn every_segment_survives_its_quoting(segments in prop::collection::vec("[/!a-z\"]+", 0..5)) {
        let joined = join_path(segments.iter().cloned()).unwrap_or_default();
        let split: Vec<_> = split_path(&joined).into_iter().filter(|segment| !segment.is_empty()).collect();
        prop_assert_eq!(split, segments.clone());
        let encoded = percent_encoding::utf8_percent_encode(&joined, percent_encoding::NON_ALPHANUMERIC);
        let read = from_path(&format!("/read/{NAME}/A/{encoded}"), None);
        let attributes = Attributes::One("A".to_owned());
        let expected = Call::Read { beans: beans(), attributes, path: segments };
        prop_assert_eq!(read.map(|Request { call, .. }| call), Ok(expected));
    }
}

#[test]
fn request_for_very_many_attributes_is_refused() {
    let of = |count: usize| {
        let names: Vec<_> = (0..count).map(|index| format!("A{index}")).collect();
        let body = json!({"type": "read", "mbean": NAME, "attribute": names});
        match from_body(body.to_string().as_bytes(), None).unwrap() {
            Posted::One(one) => one.map(|request| request.call),
            Posted::Bulk(_) => panic!("one object"),
        }
    };
    assert!(of(1000).is_ok());
    let message = "1001 attributes in one request: at most 1000 are read; split it";
    assert_eq!(of(1001), Err(Failure::bad_request(message)));
}
