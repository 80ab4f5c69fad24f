use std::{sync::Arc, time::Duration};

use serde_json::{Value as Json, json};

use super::super::{Agent, request};
use crate::{
    jmx::{
        BeanServer, Identity,
        bean::{AttributeInfo, Bean, BeanInfo, Exception, JavaType, OperationInfo, Source},
        facts::Facts,
        name::ObjectName,
        value::Value,
    },
    snapshot::Snapshot,
};

const LONG: JavaType = JavaType { name: "long", open: None };
const STRING: JavaType = JavaType { name: "java.lang.String", open: None };

static INFO: BeanInfo = BeanInfo {
    class: "Probe",
    description: "A bean with what this agent's have not",
    interface: "ProbeMBean",
    attributes: &[AttributeInfo { name: "Probed", of: LONG, is: false }],
    operations: &[
        OperationInfo { name: "probe", parameters: &[LONG], returns: STRING },
        OperationInfo { name: "probe", parameters: &[STRING, LONG], returns: STRING },
    ],
};

#[derive(Debug)]
struct Probe;

impl Source for Probe {
    fn read(&self, _: &str, _: &Facts) -> Value {
        Value::Long(1)
    }

    fn invoke(&self, operation: &OperationInfo, arguments: &[Value], _: &Facts) -> Result<Value, Exception> {
        Ok(Value::text(format!("{} {arguments:?}", operation.signature())))
    }
}

fn answer(path: &str) -> Json {
    let identity = Identity { host: "host-1".to_owned(), pid: 42, version: "0.1.0".to_owned() };
    let mut server = BeanServer::new(identity, Duration::ZERO);
    let name = ObjectName::parse("test:type=Probe,name=a").unwrap();
    server.add(Bean::new(name, &INFO, Probe));
    let facts = Facts::new(Arc::new(Snapshot::default()), Duration::from_secs(7));
    let agent = Agent { server: &server, facts: &facts };
    serde_json::from_str(&agent.envelope(&request::from_path(path, None))).unwrap()
}

#[test]
fn overloaded_operation_is_told_by_its_signature() {
    let exec = |rest: &str| answer(&format!("/exec/test:type=Probe,name=a/{rest}"));
    assert_eq!(exec("probe(long)/7")["value"], "long [Text(\"7\")]");
    let called = exec("probe(java.lang.String,long)/a!/b/7/x/y");
    assert_eq!(called["value"], Json::Null, "a text has no inner path");
    assert_eq!(called["request"]["arguments"], json!(["a/b", "7"]));
    assert_eq!(called["request"]["path"], "x/y");
    let ambiguous = exec("probe/7");
    assert_eq!(ambiguous["status"], 400);
    assert_eq!(
        ambiguous["error"],
        "Operation probe on MBean test:type=Probe,name=a is overloaded. Signatures found: \
         (long),(java.lang.String,long). Use a signature when specifying the operation."
    );
    assert_eq!(
        exec("probe(int)/7")["error"],
        "No operation probe(int) on MBean test:type=Probe,name=a exists. Known signatures: \
         (long),(java.lang.String,long)"
    );
    let listed = answer("/list/test/name=a,type=Probe/op/probe");
    assert_eq!(listed["value"].as_array().map(Vec::len), Some(2), "{listed}");
}

#[test]
fn name_is_repeated_as_sent_unless_its_canonical_form_is_asked_for() {
    let name = "test:type=Probe,name=a";
    let answer = answer(&format!("/search/{name}"));
    assert_eq!(answer["request"]["mbean"], name);
    assert_eq!(answer["value"], json!(["test:name=a,type=Probe"]));
    let missing = "no.such:type=X,name=a";
    assert_eq!(self::answer(&format!("/read/{missing}"))["error"], missing);
    let canonical = request::from_path(&format!("/search/{name}"), Some("canonicalNaming=true")).unwrap();
    assert_eq!(canonical.echo["mbean"], "test:name=a,type=Probe");
}

#[test]
fn bean_of_a_pattern_that_lacks_what_is_asked_for_is_left_out() {
    let read = answer("/read/*:*/Probed,Nope");
    assert_eq!(read["value"], json!({"test:name=a,type=Probe": {"Probed": 1}}));
    let called = answer("/exec/*:*/gc");
    assert_eq!(called["value"], json!({"java.lang:type=Memory": null}));
    for (path, class) in [
        ("/read/*:*/Nope", "javax.management.AttributeNotFoundException"),
        ("/read/no.such:*", "javax.management.InstanceNotFoundException"),
        ("/exec/*:*/nope", "java.lang.NoSuchMethodException"),
        ("/exec/no.such:*/nope", "javax.management.InstanceNotFoundException"),
        ("/write/no.such:type=X/Y/1", "javax.management.InstanceNotFoundException"),
    ] {
        assert_eq!(answer(path)["error_type"], class, "{path}");
    }
}
