//! A condition while it is read, attribute by attribute.

use std::collections::BTreeSet;

use super::{
    attribute::Attribute,
    condition::{Condition, Direction, Flow, FragmentPolicy, MacMatch, Test},
    value,
};
use crate::{meter::PortId, netdev::MacAddress};

/// IP protocol numbers of ICMP and ICMPv6, whose types and codes begin at 0.
const ICMP: [u8; 2] = [1, 58];
const MAX_VNI: u32 = 0xff_ffff;

/// How a condition is written, where that makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A rule line. In it `proto 0`, `tos 0` and `vlan 0` are what `midonet-cli` shows of attributes that aren't set.
    Line,
    /// A table of the configuration.
    Table,
}

/// What has been read so far.
#[derive(Debug)]
pub(super) struct Draft {
    form: Form,
    condition: Condition,
    set: Vec<Attribute>,
    fragment_policy: Option<FragmentPolicy>,
    masks: [Option<MacAddress>; 2],
    /// Whether the rule translates addresses so that it needs to see whole packets.
    needs_whole: bool,
    /// Whether it translates addresses in another way, which it does too where it looks at L4 ports.
    is_nat: bool,
}

impl Draft {
    pub(super) fn new(form: Form) -> Self {
        Self {
            form,
            condition: Condition::default(),
            set: Vec::new(),
            fragment_policy: None,
            masks: [None; 2],
            needs_whole: false,
            is_nat: false,
        }
    }

    /// Says that the rule is a dnat or snat, and whether to a single address without ports.
    pub(super) fn translates(&mut self, to_one_address: bool) {
        self.is_nat = true;
        self.needs_whole = !to_one_address;
    }

    /// Sets an attribute to what a text says.
    ///
    /// # Errors
    ///
    /// What is wrong with the text.
    pub(super) fn set(&mut self, attribute: Attribute, text: &str) -> Result<(), String> {
        use Attribute as A;
        if self.set.contains(&attribute) {
            return Err("is set twice".to_owned());
        }
        self.set.push(attribute);
        let (text, inverted) = text.strip_prefix('!').map_or((text, false), |text| (text, true));
        if inverted && !attribute.is_invertible() {
            return Err("can't be inverted; leave out the !".to_owned());
        }
        let form = self.form;
        let condition = &mut self.condition;
        let value = Value { text, inverted };
        match attribute {
            A::HwSrc => condition.hw_src = value.test(mac_match)?,
            A::HwDst => condition.hw_dst = value.test(mac_match)?,
            A::HwSrcMask => self.masks[0] = Some(value::mask(text)?),
            A::HwDstMask => self.masks[1] = Some(value::mask(text)?),
            A::Ethertype => condition.ethertype = value.test(value::ethertype)?,
            A::Src => condition.src = value.test(value::prefix)?,
            A::Dst => condition.dst = value.test(value::prefix)?,
            A::Proto => condition.proto = value.octet(form)?,
            A::Tos => condition.tos = value.octet(form)?,
            A::SrcPort => condition.src_port = value.test(value::port_range)?,
            A::DstPort => condition.dst_port = value.test(value::port_range)?,
            A::Flow => condition.flow = Some(value::word(text, Flow::WORDS)?),
            A::PortGroup => condition.port_group = value.test(value::group_name)?,
            A::InPortGroup => condition.in_port_group = value.test(value::group_name)?,
            A::OutPortGroup => condition.out_port_group = value.test(value::group_name)?,
            A::IpAddressGroupSrc => condition.ip_address_group_src = value.test(value::group_name)?,
            A::IpAddressGroupDst => condition.ip_address_group_dst = value.test(value::group_name)?,
            A::InPorts => condition.in_ports = value.ports()?,
            A::OutPorts => condition.out_ports = value.ports()?,
            A::FragmentPolicy => self.fragment_policy = Some(value::word(text, FragmentPolicy::WORDS)?),
            A::NoVlan => condition.no_vlan = value::boolean(text)?,
            A::Vlan if form == Form::Line && text == "0" => {}
            A::Vlan => condition.vlan = Some(value::short(text, 1, 4094)?),
            A::TraversedDevice => condition.traversed_device = value.test(value::uuid)?,
            A::Vni => condition.vni = value.test(|text| value::number(text, 0, MAX_VNI))?,
            A::Direction => condition.direction = Some(value::word(text, Direction::WORDS)?),
            A::Inverted => condition.inverted = value::boolean(text)?,
        }
        Ok(())
    }

    /// Returns the condition.
    ///
    /// # Errors
    ///
    /// Each attribute that contradicts another, and how.
    pub(super) fn finish(self) -> Result<Condition, Vec<(Attribute, String)>> {
        let mut mistakes = Vec::new();
        let mut condition = self.condition;
        let macs = [
            (Attribute::HwSrcMask, Attribute::HwSrc, &mut condition.hw_src),
            (Attribute::HwDstMask, Attribute::HwDst, &mut condition.hw_dst),
        ];
        for ((mask_of, address_of, test), mask) in macs.into_iter().zip(self.masks) {
            match (&mut test.value, mask) {
                (Some(value), Some(mask)) => value.mask = mask,
                // MidoNet takes it, and so it may stand in a line that is pasted.
                (None, Some(_)) if self.form == Form::Table && !self.set.contains(&address_of) => {
                    mistakes.push((mask_of, format!("has no effect without {address_of}")));
                }
                _ => {}
            }
        }
        let is_icmp =
            condition.proto.value.is_some_and(|proto| ICMP.contains(&proto)) && !condition.proto.inverted;
        let ranges = [(Attribute::SrcPort, &condition.src_port), (Attribute::DstPort, &condition.dst_port)];
        for (attribute, test) in ranges {
            let Some(range) = &test.value else { continue };
            let most = if is_icmp { u16::from(u8::MAX) } else { u16::MAX };
            let bounds = [range.start, range.end];
            if !is_icmp && bounds.contains(&Some(0)) {
                let what = "port 0 is out of range (1 to 65535); 0 is a type or code of proto 1 or 58";
                mistakes.push((attribute, what.to_owned()));
            } else if let Some(bound) = bounds.into_iter().flatten().find(|&bound| bound > most) {
                let what = format!("{bound} is out of range (0 to {most}): of ICMP it is the type or code");
                mistakes.push((attribute, what));
            }
        }
        let has_ports = condition.src_port.value.is_some() || condition.dst_port.value.is_some();
        match fragment_policy(self.fragment_policy, has_ports, self.needs_whole || self.is_nat && has_ports) {
            Ok(policy) => condition.fragment_policy = policy,
            Err(what) => mistakes.push((Attribute::FragmentPolicy, what)),
        }
        if condition.no_vlan && condition.vlan.is_some() {
            let what = "contradicts no-vlan: no packet would match; leave out one of them";
            mistakes.push((Attribute::Vlan, what.to_owned()));
        }
        if mistakes.is_empty() { Ok(condition) } else { Err(mistakes) }
    }
}

/// The value of an attribute that can be inverted.
#[derive(Clone, Copy)]
struct Value<'a> {
    text: &'a str,
    inverted: bool,
}

impl Value<'_> {
    /// Reads it, unless it is `!None`: `midonet-cli` shows that of an inversion flag without a value.
    fn test<T>(self, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Test<T>, String> {
        let is_set = !(self.inverted && self.text == "None");
        let value = is_set.then(|| read(self.text)).transpose()?;
        Ok(Test { value, inverted: self.inverted })
    }

    fn octet(self, form: Form) -> Result<Test<u8>, String> {
        if form == Form::Line && self.text == "0" {
            return Ok(Test { value: None, inverted: self.inverted });
        }
        self.test(value::byte)
    }

    fn ports(self) -> Result<Test<BTreeSet<PortId>>, String> {
        let Test { value, inverted } = self.test(value::ports)?;
        Ok(Test { value: value.flatten(), inverted })
    }
}

fn mac_match(text: &str) -> Result<MacMatch, String> {
    Ok(MacMatch { address: value::mac(text)?, mask: value::ALL_ONES })
}

/// Returns the policy that a rule has, by MidoNet's defaults and restrictions.
fn fragment_policy(
    given: Option<FragmentPolicy>,
    has_ports: bool,
    needs_whole: bool,
) -> Result<FragmentPolicy, String> {
    use FragmentPolicy as P;
    let (default, allowed, why) = match (needs_whole, has_ports) {
        (true, _) => (P::Unfragmented, &[P::Unfragmented][..], "a dnat or snat that looks at ports"),
        (false, true) => (
            P::Header,
            &[P::Header, P::Unfragmented][..],
            "src-port or dst-port, which later fragments have not",
        ),
        (false, false) => return Ok(given.unwrap_or_default()),
    };
    let policy = given.unwrap_or(default);
    if allowed.contains(&policy) {
        return Ok(policy);
    }
    let word = |policy| value::word_of(P::WORDS, policy);
    let allowed: Vec<_> = allowed.iter().map(|&policy| word(policy)).collect();
    Err(format!("{} is not possible with {why}; expected {}", word(policy), allowed.join(" or ")))
}
