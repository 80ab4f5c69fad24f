//! The programs of netdevs in other network namespaces: loaded once for each namespace that is followed, and not at all
//! without one.
//!
//! An ifindex says nothing there without its namespace, and a frame does not tell that one before Linux 6.15. So each load
//! has the namespace's number as a constant.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MMAPABLE, TC_ACT_UNSPEC},
    btf_maps::Array,
    macros::{btf_map, classifier},
    programs::TcContext,
};
use meter_ebpf::abi::{
    Direction, NAMESPACE_NETDEVS, NamespacePlace, NamespaceTable, SlotRef, namespace_place,
};

use crate::{
    context::{OnNetdev, Skb},
    count_port_skb, count_user, meters, wire,
};

/// The number of the namespace. Set by user space before the programs are loaded.
///
/// Until then none that there is: the compiler keeps equal constants in one place, and a zero that stands there for
/// something else would become this number with it.
#[unsafe(no_mangle)]
static NAMESPACE: u32 = 0x6e65_7473;

/// By number. One value in the object, so that it costs nothing where no namespace is followed.
#[btf_map]
static NAMESPACES: Array<NamespaceTable, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[classifier]
fn meter_ns_in(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    count_port_skb(skb, slot_at(skb.ifindex()), Direction::Ingress);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_ns_out(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    count_port_skb(skb, slot_at(skb.ifindex()), Direction::Egress);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_user_nin(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    count_port_skb(skb, slot_at(skb.ifindex()), Direction::Ingress);
    count_user_in(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_user_nout(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    count_port_skb(skb, slot_at(skb.ifindex()), Direction::Egress);
    count_user_out(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_conn_nin(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    count_port_skb(skb, slot_at(skb.ifindex()), Direction::Ingress);
    count_connection_in(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_conn_nout(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    count_port_skb(skb, slot_at(skb.ifindex()), Direction::Egress);
    count_connection_out(context.skb.skb);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn count_connection_in(skb: *mut __sk_buff) {
    let said = note_connection_in(skb);
    if meters::counts(said) {
        count_noted_in(skb, said);
    }
}

#[inline(never)]
fn note_connection_in(skb: *mut __sk_buff) -> u64 {
    let skb = Skb::new(skb);
    meters::count_connection(skb, Direction::Ingress, wire(skb), slot_at)
}

#[inline(never)]
fn count_noted_in(skb: *mut __sk_buff, said: u64) {
    meters::count_noted(Skb::new(skb), Direction::Ingress, said, slot_at);
}

#[inline(always)]
fn count_connection_out(skb: *mut __sk_buff) {
    let said = note_connection_out(skb);
    if meters::counts(said) {
        count_noted_out(skb, said);
    }
}

#[inline(never)]
fn note_connection_out(skb: *mut __sk_buff) -> u64 {
    let skb = Skb::new(skb);
    meters::count_connection(skb, Direction::Egress, wire(skb), slot_at)
}

#[inline(never)]
fn count_noted_out(skb: *mut __sk_buff, said: u64) {
    meters::count_noted(Skb::new(skb), Direction::Egress, said, slot_at);
}

#[inline(never)]
fn count_user_in(skb: *mut __sk_buff) {
    count_user(Skb::new(skb), Direction::Ingress, slot_at);
}

#[inline(never)]
fn count_user_out(skb: *mut __sk_buff) {
    count_user(Skb::new(skb), Direction::Egress, slot_at);
}

/// Returns where the counters of a netdev of the namespace are.
#[inline(always)]
fn slot_at(ifindex: u32) -> SlotRef {
    let Some(table) = table() else { return SlotRef::UNBOUND };
    let place = place(table, namespace_place(ifindex, 0));
    if place.ifindex() == ifindex {
        return place.slot();
    }
    NamespacePlace::from_bits(place_of(ifindex)).slot()
}

#[inline(always)]
fn table() -> Option<*const NamespaceTable> {
    // SAFETY: a static is valid for reads. Volatile, since user space replaces what the compiler sees.
    NAMESPACES.get_ptr(unsafe { core::ptr::read_volatile(&raw const NAMESPACE) })
}

/// Reads a place of a table that [`table`] has returned.
#[inline(always)]
fn place(table: *const NamespaceTable, index: u32) -> NamespacePlace {
    // SAFETY: non-null, and the index is below the number of places. Volatile, since user space writes it while programs
    // run; one load of eight bytes, so what it reads is the old value or the new one.
    unsafe { (&raw const (*table).places).cast::<NamespacePlace>().add(index as usize).read_volatile() }
}

/// Looks for a netdev that is not at its first place; returns the bits of the one that it has, 0 for none.
///
/// Exported, so that the verifier checks it once and for any argument.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn place_of(ifindex: u32) -> u64 {
    let Some(table) = table() else { return 0 };
    for attempt in 1..NAMESPACE_NETDEVS {
        let place = place(table, namespace_place(ifindex, attempt));
        if place.ifindex() == ifindex {
            return place.bits();
        }
    }
    0
}
