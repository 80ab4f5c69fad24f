//! Who may import whom, who may do I/O, and where `unsafe` is: the architecture of the agent's crate doc, as tables.

use super::{Finding, source::Source};

/// Modules of the agent that do no I/O and know no clock: what they decide, a test can ask them.
const PURE: &[&str] = &[
    "meter-ebpf/src/abi.rs",
    "meter-ebpf/src/lib.rs",
    "meter-ebpf/src/packet.rs",
    "meter-ebpf/src/rules.rs",
    "meter-ebpf/src/rules/",
    "meter-agent/src/audit.rs",
    "meter-agent/src/audit/",
    "meter-agent/src/binding.rs",
    "meter-agent/src/columns.rs",
    "meter-agent/src/connections.rs",
    "meter-agent/src/connections/",
    "meter-agent/src/connector.rs",
    "meter-agent/src/definitions.rs",
    "meter-agent/src/jmx/bean.rs",
    "meter-agent/src/jmx/durations.rs",
    "meter-agent/src/jmx/metering.rs",
    "meter-agent/src/jmx/metrics.rs",
    "meter-agent/src/jmx/metrics/",
    "meter-agent/src/jmx/name.rs",
    "meter-agent/src/jmx/open_type.rs",
    "meter-agent/src/jmx/rates.rs",
    "meter-agent/src/jmx/value.rs",
    "meter-agent/src/meter.rs",
    "meter-agent/src/netdev.rs",
    "meter-agent/src/reconcile.rs",
    "meter-agent/src/reconcile/",
    "meter-agent/src/roles.rs",
    "meter-agent/src/roles/",
    "meter-agent/src/rules.rs",
    "meter-agent/src/rules/",
    "meter-agent/src/snapshot.rs",
    "meter-agent/src/survey.rs",
    "meter-agent/src/totals.rs",
    "meter-agent/src/yaml.rs",
];

/// What a pure module doesn't name.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "hyper",
    "libc",
    "nix",
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "tokio",
];

/// Something that a few files of the agent keep for themselves.
struct Kept {
    paths: &'static [&'static str],
    by: &'static [&'static str],
    reason: &'static str,
}

const KEPT: &[Kept] = &[
    Kept {
        paths: &["aya", "aya_log", "aya_obj"],
        by: &["meter-agent/src/datapath/"],
        reason: "only the datapath knows aya",
    },
    Kept {
        paths: &["netlink_packet_core", "netlink_packet_route", "netlink_sys"],
        by: &["meter-agent/src/netdev/", "meter-agent/src/datapath/clsact.rs"],
        reason: "only the netdev monitor knows rtnetlink, and the datapath for clsact",
    },
    Kept {
        paths: &["hyper", "hyper_util", "http_body_util"],
        by: &[
            "meter-agent/src/control.rs",
            "meter-agent/src/control/",
            "meter-agent/src/http.rs",
            "meter-agent/src/http/",
            "meter-agent/src/jolokia/client.rs",
        ],
        reason: "only the HTTP edge knows the HTTP library",
    },
    Kept {
        paths: &["prometheus_client"],
        by: &["meter-agent/src/http/"],
        reason: "only /metrics knows Prometheus",
    },
    Kept {
        paths: &["anyhow"],
        by: &["meter-agent/src/bin/"],
        reason: "a library's error is an enum with values in it",
    },
    Kept {
        paths: &["crate::agent"],
        by: &["meter-agent/src/agent/", "meter-agent/src/service.rs", "meter-agent/src/service/"],
        reason: "nothing but the service knows the loop",
    },
    Kept {
        paths: &["crate::datapath::kernel", "crate::datapath::sys"],
        by: &["meter-agent/src/datapath/", "meter-agent/src/service.rs", "meter-agent/src/service/"],
        reason: "everything else sees the trait and plain values",
    },
];

/// Which modules of the agent a module may name. Not listed: `service` and the binaries, which join everything.
const EDGES: &[(&str, &[&str])] = &[
    (
        "agent",
        &[
            "audit",
            "datapath",
            "definitions",
            "meter",
            "netdev",
            "publish",
            "reconcile",
            "rules",
            "snapshot",
            "survey",
            "totals",
        ],
    ),
    ("aside", &[]),
    ("audit", &["columns", "datapath", "meter", "netdev"]),
    ("binding", &["meter", "netdev"]),
    ("cli", &["jolokia", "meter"]),
    ("columns", &[]),
    ("command", &["config", "connections", "meter", "rules"]),
    ("config", &["binding", "connections", "datapath", "meter", "netdev", "roles", "rules"]),
    ("connections", &["columns", "datapath", "meter", "netdev", "rules"]),
    ("connector", &["config", "connections", "rules", "yaml"]),
    ("control", &["audit", "connections", "definitions", "http", "meter", "publish", "snapshot"]),
    ("datapath", &["meter", "netdev", "rules", "totals"]),
    ("definitions", &["aside", "rules"]),
    ("doctor", &["columns", "control", "datapath", "ls", "netdev", "roles", "snapshot", "survey"]),
    ("explain", &["meter", "rules"]),
    (
        "http",
        &[
            "audit",
            "connections",
            "datapath",
            "jolokia",
            "meter",
            "netdev",
            "process",
            "publish",
            "snapshot",
            "yaml",
        ],
    ),
    ("jmx", &["datapath", "meter", "process", "snapshot"]),
    ("jolokia", &["http", "jmx", "publish"]),
    ("ls", &["columns", "control", "netdev", "snapshot", "survey"]),
    ("meter", &[]),
    ("netdev", &[]),
    ("process", &[]),
    ("publish", &["snapshot"]),
    ("reconcile", &["binding", "datapath", "meter", "netdev", "roles"]),
    ("roles", &["binding", "datapath", "meter", "netdev"]),
    ("rules", &["meter", "netdev"]),
    ("snapshot", &["audit", "binding", "datapath", "definitions", "meter", "netdev"]),
    ("survey", &["binding", "connections", "datapath", "meter", "netdev", "reconcile", "roles", "snapshot"]),
    ("totals", &[]),
    ("yaml", &[]),
];

/// The files that hold `unsafe`, each block with its argument. Tests are free: the lab makes namespaces.
const UNSAFE: &[&str] = &[
    "meter-agent/src/datapath/mapped.rs",
    "meter-agent/src/datapath/sys.rs",
    "meter-agent/src/datapath/sys/",
    "meter-ebpf/src/abi.rs",
    "meter-ebpf/src/bin/floors.rs",
    "meter-ebpf/src/connections.rs",
    "meter-ebpf/src/connections/captured.rs",
    "meter-ebpf/src/context.rs",
    "meter-ebpf/src/main.rs",
    "meter-ebpf/src/maps.rs",
    "meter-ebpf/src/meters.rs",
    "meter-ebpf/src/meters/connection.rs",
    "meter-ebpf/src/namespace.rs",
    "meter-ebpf/src/uplink.rs",
    "tests/",
];

/// Applies every table to one source file.
pub(crate) fn check(file: &str, source: &Source) -> Vec<Finding> {
    let finding = |line: usize, message: String| Finding { file: file.to_owned(), line, message };
    let mut findings = Vec::new();
    // Tests in a file of their own are as free as those beside the code.
    if file.ends_with("/tests.rs") {
        return findings;
    }
    if !is_among(file, UNSAFE) {
        let message = "unsafe lives in a few small files; see UNSAFE in xtask/src/tidy/rules.rs";
        findings.extend(source.unsafe_lines.iter().map(|&line| finding(line, message.to_owned())));
    }
    let module = module_of(file);
    for (line, path) in &source.paths {
        if is_among(file, PURE) && IMPURE.iter().any(|impure| is_below(path, impure)) {
            findings.push(finding(*line, format!("{path} in a pure module: no I/O, no clock")));
        }
        if !file.starts_with("meter-agent/src/") {
            continue;
        }
        for kept in KEPT {
            if !is_among(file, kept.by) && kept.paths.iter().any(|own| is_below(path, own)) {
                findings.push(finding(*line, format!("{path}: {}", kept.reason)));
            }
        }
        let Some(module) = module else { continue };
        let Some(imported) = path.strip_prefix("crate::").and_then(|path| path.split("::").next()) else {
            continue;
        };
        let is_module = imported.starts_with(|c: char| c.is_ascii_lowercase());
        match EDGES.iter().find(|(name, _)| *name == module) {
            None => findings.push(finding(
                *line,
                format!("module {module} has no row in EDGES (xtask/src/tidy/rules.rs): what may it import?"),
            )),
            Some((_, allowed)) if is_module && imported != module && !allowed.contains(&imported) => {
                findings.push(finding(*line, format!("{module} doesn't import {imported}: {path}")));
            }
            Some(_) => {}
        }
    }
    findings
}

/// Returns the top module of the agent's library that a file belongs to; `None` for those that join everything.
fn module_of(file: &str) -> Option<&str> {
    let inside = file.strip_prefix("meter-agent/src/")?;
    let module = inside.split('/').next()?.trim_end_matches(".rs");
    (!matches!(module, "bin" | "lib" | "service")).then_some(module)
}

/// Returns whether a file is in a list of files and directories.
fn is_among(file: &str, list: &[&str]) -> bool {
    list.iter().any(|entry| if entry.ends_with('/') { file.starts_with(entry) } else { file == *entry })
}

/// Returns whether a path is another or goes on from it.
fn is_below(path: &str, other: &str) -> bool {
    path.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(file: &str, text: &str) -> Vec<String> {
        check(file, &Source::read(text)).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn each_rule_finds_what_breaks_it_and_nothing_else() {
        for (file, text, expected) in [
            ("meter-agent/src/meter.rs", "use std::{collections::BTreeMap, net::IpAddr};", &[][..]),
            (
                "meter-agent/src/meter.rs",
                "use std::fs::File;",
                &["std::fs::File in a pure module: no I/O, no clock"],
            ),
            (
                "meter-agent/src/roles/uplink.rs",
                "let t = Instant::now();",
                &["Instant::now in a pure module: no I/O, no clock"],
            ),
            ("meter-agent/src/config.rs", "use std::fs;", &[]),
            ("meter-agent/src/roles/tests.rs", "let t = Instant::now();", &[]),
            ("meter-agent/src/agent.rs", "let t = Instant::now();", &[]),
            ("meter-agent/src/agent.rs", "use aya::Ebpf;", &["aya::Ebpf: only the datapath knows aya"]),
            ("meter-agent/src/datapath/kernel.rs", "use aya::Ebpf;", &[]),
            ("meter-agent/src/datapath.rs", "use aya::Ebpf;", &["aya::Ebpf: only the datapath knows aya"]),
            ("meter-agent/src/http.rs", "use hyper::Request;", &[]),
            (
                "meter-agent/src/jolokia.rs",
                "use hyper::Request;",
                &["hyper::Request: only the HTTP edge knows the HTTP library"],
            ),
            ("meter-agent/src/jolokia/client.rs", "use hyper::Request;", &[]),
            (
                "meter-agent/src/meter.rs",
                "use crate::netdev::Netdev;",
                &["meter doesn't import netdev: crate::netdev::Netdev"],
            ),
            ("meter-agent/src/snapshot.rs", "use crate::{binding::Source, meter::PortId};", &[]),
            ("meter-agent/src/netdev/monitor.rs", "use crate::netdev::Netdev;", &[]),
            (
                "meter-agent/src/http.rs",
                "use crate::{agent::Event, publish::SnapshotReader};",
                &[
                    "crate::agent::Event: nothing but the service knows the loop",
                    "http doesn't import agent: crate::agent::Event",
                ],
            ),
            (
                "meter-agent/src/service.rs",
                "use crate::{agent::Agent, datapath::kernel::KernelDatapath};",
                &[],
            ),
            (
                "meter-agent/src/novelty.rs",
                "use crate::meter::PortId;",
                &["module novelty has no row in EDGES (xtask/src/tidy/rules.rs): what may it import?"],
            ),
            (
                "meter-agent/src/agent.rs",
                "unsafe { x() }",
                &["unsafe lives in a few small files; see UNSAFE in xtask/src/tidy/rules.rs"],
            ),
            ("meter-agent/src/datapath/sys.rs", "unsafe { x() }", &[]),
            ("tests/lab/src/netns.rs", "unsafe { x() } use aya::Ebpf;", &[]),
        ] {
            assert_eq!(messages(file, text), expected, "{file}: {text}");
        }
    }

    #[test]
    fn tables_are_in_order_and_name_only_modules() {
        let names: Vec<_> = EDGES.iter().map(|(name, _)| *name).collect();
        assert!(names.is_sorted(), "{names:?}");
        for (name, allowed) in EDGES {
            assert!(allowed.is_sorted(), "{name}: {allowed:?}");
            assert!(allowed.iter().all(|module| names.contains(module)), "{name}: {allowed:?}");
        }
    }
}
