//! Every kind of mistake, and what is said of it.

use super::*;

/// Checks what is said of each text, a line for each mistake.
fn check(rows: &[(&str, &[&str])]) {
    for (text, expected) in rows {
        let said = parse(text).expect_err(text);
        assert_eq!(said.lines().collect::<Vec<_>>(), *expected, "{text}");
    }
}

#[test]
fn syntax() {
    check(&[
        ("a", &["a.toml:1:2: not TOML: key with no value, expected `=`"]),
        ("[datapath\ntc=1", &["a.toml:1:10: not TOML: unclosed table, expected `]`"]),
        (
            "[log]\nlevel = info\nformat = text # or json\n[datapath]\ntc = tcx\n[http]\nlisten = [\"x\",here]",
            &[
                "a.toml:2:9: not TOML: a string is written in quotes: \"info\"",
                "a.toml:3:10: not TOML: a string is written in quotes: \"text\"",
                "a.toml:5:6: not TOML: a string is written in quotes: \"tcx\"",
                "a.toml:7:15: not TOML: a string is written in quotes: \"here\"",
            ],
        ),
        ("é = 1", &["a.toml:1:1: not TOML: invalid unquoted key, expected letters, numbers, `-`, `_`"]),
        (
            "x = 2026-99-01\n\ny = 010",
            &[
                "a.toml:1:5: not TOML: invalid date, expected month between 01 and 12",
                "a.toml:3:5: not TOML: unexpected leading zero, expected nothing",
            ],
        ),
    ]);
}

#[test]
fn bytes_that_are_not_utf8() {
    let mistakes = Config::parse(b"# \xc3\xa9\n# \xc3\xa9 \xff\n", "a.toml", &Flags::default(), &host());
    assert_eq!(
        mistakes.unwrap_err().to_string(),
        "a.toml:2:5: byte 0xff is not UTF-8; save the file as UTF-8"
    );
}

#[test]
fn keys_that_are_set_twice() {
    check(&[
        ("host_name = \"a\"\nhost_name = \"b\"", &["a.toml:2:1: host_name: is set twice"]),
        ("[datapath]\ntc = \"auto\"\ntc = \"tcx\"", &["a.toml:3:1: datapath.tc: is set twice"]),
        ("[datapath]\n[datapath]", &["a.toml:2:2: datapath: is set twice"]),
        ("log = { level = \"info\", level = \"warn\" }", &["a.toml:1:25: log.level: is set twice"]),
        (
            "[[binding]]\nmac = \"x\"\nport = 1\nport = 2",
            &[
                "a.toml:2:1: binding.mac: \"x\" is not a MAC address, expected one such as \"52:54:00:12:34:56\"",
                "a.toml:3:1: binding.port: expected a string, found an integer",
                "a.toml:4:1: binding.port: is set twice",
            ],
        ),
    ]);
}

#[test]
fn keys_that_are_unknown() {
    check(&[
        (
            "listen = 1",
            &[
                "a.toml:1:1: unknown key listen; known are: host_id, host_name, datapath, tunnels, connections, uplinks, ports, \
               namespaces, http, jolokia, metrics, compat, audit, control, state, log, binding, meter, router, port_group, ip_address_group",
            ],
        ),
        (
            "\n\n[datapath]\n  tcx = true",
            &["a.toml:4:3: unknown key datapath.tcx; known are: pin_path, tc, max_ports, max_netdevs"],
        ),
        ("[http.tls]", &["a.toml:1:7: unknown key http.tls; known are: listen, config_file"]),
        ("[control]\n\"a\\nb\" = 1", &["a.toml:2:1: unknown key control.\"a\\nb\"; known are: socket"]),
        (
            "[[binding]]\nnetdev = \"tap0\"\nname = \"x\"\ndevice = \"3f2a1b6c-0d4e-4f5a-8b7c-9d0e1f2a3b4c\"",
            &["a.toml:3:1: unknown key binding.name; known are: netdev, mac, netns, port, device"],
        ),
    ]);
}

#[test]
fn namespaces_that_no_name_is_of() {
    check(&[
        (
            "[namespaces]\ninclude = [\"\", \"/run/netns/a\", 3]\nexclude = \"a\"",
            &[
                "a.toml:2:12: namespaces.include: \"\" has 0 bytes, and a namespace's name 1 to 255",
                "a.toml:2:16: namespaces.include: \"/run/netns/a\" matches no namespace: give its name below /run/netns, such as \"qrouter-*\"",
                "a.toml:2:32: namespaces.include: expected a string, found an integer",
                "a.toml:3:1: namespaces.exclude: expected an array, found a string",
            ],
        ),
        (
            "[[binding]]\nnetdev = \"eth0\"\nnetns = \"qdhcp-*\"\nport = \"3f2a1b6c-0d4e-4f5a-8b7c-9d0e1f2a3b4c\"",
            &[
                "a.toml:4:1: binding.port: \"qdhcp-*\" can match many namespaces, and a port is in one; leave out port, or name \
               the namespace",
            ],
        ),
    ]);
}

#[test]
fn values_of_another_type() {
    check(&[
        ("host_id = 1", &["a.toml:1:1: host_id: expected a string, found an integer"]),
        ("datapath = 3", &["a.toml:1:1: datapath: expected a table, found an integer; write [datapath]"]),
        ("[[http]]", &["a.toml:1:3: http: expected a table, found an array; write [http]"]),
        (
            "[binding]\nnetdev = \"a\"",
            &["a.toml:1:2: binding: expected an array of tables, found a table; write [[binding]]"],
        ),
        ("binding = [ 3 ]", &["a.toml:1:13: binding: expected a table, found an integer; write [[binding]]"]),
        (
            "[datapath]\nmax_ports = 1.5\nmax_netdevs = \"1\"\ntc = true\npin_path = []",
            &[
                "a.toml:2:1: datapath.max_ports: expected an integer, found a float",
                "a.toml:3:1: datapath.max_netdevs: expected an integer, found a string",
                "a.toml:4:1: datapath.tc: expected a string, found a boolean",
                "a.toml:5:1: datapath.pin_path: expected a string, found an array",
            ],
        ),
        (
            "[tunnels]\nnvgre = 1979-05-27\nvxlan_ports = 4789\ngeneve_ports = [\"6081\"]",
            &[
                "a.toml:2:1: tunnels.nvgre: expected true or false, found a date or time",
                "a.toml:3:1: tunnels.vxlan_ports: expected an array, found an integer",
                "a.toml:4:17: tunnels.geneve_ports: expected an integer, found a string",
            ],
        ),
        ("[http]\nlisten = \"[::]:1\"", &["a.toml:2:1: http.listen: expected an array, found a string"]),
    ]);
}

#[test]
fn values_out_of_range() {
    check(&[
        (
            "[datapath]\nmax_ports = 0\nmax_netdevs = 1000001",
            &[
                "a.toml:2:1: datapath.max_ports: 0 is out of range (1 to 1000000)",
                "a.toml:3:1: datapath.max_netdevs: 1000001 is out of range (1 to 1000000)",
            ],
        ),
        (
            "[datapath]\nmax_ports = 100\nmax_netdevs = 101",
            &["a.toml:3:1: datapath.max_netdevs: 101 is more than datapath.max_ports (100)"],
        ),
        (
            "[datapath]\nmax_ports = -1\nmax_netdevs = 9999999999999999999999999999999999999999",
            &[
                "a.toml:2:1: datapath.max_ports: -1 is out of range (1 to 1000000)",
                "a.toml:3:1: datapath.max_netdevs: 9999999999999999999999999999999999999999 is out of range (1 to \
                 1000000)",
            ],
        ),
        (
            "[tunnels]\nmax_tunnels = 0\nvxlan_ports = [1, 0, 65536]",
            &[
                "a.toml:2:1: tunnels.max_tunnels: 0 is out of range (1 to 1000000)",
                "a.toml:3:19: tunnels.vxlan_ports: 0 is out of range (1 to 65535)",
                "a.toml:3:22: tunnels.vxlan_ports: 65536 is out of range (1 to 65535)",
            ],
        ),
        (
            "[tunnels]\nvxlan_ports = [1,2,3,4,5,6,7,8,9]\ngeneve_ports = [11,12,13,14,15]",
            &[
                "a.toml:2:1: tunnels.vxlan_ports: has 9 values, at most 8 are possible",
                "a.toml:3:1: tunnels.geneve_ports: has 5 values, at most 4 are possible",
            ],
        ),
    ]);
}

#[test]
fn words_and_texts() {
    check(&[
        (
            "[datapath]\ntc = \"TCX\"",
            &["a.toml:2:1: datapath.tc: \"TCX\" is not one of \"auto\", \"tcx\", \"clsact\""],
        ),
        ("[uplinks]\ningress = \"\"", &["a.toml:2:1: uplinks.ingress: \"\" is not one of \"tc\", \"xdp\""]),
        (
            "[log]\nformat = \"yaml\"\nlevel = \"verbose\"",
            &[
                "a.toml:2:1: log.format: \"yaml\" is not one of \"text\", \"json\"",
                "a.toml:3:1: log.level: \"verbose\" is not a log level; expected off, error, warn, info, debug, trace, \
                 or directives such as \"info,aya=debug\"",
            ],
        ),
        (
            "[log]\nlevel = \"[x{\"",
            &[
                "a.toml:2:1: log.level: \"[x{\" is not a log directive (invalid filter directive); expected off, error, \
               warn, info, debug, trace, or directives such as \"info,aya=debug\"",
            ],
        ),
        (
            "[compat]\nscraper_agent = \"a\\\"b\"",
            &[
                "a.toml:2:1: compat.scraper_agent: \"a\\\"b\" has a quote or a backslash in it, which no address has",
            ],
        ),
        (
            "host_id = \"compute1\"\nhost_name = \"a b\"",
            &[
                "a.toml:1:1: host_id: \"compute1\" is not a UUID, expected one such as \
                 \"123e4567-e89b-12d3-a456-426614174000\"",
                "a.toml:2:1: host_name: \"a b\" has white space in it, which no host name has",
            ],
        ),
        (
            "host_id = \"00000000-0000-0000-0000-000000000000\"\nhost_name = \"\"",
            &[
                "a.toml:1:1: host_id: the nil UUID names nothing; leave the key out instead",
                "a.toml:2:1: host_name: \"\" has 0 bytes, expected 1 to 253",
            ],
        ),
    ]);
}

#[test]
fn paths() {
    for (path, expected) in [
        ("run/a.sock", "\"run/a.sock\" is not an absolute path, expected one that begins with /"),
        ("", "\"\" is not an absolute path, expected one that begins with /"),
        ("/run/../a", "\"/run/../a\" has .. in it; write where it leads to"),
        ("//", "\"//\" is the root directory; use a path below it"),
        (r"/a\u0000", r#""/a\0" has a NUL in it, which no path has"#),
    ] {
        let text = format!("[control]\nsocket = \"{path}\"\n[datapath]\npin_path = \"{path}\"");
        let expected =
            format!("a.toml:2:1: control.socket: {expected}\na.toml:4:1: datapath.pin_path: {expected}");
        assert_eq!(parse(&text), Err(expected), "{path}");
    }
    let (fits, too_long) = (format!("/{}", "s".repeat(106)), format!("/{}", "s".repeat(107)));
    assert!(parse(&format!("[control]\nsocket = \"{fits}\"")).is_ok());
    assert_eq!(
        parse(&format!("[control]\nsocket = \"{too_long}\"")),
        Err(format!("a.toml:2:1: control.socket: \"/{}\"… is longer than 107 bytes", "s".repeat(59)))
    );
}

#[test]
fn addresses() {
    check(&[
        (
            "[http]\nlisten = [\"7300\", \"[::]\", \":x\", \"localhost:7300\"]",
            &[
                "a.toml:2:11: http.listen: \"7300\" is not an address with a port, expected one such as \"[::]:7300\" \
                 or \"127.0.0.1:7300\"",
                "a.toml:2:19: http.listen: \"[::]\" is not an address with a port, expected one such as \"[::]:7300\" \
                 or \"127.0.0.1:7300\"",
                "a.toml:2:27: http.listen: \":x\" is not an address with a port, expected one such as \
                 \"[::]:7300\" or \"127.0.0.1:7300\"",
                "a.toml:2:33: http.listen: \"localhost:7300\" is not an address with a port, expected one such as \
                 \"[::]:7300\" or \"127.0.0.1:7300\"",
            ],
        ),
        (
            "[jolokia]\nlisten = [\"127.0.0.1:7300\"]",
            &["a.toml:2:11: jolokia.listen: 127.0.0.1:7300 overlaps [::]:7300 of http.listen"],
        ),
        (
            "[http]\nlisten = [\"0.0.0.0:7200\"]",
            &["a.toml:2:11: http.listen: 0.0.0.0:7200 overlaps 127.0.0.1:7200 of jolokia.listen"],
        ),
        (
            "[http]\nlisten = [\"[::1]:1\", \"[::1]:2\", \"[::1]:1\"]",
            &["a.toml:2:33: http.listen: [::1]:1 is in the list twice"],
        ),
        (
            "[compat]\nscraper_listen = [\"127.0.0.1:7200\"]",
            &["a.toml:2:19: compat.scraper_listen: 127.0.0.1:7200 is in jolokia.listen as well"],
        ),
    ]);
    let apart = "[http]\nlisten = [\"0.0.0.0:1\", \"[::1]:1\", \"127.0.0.1:0\", \"127.0.0.1:0\"]";
    assert!(parse(apart).is_ok());
}

#[test]
fn settings_that_overlap() {
    check(&[
        (
            "[tunnels]\nvxlan_ports = [4789, 4789]\ngeneve_ports = [4789]",
            &[
                "a.toml:2:22: tunnels.vxlan_ports: 4789 is in the list twice",
                "a.toml:3:17: tunnels.geneve_ports: 4789 is in tunnels.vxlan_ports as well",
            ],
        ),
        (
            "[tunnels]\nvxlan_ports = [6081]",
            &["a.toml:2:16: tunnels.vxlan_ports: 6081 is in tunnels.geneve_ports as well"],
        ),
        (
            "[ports]\nnetdevs = [\"a*\"]\nignore = [\"b\", \"b\"]\n[uplinks]\nnetdevs = [\"a*\", \"a\"]",
            &[
                "a.toml:3:16: ports.ignore: b is in the list twice",
                "a.toml:5:12: uplinks.netdevs: a* is in ports.netdevs as well",
            ],
        ),
    ]);
}

#[test]
fn patterns() {
    const KIND: &str = "expected a name such as \"tap*\", \"kind:…\" or \"driver:…\"";
    for (pattern, expected) in [
        ("a b", format!("\"a b\" is not a netdev pattern: {KIND}")),
        ("", format!("\"\" is not a netdev pattern: {KIND}")),
        ("type:veth", format!("\"type:veth\" is not a netdev pattern: {KIND}")),
        (
            "tap3f2a1b6c-0d4*e",
            "\"tap3f2a1b6c-0d4*e\" matches no netdev: their names have at most 15 bytes".to_owned(),
        ),
        (
            &format!("kind:{}", "x".repeat(124)),
            format!("\"kind:{}\"… is longer than 128 bytes", "x".repeat(55)),
        ),
    ] {
        let text = format!("[ports]\nnetdevs = [\n  \"{pattern}\",\n]");
        assert_eq!(parse(&text), Err(format!("a.toml:3:3: ports.netdevs: {expected}")), "{pattern}");
    }
    assert!(parse("[ports]\nnetdevs = [\"tap3f2a1b6c-0d4*\", \"driver:a_driver_with_a_long_name\"]").is_ok());
}

#[test]
fn bindings() {
    const A: &str = "3f2a1b6c-0d4e-4f5a-8b7c-9d0e1f2a3b4c";
    check(&[
        (
            "[[binding]]",
            &[
                "a.toml:1:1: binding: has neither netdev nor mac; say which netdev it is about",
                "a.toml:1:1: binding: has neither port nor device; say what the netdev carries",
            ],
        ),
        (
            "[[binding]]\nmac = \"52-54-00-12-34-56\"\nport = \"00000000-0000-0000-0000-000000000000\"",
            &[
                "a.toml:2:1: binding.mac: \"52-54-00-12-34-56\" is not a MAC address, expected one such as \
                 \"52:54:00:12:34:56\"",
                "a.toml:3:1: binding.port: the nil UUID names nothing; leave the key out instead",
            ],
        ),
        (
            "[[binding]]\nmac = \"01:00:5e:00:00:01\"\ndevice = \"\"\n\n[[binding]]\nmac = \"00:00:00:00:00:00\"\n\
             device = 1",
            &[
                "a.toml:2:1: binding.mac: \"01:00:5e:00:00:01\" is a group's address, which no netdev has",
                "a.toml:3:1: binding.device: \"\" is not a UUID, expected one such as \
                 \"123e4567-e89b-12d3-a456-426614174000\"",
                "a.toml:6:1: binding.mac: \"00:00:00:00:00:00\" is no netdev's own address",
                "a.toml:7:1: binding.device: expected a string, found an integer",
            ],
        ),
    ]);
    for many in ["tap*", "tap?", "kind:tap", "driver:virtio_net"] {
        let text = format!("[[binding]]\nnetdev = \"{many}\"\nport = \"{A}\"");
        let expected = format!(
            "a.toml:3:1: binding.port: \"{many}\" can match many netdevs, and a port has one; leave out port, or name \
             the netdev"
        );
        assert_eq!(parse(&text), Err(expected));
        assert!(parse(&format!("{text}\nmac = \"52:54:00:12:34:56\"")).is_ok(), "{many}");
    }
    let twice = format!(
        "[[binding]]\nnetdev = \"a\"\nport = \"{A}\"\n\n[[binding]]\nnetdev = \"b\"\nport = \"{A}\"\n\n\
         [[binding]]\nnetdev = \"a\"\ndevice = \"{A}\""
    );
    let expected = format!(
        "a.toml:7:1: binding.port: {A} is bound in line 3 already; a port has one netdev\n\
         a.toml:9:1: binding: is about the same netdev as the one in line 1, which counts; make them one\n\
         a.toml:11:1: binding.device: {A} is a port's in line 3; MidoNet's meters name ports and devices by their UUID \
         alone"
    );
    assert_eq!(parse(&twice), Err(expected));
}

#[test]
fn number_of_mistakes_is_bounded() {
    let text: String = (0..1000).map(|key| format!("key{key} = 1\n")).collect();
    let mistakes = Config::parse(text, "a.toml", &Flags::default(), &host()).unwrap_err();
    assert_eq!((mistakes.list.len(), mistakes.more), (100, 900));
    assert_eq!(mistakes.to_string().lines().last(), Some("a.toml: and 900 more mistakes"));
}

#[test]
fn long_file_of_nothing_but_mistakes_says_little() {
    for piece in
        ["a\n", "a=1\n", "[[binding]]\nmac=\"52:54:00:12:34:56\"\n", "[", "é", "a.", "a={", "\"\"\"\\\n"]
    {
        let text = piece.repeat(64 * 1024 / piece.len());
        let mistakes = Config::parse(text, "a.toml", &Flags::default(), &host()).unwrap_err();
        assert!(mistakes.list.len() <= 100 && mistakes.to_string().len() < 100_000, "{piece:?}");
    }
}
