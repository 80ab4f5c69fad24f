//! `[[binding]]`: each by itself, and all of them together.

use std::collections::HashMap;

use crate::{
    binding::Binding,
    config::{
        check,
        document::{Document, Section},
        report::{Origin, Placed, Report},
    },
    meter::{DeviceId, PortId},
    netdev::{Glob, MacAddress, Pattern},
};

/// One table as it was read.
struct Entry {
    netdev: Option<Placed<Pattern>>,
    mac: Option<Placed<MacAddress>>,
    netns: Option<Placed<Glob>>,
    port: Option<Placed<PortId>>,
    device: Option<Placed<DeviceId>>,
    origin: Origin,
}

/// What a binding is about: netdev, hardware address, namespace.
type About = (Option<String>, Option<MacAddress>, Option<String>);

/// Reads all bindings.
pub(super) fn read(document: &Document<'_>, report: &mut Report<'_>) -> Vec<Binding> {
    let sections = document.sections("binding", report);
    let entries: Vec<Entry> = sections.iter().map(|section| entry(section, report)).collect();
    reject_repeated(&entries, report);
    entries
        .into_iter()
        .map(|Entry { netdev, mac, netns, port, device, .. }| Binding {
            netdev: netdev.map(|netdev| netdev.value),
            mac: mac.map(|mac| mac.value),
            netns: netns.map(|netns| netns.value),
            port: port.map(|port| port.value),
            device: device.map(|device| device.value),
        })
        .collect()
}

fn entry(section: &Section<'_>, report: &mut Report<'_>) -> Entry {
    let netdev = section.one(report, "netdev", check::string(check::pattern));
    let mac = section.one(report, "mac", check::string(check::mac));
    let netns = section.one(report, "netns", check::string(check::netns));
    let port = section.one(report, "port", check::string(|text| check::uuid(text).map(PortId)));
    let device = section.one(report, "device", check::string(|text| check::uuid(text).map(DeviceId)));
    // A key whose value is wrong has been reported; it isn't missing as well.
    if !section.has("netdev") && !section.has("mac") {
        report.key(section.origin, "binding", "has neither netdev nor mac; say which netdev it is about");
    }
    if !section.has("port") && !section.has("device") {
        report.key(section.origin, "binding", "has neither port nor device; say what the netdev carries");
    }
    // A hardware address makes it one netdev again.
    if let (Some(netdev), Some(port)) = (&netdev, &port)
        && !section.has("mac")
        && check::matches_many(&netdev.value)
    {
        let what = format!(
            "\"{}\" can match many netdevs, and a port has one; leave out port, or name the netdev",
            netdev.value
        );
        report.key(port.origin, "binding.port", what);
    }
    if let (Some(netns), Some(port)) = (&netns, &port)
        && netns.value.to_string().contains(['*', '?'])
    {
        let what = format!(
            "\"{}\" can match many namespaces, and a port is in one; leave out port, or name the namespace",
            netns.value
        );
        report.key(port.origin, "binding.port", what);
    }
    Entry { netdev, mac, netns, port, device, origin: section.origin }
}

/// Reports ports that are bound twice, bindings that can never count because an earlier one says the same, and devices
/// whose meter would be a port's as well.
fn reject_repeated(entries: &[Entry], report: &mut Report<'_>) {
    let mut ports: HashMap<PortId, Origin> = HashMap::new();
    let mut netdevs: HashMap<About, Origin> = HashMap::new();
    for entry in entries {
        if let Some(port) = &entry.port {
            let first = *ports.entry(port.value).or_insert(port.origin);
            if let Some(line) = another_line(first, port.origin, report) {
                let what = format!("{} is bound in line {line} already; a port has one netdev", port.value);
                report.key(port.origin, "binding.port", what);
            }
        }
        let netdev = entry.netdev.as_ref().map(|netdev| netdev.value.to_string());
        let mac = entry.mac.as_ref().map(|mac| mac.value);
        if netdev.is_none() && mac.is_none() {
            continue;
        }
        let netns = entry.netns.as_ref().map(|netns| netns.value.to_string());
        let first = *netdevs.entry((netdev, mac, netns)).or_insert(entry.origin);
        if let Some(line) = another_line(first, entry.origin, report) {
            let what =
                format!("is about the same netdev as the one in line {line}, which counts; make them one");
            report.key(entry.origin, "binding", what);
        }
    }
    for device in entries.iter().filter_map(|entry| entry.device.as_ref()) {
        if let Some(Origin::File(offset)) = ports.get(&PortId(device.value.0)) {
            let line = report.line(*offset);
            let what = format!(
                "{} is a port's in line {line}; MidoNet's meters name ports and devices by their UUID alone",
                device.value
            );
            report.key(device.origin, "binding.device", what);
        }
    }
}

/// Returns the line of the first of two that are the same; `None` where there is only one.
fn another_line(first: Origin, this: Origin, report: &Report<'_>) -> Option<usize> {
    match first {
        Origin::File(offset) if first != this => Some(report.line(offset)),
        _ => None,
    }
}
