//! Rule lines and tables: what is read, what is written, and what is said of mistakes.

use super::{strategies::*, *};
use meter_ebpf::abi::Network;

fn mistakes(text: &str) -> Vec<String> {
    RuleLine::parse(text).expect_err(text).iter().map(ToString::to_string).collect()
}

#[test]
fn line_of_midonet_cli_is_read_as_it_is_printed() {
    let port = "cf453c9d-94c4-4c27-ba32-529b7cbacf1d";
    let text = format!(
        "rule 845a54bf-b702-4dc2-8958-bbe7156bc4ef hw-src !2:0:0:0:0:a hw-src-mask ffff.0000.0000 ethertype -31011 \
         src !10.0.0.0/8 dst 10.0.0.1 proto 6 tos 0 src-port !1024- dst-port 80-90 flow return-flow \
         in-ports !{port} fragment-policy unfragmented no-vlan false vlan 12 pos 1 type dnat action accept \
         target 10.0.0.1-10.0.0.9:80-90 meter \"my \\\"web\\\" meter\""
    );
    let rule = RuleLine::parse(&text).unwrap();
    let expected = RuleLine {
        condition: Condition {
            fragment_policy: FragmentPolicy::Unfragmented,
            flow: Some(Flow::Return),
            vlan: Some(12),
            in_ports: Test { value: Some(BTreeSet::from([PortId(port.parse().unwrap())])), inverted: true },
            ethertype: Test { value: Some(0x86dd), inverted: false },
            hw_src: Test {
                value: Some(MacMatch { address: [2, 0, 0, 0, 0, 10], mask: [0xff, 0xff, 0, 0, 0, 0] }),
                inverted: true,
            },
            proto: Test { value: Some(6), inverted: false },
            src: Test { value: Some(prefix("10.0.0.0/8").unwrap()), inverted: true },
            dst: Test { value: Some(prefix("10.0.0.1/32").unwrap()), inverted: false },
            src_port: Test { value: Some(PortRange { start: Some(1024), end: None }), inverted: true },
            dst_port: Test { value: Some(PortRange { start: Some(80), end: Some(90) }), inverted: false },
            ..Condition::default()
        },
        meter: Some("my \"web\" meter".to_owned()),
    };
    assert_eq!(rule, expected);
    assert_eq!(
        rule.to_string(),
        format!(
            "hw-src !02:00:00:00:00:0a hw-src-mask ffff.0000.0000 ethertype 34525 src !10.0.0.0/8 dst 10.0.0.1 proto 6 \
             src-port !1024- dst-port 80-90 flow return-flow in-ports !{port} fragment-policy unfragmented vlan 12 \
             meter \"my \\\"web\\\" meter\""
        )
    );
}

#[test]
fn what_the_listing_shows_of_unset_attributes_is_not_set() {
    let listed = "rule rule0 proto 0 tos 0 src-port !None in-ports !None fragment-policy any no-vlan false vlan 0 pos 1 \
                  type accept action accept";
    let expected = Condition {
        src_port: Test { value: None, inverted: true },
        in_ports: Test { value: None, inverted: true },
        ..Condition::default()
    };
    assert_eq!(line(listed), expected);
    assert_eq!(line(""), Condition::default());
    assert_eq!(line("hw-src-mask ffff.0000.0000"), Condition::default());
}

#[test]
fn fragment_policy_has_midonets_defaults() {
    use FragmentPolicy as P;
    for (text, policy) in [
        ("proto 6", P::Any),
        ("src-port 1", P::Header),
        ("dst-port !1-", P::Header),
        ("dst-port 1 fragment-policy unfragmented", P::Unfragmented),
        ("src 10.0.0.1 type accept", P::Any),
        ("type dnat target 10.0.0.1", P::Any),
        ("type dnat target 10.0.0.1 dst-port 80", P::Unfragmented),
        ("type snat target 10.0.0.1-10.0.0.2", P::Unfragmented),
        ("type snat target 10.0.0.1:80", P::Unfragmented),
        ("type rev_snat dst-port 80", P::Header),
    ] {
        assert_eq!(line(text).fragment_policy, policy, "{text}");
    }
}

#[test]
fn mistakes_have_a_column_a_word_and_what_is_allowed() {
    for (text, expected) in [
        ("proto", "column 1: proto: has no value"),
        ("proto 256", "column 7: proto: \"256\" is out of range (0 to 255)"),
        ("proto tcp", "column 7: proto: \"tcp\" is not a number, expected 0 to 255"),
        ("proto 6 proto 7", "column 9: proto: is set twice"),
        (
            "é proto 6",
            "column 1: unknown attribute \"é\"; known are: hw-src, hw-src-mask, hw-dst, hw-dst-mask, \
            ethertype, src, dst, proto, tos, src-port, dst-port, flow, port-group, ip-address-group-src, \
            ip-address-group-dst, in-ports, out-ports, fragment-policy, no-vlan, vlan, in-port-group, out-port-group, \
            traversed-device, vni, direction, inverted, meter",
        ),
        (
            "src 10.0.0.0/33",
            "column 5: src: \"10.0.0.0/33\" has no possible prefix length, expected /0 to /32",
        ),
        ("dst ::/129", "column 5: dst: \"::/129\" has no possible prefix length, expected /0 to /128"),
        (
            "dst 10.0.0",
            "column 5: dst: \"10.0.0\" is not a CIDR, expected one such as 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            "dst-port 0",
            "column 10: dst-port: port 0 is out of range (1 to 65535); 0 is a type or code of proto 1 or 58",
        ),
        ("dst-port 65536", "column 10: dst-port: \"65536\" is out of range (0 to 65535)"),
        ("dst-port 90-80", "column 10: dst-port: \"90-80\" is upside down; expected 80-90"),
        ("dst-port -", "column 10: dst-port: \"-\" has neither bound; expected N, N-M, N- or -M"),
        (
            "proto 1 src-port 300",
            "column 18: src-port: 300 is out of range (0 to 255): of ICMP it is the type or code",
        ),
        (
            "dst-port 80 fragment-policy any",
            "column 29: fragment-policy: any is not possible with src-port or dst-port, which later fragments have not; \
             expected header or unfragmented",
        ),
        (
            "type snat target 10.0.0.1:1-2 fragment-policy header",
            "column 47: fragment-policy: header is not possible with a dnat or snat that looks at ports; expected \
             unfragmented",
        ),
        (
            "fragment-policy all",
            "column 17: fragment-policy: \"all\" is not one of any, header, nonheader, unfragmented",
        ),
        ("fragment-policy !any", "column 17: fragment-policy: can't be inverted; leave out the !"),
        ("ethertype 1535", "column 11: ethertype: \"1535\" is out of range (1536 to 65535)"),
        ("ethertype 65536", "column 11: ethertype: \"65536\" is out of range (1536 to 65535)"),
        ("ethertype -1x", "column 11: ethertype: \"-1x\" is not a number, expected 1536 to 65535"),
        (
            "hw-src 1:2:3",
            "column 8: hw-src: \"1:2:3\" is not a MAC address, expected one such as 52:54:00:12:34:56",
        ),
        (
            "hw-src 1:2:3:4:5:6 hw-src-mask ff:ff:ff:00:00:00",
            "column 32: hw-src-mask: \"ff:ff:ff:00:00:00\" is not a mask, expected one such as ffff.ff00.0000",
        ),
        (
            "in-ports bridge0:port0",
            "column 10: in-ports: \"bridge0:port0\" is not a UUID; midonet-cli writes UUIDs in place of its aliases with \
             -e (--eval)",
        ),
        ("vlan 4095", "column 6: vlan: \"4095\" is out of range (1 to 4094)"),
        (
            "no-vlan true vlan 5",
            "column 19: vlan: contradicts no-vlan: no packet would match; leave out one of them",
        ),
        ("vni 16777216", "column 5: vni: \"16777216\" is out of range (0 to 16777215)"),
        ("direction in", "column 11: direction: \"in\" is not one of rx, tx"),
        ("flow both", "column 6: flow: \"both\" is not one of fwd-flow, return-flow"),
        (
            "type allow",
            "column 6: type: \"allow\" is not one of accept, continue, drop, jump, redirect, reject, return, \
            trace, rev_dnat, rev_snat, dnat, snat",
        ),
        (
            "icmp-data-src 10.0.0.0/8",
            "column 1: icmp-data-src: can't be metered: headers that an ICMP error quotes are not read",
        ),
        ("meter a meter b", "column 9: meter: is set twice"),
        ("meter ''", "column 7: meter: \"\" has 0 bytes, expected 1 to 255"),
        ("meter 'a", "column 7: the quote ' is not closed"),
        ("meter a\\", "column 8: a backslash has nothing behind it"),
    ] {
        assert_eq!(mistakes(text), [expected], "{text}");
    }
}

#[test]
fn every_mistake_of_a_line_is_said_once() {
    assert_eq!(mistakes("proto x dst-port 0 colour red src 1.2.3.4/40 tos !y").len(), 5);
    assert_eq!(mistakes(&"x ".repeat(1000)).len(), 20);
    assert_eq!(mistakes(&"x".repeat(20_000)), ["column 1: has 20000 bytes, at most 16384 are possible"]);
}

#[test]
fn table_takes_zero_for_zero_and_a_mask_only_with_its_address() {
    let read = |keys: &[(Attribute, &str)]| {
        let mut table = RuleTable::default();
        for (attribute, text) in keys {
            table.set(*attribute, text).unwrap();
        }
        table.finish()
    };
    let zero = Condition { proto: Test { value: Some(0), inverted: false }, ..Condition::default() };
    assert_eq!(read(&[(Attribute::Proto, "0")]), Ok(zero));
    assert_eq!(
        read(&[(Attribute::HwSrcMask, "ffff.0000.0000")]),
        Err(vec![(Attribute::HwSrcMask, "has no effect without hw-src".to_owned())])
    );
    assert_eq!(
        RuleTable::default().set(Attribute::Vlan, "0").unwrap_err(),
        "\"0\" is out of range (1 to 4094)"
    );
    assert_eq!(read(&[(Attribute::InPorts, "")]), Ok(Condition::default()));
}

#[test]
fn words_of_a_packet_say_what_is_wrong() {
    for (words, expected) in [
        ("proto", "proto: has no value"),
        ("proto !6", "proto: \"!6\" is not a number, expected 0 to 255"),
        ("src 10.0.0.0/8", "src: \"10.0.0.0/8\" is not an IP address"),
        ("inverted true", "inverted: belongs to a rule, a packet has none"),
        (
            "port-group a",
            "port-group: follows from in-ports or out-ports and the groups of the configuration",
        ),
        (
            "color red",
            "unknown field \"color\"; known are: hw-src, hw-dst, ethertype, vlan, src, dst, proto, tos, \
            src-port, dst-port, flow, in-ports, out-ports, traversed-device, vni, direction, no-vlan, fragment",
        ),
    ] {
        let said = Packet::default().set_words(words.split_whitespace()).unwrap_err();
        assert_eq!(said, expected, "{words}");
    }
}

proptest! {
    #[test]
    fn condition_that_is_written_down_reads_as_itself(condition in conditions(), meter in prop::option::of("\\PC{1,9}")) {
        let rule = RuleLine { condition, meter };
        let text = rule.to_string();
        prop_assert_eq!(RuleLine::parse(&text), Ok(rule), "{}", text);
    }

    #[test]
    fn any_text_is_taken_or_refused(text in "(proto|src|dst-port|in-ports|meter|[!\"'0-9a-f:./\\\\ -]|\\PC){0,30}") {
        match RuleLine::parse(&text) {
            Ok(rule) => prop_assert_eq!(RuleLine::parse(&rule.to_string()), Ok(rule)),
            Err(errors) => prop_assert!(!errors.is_empty() && errors.iter().all(|error| error.column <= text.chars().count().max(1))),
        }
    }

    #[test]
    fn fields_of_a_packet_read_back(packet in packets()) {
        // Words bring along what follows from them.
        // A tunnel without a VNI has no word.
        let mut packet = packet;
        if packet.network == Network::UNKNOWN {
            packet.network = Network::NONE;
        }
        let mut expected = packet.clone();
        expected.set_words([]).unwrap();
        expected.origin_port = expected.in_port;
        let mut read = Packet::default();
        let text = packet.to_string();
        read.set_words(text.split_whitespace()).unwrap();
        prop_assert_eq!(read, expected, "{}", text);
    }
}
