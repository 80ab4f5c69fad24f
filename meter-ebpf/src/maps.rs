//! The maps and what is done with their values: all map-pointer `unsafe` of the programs.
//!
//! Common to every `unsafe` block here: a per-CPU value belongs to this CPU while the program runs, since XDP and TC
//! programs run with bottom halves disabled and so never interrupt one another on one CPU. User space only reads
//! these values, and may see one field of a counter new and the next one old.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, PerCpuArray, Queue},
    macros::btf_map,
};
use meter_ebpf::{
    abi::{
        Bucket, Buckets, Counter, Direction, Fault, Faults, HookCounter, LONG_ADDRESSES, MAX_REASONS,
        MAX_UPLINKS, Member, MemberKey, Meta, PortRecord, PortUuid, SLOT_ENTRIES, SlotBlock, SlotRef,
        TUNNELS_PER_BLOCK, TunnelBlock, TunnelCounter, TunnelKey, TunnelPlace,
    },
    packet::{Frame, tunnel::TunnelV4},
};

use crate::context::OnNetdev;

/// By ifindex. Not looked up but read: that is half the instructions.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.SLOTS")]
static mut SLOTS: [SlotRef; SLOT_ENTRIES as usize] = [SlotRef::UNBOUND; SLOT_ENTRIES as usize];

// Sizes in the object; user space sets those that its configuration names before it loads.
#[btf_map]
pub(crate) static SLOTS_HIGH: HashMap<u32, SlotRef, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<SlotBlock, 16> = PerCpuArray::new();
#[btf_map]
pub(crate) static PORTS: HashMap<PortUuid, PortRecord, 65_536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static MEMBERS: HashMap<MemberKey, Member, 65_536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static TUNNELS: HashMap<TunnelKey, u32, 8_192> = HashMap::new();
#[btf_map]
pub(crate) static TUNNEL_TAKEN: HashMap<u32, u32, 8_192> = HashMap::new();
#[btf_map]
pub(crate) static TUNNEL_SPARE: Queue<u32, 4_096> = Queue::new();
#[btf_map]
pub(crate) static TUNNEL_COUNTER: PerCpuArray<TunnelBlock, 48> = PerCpuArray::new();
#[btf_map]
pub(crate) static BUCKETS: PerCpuArray<Buckets, { 2 * MAX_UPLINKS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static FAULTS: PerCpuArray<Faults, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static TUNNEL_SAVED: HashMap<TunnelKey, TunnelCounter, 8_192, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static SAVED: HashMap<u32, Buckets, 256, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
pub(crate) static META: Array<Meta, 1> = Array::new();

/// Returns where the counters of a frame's netdev are.
#[inline(always)]
pub(crate) fn slot_of(frame: &impl OnNetdev) -> SlotRef {
    slot_at(frame.ifindex())
}

/// Returns where a netdev's counters are.
#[inline(always)]
pub(crate) fn slot_at(ifindex: u32) -> SlotRef {
    if ifindex >= SLOT_ENTRIES {
        return SlotRef::from_bits(slot_beyond(ifindex));
    }
    // SAFETY: below the array's length. Volatile, since user space writes it while programs run; one load of eight
    // bytes, so what it reads is the old value or the new one.
    unsafe { (&raw const SLOTS).cast::<SlotRef>().add(ifindex as usize).read_volatile() }
}

/// Returns the bits of the [`SlotRef`] of an ifindex that [`SLOTS`] doesn't reach.
#[inline(never)]
fn slot_beyond(ifindex: u32) -> u64 {
    // SAFETY: user space replaces whole elements; a reader sees the old one or the new one until the program ends.
    unsafe { SLOTS_HIGH.get(&ifindex) }.copied().unwrap_or_default().bits()
}

/// A hook's counters on this CPU.
pub(crate) struct HookSlot(*mut HookCounter);

/// Returns the counters of a slot's hook; `None` only for a slot beyond the map.
#[inline(always)]
pub(crate) fn hook_slot(slot: SlotRef, direction: Direction) -> Option<HookSlot> {
    let block = COUNTERS.get_ptr_mut(slot.block())?;
    let offset = slot.offset() as usize + direction as usize * size_of::<HookCounter>();
    // SAFETY: this CPU's value (see the module), non-null by the `?`; the offset is that of a slot of the block, and a
    // slot has a hook for each direction.
    Some(HookSlot(unsafe { block.byte_add(offset).cast() }))
}

impl HookSlot {
    /// Counts one skb or XDP frame of `length` bytes.
    #[inline(always)]
    pub(crate) fn count(&self, length: u32) {
        // SAFETY: as in `hook_slot`, whose result this is.
        let hook = unsafe { &mut *self.0 };
        hook.skb_packets += 1;
        hook.skb_bytes += u64::from(length);
    }

    /// Counts what it stands for beyond itself on the wire.
    #[inline(always)]
    pub(crate) fn count_extra(&self, extra: Counter) {
        // SAFETY: as in `hook_slot`, whose result this is.
        let hook = unsafe { &mut *self.0 };
        hook.extra_packets += extra.packets;
        hook.extra_bytes += extra.bytes;
    }
}

/// Counts frames that no tunnel counts.
#[inline(always)]
pub(crate) fn count_bucket(hook: u32, bucket: Bucket, wire: Counter) {
    let Some(buckets) = BUCKETS.get_ptr_mut(hook) else { return };
    // SAFETY: as in `hook_slot`.
    let counter = unsafe { &mut (*buckets).reasons[reason_index(bucket as u32)] };
    counter.packets += wire.packets;
    counter.bytes += wire.bytes;
}

/// Counts a frame of an uplink that has no tunnel header and is one frame on the wire.
#[inline(always)]
pub(crate) fn count_plain(hook: u32, length: u32) {
    let Some(buckets) = BUCKETS.get_ptr_mut(hook) else { return };
    // SAFETY: as in `hook_slot`.
    let counter = unsafe { &mut (*buckets).reasons[Bucket::Plain as usize] };
    counter.packets += 1;
    counter.bytes += u64::from(length);
}

/// Counts a frame that was counted, but not in full.
#[inline(always)]
pub(crate) fn count_fault(fault: Fault, length: u32) {
    let Some(faults) = FAULTS.get_ptr_mut(0) else { return };
    // SAFETY: as in `hook_slot`.
    let counter = unsafe { &mut (*faults).reasons[reason_index(fault as u32)] };
    counter.packets += 1;
    counter.bytes += u64::from(length);
}

/// Bounds a reason's number in a way that reaches the verifier.
#[inline(always)]
fn reason_index(number: u32) -> usize {
    // The compiler knows that an enum is small and would drop the mask; the verifier, which sees a number that came
    // from a table, would then refuse the program. A volatile read keeps the compiler from knowing.
    // SAFETY: `number` is a local variable.
    let number = unsafe { core::ptr::read_volatile(&raw const number) };
    number as usize & (MAX_REASONS - 1)
}

/// Counts frames of a tunnel; returns whether it has a place.
#[inline(always)]
pub(crate) fn count_tunnel(key: &TunnelKey, mask: u32, wire: Counter, inner_bytes: u64) -> bool {
    let Some(place) = place_of(key, mask) else { return false };
    // SAFETY: as in `hook_slot`.
    let counter = unsafe { &mut (*place).counter };
    counter.packets += wire.packets;
    counter.inner_bytes += inner_bytes;
    counter.outer_bytes += wire.bytes;
    true
}

/// Counts a frame that is one frame on the wire, where this CPU knows its tunnel, which is over IPv4; returns whether
/// it does.
///
/// The frame's length is asked for where it is needed, so that it need not be kept across the look-up.
#[inline(always)]
pub(crate) fn count_tunnel_v4(frame: &impl Frame, tunnel: &TunnelV4, hook: u16, mask: u32) -> bool {
    let addresses = pair(tunnel.src, tunnel.dst);
    let labels = TunnelKey::new_labels(tunnel.vni, tunnel.encap, hook);
    let home = hash(addresses, labels) & mask;
    let Some(block) = tunnel_block(home) else { return false };
    let mut place = place_in(block, home);
    if !is_of(place, labels, addresses) {
        place = place_in(block, second(home));
        if !is_of(place, labels, addresses) {
            return false;
        }
    }
    let length = frame.length();
    // SAFETY: as in `hook_slot`.
    let counter = unsafe { &mut (*place).counter };
    counter.packets += 1;
    counter.inner_bytes += u64::from(length - tunnel.offset);
    counter.outer_bytes += u64::from(length);
    true
}

/// Returns this CPU's block of tunnels for a place; `None` only beyond the map.
#[inline(always)]
fn tunnel_block(place: u32) -> Option<*mut TunnelBlock> {
    TUNNEL_COUNTER.get_ptr_mut(place / TUNNELS_PER_BLOCK)
}

#[inline(always)]
fn place_in(block: *mut TunnelBlock, place: u32) -> *mut TunnelPlace {
    // SAFETY: the index is below the block's length.
    unsafe { &raw mut (*block).places[(place % TUNNELS_PER_BLOCK) as usize] }
}

/// Returns whether a place is that of a tunnel over IPv4.
#[inline(always)]
fn is_of(place: *mut TunnelPlace, labels: u64, addresses: u64) -> bool {
    // SAFETY: as in `hook_slot`.
    let place = unsafe { &*place };
    place.labels == labels && place.addresses[0] == addresses
}

/// Returns the other place that a hash leads to. It is in the same block.
#[inline(always)]
const fn second(home: u32) -> u32 {
    home ^ 1
}

#[inline(always)]
const fn pair(src: u32, dst: u32) -> u64 {
    (src as u64) | (dst as u64) << 32
}

/// Finds the place of a tunnel; `None` where there is none for it.
#[inline(always)]
fn place_of(key: &TunnelKey, mask: u32) -> Option<*mut TunnelPlace> {
    let (labels, addresses) = place_key(key);
    let folded = if labels & LONG_ADDRESSES == 0 {
        addresses[0]
    } else {
        fold(addresses[0] ^ addresses[1]) | fold(addresses[2] ^ addresses[3]) << 32
    };
    let home = hash(folded, labels) & mask;
    for place in [home, second(home)] {
        let place = place_in(tunnel_block(place)?, place);
        // SAFETY: as in `hook_slot`.
        let found = unsafe { &*place };
        let differs = (found.labels ^ labels)
            | (found.addresses[0] ^ addresses[0])
            | (found.addresses[1] ^ addresses[1])
            | (found.addresses[2] ^ addresses[2])
            | (found.addresses[3] ^ addresses[3]);
        if differs == 0 {
            return Some(place);
        }
    }
    let place = u32::try_from(resolve(key, home)).ok()?;
    let place = place_in(tunnel_block(place)?, place);
    // SAFETY: as in `hook_slot`. The place is this tunnel's for good: nobody else's key is replaced.
    let known = unsafe { &mut *place };
    known.labels = labels;
    known.addresses = addresses;
    Some(place)
}

/// Returns a key as a place has it.
#[inline(always)]
fn place_key(key: &TunnelKey) -> (u64, [u64; 4]) {
    let [src_high, src_low, dst_high, dst_low, labels] = key.words();
    match (key.src.as_v4(), key.dst.as_v4()) {
        (Some(src), Some(dst)) => (labels, [pair(src, dst), 0, 0, 0]),
        _ => (labels | LONG_ADDRESSES, [src_high, src_low, dst_high, dst_low]),
    }
}

/// Mixes both halves of a word into its lower one.
#[inline(always)]
fn fold(word: u64) -> u64 {
    (word ^ (word >> 32)) & 0xffff_ffff
}

/// Mixes two addresses and the labels. A product carries upwards only, so what differs most between the tunnels of one
/// host comes first into the lower bits: the last bytes of the addresses by the swap, and the VNI above those of one.
#[inline(always)]
fn hash(addresses: u64, labels: u64) -> u32 {
    ((addresses.swap_bytes() ^ (labels << 16)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32
}

/// Looks the tunnel's place up in the table that all CPUs share, and gives it one there; negative when the table is
/// full.
#[inline(never)]
fn resolve(key: &TunnelKey, home: u32) -> i64 {
    // SAFETY: a tunnel's place never changes.
    if let Some(place) = unsafe { TUNNELS.get(key) } {
        return i64::from(*place);
    }
    let Some(place) = take_place(home) else { return -1 };
    if TUNNELS.insert(key, place, u64::from(BPF_NOEXIST)).is_ok() {
        return i64::from(place);
    }
    // Another CPU was faster, or the table refused.
    give_back(place, home);
    // SAFETY: as above.
    match unsafe { TUNNELS.get(key) } {
        Some(place) => i64::from(*place),
        None => -1,
    }
}

/// Takes a place that the hash leads to, or else a spare one.
#[inline(always)]
fn take_place(home: u32) -> Option<u32> {
    for place in [home, second(home)] {
        // The one CPU for which it succeeds has the place.
        if TUNNEL_TAKEN.insert(place, 1, u64::from(BPF_NOEXIST)).is_ok() {
            return Some(place);
        }
    }
    TUNNEL_SPARE.pop().ok().flatten()
}

#[inline(always)]
fn give_back(place: u32, home: u32) {
    // Neither can fail: the place was taken from there.
    if place == home || place == second(home) {
        let _ = TUNNEL_TAKEN.remove(place);
    } else {
        let _ = TUNNEL_SPARE.push(place, 0);
    }
}
