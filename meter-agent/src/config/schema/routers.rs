//! `[[router]]`: the devices that frames are sent to by MAC address.

use std::collections::BTreeMap;

use crate::{
    binding::Binding,
    config::{
        check,
        document::{Document, Section},
        report::{Origin, Placed, Report},
    },
    meter::DeviceId,
    rules::{MAX_RULES, MeterSet, Router},
};

/// MAC addresses, and bridges, that one router has at most.
const MAX_MEMBERS: usize = 64;

/// Reads all routers into the set.
pub(super) fn read(
    document: &Document<'_>,
    bindings: &[Binding],
    set: &mut MeterSet,
    report: &mut Report<'_>,
) {
    let mut ids: BTreeMap<DeviceId, Origin> = BTreeMap::new();
    let mut bridges: Vec<Placed<DeviceId>> = Vec::new();
    let mut rules = set.rules();
    for section in document.sections("router", report) {
        let id = id(&section, bindings, &mut ids, report);
        let macs = members(&section, "macs", check::mac, report);
        let on = members(&section, "bridges", device, report);
        // A frame to a router matches a rule of its own.
        rules += macs.len() * on.len();
        if rules > MAX_RULES {
            let what = format!(
                "makes more rules than are possible: one for each MAC address on each bridge, and at most {MAX_RULES} with those of \
                 all meters"
            );
            report.key(section.origin, "router", what);
            return;
        }
        set.routers.extend(id.map(|device| Router {
            device,
            macs: macs.into_iter().map(|mac| mac.value).collect(),
            bridges: on.iter().map(|bridge| bridge.value).collect(),
        }));
        bridges.extend(on);
    }
    for bridge in bridges {
        if bindings.iter().any(|binding| binding.port.is_some_and(|port| port.0 == bridge.value.0)) {
            report.key(bridge.origin, "router.bridges", format_args!("{} is a port's", bridge.value));
        }
        if let Some(Origin::File(router)) = ids.get(&bridge.value) {
            let line = report.line(*router);
            let what = format!("{} is the router in line {line}, and no bridge", bridge.value);
            report.key(bridge.origin, "router.bridges", what);
        }
    }
}

fn id(
    section: &Section<'_>,
    bindings: &[Binding],
    ids: &mut BTreeMap<DeviceId, Origin>,
    report: &mut Report<'_>,
) -> Option<DeviceId> {
    if !section.has("id") {
        report.key(section.origin, "router", "has no id");
        return None;
    }
    let Placed { value: id, origin } = section.one(report, "id", check::string(device))?;
    if let Some(Origin::File(first)) = ids.get(&id) {
        let line = report.line(*first);
        report.key(origin, "router.id", format_args!("{id} is the router in line {line} already"));
    }
    ids.entry(id).or_insert(origin);
    if bindings.iter().any(|binding| binding.port.is_some_and(|port| port.0 == id.0)) {
        let what = format!("{id} is a port's; MidoNet's meters name ports and devices by their UUID alone");
        report.key(origin, "router.id", what);
    }
    Some(id)
}

fn members<T>(
    section: &Section<'_>,
    key: &'static str,
    read: impl Fn(&str) -> Result<T, String>,
    report: &mut Report<'_>,
) -> Vec<Placed<T>> {
    let list = section.list(report, key, MAX_MEMBERS, check::string(read));
    if !section.has(key) || section.is_empty_array(key) {
        report.key(section.origin, "router", format_args!("has no {key}; a frame is sent to it by both"));
    }
    list.unwrap_or_default()
}

fn device(text: &str) -> Result<DeviceId, String> {
    check::uuid(text).map(DeviceId)
}
