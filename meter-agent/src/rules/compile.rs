//! The rules as the programs read them: from a [`MeterSet`] to [`RuleTables`].
//!
//! Everything that is odd about a condition is resolved here: inversions, fields that a packet doesn't have, groups, and
//! which ports a slot stands for. What is left for a program is to follow tries and to combine bits.

mod trie;

use std::{collections::BTreeMap, net::IpAddr};

use meter_ebpf::{
    abi::{
        Direction as Hook,
        rules::{
            FIELDS, Field, FlowKey, HAS_FIELD, KEY_WORDS, LACKS_FIELD, LEAF, MAX_NODES, MAX_RULES,
            MAX_VECTORS, RULE_WORDS, RuleTables, RuleVector,
        },
    },
    packet::Fragment,
};
use uuid::Uuid;

use self::trie::{Full, Pattern, Tests, Writer, set};
use super::{
    MeterSet,
    condition::{Condition, Direction, Flow, MacMatch, PortRange, Prefix, Test},
};
use crate::meter::{DeviceId, PortId};

/// A port that has a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPort {
    /// The port.
    pub port: PortId,
    /// The device that it belongs to.
    pub device: Option<DeviceId>,
}

impl SlotPort {
    fn is_or_belongs_to(&self, device: Uuid) -> bool {
        self.port.0 == device || self.device.is_some_and(|own| own.0 == device)
    }
}

/// Compiled rules: one element, too large for the stack.
pub type Tables = Box<[RuleTables]>;

/// A set of meters can't be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More rules than there are bits.
    #[error("there are {rules} rules, at most {MAX_RULES} are possible")]
    Rules {
        /// How many.
        rules: usize,
    },
    /// What one field is compared with takes more room than there is.
    #[error(
        "the rules need more room than there is (for {what}): use fewer addresses, MAC masks or ranges of ports that \
         differ"
    )]
    Room {
        /// The field.
        what: &'static str,
    },
}

/// Compiles a set. `counters` are those of its meters, in their order; `slots` the ports that rules may name.
///
/// # Errors
///
/// Why the set can't be compiled.
pub fn compile(
    set: &MeterSet,
    counters: &[u16],
    slots: &BTreeMap<u32, SlotPort>,
    generation: u64,
) -> Result<Tables, CompileError> {
    let rules: Vec<(&Condition, u16)> = set
        .meters
        .iter()
        .zip(counters)
        .flat_map(|(meter, counter)| meter.rules.iter().map(|rule| (rule, *counter)))
        .collect();
    let counts = |rule: &Condition, direction, in_tunnel| {
        rule.counts_at() == direction && rule.is_of_network() == in_tunnel
    };
    compile_rules(set, &rules, slots, generation, &counts)
}

/// Compiles a set whose rules are asked at every hook, and count nowhere.
///
/// # Errors
///
/// Why the set can't be compiled.
pub fn compile_everywhere(
    set: &MeterSet,
    slots: &BTreeMap<u32, SlotPort>,
    generation: u64,
) -> Result<Tables, CompileError> {
    let rules: Vec<_> = set.meters.iter().flat_map(|meter| &meter.rules).map(|rule| (rule, 0)).collect();
    compile_rules(set, &rules, slots, generation, &|_, _, _| true)
}

/// Compiles rules, each with the counter of its meter; `counts` says whether one is asked at the hooks of a direction, of
/// tunnel netdevs or of others.
fn compile_rules(
    set: &MeterSet,
    rules: &[(&Condition, u16)],
    slots: &BTreeMap<u32, SlotPort>,
    generation: u64,
    counts: &dyn Fn(&Condition, Direction, bool) -> bool,
) -> Result<Tables, CompileError> {
    if rules.len() > MAX_RULES {
        return Err(CompileError::Rules { rules: rules.len() });
    }
    let mut asked = Asked::new(set, slots);
    for (number, (rule, _)) in rules.iter().enumerate() {
        asked.rule(number, rule);
    }
    let mut tables = empty_tables();
    tables[0].generation = generation;
    tables[0].counters.iter_mut().zip(rules).for_each(|(to, (_, counter))| *to = *counter);
    let conditions: Vec<&Condition> = rules.iter().map(|(rule, _)| *rule).collect();
    asked.write(&conditions, counts, Writer::new(tables))
}

/// Makes tables of zeros, on the heap: the stack would be too small.
fn empty_tables() -> Tables {
    static ZEROS: [RuleTables; 1] = [RuleTables {
        generation: 0,
        key_mask: FlowKey { words: [0; KEY_WORDS] },
        counters: [0; MAX_RULES],
        starts: [[0; FIELDS]; 2],
        always: [0; 2],
        counted: [0; 4],
        fragments: [0; 4],
        flows: [0; 2],
        inverted: 0,
        traversed_inverted: 0,
        nodes: [[0; 16]; MAX_NODES],
        vectors: [[0; RULE_WORDS]; MAX_VECTORS],
    }];
    Box::from(&ZEROS[..])
}

/// What the rules of a set ask of each field.
struct Asked<'s> {
    set: &'s MeterSet,
    slots: &'s BTreeMap<u32, SlotPort>,
    fields: BTreeMap<Field, Tests>,
    traversed_inverted: RuleVector,
}

impl<'s> Asked<'s> {
    fn new(set: &'s MeterSet, slots: &'s BTreeMap<u32, SlotPort>) -> Self {
        Self { set, slots, fields: BTreeMap::new(), traversed_inverted: [0; RULE_WORDS] }
    }

    fn ask(&mut self, rule: usize, field: Field, inverted: bool, absent: bool, patterns: Vec<Pattern>) {
        self.fields.entry(field).or_default().ask(rule, inverted, absent, patterns);
    }

    /// Asks for one number.
    fn number(&mut self, rule: usize, field: Field, test: &Test<impl Into<u128> + Copy>) {
        if let Some(value) = test.value {
            self.ask(rule, field, test.inverted, false, vec![Pattern::exact(value.into(), field.bits())]);
        }
    }

    fn range(&mut self, rule: usize, field: Field, test: &Test<PortRange>) {
        if let Some(PortRange { start, end }) = test.value {
            let patterns = Pattern::range(start.unwrap_or(0), end.unwrap_or(u16::MAX));
            self.ask(rule, field, test.inverted, true, patterns);
        }
    }

    fn mac(&mut self, rule: usize, field: Field, test: &Test<MacMatch>) {
        if let Some(MacMatch { address, mask }) = test.value {
            let pattern = Pattern::new(mac_bits(address), mac_bits(mask), field.bits());
            self.ask(rule, field, test.inverted, false, vec![pattern]);
        }
    }

    /// Asks for prefixes of either family; an address is in none of the other's.
    fn prefixes(&mut self, rule: usize, fields: [Field; 2], inverted: bool, prefixes: &[Prefix]) {
        let [four, six] = fields;
        let mut patterns = [Vec::new(), Vec::new()];
        for prefix in prefixes {
            match prefix.address {
                IpAddr::V4(address) => {
                    patterns[0].push(Pattern::prefix(address.to_bits().into(), prefix.length, 32));
                }
                IpAddr::V6(address) => {
                    patterns[1].push(Pattern::prefix(address.to_bits(), prefix.length, 128));
                }
            }
        }
        let [of_four, of_six] = patterns;
        self.ask(rule, four, inverted, false, of_four);
        self.ask(rule, six, inverted, false, of_six);
    }

    /// Asks for the slots of some ports.
    fn ports(&mut self, rule: usize, field: Field, inverted: bool, is_one: impl Fn(&SlotPort) -> bool) {
        let slots = self.slots.iter().filter(|(_, port)| is_one(port));
        let patterns = slots.map(|(slot, _)| Pattern::exact((*slot).into(), field.bits())).collect();
        self.ask(rule, field, inverted, false, patterns);
    }

    fn port_group(&mut self, rule: usize, field: Field, test: &Test<String>) {
        if let Some(group) = &test.value {
            let set = self.set;
            self.ports(rule, field, test.inverted, |port| set.groups.has_port(group, Some(port.port)));
        }
    }

    fn address_group(&mut self, rule: usize, fields: [Field; 2], test: &Test<String>) {
        if let Some(group) = &test.value {
            let prefixes = self.set.groups.addresses.get(group).map_or(&[][..], Vec::as_slice);
            self.prefixes(rule, fields, test.inverted, prefixes);
        }
    }

    fn rule(&mut self, number: usize, rule: &Condition) {
        if rule.no_vlan {
            // No id is one of none.
            self.ask(number, Field::Vlan, false, true, Vec::new());
        }
        self.number(number, Field::Vlan, &Test { value: rule.vlan, inverted: false });
        self.number(number, Field::Ethertype, &rule.ethertype);
        self.number(number, Field::Proto, &rule.proto);
        self.number(number, Field::Tos, &rule.tos);
        self.number(number, Field::Vni, &rule.vni);
        self.range(number, Field::SrcPort, &rule.src_port);
        self.range(number, Field::DstPort, &rule.dst_port);
        self.mac(number, Field::HwSrc, &rule.hw_src);
        self.mac(number, Field::HwDst, &rule.hw_dst);
        let (src, dst) = ([Field::Src4, Field::Src6], [Field::Dst4, Field::Dst6]);
        for (fields, test) in [(src, &rule.src), (dst, &rule.dst)] {
            if let Some(prefix) = test.value {
                self.prefixes(number, fields, test.inverted, &[prefix]);
            }
        }
        self.address_group(number, src, &rule.ip_address_group_src);
        self.address_group(number, dst, &rule.ip_address_group_dst);
        for (field, test) in [(Field::InPort, &rule.in_ports), (Field::OutPort, &rule.out_ports)] {
            if let Some(ports) = &test.value {
                self.ports(number, field, test.inverted, |port| ports.contains(&port.port));
            }
        }
        // The port on which a frame came into the virtual network is the one that it came in through here.
        self.port_group(number, Field::InPort, &rule.port_group);
        self.port_group(number, Field::InPort, &rule.in_port_group);
        self.port_group(number, Field::OutPort, &rule.out_port_group);
        if let Some(device) = rule.traversed_device.value {
            self.ports(number, Field::TraversedIn, false, |port| port.is_or_belongs_to(device));
            self.ports(number, Field::TraversedOut, false, |port| port.is_or_belongs_to(device));
            if !self.set.routers.is_empty() {
                self.router(number, device);
            }
            if rule.traversed_device.inverted {
                set(&mut self.traversed_inverted, number);
            }
        }
    }

    /// Asks for what is sent to a router, or by it; nothing is where the device is none.
    fn router(&mut self, number: usize, device: Uuid) {
        let set = self.set;
        let router = set.routers.iter().find(|router| router.device.0 == device);
        let is_of_bridge = |port: &SlotPort| {
            router.zip(port.device).is_some_and(|(router, device)| router.bridges.contains(&device))
        };
        self.ports(number, Field::RouterIn, false, is_of_bridge);
        self.ports(number, Field::RouterOut, false, is_of_bridge);
        let macs = router.into_iter().flat_map(|router| &router.macs);
        let patterns: Vec<Pattern> =
            macs.map(|mac| Pattern::exact(mac_bits(*mac), Field::RouterDst.bits())).collect();
        self.ask(number, Field::RouterDst, false, false, patterns.clone());
        self.ask(number, Field::RouterSrc, false, false, patterns);
    }

    fn write(
        self,
        rules: &[&Condition],
        counts: &dyn Fn(&Condition, Direction, bool) -> bool,
        mut writer: Writer,
    ) -> Result<Tables, CompileError> {
        let room = |what| move |Full| CompileError::Room { what };
        let mut key_mask = FlowKey::ALWAYS;
        for field in Field::ALL {
            let (mut root, mut absent) = (LEAF, LEAF);
            if let Some(tests) = self.fields.get(&field).filter(|tests| !tests.is_empty()) {
                root = writer.trie(tests).map_err(room(name(field)))?;
                absent = writer.absent(tests).map_err(room(name(field)))?;
                let mask = FlowKey::mask_of(field);
                key_mask.words.iter_mut().zip(mask.words).for_each(|(all, of_field)| *all |= of_field);
            }
            writer.tables[0].starts[HAS_FIELD][field as usize] = root;
            writer.tables[0].starts[LACKS_FIELD][field as usize] = absent;
        }
        if rules.iter().any(|rule| rule.flow.is_some()) {
            key_mask.words.iter_mut().zip(FlowKey::FLOW.words).for_each(|(all, of_flow)| *all |= of_flow);
        }
        writer.tables[0].key_mask = key_mask;
        let mut vector = |holds: &dyn Fn(&Condition) -> bool| {
            let mut vector = [0; RULE_WORDS];
            let holding = rules.iter().enumerate().filter(|(_, rule)| holds(rule));
            holding.for_each(|(number, _)| set(&mut vector, number));
            writer.vector(vector).map_err(room("rules"))
        };
        let mut always = [0; 2];
        let mut counted = [0; 4];
        for hook in Hook::ALL {
            let direction = direction_of(hook);
            let is_of_hook = |rule: &Condition| rule.direction.is_none_or(|asked| asked == direction);
            always[hook as usize] = vector(&is_of_hook)?;
            for (tunnel, counted) in counted[hook as usize..].iter_mut().step_by(2).enumerate() {
                *counted = vector(&|rule| counts(rule, direction, tunnel == 1))?;
            }
        }
        let mut fragments = [0; 4];
        for fragment in [Fragment::Whole, Fragment::First, Fragment::Later] {
            fragments[fragment as usize] = vector(&|rule| rule.fragment_policy.accepts(fragment))?;
        }
        let mut flows = [0; 2];
        for (index, direction) in [Flow::Forward, Flow::Return].into_iter().enumerate() {
            flows[index] = vector(&|rule| rule.flow.is_none_or(|flow| flow == direction))?;
        }
        let inverted = vector(&|rule| rule.inverted)?;
        let traversed_inverted = writer.vector(self.traversed_inverted).map_err(room("rules"))?;
        let mut tables = writer.tables;
        tables[0].always = always;
        tables[0].counted = counted;
        tables[0].fragments = fragments;
        tables[0].flows = flows;
        tables[0].inverted = inverted;
        tables[0].traversed_inverted = traversed_inverted;
        Ok(tables)
    }
}

fn mac_bits([a, b, c, d, e, f]: [u8; 6]) -> u128 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into()
}

/// Returns which way a frame goes through its port at a hook.
const fn direction_of(hook: Hook) -> Direction {
    match hook {
        Hook::Ingress => Direction::Rx,
        Hook::Egress => Direction::Tx,
    }
}

const fn name(field: Field) -> &'static str {
    match field {
        Field::InPort | Field::OutPort => "ports",
        Field::TraversedIn | Field::TraversedOut => "traversed-device",
        Field::Ethertype => "ethertype",
        Field::Vlan => "vlan",
        Field::Proto => "proto",
        Field::Tos => "tos",
        Field::SrcPort => "src-port",
        Field::DstPort => "dst-port",
        Field::RouterIn | Field::RouterOut | Field::RouterDst | Field::RouterSrc => "traversed routers",
        Field::Vni => "vni",
        Field::HwSrc => "hw-src",
        Field::HwDst => "hw-dst",
        Field::Src4 | Field::Src6 => "src",
        Field::Dst4 | Field::Dst6 => "dst",
    }
}

#[cfg(test)]
mod tests;
