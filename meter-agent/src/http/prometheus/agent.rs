//! What the agent says of itself, its maps and its process.

use std::fmt;

use meter_ebpf::abi::{Direction, Fault, VERSION};

use super::{
    super::process::Process,
    Series, Stopwatch,
    families::{Families, Family, Labels, Value},
    traffic::{reasons_help, word},
};
use crate::{
    datapath::{HookKind, Repairs},
    snapshot::{Health, Snapshot},
};

/// Writes every family of the agent.
pub(super) fn write(families: &mut Families<'_>, snapshot: &Snapshot, process: &Process) -> fmt::Result {
    let started_ns = started_ns(process);
    identity(families, snapshot, started_ns)?;
    frames(families, snapshot)?;
    hooks(families, snapshot)?;
    maps(families, snapshot)?;
    repairs(families, snapshot.repairs, started_ns)?;
    health(families, &snapshot.health, started_ns)?;
    self::process(families, process, started_ns)
}

/// Writes what the exposition says of itself, at its end.
pub(super) fn exposition(families: &mut Families<'_>, series: &Series, stopwatch: Stopwatch) -> fmt::Result {
    families.gauge(
        &Family::new(
            "meter_agent_series_limit",
            "Series of a family that have a name of their own at most (metrics.max_series).",
        ),
        number(series.limit),
    )?;
    families.gauges(
        &Family::new(
            "meter_agent_series_over_limit",
            "Ports, devices, tunnels or user-defined meters that came when all names were taken, by how the names of their families begin. \
             Their totals are in the series whose label is other.",
        ),
        series.over.iter().map(|(family, over)| (Labels([("family", Value::Text(family))]), number(*over))),
    )?;
    families.gauge(
        &Family::seconds(
            "meter_agent_scrape_duration",
            "How long this answer took, from the request to this line: reading all counters and writing every family.",
        ),
        stopwatch.elapsed().as_secs_f64(),
    )
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Returns when the counters that no map keeps began: nanoseconds since the Unix epoch, 0 where nobody knows.
pub(super) fn started_ns(process: &Process) -> u64 {
    process.start_time.and_then(|time| u64::try_from(time.as_nanos()).ok()).unwrap_or_default()
}

fn identity(families: &mut Families<'_>, snapshot: &Snapshot, started_ns: u64) -> fmt::Result {
    let build = Labels([
        ("version", Value::Text(env!("CARGO_PKG_VERSION"))),
        ("abi_version", Value::Number(VERSION)),
    ]);
    families.infos(
        &Family::new("meter_agent_build", "Version of the agent, and of the layout of its pinned maps."),
        [build],
    )?;
    families.infos(
        &Family::new("meter_agent_host", "The host that the agent runs on."),
        [Labels([("host", Value::Text(&snapshot.host))])],
    )?;
    families.counter_since(
        &Family::new(
            "meter_agent_readings",
            "Times that all maps were read since the agent started; the totals are as old as the last increase.",
        ),
        snapshot.generation,
        started_ns,
    )
}

/// Writes the frames that were counted, but not as they should be.
fn frames(families: &mut Families<'_>, snapshot: &Snapshot) -> fmt::Result {
    let of_super_packets = || Fault::ALL.iter().filter(|fault| fault.is_of_super_packet());
    let reasons = reasons_help(of_super_packets().map(|reason| (reason.label(), reason.help())));
    let faults = || of_super_packets().map(|fault| (fault, &snapshot.faults.reasons[*fault as usize]));
    let seen = format!(
        "super-packets that were counted as one frame, at any hook; they are in their port's meter as well. {reasons}"
    );
    families.counters(
        &Family::new("meter_agent_gso_fault_packets", format!("Number of {seen}")),
        faults().map(|(reason, counter)| (by_reason(reason.label()), counter.packets)),
    )?;
    families.counters(
        &Family::bytes("meter_agent_gso_fault", format!("Bytes (as the kernel counts them) of {seen}")),
        faults().map(|(reason, counter)| (by_reason(reason.label()), counter.bytes)),
    )?;
    let untracked = snapshot.faults.reasons[Fault::ConnectionTableFull as usize];
    let seen = "of connections that have no room in the table (connections.max_entries) or in their netdev's part of it \
        (connections.max_entries_of_netdev), at any hook: for rules with flow they are forward, and the answer to a SYN is return; they are in \
        meter_connection_other and in every other meter.";
    families.counters(
        &Family::new("meter_agent_untracked_packets", format!("Super-packets and frames {seen}")),
        [(Labels::<0>([]), untracked.packets)],
    )?;
    families.counters(
        &Family::bytes("meter_agent_untracked", format!("Bytes (as the kernel counts them) {seen}")),
        [(Labels::<0>([]), untracked.bytes)],
    )?;
    let unbound = || Direction::ALL.into_iter().zip(snapshot.unbound.map(|hook| hook.wire()));
    let seen = "at hooks of netdevs that nobody claimed, by direction of the hook, in wire units; they are in no other \
        family.";
    families.counters(
        &Family::new("meter_agent_unbound_packets", format!("Frames {seen}")),
        unbound().map(|(direction, counter)| (by_direction(direction), counter.packets)),
    )?;
    families.counters(
        &Family::bytes("meter_agent_unbound", format!("Bytes of frames {seen}")),
        unbound().map(|(direction, counter)| (by_direction(direction), counter.bytes)),
    )
}

const fn by_reason(reason: &str) -> Labels<'_, 1> {
    Labels([("reason", Value::Text(reason))])
}

const fn by_direction(direction: Direction) -> Labels<'static, 1> {
    Labels([("direction", Value::Text(word(direction)))])
}

fn hooks(families: &mut Families<'_>, snapshot: &Snapshot) -> fmt::Result {
    let mut counts = [(HookKind::Tcx, 0_u64), (HookKind::Clsact, 0), (HookKind::Xdp, 0)];
    for (ingress, egress) in
        snapshot.ports.iter().filter_map(|port| port.carrier.as_ref()).map(|carrier| carrier.hooks)
    {
        for (kind, count) in &mut counts {
            *count += u64::from(*kind == ingress) + u64::from(*kind == egress);
        }
    }
    families.gauges(
        &Family::new(
            "meter_agent_attached_hooks",
            "Hooks that count, two for each metered netdev, by their kind.",
        ),
        counts.map(|(kind, count)| (Labels([("kind", Value::Text(kind.name()))]), count)),
    )
}

fn maps(families: &mut Families<'_>, snapshot: &Snapshot) -> fmt::Result {
    let maps = || snapshot.maps.iter().map(|usage| (Labels([("map", Value::Text(usage.map))]), usage));
    families.gauges(
        &Family::new("meter_agent_map_entries", "Entries of a BPF map that are in use."),
        maps().map(|(labels, usage)| (labels, usage.entries)),
    )?;
    families.gauges(
        &Family::new("meter_agent_map_capacity_entries", "Entries that fit into a BPF map."),
        maps().map(|(labels, usage)| (labels, usage.capacity)),
    )?;
    families.gauges(
        &Family::bytes("meter_agent_map_memory", "Kernel memory of a BPF map, all CPUs together."),
        maps().map(|(labels, usage)| (labels, usage.memory_bytes)),
    )
}

fn repairs(families: &mut Families<'_>, repairs: Repairs, started_ns: u64) -> fmt::Result {
    let Repairs { set_aside, restored, lost, unrestored } = repairs;
    families.gauge(
        &Family::new(
            "meter_agent_unrestored_totals",
            "Totals from before a reboot, or of an earlier version's maps, for which there was no room when this agent \
             started; the log says what is kept where.",
        ),
        unrestored,
    )?;
    families.counters_since(
        &Family::new(
            "meter_agent_pin_repairs",
            "Pins of maps that were not as an agent had left them when this one started. set_aside: not ours, moved away. \
             restored: gone, and the map found at the programs that count, so that nothing is lost. lost: gone, and made \
             anew without what the map held, which the log says.",
        ),
        [("set_aside", set_aside), ("restored", restored), ("lost", lost)]
            .map(|(kind, count)| (Labels([("kind", Value::Text(kind))]), count, started_ns)),
    )
}

fn health(families: &mut Families<'_>, health: &Health, started_ns: u64) -> fmt::Result {
    families.counters_since(
        &Family::new(
            "meter_agent_attach_failures",
            "Attempts to attach to a netdev that failed, by reason; the log and meter-agent ls say which netdev.",
        ),
        health.attach_failures.iter().map(|(reason, count)| (by_reason(reason), *count, started_ns)),
    )?;
    families.gauge(
        &Family::new(
            "meter_agent_attach_pending",
            "Netdevs that are not metered, or not as they should be, now, and namespaces that can't be followed; meter-agent \
             ls and the log say why.",
        ),
        health.attach_pending,
    )?;
    if let Some(namespaces) = health.namespaces {
        families.gauge(
            &Family::new("meter_agent_namespaces", "Named network namespaces that are followed."),
            namespaces,
        )?;
        families.gauge(
            &Family::new(
                "meter_agent_namespaces_failed",
                "Named network namespaces that should be followed and can't be; the log says which, and why.",
            ),
            number(health.namespaces_failed.len()),
        )?;
    }
    for (name, help, value) in [
        (
            "meter_agent_hooks_lost",
            "Hooks that another tool removed; each was attached again when that was noticed.",
            health.hooks_lost,
        ),
        (
            "meter_agent_netlink_overruns",
            "Times that the kernel dropped netlink messages; each is followed by a complete dump.",
            health.netlink_overruns,
        ),
        ("meter_agent_netlink_dumps", "Complete dumps of the netdevs.", health.netlink_dumps),
        (
            "meter_agent_netlink_events",
            "Changes of netdevs that the kernel announced.",
            health.netlink_events,
        ),
        (
            "meter_agent_read_failures",
            "Times that the maps could not be read; the totals then stay as they were.",
            health.read_failures,
        ),
        (
            "meter_agent_user_meter_refusals",
            "Times that the datapath refused a set of user-defined meters, from the configuration or at run time; those \
             before it then count on.",
            health.user_meter_refusals,
        ),
        (
            "meter_agent_state_write_failures",
            "Times that totals could not be written to state.totals_file, which stays as it was.",
            health.state_failures,
        ),
    ] {
        families.counter_since(&Family::new(name, help), value, started_ns)?;
    }
    families.gauge(
        &Family::new(
            "meter_agent_config_last_reload_successful",
            "1 when the last reload of the configuration was taken, 0 when the one before stays in force.",
        ),
        u32::from(health.config_reload_ok),
    )?;
    families.gauge(
        &Family::seconds(
            "meter_agent_config_last_reload_success_timestamp",
            "When the configuration in force was read, since the Unix epoch.",
        ),
        health.config_loaded_s,
    )?;
    families.gauge(
        &Family::new(
            "meter_agent_user_meters_in_force",
            "1 when all user-defined meters of the configuration in force and of run time count, 0 while the datapath \
             refuses them; the log says why.",
        ),
        u32::from(health.user_meters_in_force),
    )?;
    families.gauge(
        &Family::new(
            "meter_agent_counters_pinned",
            "1 where the counters are pinned and outlive the agent, 0 where nothing can be pinned and they end with it; \
             meter-agent ls and the log say why.",
        ),
        u32::from(health.unpinned.is_none()),
    )?;
    families.gauge(
        &Family::new(
            "meter_agent_ready",
            "1 once every netdev found at the start is attached or has failed for a reason.",
        ),
        u32::from(health.ready),
    )
}

/// Writes what the process takes, under the names that every Prometheus client uses.
fn process(families: &mut Families<'_>, process: &Process, started_ns: u64) -> fmt::Result {
    if let Some(time) = process.cpu_time {
        let family = Family::seconds("process_cpu", "CPU time of the process, user and system.");
        families.counter_since(&family, time.as_secs_f64(), started_ns)?;
    }
    if let Some(time) = process.start_time {
        let family = Family::seconds("process_start_time", "When the process started, since the Unix epoch.");
        families.gauge(&family, time.as_secs_f64())?;
    }
    for (value, family) in [
        (
            process.resident_bytes,
            Family::bytes("process_resident_memory", "Memory of the process that is in RAM."),
        ),
        (process.virtual_bytes, Family::bytes("process_virtual_memory", "Address space of the process.")),
        (process.open_fds, Family::new("process_open_fds", "File descriptors that the process has open.")),
        (process.max_fds, Family::new("process_max_fds", "File descriptors that the process may open.")),
    ] {
        if let Some(value) = value {
            families.gauge(&family, value)?;
        }
    }
    Ok(())
}
