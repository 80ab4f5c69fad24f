use clap::Parser;
use proptest::prelude::*;

use super::{document::TABLES, *};
use crate::{
    binding::Binding,
    connections,
    datapath::{IngressHook, Options, TcMode},
    meter::{DeviceId, PortId},
    netdev::{Glob, namespaces::Selection},
};

mod generated;
mod meters;
mod mistakes;

const PACKAGED: &str = include_str!("../../packaging/meter-agent.toml");
const HOST_ID: Uuid = Uuid::from_u128(0x123e4567_e89b_12d3_a456_426614174000);

fn host() -> HostFacts {
    HostFacts {
        machine_id: Some("0123456789abcdef0123456789abcdef\n".to_owned()),
        host_name: "compute1".to_owned(),
    }
}

fn defaults() -> Config {
    // UUIDv5 of the machine id and "meter-agent".
    let host_id = Uuid::from_u128(0x5dd145f0_6e0e_5b43_8a44_e9e51d78e680);
    Config {
        host_id,
        host_id_source: HostIdSource::MachineId,
        host_name: "compute1".to_owned(),
        datapath: Options {
            version: meter_ebpf::abi::VERSION,
            pin_path: "/sys/fs/bpf/meter-agent".into(),
            tc: TcMode::Auto,
            max_ports: 65536,
            max_netdevs: 4096,
            max_tunnels: 8192,
            max_connections: 16_384,
            vxlan_ports: vec![4789, 8472, 6677],
            geneve_ports: vec![6081],
            nvgre: false,
        },
        http_listen: vec!["[::]:7300".parse().unwrap()],
        web_config: None,
        jolokia_listen: vec!["127.0.0.1:7200".parse().unwrap()],
        metrics: Metrics { max_series: 20_000 },
        compat: Compat {
            midonet: false,
            device_stats: true,
            scraper: false,
            scraper_listen: Vec::new(),
            scraper_agent: "compute1:7200".to_owned(),
            skydive: false,
            skydive_listen: Vec::new(),
        },
        audit_interval: Some(Duration::from_secs(60)),
        state_file: None,
        state_interval: Some(Duration::from_secs(60)),
        control_socket: "/run/meter-agent/meter-agent.sock".into(),
        state_directory: "/var/lib/meter-agent".into(),
        log: Log { level: "info".to_owned(), format: LogFormat::Text },
        bindings: Bindings { configured: Vec::new(), host_id },
        rules: Rules {
            ignore: Vec::new(),
            ports: Vec::new(),
            uplinks: Vec::new(),
            uplink_ingress: IngressHook::Tc,
        },
        namespaces: Selection::default(),
        connections_view: connections::View { most: 5_000, ..connections::View::default() },
        connections: connections::Selection { share: 8_192, ..connections::Selection::default() },
        meters: MeterSet::default(),
    }
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, "a.toml", &Flags::default(), &host()).map_err(|mistakes| mistakes.to_string())
}

/// The packaged file with every key set: a comment has a blank after its number sign, a key has none.
fn uncommented() -> String {
    let lines = PACKAGED.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key,
        _ => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn empty_file_and_packaged_file_are_the_defaults() {
    assert_eq!(parse(""), Ok(defaults()));
    assert_eq!(parse(PACKAGED), Ok(defaults()));
}

#[test]
fn every_key_of_the_packaged_file_stands_at_its_default() {
    let example = Binding {
        netdev: Some("tap3f2a".parse().unwrap()),
        mac: Some([0xfe, 0x54, 0, 0x12, 0x34, 0x56]),
        netns: Some(Glob::new("qdhcp-3f2a1b6c")),
        port: Some(PortId(Uuid::from_u128(0x3f2a1b6c_0d4e_4f5a_8b7c_9d0e1f2a3b4c))),
        device: Some(DeviceId(Uuid::from_u128(0x7c9e6679_7425_40de_944b_e07fc1f90ae7))),
    };
    let expected = Config {
        host_id: HOST_ID,
        host_id_source: HostIdSource::Config,
        bindings: Bindings { configured: vec![example], host_id: HOST_ID },
        meters: meters::packaged(),
        ..defaults()
    };
    assert_eq!(parse(&uncommented()), Ok(expected));
}

#[test]
fn packaged_file_has_every_key_below_its_comment() {
    let text = uncommented();
    let table: toml::Table = text.parse().unwrap();
    for (name, known) in TABLES {
        let found = match table.get(*name) {
            None => &table,
            Some(toml::Value::Array(tables)) => tables[0].as_table().unwrap(),
            Some(table) => table.as_table().unwrap(),
        };
        let found: Vec<&str> = found.keys().map(String::as_str).collect();
        let mut known = known.to_vec();
        known.sort_unstable();
        assert_eq!(found, known, "[{name}]");
    }
    let lines: Vec<&str> = PACKAGED.lines().collect();
    for pair in lines.windows(2) {
        let is_key = pair[1].starts_with('#') && !pair[1].starts_with("# ") && pair[1].contains(" = ");
        assert!(!is_key || pair[0].starts_with("# "), "{} has no comment above it", pair[1]);
    }
}

#[test]
fn max_netdevs_follows_a_smaller_max_ports() {
    let config = parse("[datapath]\nmax_ports = 100").unwrap();
    let datapath = Options { max_ports: 100, max_netdevs: 100, ..defaults().datapath };
    assert_eq!(config, Config { datapath, ..defaults() });
}

#[test]
fn empty_list_switches_off() {
    let text = "[http]\nlisten = []\n[jolokia]\nlisten = []\n[tunnels]\nvxlan_ports = []\ngeneve_ports = []";
    let datapath = Options { vxlan_ports: Vec::new(), geneve_ports: Vec::new(), ..defaults().datapath };
    let expected = Config { http_listen: Vec::new(), jolokia_listen: Vec::new(), datapath, ..defaults() };
    assert_eq!(parse(text), Ok(expected));
}

#[test]
fn intervals_have_a_unit_and_zero_is_never() {
    let interval =
        |text: &str| parse(&format!("[audit]\ninterval = \"{text}\"")).map(|config| config.audit_interval);
    assert_eq!(interval("0s"), Ok(None));
    assert_eq!(interval("1500ms"), Ok(Some(Duration::from_millis(1500))));
    assert_eq!(interval("5m"), Ok(Some(Duration::from_secs(300))));
    assert_eq!(interval("24h"), Ok(Some(Duration::from_secs(86_400))));
    for text in ["60", "", "s", "-1s", "1.5s", "18446744073709551615h", "1d", "é"] {
        let said = interval(text).unwrap_err();
        assert!(said.contains("is not a duration, expected one such as \"60s\""), "{said}");
    }
    for text in ["999ms", "25h"] {
        let said = interval(text).unwrap_err();
        assert!(said.ends_with("is out of range (1s to 86400s, or \"0s\" for never)"), "{said}");
    }
}

#[test]
fn flags_override_the_file() {
    #[derive(Debug, Parser)]
    struct Agent {
        #[command(flatten)]
        flags: Flags,
        #[command(subcommand)]
        command: Option<Command>,
    }
    #[derive(Debug, clap::Subcommand)]
    enum Command {
        Ls,
    }
    let args = "meter-agent --web.listen-address 127.0.0.1:1 ls --web.config.file /w --config /x --web.listen-address [::1]:2 --jolokia-listen \
                127.0.0.1:3 --control-socket /s --datapath-pin-path /p --datapath-tc clsact --uplinks-ingress xdp \
                --state-directory /l --log-level info,meter_agent=debug --log-format json";
    let agent = Agent::parse_from(args.split_whitespace());
    assert!(matches!(agent.command, Some(Command::Ls)));
    assert_eq!(agent.flags.config.as_deref(), Some(Path::new("/x")));
    // clap keeps the values that stand nearest to the subcommand.
    assert_eq!(agent.flags.http_listen, ["[::1]:2"]);
    let config = Config::parse(uncommented(), "a.toml", &agent.flags, &host()).unwrap();
    let file = parse(&uncommented()).unwrap();
    let expected = Config {
        datapath: Options { pin_path: "/p".into(), tc: TcMode::Clsact, ..file.datapath },
        http_listen: vec!["[::1]:2".parse().unwrap()],
        web_config: Some("/w".into()),
        jolokia_listen: vec!["127.0.0.1:3".parse().unwrap()],
        control_socket: "/s".into(),
        state_directory: "/l".into(),
        log: Log { level: "info,meter_agent=debug".to_owned(), format: LogFormat::Json },
        rules: Rules { uplink_ingress: IngressHook::Xdp, ..file.rules },
        ..file
    };
    assert_eq!(config, expected);
}

#[test]
fn mistakes_in_flags_name_the_flag_and_come_after_those_of_the_file() {
    let text = |value: &str| Some(value.to_owned());
    let flags = Flags {
        config: None,
        http_listen: vec!["x".to_owned(), "127.0.0.1:7200".to_owned()],
        web_config: text("web.yml"),
        jolokia_listen: Vec::new(),
        control_socket: text("a.sock"),
        state_directory: text("lib"),
        datapath_pin_path: text("/"),
        datapath_tc: text("xdp"),
        uplinks_ingress: text("tcx"),
        compat_skydive: true,
        log_level: text("loud"),
        log_format: text("xml"),
    };
    let said = Config::parse("[log]\nformat = 1", "a.toml", &flags, &host()).unwrap_err().to_string();
    let expected = [
        "a.toml:2:1: log.format: expected a string, found an integer",
        "--control-socket: \"a.sock\" is not an absolute path, expected one that begins with /",
        "--datapath-pin-path: \"/\" is the root directory; use a path below it",
        "--datapath-tc: \"xdp\" is not one of \"auto\", \"tcx\", \"clsact\"",
        "--log-format: \"xml\" is not one of \"text\", \"json\"",
        "--log-level: \"loud\" is not a log level; expected off, error, warn, info, debug, trace, or directives such \
         as \"info,aya=debug\"",
        "--state-directory: \"lib\" is not an absolute path, expected one that begins with /",
        "--uplinks-ingress: \"tcx\" is not one of \"tc\", \"xdp\"",
        "--web.config.file: \"web.yml\" is not an absolute path, expected one that begins with /",
        "--web.listen-address: \"x\" is not an address with a port, expected one such as \"[::]:7300\" or \"127.0.0.1:7300\"",
        "--web.listen-address: 127.0.0.1:7200 is in jolokia.listen as well",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn blanks_around_log_directives_are_taken_out() {
    // EnvFilter takes them for a part of the target, and panics where that ends inside a character.
    for (level, expected) in [(" info , hyper=warn", "info,hyper=warn"), (" é=", "é="), ("debug", "debug")]
    {
        let log = Log { level: expected.to_owned(), format: LogFormat::Text };
        assert_eq!(
            parse(&format!("[log]\nlevel = \"{level}\"")),
            Ok(Config { log, ..defaults() }),
            "{level}"
        );
    }
}

#[test]
fn level_alone_is_about_the_agent_and_not_its_libraries() {
    for (level, expected) in [
        ("warn", "warn"),
        ("info", "info"),
        ("debug", "info,meter_agent=debug"),
        ("TRACE", "info,meter_agent=trace"),
        ("debug,aya=info", "debug,aya=info"),
        ("off", "off"),
    ] {
        let log = Log { level: level.to_owned(), format: LogFormat::Text };
        assert_eq!(log.directives(), expected, "{level}");
    }
}

#[test]
fn host_id_comes_from_the_strongest_source() {
    let facts = |machine_id: Option<&str>, host_name: &str| HostFacts {
        machine_id: machine_id.map(ToOwned::to_owned),
        host_name: host_name.to_owned(),
    };
    let named = Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"compute1");
    for (text, facts, expected) in [
        ("host_id = \"123e4567-e89b-12d3-a456-426614174000\"", host(), (HOST_ID, HostIdSource::Config)),
        ("", host(), (defaults().host_id, HostIdSource::MachineId)),
        ("", facts(None, "compute1"), (named, HostIdSource::HostName)),
        ("", facts(Some("uninitialized\n"), "compute1"), (named, HostIdSource::HostName)),
        ("", facts(Some("00000000000000000000000000000000"), "compute1"), (named, HostIdSource::HostName)),
    ] {
        let config = Config::parse(text, "a.toml", &Flags::default(), &facts).unwrap();
        assert_eq!((config.host_id, config.host_id_source), expected, "{text} {facts:?}");
        assert_eq!(config.bindings.host_id, config.host_id);
    }
    let nobody = Config::parse("", "a.toml", &Flags::default(), &facts(None, "localhost"));
    assert_eq!(
        nobody.unwrap_err().to_string(),
        "a.toml: host_id: is not set, and this host has neither a machine id (/etc/machine-id) nor a name of its own; \
         set it to a UUID"
    );
}

#[test]
fn only_the_default_file_may_be_missing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.toml");
    let flags = Flags { config: Some(path.clone()), ..Flags::default() };
    let load = || Config::load(&flags, &host());
    let failure = || load().unwrap_err().to_string();
    let shown = path.display().to_string();
    assert_eq!(
        failure(),
        format!("{shown}: there is no such file; make it, or leave out --config for the defaults")
    );
    fs::write(&path, "[log]\nlevel = \"debug\"\n").unwrap();
    assert_eq!(load().unwrap().log.level, "debug");
    fs::write(&path, "[log]\nlevel = 1\n").unwrap();
    assert_eq!(failure(), format!("{shown}:2:1: log.level: expected a string, found an integer"));
    fs::write(&path, vec![b'\n'; 1024 * 1024]).unwrap();
    assert_eq!(load().unwrap(), defaults());
    fs::write(&path, vec![b'\n'; 1024 * 1024 + 1]).unwrap();
    assert_eq!(failure(), format!("{shown}: is longer than 1048576 bytes, which no configuration is"));
}

#[test]
fn what_is_not_a_file_is_an_error_and_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let below_a_file = directory.path().join("file/a.toml");
    fs::write(directory.path().join("file"), "").unwrap();
    for (path, expected) in [
        (directory.path(), format!("{}: is a directory, expected a TOML file", directory.path().display())),
        (&pipe, format!("{}: is a pipe, expected a TOML file", pipe.display())),
        (Path::new("/dev/null"), "/dev/null: is a device, expected a TOML file".to_owned()),
        (&below_a_file, format!("read {}: Not a directory (os error 20)", below_a_file.display())),
    ] {
        let flags = Flags { config: Some(path.to_owned()), ..Flags::default() };
        assert_eq!(Config::load(&flags, &host()).unwrap_err().to_string(), expected);
    }
}

#[test]
fn only_all_of_ipv6_has_a_replacement() {
    for (addr, expected) in
        [("[::]:7300", Some("0.0.0.0:7300")), ("[::1]:7300", None), ("0.0.0.0:7300", None)]
    {
        assert_eq!(without_ipv6(addr.parse().unwrap()), expected.map(|addr| addr.parse().unwrap()), "{addr}");
    }
}
