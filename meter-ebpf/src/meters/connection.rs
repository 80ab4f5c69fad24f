//! How a frame is counted in its connection, before it is in user-defined meters.
//!
//! Common to every `unsafe` block here: as in the module above. Functions are exported as there, so that the verifier checks
//! each once and for any argument.

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{Array, ArrayOfMaps, PerCpuArray},
    macros::btf_map,
};
use meter_ebpf::{
    abi::{
        Counter, Direction, SlotRef,
        rules::{FlowKey, RuleTables, VERDICT_BLOCKS, VERDICTS_PER_BLOCK, Verdict, VerdictBlock},
    },
    connection::Seen,
    packet::{
        Frame as _,
        tunnel::{Inside, inside_of},
    },
    register::Register as _,
    rules::{Anything, classify, inner_fields},
};

use super::{METER_SCRATCH, NETWORKS, RULES, Scratch, copy, count_read, network_of, place_of, read, slots};
use crate::{
    Loaded,
    connections::{Asked, Captured, Counted, Echo, Packet},
    context::{OnNetdev as _, Skb},
};

/// The rules that say which connections are counted, or none.
#[btf_map]
static CAPTURE_RULES: ArrayOfMaps<Array<[RuleTables; 1], 1>, 1> = ArrayOfMaps::new();
#[btf_map]
static CAPTURE_VERDICT: ArrayOfMaps<PerCpuArray<VerdictBlock, 16>, 1> = ArrayOfMaps::new();

/// Counts a frame in its connection, at a netdev whose connections are counted; returns what [`count_noted`] asks for.
#[inline(always)]
pub(crate) fn count_connection(
    skb: Skb,
    direction: Direction,
    wire: Counter,
    slot_at: impl Fn(u32) -> SlotRef,
) -> u64 {
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return 0 };
    read(skb, scratch);
    let slot = slot_at(skb.ifindex()).slot();
    // Not by `meter_connection`: the stacks of both together would be too large.
    let looks_inside = Captured::of(slot).is_some_and(Captured::looks_inside);
    let tunnel = if looks_inside { meter_inside(skb.context()) } else { 0 };
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    unsafe {
        (*scratch).wire = wire;
        (*scratch).tunnel = tunnel;
    }
    let said = meter_connection(skb.context(), slot, direction as u32, Asked::Not as u32);
    if said & ASKS_RULES == 0 {
        return said;
    }
    let (in_slot, out_slot) = slots(skb, direction, slot, &slot_at);
    let mut asked = meter_admits(skb.context(), in_slot, out_slot, direction as u32);
    if asked == Asked::Not as u64 {
        asked = ask_rules();
    }
    if asked == Asked::Refused as u64
        && said & HAS_PLACE == 0
        && let Some(captured) = Captured::of(slot)
    {
        // SAFETY: as above; the calls have ended.
        captured.count_other(direction as usize, unsafe { &(*scratch).wire });
        return said & COUNTS_METERS;
    }
    meter_connection(skb.context(), slot, direction as u32, asked as u32)
}

/// Returns whether user-defined meters count a frame of which [`count_connection`] said that.
#[inline(always)]
pub(crate) const fn counts(said: u64) -> bool {
    said & COUNTS_METERS != 0
}

/// Counts a frame that [`count_connection`] has counted in each user-defined meter that has a rule for it.
#[inline(always)]
pub(crate) fn count_noted(skb: Skb, direction: Direction, said: u64, slot_at: impl Fn(u32) -> SlotRef) {
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return };
    let Some([tables]) = RULES.get_value(0, &0) else { return };
    let Some(place) = place_of(skb, slot_at(skb.ifindex()).slot(), tables) else { return };
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    let wire = unsafe { &(*scratch).wire };
    let wire = Counter { packets: wire.packets, bytes: wire.bytes };
    count_read(skb, direction, wire, place, said, slot_at, tables, scratch);
}

/// Bits of what [`meter_connection`] says of a frame: it counts in user-defined meters as well.
const COUNTS_METERS: u64 = 1;
/// Whether it goes against its connection's first is known.
pub(super) const FLOW_KNOWN: u64 = 2;
/// It does.
pub(super) const IS_RETURN: u64 = 4;
/// It is in nothing so far: whether its connection is counted is for the rules to say.
const ASKS_RULES: u64 = 8;
/// That has a place for its direction.
const HAS_PLACE: u64 = 16;

/// Counts the frame that is in [`METER_SCRATCH`] in its connection, or in none, where connections are counted; returns bits
/// of what is known of it. `asked` is a number of [`Asked`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meter_connection(skb: *mut __sk_buff, slot: u32, direction: u32, asked: u32) -> u64 {
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return 0 };
    let Some(captured) = Captured::of(slot) else { return 0 };
    let meters = if captured.counts_meters() { COUNTS_METERS } else { 0 };
    if !captured.counts_connections() {
        return meters;
    }
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    let Scratch { fields, inside, tunnel, packet, wire, .. } = unsafe { &mut *scratch };
    let tunnel = *tunnel;
    let fields = if tunnel != 0 { inside } else { fields };
    let skb = Skb::new(skb);
    let direction = direction as usize;
    let (ends, flags, echo) = if let Some(ends) = fields.key.ends() {
        (ends, fields.tcp_flags(&skb), Echo::None)
    } else if let Some(identifier) = fields.echo_identifier(&skb) {
        let echo = if fields.key.is_echo_reply() { Echo::Reply } else { Echo::Request };
        (fields.key.echo_ends(identifier), 0, echo)
    } else {
        captured.count_other(direction, wire);
        return meters;
    };
    *packet = Packet::between(&ends, flags, echo);
    // SAFETY: a reference is valid for reads. Volatile, so that the verifier takes it for any packet: it checks what follows
    // once, and not for each kind.
    let packet = unsafe { core::ptr::from_ref(packet).read_volatile() };
    let seen = Seen::between(&ends, slot).inside(tunnel);
    match captured.count(&seen, packet, Asked::from_number(asked), direction, wire, skb.length()) {
        Counted::Undecided => meters | ASKS_RULES,
        Counted::UndecidedInPlace => meters | ASKS_RULES | HAS_PLACE,
        // Rules of meters ask for the outer one, and take an echo's direction from what it is.
        _ if tunnel != 0 || !matches!(packet.echo, Echo::None) => meters,
        Counted::Return => meters | FLOW_KNOWN | IS_RETURN,
        Counted::Forward => meters | FLOW_KNOWN,
        Counted::Unknown => meters,
    }
}

/// Returns, as a number of [`Asked`], what the rules said before of connections like that whose frame is in
/// [`METER_SCRATCH`], where what a verdict depends on is written for [`ask_rules`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meter_admits(skb: *mut __sk_buff, in_slot: u32, out_slot: u32, direction: u32) -> u64 {
    let refused = Asked::Refused as u64;
    let Some([tables]) = CAPTURE_RULES.get_value(0, &0) else { return refused };
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return refused };
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    let tunnel = unsafe { (*scratch).tunnel };
    let (direction, own) = if direction == Direction::Ingress as u32 {
        (Direction::Ingress, in_slot)
    } else {
        (Direction::Egress, out_slot)
    };
    let network = if tunnel != 0 {
        Inside::network_of(tunnel)
    } else {
        network_of(skb, NETWORKS.get(own).copied().unwrap_or_default())
    };
    // SAFETY: as above; the call has ended.
    let Scratch { fields, inside, key, .. } = unsafe { &mut *scratch };
    copy(key, if tunnel != 0 { &inside.key } else { &fields.key });
    key.set_hook(direction, in_slot, out_slot);
    key.set_network(network);
    key.restrict(tables);
    let Some(verdict) = verdict_of(key) else { return refused };
    match (verdict.key.is(key), verdict.count) {
        (false, _) => Asked::Not as u64,
        (true, 0) => refused,
        (true, _) => Asked::Matched as u64,
    }
}

/// Asks the rules what [`meter_admits`] did not know, and remembers it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ask_rules() -> u64 {
    let refused = Asked::Refused as u64;
    let Some([tables]) = CAPTURE_RULES.get_value(0, &0) else { return refused };
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return refused };
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    let Scratch { key, matched, .. } = unsafe { &mut *scratch };
    if !key.is_of(tables) {
        // Others have come since. They are asked when the next frame is.
        return refused;
    }
    let Some(verdict) = verdict_of(key) else { return refused };
    verdict.key.make_void();
    let turn = matched.clear();
    let mut found = Anything::default();
    classify(tables, key, &mut found);
    verdict.count = found.is_found().into();
    // SAFETY: as above, anew: the compiler takes what a reference leads to for unchanged.
    if unsafe { (*scratch).matched.is_at(turn) } {
        copy(&mut verdict.key, key);
    }
    if found.is_found() { Asked::Matched as u64 } else { refused }
}

/// Returns the place of a verdict that this CPU remembers.
#[inline(always)]
fn verdict_of<'v>(key: &FlowKey) -> Option<&'v mut Verdict> {
    let hash = key.hash();
    let block = CAPTURE_VERDICT.get_value_ptr_mut(0, &(hash / VERDICTS_PER_BLOCK % VERDICT_BLOCKS))?;
    // SAFETY: this CPU's value (see the module), non-null by the `?`; the index is below the block's length.
    Some(unsafe { &mut (&mut *block)[(hash % VERDICTS_PER_BLOCK) as usize] })
}

/// Reads the fields of what a tunnel packet holds to [`METER_SCRATCH`]; returns the labels of its tunnel, 0 for no tunnel's.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meter_inside(skb: *mut __sk_buff) -> u64 {
    let Some(inside) = Option::<Inside>::unpack(walk_inside(skb)) else { return 0 };
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return 0 };
    let fields = inner_fields(&Skb::new(skb), inside.ethertype, inside.offset);
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    unsafe { (*scratch).inside = fields };
    inside.labels()
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_inside(skb: *mut __sk_buff) -> u64 {
    inside_of(&Skb::new(skb), &Loaded).pack()
}
