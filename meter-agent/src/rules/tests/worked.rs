//! The worked examples of MidoNet's manuals: what a chain's rules count, each with a meter of its own.

use super::*;

/// Returns which rules of a chain see and match a packet: those up to the first that ends the chain.
///
/// A chain walk is MidoNet's, not a meter's; here it says which action the examples promise.
fn verdict(chain: &[(&str, &'static str)], fields: &str) -> &'static str {
    chain.iter().find(|(rule, _)| hits(rule, fields)).map_or("end of chain", |(_, action)| *action)
}

#[test]
fn chapter_7_example_1_inverted_source_then_destination() {
    let chain = [
        ("ethertype 2048 src !10.0.0.0/16 pos 1 type drop", "drop"),
        ("dst 10.0.5.0/24 pos 2 type accept", "accept"),
        ("pos 3 type drop", "last drop"),
    ];
    assert_eq!(verdict(&chain, "src 10.1.0.1 dst 10.0.5.1"), "drop");
    assert_eq!(verdict(&chain, "src 10.0.0.1 dst 10.0.5.1"), "accept");
    assert_eq!(verdict(&chain, "src 10.0.0.1 dst 10.0.6.1"), "last drop");
    // No IPv4: the first rule doesn't see it, and neither does the second.
    assert_eq!(verdict(&chain, "src 2001:db8::1 dst 2001:db8::2"), "last drop");
}

#[test]
fn chapter_7_example_2_two_accepts_and_a_drop_of_ipv4() {
    let chain = [
        (
            "ethertype 2048 src 10.0.0.0/16 proto 0 tos 0 fragment-policy any pos 1 type accept",
            "first accept",
        ),
        (
            "ethertype 2048 dst 10.0.5.0/24 proto 0 tos 0 fragment-policy any pos 2 type accept",
            "second accept",
        ),
        ("ethertype 2048 proto 0 tos 0 fragment-policy any pos 3 type drop", "drop"),
    ];
    assert_eq!(verdict(&chain, "src 10.0.1.2 dst 8.8.8.8 proto 17"), "first accept");
    assert_eq!(verdict(&chain, "src 8.8.8.8 dst 10.0.5.7 proto 6"), "second accept");
    assert_eq!(verdict(&chain, "src 8.8.8.8 dst 10.0.6.7 proto 6"), "drop");
    assert_eq!(verdict(&chain, "ethertype 2054 src 10.0.1.2 dst 10.0.1.3 proto 1"), "end of chain");
}

#[test]
fn chapter_11_vendor_of_a_source_mac() {
    let rule = "hw-src !12:34:56:78:90:ab hw-src-mask ffff.ff00.0000 type drop";
    assert!(!hits(rule, "hw-src 12:34:56:00:00:01"));
    assert!(hits(rule, "hw-src 12:34:57:78:90:ab"));
}

#[test]
fn chapter_11_multicast_but_not_broadcast() {
    let chain = [
        ("hw-dst ff:ff:ff:ff:ff:ff type accept", "accept"),
        ("hw-dst 01:00:00:00:00:00 hw-dst-mask 0100.0000.0000 type drop", "drop"),
    ];
    assert_eq!(verdict(&chain, "hw-dst ff:ff:ff:ff:ff:ff"), "accept");
    assert_eq!(verdict(&chain, "hw-dst 01:00:5e:00:00:01"), "drop");
    assert_eq!(verdict(&chain, "hw-dst 52:54:00:00:00:01"), "end of chain");
}

#[test]
fn chapter_12_four_packets_and_their_fragments() {
    let chain = [
        ("proto 6 dst-port 80 pos 1 type accept", "accept"),
        ("fragment-policy header pos 2 type drop", "drop"),
        ("fragment-policy any pos 3 type accept", "last accept"),
    ];
    let web = "src 10.0.0.1 dst 10.0.0.2 proto 6 src-port 40000 dst-port 80";
    assert_eq!(verdict(&chain, web), "accept");
    assert_eq!(verdict(&chain, &format!("{web} fragment first")), "accept");
    assert_eq!(verdict(&chain, "src 10.0.0.1 dst 10.0.0.2 proto 6 fragment later"), "last accept");
    assert_eq!(verdict(&chain, "src 10.0.0.1 dst 10.0.0.2 proto 6 src-port 40000 dst-port 22"), "drop");
    assert_eq!(
        verdict(&chain, "src 10.0.0.1 dst 10.0.0.2 proto 17 src-port 1 dst-port 2 fragment first"),
        "drop"
    );
}

#[test]
fn chapter_14_meter_of_a_traversed_device() {
    let text = "rule rule0 proto 0 tos 0 traversed-device 845a54bf-b702-4dc2-8958-bbe7156bc4ef \
                fragment-policy any pos 1 type accept meter my-meter";
    let rule = RuleLine::parse(text).unwrap();
    assert_eq!(rule.meter.as_deref(), Some("my-meter"));
    let set = MeterSet {
        meters: vec![Meter { name: "my-meter".to_owned(), rules: vec![rule.condition] }],
        ..MeterSet::default()
    };
    let counted = |fields| {
        let packet = packet(fields);
        set.counting(&packet).map(|meter| meter.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(counted("traversed-device 845a54bf-b702-4dc2-8958-bbe7156bc4ef proto 1"), ["my-meter"]);
    assert_eq!(counted("traversed-device cf453c9d-94c4-4c27-ba32-529b7cbacf1d proto 1"), [""; 0]);
}
