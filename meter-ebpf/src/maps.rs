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
use meter_ebpf::abi::{
    Bucket, Buckets, Counter, Direction, Fault, Faults, HookCounter, MAX_REASONS, MAX_UPLINKS, Member,
    MemberKey, Meta, PortRecord, PortUuid, SLOTS_PER_BLOCK, SlotBlock, SlotRef, TUNNELS_PER_BLOCK,
    TunnelBlock, TunnelCacheEntry, TunnelKey,
};

/// Sizes in the object; user space sets those that its configuration names before it loads.
const SLOT_ENTRIES: usize = 65_536;

#[btf_map]
pub(crate) static SLOTS: Array<SlotRef, SLOT_ENTRIES> = Array::new();
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
pub(crate) static TUNNEL_FREE: Queue<u32, 8_192> = Queue::new();
#[btf_map]
pub(crate) static TUNNEL_CACHE: PerCpuArray<TunnelCacheEntry, 8_192> = PerCpuArray::new();
#[btf_map]
pub(crate) static TUNNEL_COUNTER: PerCpuArray<TunnelBlock, 16> = PerCpuArray::new();
#[btf_map]
pub(crate) static BUCKETS: PerCpuArray<Buckets, { 2 * MAX_UPLINKS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static FAULTS: PerCpuArray<Faults, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static META: Array<Meta, 1> = Array::new();

/// Returns where the netdev's counters are.
#[inline(always)]
pub(crate) fn slot_of(ifindex: u32) -> SlotRef {
    if let Some(slot) = SLOTS.get(ifindex) {
        return *slot;
    }
    // SAFETY: user space replaces whole elements; a reader sees the old one or the new one until the program ends.
    unsafe { SLOTS_HIGH.get(&ifindex) }.copied().unwrap_or_default()
}

/// A hook's counters on this CPU.
pub(crate) struct HookSlot(*mut HookCounter);

/// Returns the counters of a slot's hook; `None` only for a slot beyond the map.
#[inline(always)]
pub(crate) fn hook_slot(slot: u32, direction: Direction) -> Option<HookSlot> {
    let block = COUNTERS.get_ptr_mut(slot / SLOTS_PER_BLOCK)?;
    // SAFETY: this CPU's value (see the module), non-null by the `?`; the index is below the block's length.
    Some(HookSlot(unsafe {
        &raw mut (*block).slots[(slot % SLOTS_PER_BLOCK) as usize].hooks[direction as usize]
    }))
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

/// Counts frames of a tunnel; returns whether it has counters.
#[inline(always)]
pub(crate) fn count_tunnel(key: &TunnelKey, cache_mask: u32, wire: Counter, inner_bytes: u64) -> bool {
    let Some(index) = tunnel_index(key, cache_mask) else { return false };
    let Some(block) = TUNNEL_COUNTER.get_ptr_mut(index / TUNNELS_PER_BLOCK) else { return false };
    // SAFETY: as in `hook_slot`.
    let tunnel = unsafe { &mut (*block).tunnels[(index % TUNNELS_PER_BLOCK) as usize] };
    tunnel.packets += wire.packets;
    tunnel.inner_bytes += inner_bytes;
    tunnel.outer_bytes += wire.bytes;
    true
}

/// Finds the tunnel's index through this CPU's cache.
///
/// The cache holds indexes and no counters, so displacing an entry loses nothing and a reader needs to look at one
/// place only.
#[inline(always)]
fn tunnel_index(key: &TunnelKey, cache_mask: u32) -> Option<u32> {
    let words = key.words();
    let entry = TUNNEL_CACHE.get_ptr_mut(hash(words) & cache_mask)?;
    // SAFETY: as in `hook_slot`.
    let entry = unsafe { &mut *entry };
    let cached = entry.key.words();
    let differs = (cached[0] ^ words[0])
        | (cached[1] ^ words[1])
        | (cached[2] ^ words[2])
        | (cached[3] ^ words[3])
        | (cached[4] ^ words[4]);
    if differs == 0 {
        return Some(entry.index);
    }
    // Only here is the key needed in memory; made any earlier, the hit would pay for writing it there.
    let key = TunnelKey::from_words(words);
    let index = u32::try_from(resolve(&key)).ok()?;
    entry.key = key;
    entry.index = index;
    Some(index)
}

/// Mixes the words. Addresses are folded to the low half first: a product carries upwards only, and an IPv4 address is
/// in the upper half of its word. The VNI is added where a prefix is that the tunnels of a host share.
#[inline(always)]
fn hash(words: [u64; 5]) -> u32 {
    let addresses = words[0] ^ words[1] ^ ((words[2] ^ words[3]) >> 5);
    let addresses = addresses ^ (addresses >> 32);
    (addresses.wrapping_add(words[4]).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32
}

/// Looks the tunnel up in the table that all CPUs share, and enters it there; negative when the table is full.
#[inline(never)]
fn resolve(key: &TunnelKey) -> i64 {
    // SAFETY: an entry's index never changes while the entry exists.
    if let Some(index) = unsafe { TUNNELS.get(key) } {
        return i64::from(*index);
    }
    let Ok(Some(index)) = TUNNEL_FREE.pop() else { return -1 };
    if TUNNELS.insert(key, index, u64::from(BPF_NOEXIST)).is_ok() {
        return i64::from(index);
    }
    // Another CPU was faster, or the table refused. The index goes back; a queue that held it has room for it.
    if TUNNEL_FREE.push(index, 0).is_err() {
        return -1;
    }
    // SAFETY: as above.
    match unsafe { TUNNELS.get(key) } {
        Some(index) => i64::from(*index),
        None => -1,
    }
}
