//! The programs. Each counts at its hook and returns "next": none decides, none writes to the packet.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connections;
mod context;
mod log;
mod maps;
mod meters;
mod namespace;
mod uplink;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC, xdp_action},
    helpers::bpf_xdp_get_buff_len,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use context::Skb;
use maps::HookSlot;
use meter_ebpf::{
    abi::{Counter, Direction, Fault, Settings, SlotRef},
    packet::{
        Frame as _,
        encapsulations::Encapsulations,
        gso::{self, GsoHeader},
    },
    register::Register,
};
use uplink::{count_uplink_skb, count_uplink_xdp};

/// Set by user space before the programs are loaded; constant for the verifier.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings::DEFAULT;

/// Reads [`SETTINGS`] number by number, so that the verifier sees constants and drops what they rule out.
struct Loaded;

macro_rules! setting {
    ($($field:tt)+) => {
        // SAFETY: a static is valid for reads. Volatile, since user space replaces what the compiler sees.
        unsafe { core::ptr::read_volatile(&raw const SETTINGS.$($field)+) }
    };
}

impl Encapsulations for Loaded {
    #[inline(always)]
    fn vxlan_port(&self, index: usize) -> u16 {
        setting!(vxlan_ports[index])
    }

    #[inline(always)]
    fn geneve_port(&self, index: usize) -> u16 {
        setting!(geneve_ports[index])
    }

    #[inline(always)]
    fn nvgre(&self) -> bool {
        setting!(nvgre) != 0
    }
}

#[classifier]
fn meter_in(context: TcContext) -> i32 {
    count_port(Skb::new(context.skb.skb), Direction::Ingress);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_out(context: TcContext) -> i32 {
    count_port(Skb::new(context.skb.skb), Direction::Egress);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_up_in(context: TcContext) -> i32 {
    count_uplink_skb(Skb::new(context.skb.skb), Direction::Ingress);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_up_out(context: TcContext) -> i32 {
    count_uplink_skb(Skb::new(context.skb.skb), Direction::Egress);
    TC_ACT_UNSPEC
}

// The same beside user-defined meters: programs of their own, so that without such meters nothing is asked of a frame.

#[classifier]
fn meter_user_in(context: TcContext) -> i32 {
    count_port(Skb::new(context.skb.skb), Direction::Ingress);
    count_user_in(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_user_out(context: TcContext) -> i32 {
    count_port(Skb::new(context.skb.skb), Direction::Egress);
    count_user_out(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_user_uin(context: TcContext) -> i32 {
    count_uplink_skb(Skb::new(context.skb.skb), Direction::Ingress);
    count_user_in(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_user_uout(context: TcContext) -> i32 {
    count_uplink_skb(Skb::new(context.skb.skb), Direction::Egress);
    count_user_out(context.skb.skb);
    TC_ACT_UNSPEC
}

// The same where connections are counted.

#[classifier]
fn meter_conn_in(context: TcContext) -> i32 {
    count_port(Skb::new(context.skb.skb), Direction::Ingress);
    count_connection_in(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_conn_out(context: TcContext) -> i32 {
    count_port(Skb::new(context.skb.skb), Direction::Egress);
    count_connection_out(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_conn_uin(context: TcContext) -> i32 {
    count_uplink_skb(Skb::new(context.skb.skb), Direction::Ingress);
    count_connection_in(context.skb.skb);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_conn_uout(context: TcContext) -> i32 {
    count_uplink_skb(Skb::new(context.skb.skb), Direction::Egress);
    count_connection_out(context.skb.skb);
    TC_ACT_UNSPEC
}

#[xdp]
fn meter_up_xdp(context: XdpContext) -> u32 {
    let length = context.data_end() - context.data();
    count_uplink_xdp(&context, length as u32);
    xdp_action::XDP_PASS
}

/// The same for netdevs whose frames may lie in several buffers (Linux 5.18).
#[xdp(frags)]
fn meter_up_xdpf(context: XdpContext) -> u32 {
    // SAFETY: the context is the one that the kernel passed.
    let length = unsafe { bpf_xdp_get_buff_len(context.ctx) };
    count_uplink_xdp(&context, length as u32);
    xdp_action::XDP_PASS
}

/// Returns the bits of a hash that lead to a tunnel's place.
#[inline(always)]
fn tunnel_mask() -> u32 {
    setting!(tunnel_mask)
}

/// Counts an skb of a port of this namespace.
#[inline(always)]
fn count_port(skb: Skb, direction: Direction) {
    count_port_skb(skb, maps::slot_of(&skb), direction);
}

/// Counts an skb of a port in its slot.
///
/// At once, before anything else of it is read: so a plain frame has nothing to keep across the look-ups.
#[inline(always)]
fn count_port_skb(skb: Skb, slot: SlotRef, direction: Direction) {
    let Some(hook) = maps::hook_slot(slot, direction) else { return };
    hook.count(skb.length());
    let gso_size = skb.gso_size();
    if gso_size != 0 {
        match gso_extra_fast(skb, gso_size) {
            Some(Ok(extra)) => hook.count_extra(with_tags(extra, skb.tag_bytes())),
            _ => count_gso(skb.context(), hook),
        }
    } else if skb.tag_bytes() != 0 {
        hook.count_extra(with_tags(NOTHING, skb.tag_bytes()));
    }
}

const NOTHING: Counter = Counter { packets: 0, bytes: 0 };

/// Counts a super-packet that is no plain TCP. Apart, so that the programs of ports save no registers for it.
#[inline(never)]
fn count_gso(skb: *mut __sk_buff, hook: HookSlot) {
    let skb = Skb::new(skb);
    hook.count_extra(gso_extra(skb, skb.gso_size()));
}

#[inline(never)]
fn count_user_in(skb: *mut __sk_buff) {
    count_user(Skb::new(skb), Direction::Ingress, maps::slot_at);
}

#[inline(never)]
fn count_user_out(skb: *mut __sk_buff) {
    count_user(Skb::new(skb), Direction::Egress, maps::slot_at);
}

// Two functions for each, one after the other: the stacks of both together would be too large.

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
    meters::count_connection(skb, Direction::Ingress, wire(skb), maps::slot_at)
}

#[inline(never)]
fn count_noted_in(skb: *mut __sk_buff, said: u64) {
    meters::count_noted(Skb::new(skb), Direction::Ingress, said, maps::slot_at);
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
    meters::count_connection(skb, Direction::Egress, wire(skb), maps::slot_at)
}

#[inline(never)]
fn count_noted_out(skb: *mut __sk_buff, said: u64) {
    meters::count_noted(Skb::new(skb), Direction::Egress, said, maps::slot_at);
}

/// Counts an skb of a port, which its hook has counted, in user-defined meters. `slot_at` tells where the counters of a
/// netdev are.
#[inline(always)]
fn count_user(skb: Skb, direction: Direction, slot_at: impl Fn(u32) -> SlotRef) {
    meters::count(skb, direction, wire(skb), slot_at);
}

/// Returns what an skb is on the wire.
#[inline(always)]
fn wire(skb: Skb) -> Counter {
    let length = skb.length();
    let gso_size = skb.gso_size();
    let extra = if gso_size == 0 {
        NOTHING
    } else {
        // What can't be followed is a fault that its hook has counted.
        let header: Result<GsoHeader, Fault> = Register::unpack(walk_gso_header(skb.context()));
        header.and_then(|header| gso::extra(length, header, gso_size, skb.gso_segs())).unwrap_or(NOTHING)
    };
    let extra = with_tags(extra, skb.tag_bytes());
    let bytes = u64::from(length).wrapping_add(extra.bytes);
    Counter { packets: 1 + extra.packets, bytes }
}

/// Computes what a plain TCP super-packet adds on the wire, without its tags.
#[inline(always)]
fn gso_extra_fast(skb: Skb, gso_size: u32) -> Option<Result<Counter, Fault>> {
    let header = gso::header_fast(&skb)?;
    Some(gso::extra(skb.length(), header, gso_size, skb.gso_segs()))
}

/// Computes what a super-packet adds on the wire; one whose headers can't be followed adds nothing but its tag.
#[inline(always)]
fn gso_extra(skb: Skb, gso_size: u32) -> Counter {
    let length = skb.length();
    let header: Result<GsoHeader, Fault> = Register::unpack(walk_gso_header(skb.context()));
    let extra = header
        .and_then(|header| gso::extra(length, header, gso_size, skb.gso_segs()))
        .unwrap_or_else(|fault| {
            maps::count_fault(fault, length);
            log::fault(fault, length);
            NOTHING
        });
    with_tags(extra, skb.tag_bytes())
}

/// Adds the tag that each frame of a super-packet has.
#[inline(always)]
fn with_tags(extra: Counter, tag: u32) -> Counter {
    Counter { packets: extra.packets, bytes: extra.bytes.wrapping_add(u64::from(tag) * (extra.packets + 1)) }
}

// The complete walks are functions of their own, and so are their steps: the verifier checks a function that is
// exported once, for any argument, and apart from its callers' paths (Linux 5.6). Its result is one register.

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_gso_header(skb: *mut __sk_buff) -> u64 {
    gso::header(&Skb::new(skb), &Loaded).pack()
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives to the object: the verifier refuses an endless loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
