//! What each attribute compares, what a missing field is, and what inversions do.

use meter_ebpf::packet::Fragment;

use super::{strategies::*, *};

const P: &str = "845a54bf-b702-4dc2-8958-bbe7156bc4ef";
const Q: &str = "cf453c9d-94c4-4c27-ba32-529b7cbacf1d";

fn port(text: &str) -> PortId {
    PortId(text.parse().unwrap())
}

#[test]
fn each_attribute_matches_what_it_says_and_nothing_else() {
    for (rule, yes, no) in [
        ("hw-src 2:0:0:0:0:a", "hw-src 02:00:00:00:00:0a", "hw-src 02:00:00:00:00:0b"),
        ("hw-dst 2:0:0:0:0:a hw-dst-mask ffff.ffff.0000", "hw-dst 2:0:0:0:1:b", "hw-dst 2:0:0:1:0:a"),
        ("ethertype 2054", "ethertype 2054", "ethertype 2048"),
        ("ethertype -31011", "ethertype 0x86dd", "ethertype 2048"),
        ("src 10.0.0.0/8", "src 10.255.255.255", "src 11.0.0.0"),
        ("src 10.1.2.3/8", "src 10.255.255.255", "src 11.0.0.0"),
        ("src 10.1.2.3", "src 10.1.2.3", "src 10.1.2.2"),
        ("dst 2001:db8::/32", "dst 2001:db8:ffff::1", "dst 2001:db9::1"),
        ("dst 0.0.0.0/0", "dst 255.255.255.255", "dst ::1"),
        ("dst ::/0", "dst ffff::1", "dst 1.2.3.4"),
        ("proto 6", "proto 6", "proto 17"),
        ("proto 0x0", "proto 0", "proto 6"),
        ("tos 184", "tos 184", "tos 46"),
        ("src-port 80", "src-port 80", "src-port 81"),
        ("src-port 80-90", "src-port 90", "src-port 91"),
        ("dst-port 1024-", "dst-port 65535", "dst-port 1023"),
        ("dst-port -1023", "dst-port 0", "dst-port 1024"),
        ("proto 1 src-port 8 dst-port 0", "proto 1 src-port 8 dst-port 0", "proto 1 src-port 0 dst-port 0"),
        ("flow fwd-flow", "flow fwd-flow", "flow return-flow"),
        ("flow return-flow", "flow return-flow", "flow fwd-flow"),
        ("no-vlan true", "no-vlan true", "vlan 0"),
        ("no-vlan true", "proto 6", "vlan 7"),
        ("vlan 7", "vlan 7", "vlan 8"),
        ("fragment-policy nonheader", "fragment later", "fragment first"),
        ("vni 77", "vni 77", "vni 78"),
        ("direction rx", "direction rx", "direction tx"),
        ("dst-port !80 inverted", "dst-port 80", "dst-port 81"),
    ] {
        assert!(hits(rule, yes), "{rule}: {yes}");
        assert!(!hits(rule, no), "{rule}: {no}");
    }
    for (rule, fields) in [
        (format!("in-ports {Q},{P}"), format!("in-ports {P}")),
        (format!("out-ports {P}"), format!("out-ports {P}")),
        (format!("traversed-device {P}"), format!("in-ports {P}")),
        (format!("traversed-device {P}"), format!("traversed-device {Q},{P}")),
    ] {
        assert!(hits(&rule, &fields), "{rule}: {fields}");
        assert!(!hits(
            &rule,
            &fields
                .replace(P, "00000000-0000-0000-0000-000000000001")
                .replace(Q, "00000000-0000-0000-0000-000000000002")
        ));
    }
}

#[test]
fn missing_field_is_in_no_value_but_in_every_range_of_ports() {
    for (rule, inverted) in [
        ("hw-src 2:0:0:0:0:1", "hw-src !2:0:0:0:0:1"),
        ("hw-dst 2:0:0:0:0:1 hw-dst-mask 0000.0000.0000", "hw-dst !2:0:0:0:0:1"),
        ("ethertype 2048", "ethertype !2048"),
        ("src 0.0.0.0/0", "src !0.0.0.0/0"),
        ("dst ::/0", "dst !::/0"),
        ("proto 6", "proto !6"),
        ("tos 0x0", "tos !0x0"),
        ("in-ports 845a54bf-b702-4dc2-8958-bbe7156bc4ef", "in-ports !845a54bf-b702-4dc2-8958-bbe7156bc4ef"),
        ("out-ports 845a54bf-b702-4dc2-8958-bbe7156bc4ef", "out-ports !845a54bf-b702-4dc2-8958-bbe7156bc4ef"),
        ("port-group g", "port-group !g"),
        ("in-port-group g", "in-port-group !g"),
        ("out-port-group g", "out-port-group !g"),
        ("ip-address-group-src g", "ip-address-group-src !g"),
        ("ip-address-group-dst g", "ip-address-group-dst !g"),
        (
            "traversed-device 845a54bf-b702-4dc2-8958-bbe7156bc4ef",
            "traversed-device !845a54bf-b702-4dc2-8958-bbe7156bc4ef",
        ),
        ("vni 0", "vni !0"),
    ] {
        assert!(!hits(rule, ""), "{rule}");
        assert!(hits(inverted, ""), "{inverted}");
    }
    for (rule, inverted) in [("src-port 80", "src-port !80"), ("dst-port 1-2", "dst-port !1-2")] {
        assert!(hits(rule, ""), "{rule}");
        assert!(!hits(inverted, ""), "{inverted}");
    }
    for rule in ["vlan 7", "direction rx", "flow return-flow"] {
        assert!(!hits(rule, ""), "{rule}");
    }
}

#[test]
fn inversion_flag_of_an_unset_attribute_changes_nothing() {
    for attribute in Attribute::ALL.into_iter().filter(|attribute| attribute.is_invertible()) {
        let rule = format!("{attribute} !None");
        for fields in
            ["", "src 10.0.0.1 dst 10.0.0.2 proto 6 tos 3 src-port 1 dst-port 2 hw-src 2:0:0:0:0:1 vni 1"]
        {
            assert!(hits(&rule, fields), "{rule}: {fields}");
            assert!(!hits(&format!("{rule} inverted true"), fields), "{rule}: {fields}");
        }
        assert!(line(&rule).to_string().contains(&rule), "{rule}");
    }
}

#[test]
fn fragment_policy_accepts_what_the_matrix_says_and_no_inversion_reaches_it() {
    for (policy, accepted) in [
        ("any", [true, true, true]),
        ("header", [true, true, false]),
        ("nonheader", [false, false, true]),
        ("unfragmented", [true, false, false]),
    ] {
        for (part, accepted) in ["none", "first", "later"].into_iter().zip(accepted) {
            let fields = format!("fragment {part}");
            assert_eq!(hits(&format!("fragment-policy {policy}"), &fields), accepted, "{policy} {part}");
            assert!(!hits(&format!("fragment-policy {policy} inverted"), &fields), "{policy} {part}");
            let never = format!("vlan 7 fragment-policy {policy} inverted true");
            assert_eq!(hits(&never, &fields), accepted, "{policy} {part}");
        }
    }
}

#[test]
fn later_fragment_is_not_hit_by_a_rule_with_ports() {
    for rule in ["dst-port 80", "dst-port !80", "src-port 1- fragment-policy unfragmented"] {
        assert!(!hits(rule, "proto 6 fragment later"), "{rule}");
        assert!(!hits(&format!("{rule} inverted"), "proto 6 fragment later"), "{rule}");
    }
}

#[test]
fn group_has_its_members_and_prefixes_only() {
    let groups = Groups {
        ports: BTreeMap::from([("pg".to_owned(), BTreeSet::from([port(P)]))]),
        addresses: BTreeMap::from([
            ("ag".to_owned(), vec![prefix("10.0.0.0/8").unwrap(), prefix("2001:db8::1").unwrap()]),
            ("empty".to_owned(), Vec::new()),
        ]),
    };
    let hits = |rule: &str, fields: &str| matches(&line(rule), &packet(fields), &groups);
    for (rule, yes, no) in [
        ("ip-address-group-src ag", "src 10.9.9.9", "src 11.0.0.1"),
        ("ip-address-group-dst ag", "dst 2001:db8::1", "dst 2001:db8::2"),
        ("ip-address-group-dst !ag", "dst 2001:db8::2", "dst 10.0.0.1"),
        ("ip-address-group-src !empty", "src 1.1.1.1", "src 1.1.1.1 fragment later"),
    ] {
        let rule = format!("{rule} fragment-policy unfragmented");
        assert!(hits(&rule, yes), "{rule}: {yes}");
        assert!(!hits(&rule, no), "{rule}: {no}");
    }
    assert!(!hits("ip-address-group-src empty", "src 1.1.1.1"));
    for (rule, field) in
        [("in-port-group pg", "in-ports"), ("out-port-group pg", "out-ports"), ("port-group pg", "in-ports")]
    {
        assert!(hits(rule, &format!("{field} {P}")), "{rule}");
        assert!(!hits(rule, &format!("{field} {Q}")), "{rule}");
    }
    // Where it came into the virtual network, not where it comes into this device.
    let mut second_device = packet(&format!("in-ports {Q}"));
    second_device.origin_port = Some(port(P));
    assert!(matches(&line("port-group pg"), &second_device, &groups));
    assert!(!matches(&line("in-port-group pg"), &second_device, &groups));
    assert_eq!(
        groups.missing(&line("port-group x ip-address-group-dst y ip-address-group-src ag")),
        [(Attribute::PortGroup, "x"), (Attribute::IpAddressGroupDst, "y"),]
    );
}

#[test]
fn first_attribute_that_fails_is_named() {
    let rule = line("proto 6 src 10.0.0.0/8 dst-port 80 hw-src 2:0:0:0:0:1");
    let outcome = |fields| outcome(&rule, &packet(fields), &Groups::default());
    assert_eq!(outcome("proto 6 src 10.0.0.1 dst-port 80"), Outcome::Fails(Attribute::HwSrc));
    assert_eq!(outcome("hw-src 2:0:0:0:0:1 proto 17 src 11.0.0.1"), Outcome::Fails(Attribute::Proto));
    assert_eq!(outcome("hw-src 2:0:0:0:0:1 proto 6 src 11.0.0.1"), Outcome::Fails(Attribute::Src));
    assert_eq!(
        outcome("hw-src 2:0:0:0:0:1 proto 6 src 10.0.0.1 dst-port 81"),
        Outcome::Fails(Attribute::DstPort)
    );
    assert_eq!(outcome("hw-src 2:0:0:0:0:1 proto 6 src 10.0.0.1"), Outcome::Holds);
    assert_eq!(outcome("fragment later"), Outcome::Fragment);
}

#[test]
fn explanation_says_which_rule_counts_and_what_fails() {
    let set = MeterSet {
        meters: vec![
            Meter {
                name: "web \"x\"".to_owned(),
                rules: vec![line("proto 17"), line("proto 6 dst-port 80")],
            },
            Meter {
                name: "rest".to_owned(),
                rules: vec![line("dst-port 80 inverted"), line("dst-port !81 tos 3")],
            },
            Meter {
                name: "odd".to_owned(),
                rules: vec![line("hw-src 2:0:0:0:0:1 hw-src-mask ffff.0000.0000 inverted")],
            },
        ],
        ..MeterSet::default()
    };
    assert_eq!(
        explain(&set, &packet("src 10.0.0.1 proto 6 dst-port 80")),
        "\
web \"x\": counted
  rule 1 doesn't match: proto 17 doesn't hold, the packet has 6
  rule 2 matches: every attribute holds: proto 6 dst-port 80 fragment-policy header
rest: not counted
  rule 1 doesn't match: is inverted, and every attribute holds: dst-port 80 fragment-policy header inverted true
  rule 2 doesn't match: tos 3 doesn't hold, the packet has none
odd: counted
  rule 1 matches: is inverted, and hw-src 02:00:00:00:00:01 hw-src-mask ffff.0000.0000 doesn't hold, the packet has none
"
    );
    assert!(
        explain(&set, &packet("fragment later"))
            .contains("fragment-policy header is not about a later fragment")
    );
}

proptest! {
    #[test]
    fn rule_and_its_inversion_share_out_what_the_fragment_policy_accepts(
        condition in conditions(), packet in packets(), groups in groups(),
    ) {
        let inverse = Condition { inverted: !condition.inverted, ..condition.clone() };
        let accepted = condition.fragment_policy.accepts(packet.fragment);
        let hits = [&condition, &inverse].map(|condition| matches(condition, &packet, &groups));
        prop_assert_eq!(hits.into_iter().filter(|hit| *hit).count(), usize::from(accepted));
    }

    #[test]
    fn prefixes_halve_what_they_hold(address in any::<IpAddr>(), other in any::<IpAddr>(), length in 0..=128_u8) {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = |length| Prefix { address, length };
        let length = length.min(most);
        prop_assert!(prefix(length).contains(address));
        let same_bits = match (address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= length.into(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= length.into(),
            _ => false,
        };
        prop_assert_eq!(prefix(length).contains(other), same_bits);
    }

    #[test]
    fn fields_of_any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let packet = fields(&bytes);
        prop_assert_eq!(packet.hw_dst.is_some(), bytes.len() >= 6);
        prop_assert!(packet.fragment != Fragment::Later || packet.src_port.is_none());
    }
}
