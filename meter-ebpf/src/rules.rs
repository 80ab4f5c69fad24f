//! Which user-defined meters count a frame: its fields ([`fields`]), and what the compiled rules say of them
//! ([`classify`]).
//!
//! Programs and user space run the same code, so that a test without root sees what a program does.

mod fields;

use core::hint::black_box;

pub use self::fields::{Fields, fields, inner_fields, plain_fields};
use crate::{
    abi::{
        Direction, Network,
        rules::{
            EVERY_RULE, Field, FlowKey, GENERATION_BITS, KEY_WORDS, LEAF, MAX_DEPTH, MAX_NODES, MAX_RULES,
            MAX_VECTORS, RULE_WORDS, RuleTables, RuleVector, present,
        },
    },
    packet::numbers::{IP_ICMP, IP_ICMPV6, IP_SCTP, IP_TCP, IP_UDP},
};

const PORTS_WORD: usize = 4;
const HW_SRC_WORD: usize = 5;
const HW_DST_WORD: usize = 6;
const SLOTS_WORD: usize = 7;
const GENERATION_WORD: usize = 8;
const HW_MASK: u64 = 0xffff_ffff_ffff;
/// Types of ICMP and ICMPv6: the answer to an echo request.
/// <https://www.rfc-editor.org/rfc/rfc792>, <https://www.rfc-editor.org/rfc/rfc4443#section-4.2>
const ECHO_REPLY: u64 = 0;
const ECHO_REPLY_V6: u64 = 129;
/// Which word of an address is which.
const SRC_WORD: usize = 0;
const DST_WORD: usize = 2;

impl FlowKey {
    /// Sets the hook, and the slots of the ports through which a frame came in and goes out; 0 for none.
    #[inline(always)]
    pub fn set_hook(&mut self, direction: Direction, in_slot: u32, out_slot: u32) {
        if direction as u32 == Direction::Egress as u32 {
            self.words[HW_DST_WORD] |= present::EGRESS;
        }
        self.words[SLOTS_WORD] = (in_slot as u64) << 32 | out_slot as u64;
    }

    /// Says in which overlay network the frame is.
    #[inline(always)]
    pub fn set_network(&mut self, network: Network) {
        self.words[GENERATION_WORD] = network.key() << GENERATION_BITS;
    }

    /// Returns whether rules ask for the overlay network, of the key that masks others.
    #[inline(always)]
    #[must_use]
    pub fn asks_for_network(&self) -> bool {
        self.words[GENERATION_WORD] != 0
    }

    /// Says that the packet goes against the first one of its connection.
    #[inline(always)]
    pub fn set_return(&mut self) {
        self.words[HW_DST_WORD] |= present::RETURN;
    }

    /// Returns whether rules look at a packet's direction in its connection, of the key that masks others.
    #[inline(always)]
    #[must_use]
    pub fn asks_for_flow(&self) -> bool {
        self.has(present::RETURN)
    }

    /// Returns whether it is the answer to an echo request: what goes against its connection and needs no table to say so.
    #[inline(always)]
    #[must_use]
    pub fn is_echo_reply(&self) -> bool {
        let kind = self.words[PORTS_WORD] >> 48;
        let reply = match self.protocol() {
            IP_ICMP => ECHO_REPLY,
            IP_ICMPV6 => ECHO_REPLY_V6,
            _ => return false,
        };
        self.has(present::SRC_PORT) && kind == reply
    }

    /// Returns the ends of a packet that has ports, from source to destination.
    #[inline(always)]
    #[must_use]
    pub fn ends(&self) -> Option<Ends> {
        const ALL: u64 = present::PROTO | present::SRC | present::DST | present::SRC_PORT | present::DST_PORT;
        let protocol = self.protocol();
        let has_ports = matches!(protocol, IP_TCP | IP_UDP | IP_SCTP);
        if !has_ports || self.words[HW_DST_WORD] & ALL != ALL {
            return None;
        }
        Some(Ends {
            addresses: [self.words[0], self.words[1], self.words[2], self.words[3]],
            ports: (self.words[PORTS_WORD] >> 32) as u32,
            protocol,
            ipv6: self.has(present::IPV6),
        })
    }

    /// Returns the ends of an echo request or reply, each with the identifier for its port.
    #[inline(always)]
    #[must_use]
    pub fn echo_ends(&self, identifier: u16) -> Ends {
        Ends {
            addresses: [self.words[0], self.words[1], self.words[2], self.words[3]],
            ports: u32::from(identifier) << 16 | u32::from(identifier),
            protocol: self.protocol(),
            ipv6: self.has(present::IPV6),
        }
    }

    #[inline(always)]
    const fn protocol(&self) -> u8 {
        (self.words[HW_SRC_WORD] >> 48 & 0xff) as u8
    }

    /// Leaves what the rules of a set look at, and makes the key one of that set.
    #[inline(always)]
    pub fn restrict(&mut self, tables: &RuleTables) {
        for word in 0..GENERATION_WORD {
            self.words[word] &= tables.key_mask.words[word];
        }
        let network = self.words[GENERATION_WORD] & tables.key_mask.words[GENERATION_WORD];
        self.words[GENERATION_WORD] = network | tables.generation;
    }

    /// Makes it the key of no frame.
    #[inline(always)]
    pub fn make_void(&mut self) {
        self.words[GENERATION_WORD] = 0;
    }

    /// Returns the bits of a key that belong to a field.
    #[must_use]
    pub const fn mask_of(field: Field) -> Self {
        let mut words = [0; KEY_WORDS];
        match field {
            Field::InPort | Field::TraversedIn | Field::RouterIn => words[SLOTS_WORD] = 0xffff_ffff << 32,
            Field::OutPort | Field::TraversedOut | Field::RouterOut => words[SLOTS_WORD] = 0xffff_ffff,
            Field::Ethertype => {
                words[PORTS_WORD] = 0xffff << 16;
                words[HW_DST_WORD] = present::ETHERTYPE;
            }
            Field::Vlan => {
                words[PORTS_WORD] = 0xffff;
                words[HW_DST_WORD] = present::VLAN;
            }
            Field::Proto => {
                words[HW_SRC_WORD] = 0xff << 48;
                words[HW_DST_WORD] = present::PROTO;
            }
            Field::Tos => {
                words[HW_SRC_WORD] = 0xff << 56;
                words[HW_DST_WORD] = present::TOS;
            }
            Field::SrcPort => {
                words[PORTS_WORD] = 0xffff << 48;
                words[HW_DST_WORD] = present::SRC_PORT;
            }
            Field::DstPort => {
                words[PORTS_WORD] = 0xffff << 32;
                words[HW_DST_WORD] = present::DST_PORT;
            }
            Field::HwSrc => {
                words[HW_SRC_WORD] = HW_MASK;
                words[HW_DST_WORD] = present::HW;
            }
            Field::HwDst => words[HW_DST_WORD] = HW_MASK | present::HW,
            Field::RouterSrc => {
                words[HW_SRC_WORD] = HW_MASK;
                words[HW_DST_WORD] = present::HW | present::VLAN;
            }
            Field::RouterDst => words[HW_DST_WORD] = HW_MASK | present::HW | present::VLAN,
            Field::Vni => words[GENERATION_WORD] = u64::MAX << GENERATION_BITS,
            Field::Src4 | Field::Src6 => {
                words[SRC_WORD] = u64::MAX;
                words[SRC_WORD + 1] = u64::MAX;
                words[HW_DST_WORD] = present::SRC | present::IPV6;
            }
            Field::Dst4 | Field::Dst6 => {
                words[DST_WORD] = u64::MAX;
                words[DST_WORD + 1] = u64::MAX;
                words[HW_DST_WORD] = present::DST | present::IPV6;
            }
        }
        Self { words }
    }

    /// The bit of a packet's direction in its connection.
    pub const FLOW: Self = {
        let mut words = [0; KEY_WORDS];
        words[HW_DST_WORD] = present::RETURN;
        Self { words }
    };

    /// The bits that every set looks at: the hook and the part of a fragmented packet.
    pub const ALWAYS: Self = {
        let mut words = [0; KEY_WORDS];
        words[HW_DST_WORD] = present::EGRESS | 3 << present::FRAGMENT_SHIFT;
        Self { words }
    };

    /// Returns whether it is another one. By words: as arrays they would be compared by a function, byte after byte.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let mut differs = 0;
        for word in 0..KEY_WORDS {
            differs |= self.words[word] ^ other.words[word];
        }
        differs == 0
    }

    /// Mixes all words into one number, by products that don't wait for each other.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self) -> u32 {
        const ODD: [u64; KEY_WORDS] = [
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
            0xd6e8_feb8_6659_fd93,
            0xa076_1d64_78bd_642f,
            0xe703_7ed1_a0b4_28db,
            0x8ebc_6af0_9c88_c6e3,
            0x5899_65cc_7537_4cc3,
            0x1d8e_4e27_c47d_124f,
        ];
        let mut sum = 0_u64;
        for (word, odd) in self.words.iter().zip(ODD) {
            sum = sum.wrapping_add(word.wrapping_mul(odd));
        }
        ((sum ^ sum >> 32).wrapping_mul(ODD[0]) >> 40) as u32
    }

    #[inline(always)]
    fn has(&self, bit: u64) -> bool {
        self.words[HW_DST_WORD] & bit != 0
    }
}

/// Who sends a packet to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The addresses of source and destination, two words each as in a [`FlowKey`].
    pub addresses: [u64; 4],
    /// The source port above the destination port.
    pub ports: u32,
    /// The IP protocol.
    pub protocol: u8,
    /// Whether the addresses are of IPv6.
    pub ipv6: bool,
}

/// What is done about each meter that counts a frame.
pub trait Counts {
    /// Takes a meter's counter, each once.
    fn count(&mut self, counter: u32);
}

/// Finds the rules that match a frame, by a key that is restricted to the set, and counts it for each of their meters.
#[inline(always)]
pub fn classify(tables: &RuleTables, key: &FlowKey, counts: &mut impl Counts) {
    let egress = key.has(present::EGRESS) as usize;
    let mut rules = *vector(tables, usize::from(tables.always[egress]));

    let slots = key.words[SLOTS_WORD];
    let out_slot = slots << 32;
    narrow(tables, &mut rules, root(tables, Field::InPort), slots, 0);
    narrow(tables, &mut rules, root(tables, Field::OutPort), out_slot, 0);
    // The result is for the verifier: of a function without one it sees whatever a register holds, such as a stack pointer.
    black_box(narrow_traversed(tables, &mut rules, key));

    let numbers = key.words[PORTS_WORD];
    let others = key.words[HW_SRC_WORD];
    let field = start(tables, key, Field::Ethertype, present::ETHERTYPE);
    narrow(tables, &mut rules, field, numbers << 32, 0);
    narrow(tables, &mut rules, start(tables, key, Field::Vlan, present::VLAN), numbers << 48, 0);
    narrow(tables, &mut rules, start(tables, key, Field::Proto, present::PROTO), others << 8, 0);
    narrow(tables, &mut rules, start(tables, key, Field::Tos, present::TOS), others, 0);
    narrow(tables, &mut rules, start(tables, key, Field::SrcPort, present::SRC_PORT), numbers, 0);
    narrow(tables, &mut rules, start(tables, key, Field::DstPort, present::DST_PORT), numbers << 16, 0);
    narrow(tables, &mut rules, start(tables, key, Field::HwSrc, present::HW), others << 16, 0);
    let hw_dst = key.words[HW_DST_WORD] << 16;
    narrow(tables, &mut rules, start(tables, key, Field::HwDst, present::HW), hw_dst, 0);

    let six = key.has(present::IPV6);
    let field = if six { Field::Src6 } else { Field::Src4 };
    let field = start(tables, key, field, present::SRC);
    narrow(tables, &mut rules, field, key.words[SRC_WORD], key.words[SRC_WORD + 1]);
    let field = if six { Field::Dst6 } else { Field::Dst4 };
    let field = start(tables, key, field, present::DST);
    narrow(tables, &mut rules, field, key.words[DST_WORD], key.words[DST_WORD + 1]);

    let network = Network::from_key(key.words[GENERATION_WORD] >> GENERATION_BITS);
    let (field, vni) = match network.vni() {
        Some(vni) => (root(tables, Field::Vni), vni),
        None => (u32::from(tables.absent[Field::Vni as usize]), 0),
    };
    narrow(tables, &mut rules, field, u64::from(vni) << (64 - Field::Vni.bits()), 0);
    let hook = egress + 2 * network.is_tunnel() as usize;

    let fragment = (key.words[HW_DST_WORD] >> present::FRAGMENT_SHIFT) as usize & 3;
    let inverted = vector(tables, usize::from(tables.inverted));
    let accepted = vector(tables, usize::from(tables.fragments[fragment]));
    let counted = vector(tables, usize::from(tables.counted[hook]));
    let flow = vector(tables, usize::from(tables.flows[key.has(present::RETURN) as usize]));
    let mut last = u32::MAX;
    for word in 0..RULE_WORDS {
        let mut left = ((rules[word] & flow[word]) ^ inverted[word]) & accepted[word] & counted[word];
        for _ in 0..64 {
            if left == 0 {
                break;
            }
            // The compiler knows that the number is small; the verifier doesn't, and has to see the mask.
            let rule = black_box(word * 64 + left.trailing_zeros() as usize);
            left &= left - 1;
            let counter = u32::from(tables.counters[rule & (MAX_RULES - 1)]);
            if counter != last {
                counts.count(counter);
                last = counter;
            }
        }
    }
}

/// Returns where the trie of a field begins.
#[inline(always)]
fn root(tables: &RuleTables, field: Field) -> u32 {
    u32::from(tables.roots[field as usize])
}

/// The same, or the vector of frames without the field.
#[inline(always)]
fn start(tables: &RuleTables, key: &FlowKey, field: Field, bit: u64) -> u32 {
    u32::from(if key.has(bit) { tables.roots[field as usize] } else { tables.absent[field as usize] })
}

#[inline(always)]
fn vector(tables: &RuleTables, index: usize) -> &RuleVector {
    &tables.vectors[index & (MAX_VECTORS - 1)]
}

/// Leaves the rules that a field satisfies, whose value begins at the upper end of `high`.
#[inline(never)]
fn narrow(tables: &RuleTables, rules: &mut RuleVector, start: u32, high: u64, low: u64) {
    let found = find(tables, start, high, low);
    if found == usize::from(EVERY_RULE) {
        return;
    }
    let satisfied = vector(tables, found);
    for word in 0..RULE_WORDS {
        rules[word] &= satisfied[word];
    }
}

/// Leaves the rules whose traversed device one of the ports is or belongs to, or is a router to which or from which the
/// frame is sent; or the others where that is inverted.
#[inline(never)]
fn narrow_traversed(tables: &RuleTables, rules: &mut RuleVector, key: &FlowKey) -> u32 {
    let came = root(tables, Field::TraversedIn);
    let went = root(tables, Field::TraversedOut);
    if came == u32::from(LEAF | EVERY_RULE) && went == u32::from(LEAF | EVERY_RULE) {
        return 0;
    }
    let (in_slot, out_slot) = (key.words[SLOTS_WORD], key.words[SLOTS_WORD] << 32);
    let came = vector(tables, find(tables, came, in_slot, 0));
    let went = vector(tables, find(tables, went, out_slot, 0));
    let inverted = vector(tables, usize::from(tables.traversed_inverted));
    if root(tables, Field::RouterIn) == u32::from(LEAF | EVERY_RULE) || key.has(present::VLAN) {
        for word in 0..RULE_WORDS {
            rules[word] &= (came[word] | went[word]) ^ inverted[word];
        }
        return 1;
    }
    let to_in = vector(tables, find(tables, root(tables, Field::RouterIn), in_slot, 0));
    let from_out = vector(tables, find(tables, root(tables, Field::RouterOut), out_slot, 0));
    let dst = start(tables, key, Field::RouterDst, present::HW);
    let to = vector(tables, find(tables, dst, key.words[HW_DST_WORD] << 16, 0));
    let src = start(tables, key, Field::RouterSrc, present::HW);
    let from = vector(tables, find(tables, src, key.words[HW_SRC_WORD] << 16, 0));
    for word in 0..RULE_WORDS {
        let met = (to_in[word] & to[word]) | (from_out[word] & from[word]);
        rules[word] &= (came[word] | went[word] | met) ^ inverted[word];
    }
    2
}

/// Follows a trie to its vector.
#[inline(always)]
fn find(tables: &RuleTables, start: u32, mut high: u64, mut low: u64) -> usize {
    let mut place = start;
    for _ in 0..MAX_DEPTH {
        if place & u32::from(LEAF) != 0 {
            break;
        }
        let node = &tables.nodes[place as usize & (MAX_NODES - 1)];
        place = u32::from(node[(high >> 60) as usize]);
        high = high << 4 | low >> 60;
        low <<= 4;
    }
    place as usize & (MAX_VECTORS - 1)
}
