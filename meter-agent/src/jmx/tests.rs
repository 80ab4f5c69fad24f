use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{BeanServer, Identity, bean::JavaType, facts::Facts, name::ObjectName, value::Value};
use crate::{
    meter::FlowStats,
    process::Process,
    snapshot::{Health, Snapshot},
};

const START: Duration = Duration::from_millis(1_700_000_000_500);

fn server() -> BeanServer {
    BeanServer::new(Identity { host: "host-1".to_owned(), pid: 42, version: "0.1.0".to_owned() }, START)
}

fn facts(snapshot: Snapshot) -> Facts {
    let process = Process { start_time: Some(START), resident_bytes: Some(4096), ..Process::default() };
    Facts::new(Arc::new(snapshot), START + Duration::from_secs(10)).with_process(process)
}

fn read(server: &BeanServer, facts: &Facts, name: &str, attribute: &str) -> Value {
    server.get(&ObjectName::parse(name).unwrap()).unwrap().read(attribute, facts).unwrap()
}

/// Returns whether a value is what the attribute's type promises.
fn is_of(value: &Value, of: JavaType) -> bool {
    match of.open {
        Some(open) => value.is_of(&open),
        None => matches!(
            (value, of.name),
            (Value::Long(_), "long" | "java.lang.Object")
                | (Value::Double(_), "double")
                | (Value::Text(_), "java.lang.String")
                | (Value::List(_), "[J")
        ),
    }
}

#[test]
fn every_attribute_and_result_is_of_its_type() {
    let server = server();
    let facts = facts(Snapshot::default());
    server.answered_in(Duration::from_millis(3));
    let mut names = BTreeSet::new();
    for bean in server.matching(&ObjectName::parse("*:*").unwrap()) {
        assert!(names.insert(bean.name.to_string()), "{} twice", bean.name);
        for attribute in bean.info.attributes {
            let value = bean.read(attribute.name, &facts).unwrap();
            assert!(is_of(&value, attribute.of), "{}: {} is {value:?}", bean.name, attribute.name);
            let denied = bean.write(attribute.name);
            assert_eq!(denied.message, format!("Can't write attribute: {}", attribute.name));
        }
        for operation in bean.info.operations {
            let arguments = vec![Value::text("x"); operation.parameters.len()];
            let value = bean.invoke(operation, &arguments, &facts).unwrap();
            assert!(is_of(&value, operation.returns), "{}: {} is {value:?}", bean.name, operation.name);
        }
        assert!(bean.read("Nope", &facts).is_err() && bean.operation("nope").is_err());
    }
    assert!(names.len() > 30, "{names:?}");
}

#[test]
fn registries_are_shown_one_by_one_and_as_their_sum() {
    let server = server();
    let registry = |packets| {
        let stats = FlowStats { packets, bytes: packets * 100 };
        [("meters:user:alice".parse().unwrap(), stats)].into()
    };
    let facts = facts(Snapshot::default()).with_registries(vec![registry(1), registry(2)]);
    let name = super::metering::NAME;
    let text = |attribute| read(&server, &facts, name, attribute).to_java_text();
    let meters = text("Meters");
    assert!(meters.contains("contents={index=0, ") && meters.contains("contents={index=1, "), "{meters}");
    let sum = text("ConsolidatedMeters");
    assert!(sum.contains("contents={index=-1, ") && sum.contains("contents={bytes=300, packets=3}"), "{sum}");
}

#[test]
fn platform_tells_of_this_process() {
    let (server, facts) = (server(), facts(Snapshot::default()));
    for (attribute, expected) in [
        ("Name", Value::text("42@host-1")),
        ("Pid", Value::Long(42)),
        ("VmName", Value::text("meter-agent")),
        ("VmVersion", Value::text("0.1.0")),
        ("StartTime", Value::Long(1_700_000_000_500)),
        ("Uptime", Value::Long(10_000)),
        ("ObjectName", Value::Name("java.lang:type=Runtime".to_owned())),
    ] {
        assert_eq!(read(&server, &facts, "java.lang:type=Runtime", attribute), expected, "{attribute}");
    }
    let heap = read(&server, &facts, "java.lang:type=Memory", "HeapMemoryUsage").to_java_text();
    assert!(heap.ends_with("contents={committed=4096, init=0, max=-1, used=4096})"), "{heap}");
}

#[test]
fn metric_has_its_count_at_once_and_its_rates_by_and_by() {
    let server = server();
    let snapshot = |netlink_events| Snapshot {
        generation: 1,
        health: Health { netlink_events, ..Health::default() },
        ..Snapshot::default()
    };
    // Nothing was read yet, so the next ones have not come within five seconds.
    server.tick(&Snapshot::default(), START - Duration::from_secs(5));
    server.tick(&snapshot(100), START);
    server.tick(&snapshot(150), START + Duration::from_secs(5));
    let facts = facts(snapshot(200));
    for (attribute, expected) in [
        ("Count", Value::Long(200)),
        ("MeanRate", Value::Double(10.0)),
        ("OneMinuteRate", Value::Double(10.0)),
        ("FifteenMinuteRate", Value::Double(10.0)),
        ("RateUnit", Value::text("events/second")),
    ] {
        let name = "metrics:name=org.midonet.netlink.NetlinkMeter.notifications";
        assert_eq!(read(&server, &facts, name, attribute), expected, "{attribute}");
    }
    let pending = read(&server, &facts, "metrics:name=meter-agent.AttachGauge.pending", "Value");
    assert_eq!(pending, Value::Long(0));
}

#[test]
fn timer_tells_how_long_requests_took() {
    let (server, facts) = (server(), facts(Snapshot::default()));
    for milliseconds in [1, 2, 3] {
        server.answered_in(Duration::from_millis(milliseconds));
    }
    for (attribute, expected) in [
        ("Count", Value::Long(3)),
        ("Min", Value::Double(1.0)),
        ("Max", Value::Double(3.0)),
        ("50thPercentile", Value::Double(2.0)),
        ("DurationUnit", Value::text("milliseconds")),
    ] {
        let name = "metrics:name=meter-agent.JolokiaTimer.requests";
        assert_eq!(read(&server, &facts, name, attribute), expected, "{attribute}");
    }
}
