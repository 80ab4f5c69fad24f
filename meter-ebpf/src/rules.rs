//! Which user-defined meters count a frame: its fields ([`fields`]), and what the compiled rules say of them
//! ([`classify`]).
//!
//! Programs and user space run the same code, so that a test without root sees what a program does.

mod fields;
mod key;
mod matched;

use core::hint::black_box;

pub use self::{
    fields::{Fields, fields, inner_fields, plain_fields},
    key::Ends,
    matched::{Anything, Matched, Matches},
};
use crate::abi::{
    Network,
    rules::{
        EVERY_RULE, Field, FlowKey, GENERATION_BITS, HAS_FIELD, LACKS_FIELD, LEAF, MAX_DEPTH, MAX_NODES,
        MAX_RULES, MAX_VECTORS, RULE_WORDS, RuleTables, RuleVector, present,
    },
};

const PORTS_WORD: usize = 4;
const HW_SRC_WORD: usize = 5;
const HW_DST_WORD: usize = 6;
const SLOTS_WORD: usize = 7;
const GENERATION_WORD: usize = 8;
const HW_MASK: u64 = 0xffff_ffff_ffff;
/// Which word of an address is which.
const SRC_WORD: usize = 0;
const DST_WORD: usize = 2;

/// Finds the rules that match a frame, by a key that is restricted to the set.
#[inline(always)]
pub fn classify(tables: &RuleTables, key: &FlowKey, matches: &mut impl Matches) {
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

    // Those of IPv6 follow those of IPv4.
    let six = key.bit(present::IPV6);
    let field = start_of(tables, key, Field::Src4 as usize + six, present::SRC);
    narrow(tables, &mut rules, field, key.words[SRC_WORD], key.words[SRC_WORD + 1]);
    let field = start_of(tables, key, Field::Dst4 as usize + six, present::DST);
    narrow(tables, &mut rules, field, key.words[DST_WORD], key.words[DST_WORD + 1]);

    let network = Network::from_key(key.words[GENERATION_WORD] >> GENERATION_BITS);
    let (field, vni) = match network.vni() {
        Some(vni) => (root(tables, Field::Vni), vni),
        None => (u32::from(tables.starts[LACKS_FIELD][Field::Vni as usize]), 0),
    };
    narrow(tables, &mut rules, field, u64::from(vni) << (64 - Field::Vni.bits()), 0);
    let hook = egress + 2 * network.is_tunnel() as usize;

    let fragment = (key.words[HW_DST_WORD] >> present::FRAGMENT_SHIFT) as usize & 3;
    let inverted = vector(tables, usize::from(tables.inverted));
    let accepted = vector(tables, usize::from(tables.fragments[fragment]));
    let counted = vector(tables, usize::from(tables.counted[hook]));
    let flow = vector(tables, usize::from(tables.flows[key.has(present::RETURN) as usize]));
    for (word, number) in (0..RULE_WORDS).zip(0..) {
        let left = ((rules[word] & flow[word]) ^ inverted[word]) & accepted[word] & counted[word];
        if left != 0 {
            matches.add(number, left);
        }
    }
}

/// Returns the counter of a rule's meter. Rules of one meter follow each other, and so do those of them that match.
#[inline(always)]
#[must_use]
pub fn counter_of(tables: &RuleTables, rule: u16) -> u32 {
    // The compiler knows that the number is small; the verifier doesn't, and has to see the mask.
    u32::from(tables.counters[black_box(usize::from(rule)) & (MAX_RULES - 1)])
}

/// Returns where the trie of a field begins.
#[inline(always)]
fn root(tables: &RuleTables, field: Field) -> u32 {
    u32::from(tables.starts[HAS_FIELD][field as usize])
}

/// The same, or the vector of frames without the field.
#[inline(always)]
fn start(tables: &RuleTables, key: &FlowKey, field: Field, bit: u64) -> u32 {
    start_of(tables, key, field as usize, bit)
}

/// The same by the field's number. Without a branch, for each way of which the verifier would follow the trie.
#[inline(always)]
fn start_of(tables: &RuleTables, key: &FlowKey, field: usize, bit: u64) -> u32 {
    u32::from(tables.starts[1 - key.bit(bit)][field])
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
    let came = vector(tables, trace(tables, came, in_slot));
    let went = vector(tables, trace(tables, went, out_slot));
    let inverted = vector(tables, usize::from(tables.traversed_inverted));
    if root(tables, Field::RouterIn) == u32::from(LEAF | EVERY_RULE) || key.has(present::VLAN) {
        for word in 0..RULE_WORDS {
            rules[word] &= (came[word] | went[word]) ^ inverted[word];
        }
        return 1;
    }
    let to_in = vector(tables, trace(tables, root(tables, Field::RouterIn), in_slot));
    let from_out = vector(tables, trace(tables, root(tables, Field::RouterOut), out_slot));
    let dst = start(tables, key, Field::RouterDst, present::HW);
    let to = vector(tables, trace(tables, dst, key.words[HW_DST_WORD] << 16));
    let src = start(tables, key, Field::RouterSrc, present::HW);
    let from = vector(tables, trace(tables, src, key.words[HW_SRC_WORD] << 16));
    for word in 0..RULE_WORDS {
        let met = (to_in[word] & to[word]) | (from_out[word] & from[word]);
        rules[word] &= (came[word] | went[word] | met) ^ inverted[word];
    }
    2
}

/// Follows the trie of a field of at most 64 bits to its vector. A function, so that the verifier goes on from its end only.
#[inline(never)]
fn trace(tables: &RuleTables, start: u32, high: u64) -> usize {
    find(tables, start, high, 0)
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
