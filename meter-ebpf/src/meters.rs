//! User-defined meters: the maps, and how a frame of a port is counted in them.
//!
//! Common to every `unsafe` block here: as in `maps.rs`, a per-CPU value belongs to this CPU while the program runs.
//! Compiled rules are never changed once they are in [`RULES`].

mod connection;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_F_TUNINFO_IPV6, bpf_tunnel_key},
    btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray},
    helpers::bpf_skb_get_tunnel_key,
    macros::btf_map,
};
use meter_ebpf::{
    abi::{
        Counter, Direction, Network, SlotRef,
        rules::{
            FlowKey, MAX_CACHED, MAX_RULES, METERS_PER_BLOCK, MeterBlock, MeterName, MeterRecord, RuleTables,
            VERDICT_BLOCKS, VERDICTS_PER_BLOCK, Verdict, VerdictBlock,
        },
    },
    connection::Seen,
    packet::Frame as _,
    rules::{Fields, Matched, Matches, classify, counter_of, fields, plain_fields},
};

use self::connection::{FLOW_KNOWN, IS_RETURN};
pub(crate) use self::connection::{count_connection, count_noted, counts};
use crate::{
    connections::{self, Packet},
    context::{OnNetdev as _, Skb},
};

/// The rules, or none.
///
/// The values of maps that others lead to are arrays: from Linux 5.15 to 6.1 a map whose values BTF calls structures, as an
/// object's are, is never replaced by one that comes without BTF, which is what user space makes (`timer_off` in
/// `bpf_map_meta_equal`, kernel/bpf/map_in_map.c).
#[btf_map]
static RULES: ArrayOfMaps<Array<[RuleTables; 1], 1>, 1> = ArrayOfMaps::new();
#[btf_map]
static VERDICTS: ArrayOfMaps<PerCpuArray<VerdictBlock, 16>, 1> = ArrayOfMaps::new();
#[btf_map]
static METERS: HashMap<MeterName, MeterRecord, 4_096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static METER_COUNTERS: PerCpuArray<MeterBlock, 2> = PerCpuArray::new();

/// By slot; user space sets the size before it loads.
#[btf_map]
static NETWORKS: Array<Network, 4_352> = Array::new();

/// The frame at hand. In a map, since to the verifier a number from a map is any number: what follows it checks once, and
/// not for each way that leads there.
#[btf_map]
static METER_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[repr(C)]
struct Scratch {
    fields: Fields,
    /// Of what a tunnel packet holds, where that is asked for.
    inside: Fields,
    /// The labels of its tunnel; 0 where it is not asked for, or no tunnel's.
    tunnel: u64,
    /// What its packet, or the one inside of its tunnel, is to its connection.
    packet: Packet,
    /// What the verdict on its connection depends on, while that is asked for.
    key: FlowKey,
    wire: Counter,
    /// Which meters have counted it so far, while the rules are asked.
    matched: Matched,
}

/// Counts a frame of a port for each meter that has a rule for it, as what it is on the wire.
///
/// The rules are asked for once, so that it sees one set as a whole.
#[inline(always)]
pub(crate) fn count(skb: Skb, direction: Direction, wire: Counter, slot_at: impl Fn(u32) -> SlotRef) {
    let Some([tables]) = RULES.get_value(0, &0) else { return };
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return };
    let Some(place) = place_of(skb, slot_at(skb.ifindex()).slot(), tables) else { return };
    read(skb, scratch);
    count_read(skb, direction, wire, place, 0, slot_at, tables, scratch);
}

/// Where a frame is: the slot of its netdev, and the overlay network that it is in.
#[derive(Clone, Copy)]
struct Place {
    slot: u32,
    network: Network,
}

/// Returns where a frame is; `None` inside a tunnel where no rule asks for the overlay network: no other counts there.
#[inline(always)]
fn place_of(skb: Skb, slot: u32, tables: &RuleTables) -> Option<Place> {
    let network = NETWORKS.get(slot).copied().unwrap_or_default();
    if network.is_tunnel() && !tables.key_mask.asks_for_network() {
        return None;
    }
    Some(Place { slot, network: network_of(skb.context(), network) })
}

/// Returns the overlay network of a frame at a netdev: the netdev's, or what the frame's metadata says.
#[inline(always)]
fn network_of(skb: *mut __sk_buff, network: Network) -> Network {
    if network.is_external() { Network::from_bits(meter_network(skb) as u32) } else { network }
}

/// Returns the slots of the ports through which a frame came in and goes out, of which its hook's is `own`; 0 for none.
#[inline(always)]
fn slots(skb: Skb, direction: Direction, own: u32, slot_at: &impl Fn(u32) -> SlotRef) -> (u32, u32) {
    match direction {
        Direction::Ingress => (own, 0),
        Direction::Egress => (slot_at(skb.ingress_ifindex()).slot(), own),
    }
}

/// Reads a frame's fields.
#[inline(always)]
fn read(skb: Skb, scratch: *mut Scratch) {
    // SAFETY: the caller's value of this CPU (see the module).
    let is_plain = skb.tag_bytes() == 0 && plain_fields(&skb, unsafe { &mut (*scratch).fields });
    if !is_plain {
        meter_fields(skb.context());
    }
}

/// Counts a frame whose fields are read; `said` is what [`count_connection`] said of it, 0 for nothing.
#[inline(always)]
fn count_read(
    skb: Skb,
    direction: Direction,
    wire: Counter,
    Place { slot: own, network }: Place,
    said: u64,
    slot_at: impl Fn(u32) -> SlotRef,
    tables: &RuleTables,
    scratch: *mut Scratch,
) {
    let is_return = tables.key_mask.asks_for_flow()
        && if said & FLOW_KNOWN != 0 { said & IS_RETURN != 0 } else { meter_flow(skb.context(), own) != 0 };
    // SAFETY: the caller's value of this CPU (see the module); the calls have ended.
    let Scratch { fields: Fields { key, .. }, wire: kept, .. } = unsafe { &mut *scratch };
    *kept = wire;
    let wire = &*kept;
    if is_return {
        key.set_return();
    }
    let (in_slot, out_slot) = slots(skb, direction, own, &slot_at);
    key.set_hook(direction, in_slot, out_slot);
    key.set_network(network);
    key.restrict(tables);
    let hash = key.hash();
    let Some(block) = VERDICTS.get_value_ptr_mut(0, &(hash / VERDICTS_PER_BLOCK % VERDICT_BLOCKS)) else {
        return;
    };
    // SAFETY: this CPU's value (see the module), non-null by the `else`; the index is below the block's length.
    let verdict = unsafe { &mut (&mut *block)[(hash % VERDICTS_PER_BLOCK) as usize] };
    if verdict.key.is(key) {
        let count = verdict.count as usize;
        for place in 0..MAX_CACHED {
            if place >= count {
                break;
            }
            count_at(u32::from(verdict.counters[place]), wire.packets, wire.bytes);
        }
        return;
    }
    copy(&mut verdict.key, key);
    verdict.count = 0;
    ask(tables, verdict, scratch);
}

/// Copies a key.
#[inline(always)]
fn copy(to: &mut FlowKey, from: &FlowKey) {
    for (to, from) in to.words.iter_mut().zip(&from.words) {
        // SAFETY: a reference is valid for reads. Volatile, or the compiler calls a function to copy them byte after byte.
        *to = unsafe { core::ptr::from_ref(from).read_volatile() };
    }
}

/// Asks the rules, counts the frame for their meters, and remembers which. Apart, so that a frame whose verdict is known keeps
/// nothing for it.
#[inline(never)]
fn ask(tables: &RuleTables, verdict: &mut Verdict, scratch: *mut Scratch) -> u32 {
    // SAFETY: the caller's value of this CPU (see the module). Here and below no reference lives while the exported functions
    // run, which have their own.
    let turn = unsafe { (*scratch).matched.clear() };
    classify(tables, &verdict.key, &mut Listed);
    for place in 0..MAX_RULES {
        // SAFETY: as above.
        let Some(rule) = (unsafe { (*scratch).matched.rule(place) }) else { break };
        count_matched(counter_of(tables, rule));
    }
    // SAFETY: as above.
    unsafe { (*scratch).matched.remember(turn, verdict) };
    0
}

/// The rules that match, listed in [`METER_SCRATCH`].
struct Listed;

impl Matches for Listed {
    #[inline(always)]
    fn add(&mut self, word: u32, bits: u64) {
        list_rules(word, bits);
    }
}

// Exported, so that the verifier checks each once and for any argument.

/// Reads the fields of a frame to [`METER_SCRATCH`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meter_fields(skb: *mut __sk_buff) -> u64 {
    let skb = Skb::new(skb);
    let fields = fields(&skb, skb.tag_id());
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return 1 };
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    unsafe { (*scratch).fields = fields };
    0
}

/// Returns whether the frame whose fields are in [`METER_SCRATCH`] goes against its connection at the port with this slot.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meter_flow(skb: *mut __sk_buff, slot: u32) -> u64 {
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    let fields = unsafe { &(*scratch).fields };
    if fields.key.is_echo_reply() {
        return 1;
    }
    let Some(seen) = Seen::of(&fields.key, slot) else { return 0 };
    let skb = Skb::new(skb);
    u64::from(connections::note(&seen, fields.tcp_flags(&skb), skb.length()))
}

/// Returns the bits of the overlay network that the metadata of a frame says.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn meter_network(skb: *mut __sk_buff) -> u64 {
    let vni = tunnel_id(skb, 0).or_else(|| tunnel_id(skb, u64::from(BPF_F_TUNINFO_IPV6)));
    u64::from(vni.map_or(Network::UNKNOWN, Network::new).bits())
}

/// Returns the id in a frame's tunnel metadata, of outer addresses of the family that the flags say.
#[inline(always)]
fn tunnel_id(skb: *mut __sk_buff, flags: u64) -> Option<u32> {
    // As much as every kernel has and takes; what follows differs between them.
    const SIZE: usize = core::mem::offset_of!(bpf_tunnel_key, tunnel_label);
    let mut key = [0_u32; SIZE / 4];
    // SAFETY: the program's context, and a variable of that size.
    let found = unsafe { bpf_skb_get_tunnel_key(skb, key.as_mut_ptr().cast(), SIZE as u32, flags) };
    (found == 0).then_some(key[0])
}

/// Lists the rules of one word of a vector in [`METER_SCRATCH`], behind those that are there.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn list_rules(word: u32, bits: u64) -> u64 {
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    unsafe { (*scratch).matched.list(word, bits) };
    0
}

/// Counts the frame that is in [`METER_SCRATCH`] in the meter of a rule that matches it, unless the rule before was the same
/// meter's.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_matched(counter: u32) -> u64 {
    let Some(scratch) = METER_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's value (see the module), non-null by the `else`.
    let Scratch { wire, matched, .. } = unsafe { &mut *scratch };
    if matched.note(counter) {
        count_at(counter, wire.packets, wire.bytes);
    }
    0
}

#[inline(always)]
fn count_at(counter: u32, packets: u64, bytes: u64) {
    let Some(block) = METER_COUNTERS.get_ptr_mut(counter / METERS_PER_BLOCK) else { return };
    // SAFETY: this CPU's value (see the module), non-null by the `else`; the index is below the block's length.
    let counter = unsafe { &mut (&mut *block).counters[(counter % METERS_PER_BLOCK) as usize] };
    counter.packets += packets;
    counter.bytes += bytes;
}
