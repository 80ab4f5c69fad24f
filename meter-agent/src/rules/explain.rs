//! Which meters count a packet, in words.

use std::fmt::Write as _;

use meter_ebpf::packet::Fragment;

use super::{
    MeterSet,
    attribute::Attribute,
    condition::{Condition, Direction},
    matcher::{Outcome, outcome},
    packet::Packet,
};

/// Returns a line for each meter, and below it one for each of its rules with what decides.
#[must_use]
pub fn explain(set: &MeterSet, packet: &Packet) -> String {
    let mut text = String::new();
    for meter in &set.meters {
        let rules: Vec<(bool, String)> =
            meter.rules.iter().map(|rule| decide(rule, packet, outcome(rule, packet, &set.groups))).collect();
        let counted = if rules.iter().any(|(matches, _)| *matches) { "counted" } else { "not counted" };
        // Writing to a `String` can't fail.
        writeln!(text, "{}: {counted}", meter.name).unwrap_or_default();
        for (number, (matches, why)) in (1..).zip(rules) {
            let matches = if matches { "matches" } else { "doesn't match" };
            writeln!(text, "  rule {number} {matches}: {why}").unwrap_or_default();
        }
    }
    text
}

/// Returns whether a rule matches, and why.
fn decide(rule: &Condition, packet: &Packet, outcome: Outcome) -> (bool, String) {
    let inverted = if rule.inverted { "is inverted, and " } else { "" };
    if rule.is_of_network() && !packet.network.is_tunnel() {
        return (
            false,
            "counts at tunnel netdevs, and this packet is at a port; vni says that it is in a tunnel"
                .to_owned(),
        );
    }
    if packet.network.is_tunnel() && !rule.is_of_network() {
        return (false, "has no vni, and counts at ports; this packet is at a tunnel netdev".to_owned());
    }
    if !rule.counts(packet) {
        let why = match rule.counts_at() {
            Direction::Rx => {
                "counts where packets come in, and this one goes out; direction tx would count it"
            }
            Direction::Tx => "counts where packets go out, and this one comes in",
        };
        return (false, why.to_owned());
    }
    match outcome {
        Outcome::Fragment => {
            let policy = rule.value_of(Attribute::FragmentPolicy).unwrap_or_default();
            let part = match packet.fragment {
                Fragment::Whole => "a whole packet",
                Fragment::First => "a first fragment",
                Fragment::Later => "a later fragment",
            };
            (false, format!("fragment-policy {policy} is not about {part}"))
        }
        Outcome::Fails(attribute) => {
            (rule.inverted, format!("{inverted}{}", failing(rule, packet, attribute)))
        }
        Outcome::Holds => (!rule.inverted, format!("{inverted}every attribute holds: {rule}")),
    }
}

fn failing(rule: &Condition, packet: &Packet, attribute: Attribute) -> String {
    let asked = rule.value_of(attribute).unwrap_or_default();
    let mask = match attribute {
        Attribute::HwSrc => rule.value_of(Attribute::HwSrcMask),
        Attribute::HwDst => rule.value_of(Attribute::HwDstMask),
        _ => None,
    };
    let mask = mask.map_or_else(String::new, |mask| format!(" {attribute}-mask {mask}"));
    let has = packet.value_of(attribute).unwrap_or_else(|| "none".to_owned());
    format!("{attribute} {asked}{mask} doesn't hold, the packet has {has}")
}
