//! The tables of the file and the flags over them, read to a [`Config`].

mod bindings;
mod conditions;
mod connections;
mod exposition;
mod meters;
mod routers;

pub use self::conditions::rule_table;

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use meter_ebpf::abi::{GENEVE_PORTS, VXLAN_PORTS};
use uuid::Uuid;

use super::{
    Config, Flags, HostFacts, HostIdSource, Log, LogFormat, Mistakes, check,
    document::{Document, Section},
    report::{Origin, Placed, Report},
};
use crate::{
    binding::Bindings,
    datapath::{IngressHook, Options, TcMode},
    netdev::{Pattern, namespaces::Selection},
    roles::Rules,
};

const TC: &[(&str, TcMode)] = &[("auto", TcMode::Auto), ("tcx", TcMode::Tcx), ("clsact", TcMode::Clsact)];
const INGRESS: &[(&str, IngressHook)] = &[("tc", IngressHook::Tc), ("xdp", IngressHook::Xdp)];
const LOG_FORMAT: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

/// Bytes of the pin path; the names of maps and links come below it.
const MAX_PIN_PATH: usize = 3000;
/// Bytes of a Unix socket's path: `sun_path` without its NUL.
const MAX_SOCKET_PATH: usize = 107;
/// Bytes of other paths.
const MAX_FILE_PATH: usize = 4000;
const MAX_LISTEN: usize = 16;
const MAX_PATTERNS: usize = 256;
const MAX_ENTRIES: u32 = 1_000_000;

/// How often totals may be written to the state file.
const STATE_INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const DEFAULT_STATE_INTERVAL: Duration = Duration::from_secs(60);

const DEFAULT_MAX_NETDEVS: u32 = 4096;
const DEFAULT_VXLAN_PORTS: [u16; 3] = [4789, 8472, 6677];
const DEFAULT_GENEVE_PORTS: [u16; 1] = [6081];

/// Reads and checks everything.
pub(super) fn parse(bytes: &[u8], origin: &str, flags: &Flags, host: &HostFacts) -> Result<Config, Mistakes> {
    let text = str::from_utf8(bytes).map_err(|error| not_utf8(bytes, origin, error.valid_up_to()))?;
    let mut report = Report::new(origin, text);
    let document = Document::read(text, &mut report);
    let config = config(&document, flags, host, &mut report);
    if report.is_clean() { Ok(config) } else { Err(report.finish()) }
}

fn not_utf8(bytes: &[u8], origin: &str, offset: usize) -> Mistakes {
    let valid = bytes.get(..offset).and_then(|valid| str::from_utf8(valid).ok()).unwrap_or_default();
    let byte = bytes.get(offset).copied().unwrap_or_default();
    let mut report = Report::new(origin, valid);
    report.text(offset, format_args!("byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"));
    report.finish()
}

/// Reads everything; where something is wrong the report says so, and a default stands in for it.
fn config(document: &Document<'_>, flags: &Flags, host: &HostFacts, report: &mut Report<'_>) -> Config {
    let datapath = datapath(document, flags, report);
    let rules = rules(document, flags, report);
    let namespaces = namespaces(document, report);
    let mut connections = connections::selection(document, datapath.max_connections, report);
    let connections_view = connections::view(document, report);
    let [http_listen, jolokia_listen, scraper_listen, skydive_listen] = listen(document, flags, report);
    let web_config = web_config(document, flags, report);
    let control_socket = control_socket(document, flags, report);
    let state_directory = state_directory(document, flags, report);
    let log = log(document, flags, report);
    let configured = bindings::read(document, report);
    let mut meters = meters::read(document, report);
    routers::read(document, &configured, &mut meters, report);
    connections.rules = connections::rules(document, &meters, report).into();
    let host_name = host_name(&document.top(), host, report);
    let metrics = exposition::metrics(document, report);
    let compat = exposition::compat(document, &host_name, [scraper_listen, skydive_listen], flags, report);
    let (state_file, state_interval) = state(document, report);
    let audit_interval = exposition::audit_interval(document, report);
    let (host_id, host_id_source) = host_id(&document.top(), host, report);
    let bindings = Bindings { configured, host_id };
    Config {
        host_id,
        host_id_source,
        host_name,
        datapath,
        http_listen,
        web_config,
        jolokia_listen,
        metrics,
        compat,
        audit_interval,
        state_file,
        state_interval,
        control_socket,
        state_directory,
        log,
        bindings,
        rules,
        namespaces,
        connections,
        connections_view,
        meters,
    }
}

fn host_name(top: &Section<'_>, host: &HostFacts, report: &mut Report<'_>) -> String {
    let configured = top.one(report, "host_name", check::string(check::host_name));
    let kernels = if host.host_name.is_empty() { "localhost" } else { &host.host_name };
    configured.map_or_else(|| kernels.to_owned(), |name| name.value)
}

/// Returns the host's id. A machine id is not to be published, so what is made of it is a UUID of its own
/// (`machine-id(5)`).
fn host_id(top: &Section<'_>, host: &HostFacts, report: &mut Report<'_>) -> (Uuid, HostIdSource) {
    if let Some(id) = top.one(report, "host_id", check::string(check::uuid)) {
        return (id.value, HostIdSource::Config);
    }
    let machine_id = host.machine_id.as_deref().map(str::trim).filter(|id| id.len() == 32);
    if let Some(id) = machine_id.and_then(|id| Uuid::try_parse(id).ok()).filter(|id| !id.is_nil()) {
        return (Uuid::new_v5(&id, b"meter-agent"), HostIdSource::MachineId);
    }
    let name = host.host_name.as_str();
    if matches!(name, "" | "localhost" | "localhost.localdomain" | "(none)") && report.is_clean() {
        let what = "is not set, and this host has neither a machine id (/etc/machine-id) nor a name of its own; \
                    set it to a UUID";
        report.key(Origin::Default, "host_id", what);
    }
    (Uuid::new_v5(&Uuid::NAMESPACE_DNS, name.as_bytes()), HostIdSource::HostName)
}

fn datapath(document: &Document<'_>, flags: &Flags, report: &mut Report<'_>) -> Options {
    let section = document.section("datapath", report);
    let pin_path = section.one(report, "pin_path", check::string(check::path(MAX_PIN_PATH)));
    let pin_path =
        flag(report, "--datapath-pin-path", flags.datapath_pin_path.as_ref(), check::path(MAX_PIN_PATH))
            .or(pin_path);
    let tc = section.one(report, "tc", check::string(check::word(TC)));
    let tc = flag(report, "--datapath-tc", flags.datapath_tc.as_ref(), check::word(TC)).or(tc);
    let max_ports = section.one(report, "max_ports", check::integer(1..=MAX_ENTRIES));
    let max_ports = or(max_ports, 65536).value;
    let max_netdevs = section.one(report, "max_netdevs", check::integer(1..=MAX_ENTRIES));
    let max_netdevs = or(max_netdevs, DEFAULT_MAX_NETDEVS.min(max_ports));
    if max_netdevs.value > max_ports {
        let what = format!("{} is more than datapath.max_ports ({max_ports})", max_netdevs.value);
        report.key(max_netdevs.origin, "datapath.max_netdevs", what);
    }
    let section = document.section("tunnels", report);
    let [vxlan_ports, geneve_ports] = udp_ports(&section, report);
    let nvgre = section.one(report, "nvgre", check::boolean);
    let max_tunnels = section.one(report, "max_tunnels", check::integer(1..=MAX_ENTRIES));
    let max_connections = connections::max_entries(document, report);
    Options {
        version: meter_ebpf::abi::VERSION,
        pin_path: or_else(pin_path, "/sys/fs/bpf/meter-agent"),
        tc: or(tc, TcMode::default()).value,
        max_ports,
        max_netdevs: max_netdevs.value,
        max_tunnels: or(max_tunnels, 8192).value,
        max_connections,
        vxlan_ports,
        geneve_ports,
        nvgre: or(nvgre, false).value,
    }
}

fn udp_ports(section: &Section<'_>, report: &mut Report<'_>) -> [Vec<u16>; 2] {
    let port = || check::integer(1..=u16::MAX);
    let vxlan = section.list(report, "vxlan_ports", VXLAN_PORTS, port());
    let vxlan = or_list(vxlan, &DEFAULT_VXLAN_PORTS);
    let geneve = section.list(report, "geneve_ports", GENEVE_PORTS, port());
    let geneve = or_list(geneve, &DEFAULT_GENEVE_PORTS);
    disjoint(report, &[("tunnels.vxlan_ports", &vxlan), ("tunnels.geneve_ports", &geneve)], |a, b| a == b);
    [values(vxlan), values(geneve)]
}

fn rules(document: &Document<'_>, flags: &Flags, report: &mut Report<'_>) -> Rules {
    let patterns = |section: &Section<'_>, report: &mut Report<'_>, key| {
        section.list(report, key, MAX_PATTERNS, check::string(check::pattern)).unwrap_or_default()
    };
    let section = document.section("ports", report);
    let ignore: Vec<Placed<Pattern>> = patterns(&section, report, "ignore");
    let ports = patterns(&section, report, "netdevs");
    let section = document.section("uplinks", report);
    let uplinks = patterns(&section, report, "netdevs");
    let ingress = section.one(report, "ingress", check::string(check::word(INGRESS)));
    let ingress =
        flag(report, "--uplinks-ingress", flags.uplinks_ingress.as_ref(), check::word(INGRESS)).or(ingress);
    let lists: [(&str, &[_]); 3] =
        [("ports.ignore", &ignore), ("ports.netdevs", &ports), ("uplinks.netdevs", &uplinks)];
    disjoint(report, &lists, |a, b| a == b);
    Rules {
        ignore: values(ignore),
        ports: values(ports),
        uplinks: values(uplinks),
        uplink_ingress: or(ingress, IngressHook::default()).value,
    }
}

fn namespaces(document: &Document<'_>, report: &mut Report<'_>) -> Selection {
    let section = document.section("namespaces", report);
    let globs = |report: &mut Report<'_>, key| {
        let list = section.list(report, key, MAX_PATTERNS, check::string(check::netns));
        values(list.unwrap_or_default())
    };
    Selection { include: globs(report, "include"), exclude: globs(report, "exclude") }
}

fn listen(document: &Document<'_>, flags: &Flags, report: &mut Report<'_>) -> [Vec<SocketAddr>; 4] {
    let section = document.section("http", report);
    let http = section.list(report, "listen", MAX_LISTEN, check::string(check::listen));
    let http = flag_list(report, "--web.listen-address", &flags.http_listen, check::listen).or(http);
    let section = document.section("jolokia", report);
    let jolokia = section.list(report, "listen", MAX_LISTEN, check::string(check::listen));
    let jolokia = flag_list(report, "--jolokia-listen", &flags.jolokia_listen, check::listen).or(jolokia);
    let section = document.section("compat", report);
    let scraper = section.list(report, "scraper_listen", MAX_LISTEN, check::string(check::listen));
    let skydive = section.list(report, "skydive_listen", MAX_LISTEN, check::string(check::listen));
    let http = or_list(http, &[([0_u16; 8], 7300).into()]);
    let jolokia = or_list(jolokia, &[([127, 0, 0, 1], 7200).into()]);
    let [scraper, skydive] = [scraper, skydive].map(|list| or_list(list, &[]));
    let lists: [(&str, &[_]); 4] = [
        ("http.listen", &http),
        ("jolokia.listen", &jolokia),
        ("compat.scraper_listen", &scraper),
        ("compat.skydive_listen", &skydive),
    ];
    disjoint(report, &lists, check::overlaps);
    [http, jolokia, scraper, skydive].map(values)
}

fn web_config(document: &Document<'_>, flags: &Flags, report: &mut Report<'_>) -> Option<PathBuf> {
    let read = check::optional(check::path(MAX_FILE_PATH));
    let section = document.section("http", report);
    let file = section.one(report, "config_file", check::string(&read));
    flag(report, "--web.config.file", flags.web_config.as_ref(), &read).or(file).and_then(|file| file.value)
}

fn state(document: &Document<'_>, report: &mut Report<'_>) -> (Option<PathBuf>, Option<Duration>) {
    let section = document.section("state", report);
    let file = section.one(report, "totals_file", check::string(check::optional(check::path(MAX_FILE_PATH))));
    let interval = section.one(report, "totals_interval", check::string(check::interval(STATE_INTERVALS)));
    (file.and_then(|file| file.value), or(interval, Some(DEFAULT_STATE_INTERVAL)).value)
}

fn control_socket(document: &Document<'_>, flags: &Flags, report: &mut Report<'_>) -> PathBuf {
    let section = document.section("control", report);
    let socket = section.one(report, "socket", check::string(check::path(MAX_SOCKET_PATH)));
    let socket =
        flag(report, "--control-socket", flags.control_socket.as_ref(), check::path(MAX_SOCKET_PATH))
            .or(socket);
    or_else(socket, "/run/meter-agent/meter-agent.sock")
}

fn state_directory(document: &Document<'_>, flags: &Flags, report: &mut Report<'_>) -> PathBuf {
    let section = document.section("state", report);
    let directory = section.one(report, "directory", check::string(check::path(MAX_FILE_PATH)));
    let flag = flag(report, "--state-directory", flags.state_directory.as_ref(), check::path(MAX_FILE_PATH));
    or_else(flag.or(directory), "/var/lib/meter-agent")
}

fn log(document: &Document<'_>, flags: &Flags, report: &mut Report<'_>) -> Log {
    let section = document.section("log", report);
    let level = section.one(report, "level", check::string(check::level));
    let level = flag(report, "--log-level", flags.log_level.as_ref(), check::level).or(level);
    let format = section.one(report, "format", check::string(check::word(LOG_FORMAT)));
    let format = flag(report, "--log-format", flags.log_format.as_ref(), check::word(LOG_FORMAT)).or(format);
    Log { level: or_else(level, "info"), format: or(format, LogFormat::default()).value }
}

/// Reads a flag's value.
fn flag<T>(
    report: &mut Report<'_>,
    name: &'static str,
    given: Option<&String>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Option<Placed<T>> {
    match read(given?) {
        Ok(value) => Some(Placed { value, origin: Origin::Flag(name) }),
        Err(what) => {
            report.key(Origin::Flag(name), name, what);
            None
        }
    }
}

/// Reads the values of a flag that may be given more than once.
fn flag_list<T>(
    report: &mut Report<'_>,
    name: &'static str,
    given: &[String],
    read: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<Placed<T>>> {
    if given.len() > MAX_LISTEN {
        let what = format!("has {} values, at most {MAX_LISTEN} are possible", given.len());
        report.key(Origin::Flag(name), name, what);
        return None;
    }
    let list = given.iter().filter_map(|value| flag(report, name, Some(value), &read)).collect();
    (!given.is_empty()).then_some(list)
}

/// Reports each value that is in two lists, or twice in one; where one of them is a default, the other is to blame.
fn disjoint<T: Display>(
    report: &mut Report<'_>,
    lists: &[(&str, &[Placed<T>])],
    overlaps: impl Fn(&T, &T) -> bool,
) {
    let all: Vec<_> =
        lists.iter().flat_map(|(key, list)| list.iter().map(move |item| (*key, item))).collect();
    for (index, &(key, item)) in all.iter().enumerate() {
        let Some(&(other_key, other)) =
            all[..index].iter().find(|(_, other)| overlaps(&other.value, &item.value))
        else {
            continue;
        };
        let (key, item, other_key, other) = match item.origin {
            Origin::Default => (other_key, other, key, item),
            Origin::File(_) | Origin::Flag(_) => (key, item, other_key, other),
        };
        let (value, other) = (item.value.to_string(), other.value.to_string());
        let what = if value != other {
            format!("{value} overlaps {other} of {other_key}")
        } else if key == other_key {
            format!("{value} is in the list twice")
        } else {
            format!("{value} is in {other_key} as well")
        };
        report.key(item.origin, key, what);
    }
}

fn or<T>(placed: Option<Placed<T>>, default: T) -> Placed<T> {
    placed.unwrap_or(Placed { value: default, origin: Origin::Default })
}

fn or_else<T: for<'a> From<&'a str>>(placed: Option<Placed<T>>, default: &str) -> T {
    placed.map_or_else(|| T::from(default), |placed| placed.value)
}

fn or_list<T: Copy>(placed: Option<Vec<Placed<T>>>, default: &[T]) -> Vec<Placed<T>> {
    placed.unwrap_or_else(|| default.iter().map(|&value| or(None, value)).collect())
}

fn values<T>(placed: Vec<Placed<T>>) -> Vec<T> {
    placed.into_iter().map(|placed| placed.value).collect()
}
