//! The beans of the real daemon: what they say of it and of the kernel.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Host, daemon::Daemon, ready};

const NOTIFICATIONS: &str = "metrics:name=org.midonet.netlink.NetlinkMeter.notifications";

/// Reads all attributes of a bean.
fn bean(daemon: &Daemon<'_>, name: &str) -> Value {
    let request = json!({"type": "read", "mbean": name}).to_string();
    let answer: Value = serde_json::from_str(&daemon.jolokia(&request)).unwrap();
    assert_eq!(answer["status"], 200, "{answer}");
    answer["value"].clone()
}

#[test]
fn beans_tell_of_the_daemon_and_of_what_the_kernel_announced() {
    if !ready() {
        return;
    }
    let host = Host::new("beans");
    let daemon = Daemon::started(&host, "");

    let runtime = bean(&daemon, "java.lang:type=Runtime");
    let pid = runtime["Pid"].as_u64().unwrap();
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(program.file_name().and_then(|name| name.to_str()), Some("meter-agent"), "{runtime}");
    assert!(runtime["Name"].as_str().unwrap().starts_with(&format!("{pid}@")), "{runtime}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let started = u128::from(runtime["StartTime"].as_u64().unwrap());
    // The kernel counts in hundredths of a second, from a boot that it knows to the second.
    assert!(started < now + 2_000 && now < started + 600_000, "{started} {now}");
    let heap = bean(&daemon, "java.lang:type=Memory")["HeapMemoryUsage"]["used"].as_u64().unwrap();
    assert!(heap > 1_000_000, "{heap}");

    let before = bean(&daemon, NOTIFICATIONS)["Count"].as_u64().unwrap();
    for number in 0..20 {
        host.netns.add_bridge(&format!("more{number}"), 1500).unwrap();
    }
    daemon.wait("its count and its rates have them", |daemon| {
        let meter = bean(daemon, NOTIFICATIONS);
        let is_moving = |rate: &str| meter[rate].as_f64().unwrap() > 0.0;
        meter["Count"].as_u64().unwrap() >= before + 20
            && ["MeanRate", "OneMinuteRate", "FiveMinuteRate", "FifteenMinuteRate"].into_iter().all(is_moving)
    });
    let timer = bean(&daemon, "metrics:name=meter-agent.JolokiaTimer.requests");
    assert!(timer["Count"].as_u64().unwrap() >= 4 && timer["Max"].as_f64().unwrap() > 0.0, "{timer}");
}
