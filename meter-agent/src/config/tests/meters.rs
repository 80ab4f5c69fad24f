//! User-defined meters and groups: both forms of a rule, and every kind of mistake.

use super::*;
use crate::rules::{Attribute, Condition, Groups, MAX_RULES, Meter, Router, RuleLine, prefix};

const A: &str = "3f2a1b6c-0d4e-4f5a-8b7c-9d0e1f2a3b4c";
const B: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

fn line(text: &str) -> Condition {
    RuleLine::parse(text).unwrap().condition
}

/// What the packaged file shows of meters and groups.
pub(super) fn packaged() -> MeterSet {
    let port = PortId(A.parse().unwrap());
    let addresses = ["10.0.0.0/8", "2001:db8::/32"].map(|text| prefix(text).unwrap());
    MeterSet {
        meters: vec![Meter {
            name: "web".to_owned(),
            rules: vec![line("ethertype 2048 proto 6 dst-port 80")],
        }],
        groups: Groups {
            ports: [("tenant-a".to_owned(), [port].into())].into(),
            addresses: [("internal".to_owned(), addresses.to_vec())].into(),
        },
        routers: vec![Router {
            device: DeviceId("0d2c2a3e-1b9f-4a44-9d7c-51a1f0c6e8b2".parse().unwrap()),
            macs: [[0xfa, 0x16, 0x3e, 0x11, 0x22, 0x33]].into(),
            bridges: [DeviceId(B.parse().unwrap())].into(),
        }],
    }
}

#[test]
fn packaged_file_explains_every_attribute() {
    let words: Vec<&str> = PACKAGED
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .flat_map(|line| line.split([' ', ',']))
        .collect();
    for attribute in Attribute::ALL {
        assert!(words.contains(&attribute.key().as_str()), "{attribute}");
    }
}

#[test]
fn rules_of_connections_are_as_those_of_meters() {
    let text = format!(
        "[connections]\nrules = [\"proto 6 dst-port 443 ip-address-group-dst ours\", {{ in_ports = [\"{A}\"] }}]\n\
         [[ip_address_group]]\nname = \"ours\"\naddresses = [\"10.0.0.0/8\"]\n"
    );
    let config = parse(&text).unwrap();
    let rules = vec![line("proto 6 dst-port 443 ip-address-group-dst ours"), line(&format!("in-ports {A}"))];
    assert_eq!(*config.connections.rules, config.meters.with_rules(rules));
    assert_eq!(config.connections.rules.groups.addresses["ours"], [prefix("10.0.0.0/8").unwrap()]);
    // Without a rule there is none to match, and all count.
    assert_eq!(*parse("[connections]\nrules = []").unwrap().connections.rules, MeterSet::default());
    let text = "[connections]\nrules = [\n  \"flow fwd-flow\",\n  \"meter a\",\n  { flow = \"return-flow\" },\n  3,\n  \
                \"port-group none\",\n  { colour = 1 },\n]";
    let mistakes = parse(text).unwrap_err().to_string();
    let known = Attribute::ALL.map(Attribute::key).join(", ");
    let expected = [
        "a.toml:3:3: connections.rules: flow: a connection is counted in both directions; leave it out",
        "a.toml:4:3: connections.rules: column 1: meter: has no place here: this is a rule of no meter",
        "a.toml:5:3: connections.rules: flow: a connection is counted in both directions; leave it out",
        "a.toml:6:3: connections.rules: expected a string or a table, found an integer",
        "a.toml:7:3: connections.rules: port-group: there is no [[port_group]] with the name \"none\"",
        &format!("a.toml:8:5: connections.rules: unknown key \"colour\"; known are: {known}"),
    ];
    for mistake in expected {
        assert!(mistakes.lines().any(|found| found == mistake), "{mistake}\n{mistakes}");
    }
    assert_eq!(mistakes.lines().count(), expected.len(), "{mistakes}");
    let many = format!("[connections]\nrules = [{}]", "\"proto 6\",\n".repeat(MAX_RULES + 1));
    let mistakes = parse(&many).unwrap_err().to_string();
    assert_eq!(mistakes, "a.toml:1026:1: connections.rules: is one rule too many: at most 1024 are possible");
}

#[test]
fn rule_is_a_line_or_a_table() {
    let text = format!(
        "[[meter]]\nname = 'my \"web\": é'\nrules = [\n  'proto 6 dst-port !80-90 in-ports {A},{B} meter \"my \\\"web\\\": é\"',\n  \
         {{ proto = 6, dst_port = \"!80-90\", in_ports = [\"{A}\", \"{B}\"] }},\n]\n\n[[meter]]\nname = 'zero'\n\n\
         [[meter.rules]]\nproto = 0\ntos = 0x00\nno_vlan = true\nethertype = -31011\ninverted = true\n"
    );
    let web = line(&format!("proto 6 dst-port !80-90 in-ports {A},{B}"));
    let expected = MeterSet {
        meters: vec![
            Meter { name: "my \"web\": é".to_owned(), rules: vec![web.clone(), web] },
            Meter {
                name: "zero".to_owned(),
                rules: vec![line("proto 0x0 tos 0x0 no-vlan true ethertype 34525 inverted")],
            },
        ],
        ..MeterSet::default()
    };
    assert_eq!(parse(&text).unwrap().meters, expected);
}

#[test]
fn mistakes_have_their_line_and_attribute_and_what_is_allowed() {
    let known = Attribute::ALL.map(Attribute::key).join(", ");
    let text = [
        "[[meter]]",
        "[[meter]]",
        "name = 'a'",
        "rules = []",
        "[[meter]]",
        "name = 'a'",
        "rules = [",
        "  'proto 6 dst-port 0 src 10.0.0.0/33',",
        "  { proto = 256, colour = 'red', tos = [1], in_ports = [1], src = '!10.0.0.0/33' },",
        "  { hw_dst_mask = 'ffff.0000.0000', dst_port = 80, fragment_policy = 'any' },",
        "  7,",
        "  'proto 6 meter b',",
        "  'port-group nobody',",
        "  { ip_address_group_src = '!nowhere' },",
        "]",
        "[[meter]]",
        "name = \"a\\tb\"",
        "rule = 1",
        "rules = 'proto 6'",
        "[[port_group]]",
        "name = 'a b'",
        "ports = ['x', 1]",
        "[[ip_address_group]]",
        "addresses = ['10.0.0.0/33', 'here']",
    ];
    let expected = [
        "a.toml:1:1: meter: has no name",
        "a.toml:1:1: meter: has no rules; say what it counts",
        "a.toml:2:1: meter: has no rules; say what it counts",
        "a.toml:6:1: meter.name: \"a\" is the name of the one in line 3 already",
        "a.toml:8:3: meter.rules: column 18: dst-port: port 0 is out of range (1 to 65535); 0 is a type or code of \
         proto 1 or 58",
        "a.toml:8:3: meter.rules: column 24: src: \"10.0.0.0/33\" has no possible prefix length, expected /0 to /32",
        "a.toml:9:5: meter.rules.proto: \"256\" is out of range (0 to 255)",
        &format!("a.toml:9:18: meter.rules: unknown key \"colour\"; known are: {known}"),
        "a.toml:9:34: meter.rules.tos: expected a string, an integer or a boolean, found an array",
        "a.toml:9:45: meter.rules.in_ports: expected an array of strings, found an integer in it",
        "a.toml:9:61: meter.rules.src: \"10.0.0.0/33\" has no possible prefix length, expected /0 to /32",
        "a.toml:10:5: meter.rules.hw_dst_mask: has no effect without hw-dst",
        "a.toml:10:52: meter.rules.fragment_policy: any is not possible with src-port or dst-port, which later \
         fragments have not; expected header or unfragmented",
        "a.toml:11:3: meter.rules: expected a string or a table, found an integer",
        "a.toml:12:3: meter.rules: column 1: meter: is \"b\", but this is a rule of \"a\"",
        "a.toml:13:3: meter.rules: port-group: there is no [[port_group]] with the name \"nobody\"",
        "a.toml:14:5: meter.rules: ip-address-group-src: there is no [[ip_address_group]] with the name \"nowhere\"",
        "a.toml:17:1: meter.name: \"a\\tb\" has a control character in it",
        "a.toml:18:1: unknown key meter.rule; known are: name, rules",
        "a.toml:19:1: meter.rules: expected an array, found a string",
        "a.toml:21:1: port_group.name: \"a b\" has a blank or a comma in it",
        "a.toml:22:10: port_group.ports: \"x\" is not a UUID, expected one such as \
         \"123e4567-e89b-12d3-a456-426614174000\"",
        "a.toml:22:15: port_group.ports: expected a string, found an integer",
        "a.toml:23:1: ip_address_group: has no name",
        "a.toml:24:14: ip_address_group.addresses: \"10.0.0.0/33\" has no possible prefix length, expected /0 to /32",
        "a.toml:24:29: ip_address_group.addresses: \"here\" is not a CIDR, expected one such as 10.0.0.0/8 or \
         2001:db8::/32",
    ];
    let said = parse(&text.join("\n")).unwrap_err();
    for (said, expected) in said.lines().zip(expected) {
        assert_eq!(said, expected);
    }
    assert_eq!(said.lines().count(), expected.len());
}

#[test]
fn rules_of_all_meters_together_are_bounded() {
    let rules = |count: usize| "\"proto 6\",\n".repeat(count);
    let text = |count| {
        format!(
            "[[meter]]\nname = 'a'\nrules = [{}]\n[[meter]]\nname = 'b'\nrules = [\n{}]\n",
            rules(1000),
            rules(count)
        )
    };
    assert_eq!(parse(&text(24)).unwrap().meters.meters[1].rules.len(), 24);
    assert_eq!(
        parse(&text(25)).unwrap_err(),
        "a.toml:1031:1: meter.rules: is one rule too many: at most 1024 of all meters are possible"
    );
}

#[test]
fn mistakes_of_routers() {
    let text = [
        "[[binding]]",
        "netdev = 'tap1'",
        &format!("port = '{A}'"),
        "[[router]]",
        &format!("id = '{A}'"),
        "macs = ['01:00:5e:00:00:01', '02:00:00:00:00:01']",
        "[[router]]",
        "macs = []",
        &format!("bridges = ['{A}', 'b']"),
        "[[router]]",
        &format!("id = '{A}'"),
        "macs = ['x']",
        &format!("bridges = ['{B}']"),
        "ports = []",
    ];
    let expected = [
        &format!(
            "a.toml:5:1: router.id: {A} is a port's; MidoNet's meters name ports and devices by their UUID alone"
        ),
        "a.toml:4:1: router: has no bridges; a frame is sent to it by both",
        "a.toml:6:9: router.macs: \"01:00:5e:00:00:01\" is a group's address, which no netdev has",
        "a.toml:7:1: router: has no id",
        "a.toml:7:1: router: has no macs; a frame is sent to it by both",
        &format!("a.toml:9:12: router.bridges: {A} is a port's"),
        &format!("a.toml:9:12: router.bridges: {A} is the router in line 5, and no bridge"),
        "a.toml:9:52: router.bridges: \"b\" is not a UUID, expected one such as \"123e4567-e89b-12d3-a456-426614174000\"",
        &format!("a.toml:11:1: router.id: {A} is the router in line 5 already"),
        &format!(
            "a.toml:11:1: router.id: {A} is a port's; MidoNet's meters name ports and devices by their UUID alone"
        ),
        "a.toml:12:9: router.macs: \"x\" is not a MAC address, expected one such as \"52:54:00:12:34:56\"",
        "a.toml:14:1: unknown key router.ports; known are: id, macs, bridges",
    ];
    let mut said: Vec<String> = parse(&text.join("\n")).unwrap_err().lines().map(ToOwned::to_owned).collect();
    said.sort();
    let mut expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
    expected.sort();
    assert_eq!(said, expected);

    let macs: Vec<String> = (0..33).map(|n| format!("'02:00:00:00:00:{n:02x}'")).collect();
    let bridges: Vec<String> = (1..=32).map(|n| format!("'{}'", Uuid::from_u128(n))).collect();
    let text =
        format!("[[router]]\nid = '{A}'\nmacs = [{}]\nbridges = [{}]\n", macs.join(","), bridges.join(","));
    let said = parse(&text).unwrap_err();
    assert!(said.contains("router: makes more rules than are possible"), "{said}");
}
