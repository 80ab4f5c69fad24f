//! Laws: any text is taken or refused, and a configuration that is written down reads as itself.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc};

use meter_ebpf::abi::connection::capture;

use super::*;
use crate::{
    connections,
    datapath::Class,
    netdev::{Glob, Pattern, namespaces::Selection},
    rules::{
        Attribute, Condition, Meter, Router, prefix,
        tests::strategies::{conditions, every_group},
    },
};

/// Pieces that texts are made of, most of them nearly right.
const PIECES: &[&str] = &[
    "[datapath]",
    "[[binding]]",
    "[[meter]]",
    "rules",
    "[\"proto 6 dst-port \"]",
    "[log]",
    "[http]",
    "[",
    "]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\n",
    "\r\n",
    "\"",
    "'''",
    "#",
    "tc",
    "level",
    "listen",
    "netdev",
    "mac",
    "port",
    "host_id",
    " = ",
    "\"tap*\"",
    "0",
    "-1",
    "1_000",
    "0xff",
    "1e9",
    "nan",
    "true",
    "1979-05-27",
    "\"[::]:7300\"",
    "\"a=b[c{d}]=info,\"",
    "é",
    "\u{feff}",
    "\0",
];

fn listen() -> impl Strategy<Value = Vec<SocketAddr>> {
    prop::collection::vec(any::<u8>(), 0..4).prop_map(|hosts| {
        // A port each, so that none overlaps another.
        let addr = |(index, host): (usize, u8)| {
            SocketAddr::from(([10, 0, 0, host], 1000 + u16::try_from(index).unwrap()))
        };
        hosts.into_iter().enumerate().map(addr).collect()
    })
}

fn patterns(prefix: &'static str) -> impl Strategy<Value = Vec<Pattern>> {
    let glob = prop::sample::subsequence(vec!["a*", "b?", "c", "é"], 0..4);
    glob.prop_map(move |globs| globs.iter().map(|glob| format!("{prefix}{glob}").parse().unwrap()).collect())
}

fn selections() -> impl Strategy<Value = Selection> {
    let globs = || {
        let texts = prop::sample::subsequence(vec!["qrouter-*", "a b", "é?", "*"], 0..4);
        texts.prop_map(|texts| texts.into_iter().map(Glob::new).collect())
    };
    (globs(), globs()).prop_map(|(include, exclude)| Selection { include, exclude })
}

fn bindings() -> impl Strategy<Value = Vec<Binding>> {
    let one = any::<[bool; 4]>();
    prop::collection::vec(one, 0..6).prop_map(|all| {
        let binding = |(index, [by_name, by_mac, inside, with_port]): (usize, [bool; 4])| {
            let number = u8::try_from(index).unwrap();
            let uuid = Uuid::from_u128(1 + u128::from(number));
            Binding {
                netdev: (by_name || !by_mac).then(|| format!("tap{number}").parse().unwrap()),
                mac: by_mac.then_some([2, 0, 0, 0, 0, number]),
                netns: inside.then(|| Glob::new(&format!("qdhcp-{number}"))),
                port: with_port.then_some(PortId(uuid)),
                device: (!with_port || by_mac).then_some(DeviceId(Uuid::from_u128(!uuid.as_u128()))),
            }
        };
        all.into_iter().enumerate().map(binding).collect()
    })
}

prop_compose! {
    fn datapaths()(
        tc in prop::sample::select(vec![TcMode::Auto, TcMode::Tcx, TcMode::Clsact]),
        (max_netdevs, max_ports) in (1..=1_000_000_u32).prop_flat_map(|least| (Just(least), least..=1_000_000)),
        [max_tunnels, max_connections] in prop::array::uniform2(1..=1_000_000_u32),
        udp_ports in prop::collection::btree_set(1..=u16::MAX, 0..=12),
        nvgre in any::<bool>(),
        name in "[a-z]{1,8}",
    ) -> Options {
        let udp_ports: Vec<u16> = BTreeSet::into_iter(udp_ports).collect();
        let (vxlan, geneve) = udp_ports.split_at(udp_ports.len().min(8));
        Options {
            version: meter_ebpf::abi::VERSION,
            pin_path: format!("/sys/fs/bpf/{name}").into(),
            tc,
            max_ports,
            max_netdevs,
            max_tunnels,
            max_connections,
            vxlan_ports: vxlan.to_vec(),
            geneve_ports: geneve.to_vec(),
            nvgre,
        }
    }
}

prop_compose! {
    fn configs()(
        id in 1..=u128::MAX,
        host_name in "[a-z0-9.]{1,60}",
        datapath in datapaths(),
        http_listen in listen(),
        max_series in 1..=1_000_000_u32,
        [midonet, device_stats, scraper] in any::<[bool; 3]>(),
        scraper_agent in "[a-z0-9.:]{1,60}",
        log in prop::sample::select(vec![("off", LogFormat::Json), ("info,hyper=warn", LogFormat::Text)]),
        (ignore, ports, uplinks) in (patterns("kind:"), patterns("driver:"), patterns("")),
        xdp in any::<bool>(),
        namespaces in selections(),
        connections in captures(),
        configured in bindings(),
        meters in meter_sets(),
    ) -> Config {
        let host_id = Uuid::from_u128(id);
        Config {
            host_id,
            host_id_source: HostIdSource::Config,
            host_name,
            datapath,
            jolokia_listen: http_listen.iter().map(|addr| SocketAddr::new(addr.ip(), addr.port() + 1000)).collect(),
            metrics: Metrics { max_series },
            compat: Compat {
                midonet,
                device_stats,
                scraper,
                scraper_listen: http_listen.iter().map(|addr| SocketAddr::new(addr.ip(), addr.port() + 2000)).collect(),
                scraper_agent,
                skydive: midonet,
                skydive_listen: http_listen.iter().map(|addr| SocketAddr::new(addr.ip(), addr.port() + 3000)).collect(),
            },
            http_listen,
            web_config: xdp.then(|| "/etc/w \"x\".yml".into()),
            audit_interval: (!xdp).then(|| Duration::from_millis(u64::from(max_series) + 999)),
            state_file: xdp.then(|| "/var/lib/s \"x\"".into()),
            state_interval: (!midonet).then(|| Duration::from_secs(u64::from(max_series % 80_000) + 1)),
            control_socket: "/run/a \"b\".sock".into(),
            state_directory: "/var/lib/a \"b\"".into(),
            log: Log { level: log.0.to_owned(), format: log.1 },
            bindings: Bindings { configured, host_id },
            rules: Rules {
                ignore,
                ports,
                uplinks,
                uplink_ingress: if xdp { IngressHook::Xdp } else { IngressHook::Tc },
            },
            namespaces,
            connections_view: connections::View {
                most: usize::try_from(max_series).unwrap() / 2,
                drop: if xdp { connections::Label::ALL.map(|(_, label)| label).into() } else { [].into() },
                networks: if midonet { vec![prefix("2001:db8::/32").unwrap()] } else { Vec::new() },
                classifier: scraper
                    .then(|| connections::Classifier(vec![prefix("10.0.0.0/8").unwrap()]))
                    .or_else(|| xdp.then(connections::Classifier::default)),
                exclude: if xdp { connections::Tag::ALL.into() } else { [].into() },
            },
            connections: connections::Selection { rules: rules_of(&meters).into(), ..connections },
            meters,
        }
    }
}

/// Returns the rules of the first meter as those of connections.
fn rules_of(set: &MeterSet) -> MeterSet {
    let Some(first) = set.meters.first() else { return MeterSet::default() };
    set.with_rules(first.rules.iter().map(|rule| Condition { flow: None, ..rule.clone() }).collect())
}

prop_compose! {
    fn captures()(
        netdevs in patterns("kind:"),
        ports in prop::collection::btree_set(1..1_000_000_u128, 0..3),
        roles in prop::collection::btree_set(prop::sample::select(vec![Class::Port, Class::Uplink, Class::Tunnel]), 0..3),
        protocols in 0..16_u32,
        versions in 0..4_u32,
        inside in any::<bool>(),
        share in 1..=1_000_000_u32,
        (idle_s, ended_s) in (1..=86_400_u32, 1..=86_400_u32),
    ) -> connections::Selection {
        connections::Selection {
            netdevs,
            ports: ports.into_iter().map(|port| PortId(Uuid::from_u128(port))).collect(),
            roles,
            bits: protocols | versions << 4 | if inside { capture::INSIDE } else { 0 },
            rules: Arc::default(),
            share,
            idle_s,
            ended_s,
        }
    }
}

/// Writes down of which netdevs connections are counted.
fn written_connections(Config { connections: selection, connections_view: view, .. }: &Config) -> String {
    let words = |all: &[&'static str], first: u32| -> Vec<&'static str> {
        (first..).zip(all).filter(|(bit, _)| selection.bits & 1 << bit != 0).map(|(_, word)| *word).collect()
    };
    let roles: Vec<&str> = selection.roles.iter().map(|role| role.name()).collect();
    format!(
        "netdevs = {}\nports = {}\nroles = {roles:?}\nprotocols = {:?}\nip_versions = [{}]\ninside_tunnels = {}\nmax_entries_of_netdev = {}\n\
         timeout = \"{}s\"\nended_timeout = \"{}s\"\nmax_series = {}\ndrop_labels = {:?}\ngroup_networks = {}\n\
         internal_networks = {}\nexclude_classes = {:?}\n{}",
        strings(&selection.netdevs),
        strings(&selection.ports.iter().collect::<Vec<_>>()),
        words(&["tcp", "udp", "sctp", "icmp"], 0),
        words(&["4", "6"], 4).join(", "),
        selection.bits & capture::INSIDE != 0,
        selection.share,
        selection.idle_s,
        selection.ended_s,
        (view.most * 2).max(1),
        connections::Label::ALL
            .iter()
            .filter(|(_, label)| view.drop.contains(label))
            .map(|(name, _)| *name)
            .collect::<Vec<_>>(),
        strings(&view.networks),
        strings(&view.classifier.clone().unwrap_or_default().0),
        view.exclude.iter().map(|tag| tag.name()).collect::<Vec<_>>(),
        selection.rules.meters.first().map_or(String::new(), |meter| written_rules(&meter.rules)),
    )
}

prop_compose! {
    fn meter_sets()(
        meters in prop::collection::btree_map("\\PC{1,9}", prop::collection::vec(conditions(), 1..4), 0..4),
        groups in every_group(),
        routers in prop::collection::btree_map(any::<u64>(), routers(), 0..3),
    ) -> MeterSet {
        let meters = meters.into_iter().map(|(name, rules)| Meter { name, rules }).collect();
        let with_id = |(id, router): (u64, Router)| Router { device: device(u128::from(id) << 64), ..router };
        MeterSet { meters, groups, routers: routers.into_iter().map(with_id).collect() }
    }
}

fn device(number: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(number))
}

prop_compose! {
    fn routers()(
        macs in prop::collection::btree_set(any::<[u8; 5]>(), 1..4),
        bridges in prop::collection::btree_set(1..1_000_000_u128, 1..3),
    ) -> Router {
        let mac = |[a, b, c, d, e]: [u8; 5]| [2, a, b, c, d, e];
        Router {
            device: device(0),
            macs: macs.into_iter().map(mac).collect(),
            bridges: bridges.into_iter().map(|number| device(number << 1)).collect(),
        }
    }
}

fn strings<T: ToString>(list: &[T]) -> toml::Value {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().into()
}

/// Writes a configuration down as an operator would.
fn written(config: &Config) -> String {
    let Config { datapath, log, rules, bindings, .. } = config;
    let string = |path: &Path| toml::Value::from(path.to_str().unwrap());
    let tc = match datapath.tc {
        TcMode::Auto => "auto",
        TcMode::Tcx => "tcx",
        TcMode::Clsact => "clsact",
    };
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let ingress = match rules.uplink_ingress {
        IngressHook::Tc => "tc",
        IngressHook::Xdp => "xdp",
    };
    let mut text = format!(
        "host_id = \"{}\"\nhost_name = \"{}\"\n\n[datapath]\npin_path = {}\ntc = \"{tc}\"\nmax_ports = {}\n\
         max_netdevs = {}\n\n[tunnels]\nvxlan_ports = {:?}\ngeneve_ports = {:?}\nnvgre = {}\nmax_tunnels = {}\n\
         \n[connections]\nmax_entries = {}\n{}\n\n[uplinks]\nnetdevs = {}\ningress = \"{ingress}\"\n\n[ports]\nnetdevs = {}\n\
         ignore = {}\n\n[namespaces]\ninclude = {}\nexclude = {}\n\n[http]\nlisten = {}\nconfig_file = {}\n\n[jolokia]\nlisten = {}\n\n\
         [metrics]\nmax_series = {}\n\n[compat]\nmidonet = {}\ndevice_stats = {}\nscraper = {}\n\
         scraper_listen = {}\nscraper_agent = \"{}\"\nskydive = {}\nskydive_listen = {}\n\n\
         [audit]\ninterval = \"{}ms\"\n\n[control]\nsocket = {}\n\n\
         [state]\ndirectory = {}\ntotals_file = {}\ntotals_interval = \"{}s\"\n\n\
         [log]\nlevel = \"{}\"\nformat = \"{format}\"\n",
        config.host_id,
        config.host_name,
        string(&datapath.pin_path),
        datapath.max_ports,
        datapath.max_netdevs,
        datapath.vxlan_ports,
        datapath.geneve_ports,
        datapath.nvgre,
        datapath.max_tunnels,
        datapath.max_connections,
        written_connections(config),
        strings(&rules.uplinks),
        strings(&rules.ports),
        strings(&rules.ignore),
        strings(&config.namespaces.include),
        strings(&config.namespaces.exclude),
        strings(&config.http_listen),
        config.web_config.as_ref().map_or(toml::Value::from(""), |path| string(path)),
        strings(&config.jolokia_listen),
        config.metrics.max_series,
        config.compat.midonet,
        config.compat.device_stats,
        config.compat.scraper,
        strings(&config.compat.scraper_listen),
        config.compat.scraper_agent,
        config.compat.skydive,
        strings(&config.compat.skydive_listen),
        config.audit_interval.unwrap_or_default().as_millis(),
        string(&config.control_socket),
        string(&config.state_directory),
        config.state_file.as_ref().map_or(toml::Value::from(""), |path| string(path)),
        config.state_interval.unwrap_or_default().as_secs(),
        log.level,
    );
    for Binding { netdev, mac, netns, port, device } in &bindings.configured {
        text.push_str("\n[[binding]]\n");
        let mac = mac.map(|[a, b, c, d, e, f]| format!("{a:02x}:{b:02X}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
        let fields = [
            ("netdev", netdev.as_ref().map(ToString::to_string)),
            ("mac", mac),
            ("netns", netns.as_ref().map(ToString::to_string)),
            ("port", port.map(|port| port.to_string())),
            ("device", device.map(|device| device.to_string())),
        ];
        for (key, value) in fields {
            let Some(value) = value else { continue };
            writeln!(text, "{key} = \"{value}\"").unwrap();
        }
    }
    written_meters(&mut text, &config.meters);
    text
}

/// Writes rules down: the first as a line, the others as tables.
fn written_rules(rules: &[Condition]) -> String {
    let string = |text: &str| toml::Value::from(text);
    let mut text = "rules = [\n".to_owned();
    for (index, rule) in rules.iter().enumerate() {
        if index == 0 {
            writeln!(text, "    {},", string(&rule.to_string())).unwrap();
            continue;
        }
        let keys = Attribute::ALL.into_iter().filter_map(|attribute| {
            let value = rule.value_of(attribute)?;
            let value = match value.parse::<i64>() {
                Ok(number) => number.into(),
                Err(_) => string(&value),
            };
            Some(format!("{} = {value}", attribute.key()))
        });
        writeln!(text, "    {{ {} }},", keys.collect::<Vec<_>>().join(", ")).unwrap();
    }
    text + "]\n"
}

/// Writes meters and groups down.
fn written_meters(text: &mut String, MeterSet { meters, groups, routers }: &MeterSet) {
    let string = |text: &str| toml::Value::from(text);
    for Meter { name, rules } in meters {
        writeln!(text, "\n[[meter]]\nname = {}\n{}", string(name), written_rules(rules)).unwrap();
    }
    for Router { device, macs, bridges } in routers {
        let macs: Vec<String> =
            macs.iter().map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")).collect();
        let bridges: Vec<_> = bridges.iter().collect();
        let (macs, bridges) = (strings(&macs), strings(&bridges));
        writeln!(text, "\n[[router]]\nid = \"{device}\"\nmacs = {macs}\nbridges = {bridges}").unwrap();
    }
    for (name, ports) in &groups.ports {
        let ports: Vec<_> = ports.iter().collect();
        writeln!(text, "\n[[port_group]]\nname = {}\nports = {}", string(name), strings(&ports)).unwrap();
    }
    for (name, addresses) in &groups.addresses {
        let name = string(name);
        writeln!(text, "\n[[ip_address_group]]\nname = {name}\naddresses = {}", strings(addresses)).unwrap();
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(mistakes) = Config::parse(bytes, "a.toml", &Flags::default(), &host()) {
            prop_assert!(mistakes.to_string().starts_with("a.toml:"));
        }
    }

    #[test]
    fn any_text_is_taken_or_refused_line_by_line(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        if let Err(mistakes) = Config::parse(pieces.concat(), "a.toml", &Flags::default(), &host()) {
            prop_assert_eq!(mistakes.to_string().lines().count(), mistakes.list.len());
            for line in mistakes.to_string().lines() {
                prop_assert!(line.starts_with("a.toml:"), "{}", line);
            }
        }
    }

    #[test]
    fn any_value_of_a_flag_is_taken_or_refused(value in any::<String>()) {
        let flags = Flags {
            http_listen: vec![value.clone()],
            control_socket: Some(value.clone()),
            state_directory: Some(value.clone()),
            datapath_tc: Some(value.clone()),
            log_level: Some(value),
            ..Flags::default()
        };
        let mistakes = Config::parse("", "a.toml", &flags, &host()).unwrap_err();
        prop_assert!(mistakes.list.iter().all(|mistake| matches!(mistake.place, Place::Flag(_))));
    }

    #[test]
    fn configuration_that_is_written_down_reads_as_itself(config in configs()) {
        let text = written(&config);
        prop_assert_eq!(parse(&text), Ok(config), "{}", text);
    }
}
