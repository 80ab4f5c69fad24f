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

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC, xdp_action, xdp_md},
    helpers::bpf_xdp_get_buff_len,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use context::{Skb, Xdp};
use maps::HookSlot;
use meter_ebpf::{
    abi::{Bucket, Counter, Direction, Fault, Settings, SlotRef, TunnelKey},
    packet::{
        Frame,
        encapsulations::Encapsulations,
        gso::{self, GsoHeader},
        tunnel::{self, FoundV4, Inner, Tunnel, TunnelV4},
    },
    register::Register,
};

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

#[inline(never)]
fn count_connection_in(skb: *mut __sk_buff) {
    let skb = Skb::new(skb);
    meters::count_connection(skb, Direction::Ingress, wire(skb), maps::slot_at);
}

#[inline(never)]
fn count_connection_out(skb: *mut __sk_buff) {
    let skb = Skb::new(skb);
    meters::count_connection(skb, Direction::Egress, wire(skb), maps::slot_at);
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

/// Counts an skb of an uplink at its hook, and in its tunnel or its bucket.
///
/// Nothing but the context is needed behind the look-ups of the hook, and four numbers behind those of the tunnel: as
/// many as there are registers that a call leaves alone.
#[inline(always)]
fn count_uplink_skb(skb: Skb, direction: Direction) {
    let slot = maps::slot_of(&skb);
    if let Some(hook) = maps::hook_slot(slot, direction) {
        hook.count(skb.length());
    }
    if !(skb.is_plain() && count_outer_v4(&skb, hook_number(slot, direction))) {
        count_uplink_rest(skb.context(), direction as u32);
    }
}

/// Counts an XDP frame of an uplink at its hook, and in its tunnel or its bucket.
///
/// Without the short path of [`count_uplink_skb`]: each way that leads from there to the complete walk would have the
/// verifier check the walk once more, which is long here, where a frame is read without a helper.
#[inline(always)]
fn count_uplink_xdp(context: &XdpContext, length: u32) {
    let frame = Xdp::new(context.ctx, length);
    let slot = maps::slot_of(&frame);
    if let Some(hook) = maps::hook_slot(slot, Direction::Ingress) {
        hook.count(length);
    }
    if slot.uplink() == NO_UPLINK {
        return;
    }
    let hook = hook_number(slot, Direction::Ingress);
    let wire = Wire { counter: Counter { packets: 1, bytes: u64::from(length) }, tag: 0 };
    match tunnel::outer_fast(&frame, &Loaded, false) {
        Some(tunnel) => count_tunnel(&wire, hook, tunnel),
        None => {
            let mut key = MaybeUninit::uninit();
            let inner = walk_outer_xdp(context.ctx, length, hook, key.as_mut_ptr());
            count_walked(&wire, hook, &key, Register::unpack(inner));
        }
    }
}

/// A netdev that nobody claimed has no tunnels: they would be nobody's, and keep others out of the table.
const NO_UPLINK: u32 = 0;

/// Returns uplink * 2 + direction.
#[inline(always)]
fn hook_number(slot: SlotRef, direction: Direction) -> u32 {
    slot.uplink() * 2 + direction as u32
}

/// Counts a frame in its tunnel where this CPU knows it; says whether it does.
struct CountV4<'a, F> {
    frame: &'a F,
    hook: u32,
}

impl<F: Frame> FoundV4 for CountV4<'_, F> {
    type Output = bool;

    #[inline(always)]
    fn found(&self, tunnel: TunnelV4) -> bool {
        maps::count_tunnel_v4(self.frame, &tunnel, self.hook as u16, setting!(tunnel_mask))
    }
}

/// Counts a frame that is one frame on the wire where that is simple: in a tunnel over IPv4, or as no tunnel's.
/// Returns whether it did.
#[inline(always)]
fn count_outer_v4(frame: &impl Frame, hook: u32) -> bool {
    match tunnel::outer_fast_v4(frame, &Loaded, &CountV4 { frame, hook }) {
        Some(Ok(counted)) => counted,
        Some(Err(Bucket::Plain)) => {
            maps::count_plain(hook, frame.length());
            true
        }
        _ => false,
    }
}

/// What an skb or XDP frame is on the wire.
struct Wire {
    counter: Counter,
    tag: u32,
}

/// Counts an skb in its tunnel or its bucket, and at its hook what it adds there.
///
/// Apart, and it begins anew: so the common path has nothing to keep for what is rare.
#[inline(never)]
fn count_uplink_rest(context: *mut __sk_buff, direction: u32) {
    let skb = Skb::new(context);
    let direction =
        if direction == Direction::Ingress as u32 { Direction::Ingress } else { Direction::Egress };
    let slot = maps::slot_of(&skb);
    let tag = skb.tag_bytes();
    let gso_size = skb.gso_size();
    let gso = gso_size != 0;
    let extra = if !gso {
        with_tags(NOTHING, tag)
    } else if let Some(Ok(extra)) = gso_extra_fast(skb, gso_size) {
        with_tags(extra, tag)
    } else {
        gso_extra(skb, gso_size)
    };
    if extra != NOTHING
        && let Some(hook) = maps::hook_slot(slot, direction)
    {
        hook.count_extra(extra);
    }
    if slot.uplink() == NO_UPLINK {
        return;
    }
    let bytes = u64::from(skb.length()).wrapping_add(extra.bytes);
    let wire = Wire { counter: Counter { packets: 1 + extra.packets, bytes }, tag };
    let hook = hook_number(slot, direction);
    match tunnel::outer_fast(&skb, &Loaded, gso) {
        Some(tunnel) => count_tunnel(&wire, hook, tunnel),
        None => {
            let mut key = MaybeUninit::uninit();
            let inner = walk_outer(context, u32::from(gso), hook, key.as_mut_ptr());
            count_walked(&wire, hook, &key, Register::unpack(inner));
        }
    }
}

/// Writes the tunnel's key whenever it returns an [`Inner`].
#[inline(always)]
fn keep_key(tunnel: Result<Tunnel, Bucket>, hook: u32, key: *mut TunnelKey) -> Result<Inner, Bucket> {
    let tunnel = tunnel?;
    // SAFETY: the callers pass their own variables.
    unsafe { key.write(tunnel.key(hook as u16)) };
    Ok(tunnel.inner)
}

/// Counts what the fast path found. Apart from [`count_walked`], so that the key stays in registers.
#[inline(always)]
fn count_tunnel(wire: &Wire, hook: u32, tunnel: Result<Tunnel, Bucket>) {
    count_outer(wire, hook, tunnel.map(|tunnel| (tunnel.key(hook as u16), tunnel.inner)));
}

/// Counts what a complete walk found.
#[inline(always)]
fn count_walked(wire: &Wire, hook: u32, key: &MaybeUninit<TunnelKey>, inner: Result<Inner, Bucket>) {
    // SAFETY: the walk writes the key whenever it returns an `Inner`.
    count_outer(wire, hook, inner.map(|inner| (unsafe { key.assume_init() }, inner)));
}

/// Counts a frame of an uplink in its tunnel, or else in its bucket: never in both, never in none.
#[inline(always)]
fn count_outer(wire: &Wire, hook: u32, tunnel: Result<(TunnelKey, Inner), Bucket>) {
    let bucket = match tunnel {
        Ok((key, inner)) => {
            let inner_bytes = inner.bytes(wire.counter, wire.tag);
            if maps::count_tunnel(&key, setting!(tunnel_mask), wire.counter, inner_bytes) {
                return;
            }
            Bucket::TunnelTableFull
        }
        Err(bucket) => bucket,
    };
    maps::count_bucket(hook, bucket, wire.counter);
    log::bucket(hook, bucket, wire.counter);
}

// The complete walks are functions of their own, and so are their steps: the verifier checks a function that is
// exported once, for any argument, and apart from its callers' paths (Linux 5.6). Its result is one register.

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_gso_header(skb: *mut __sk_buff) -> u64 {
    gso::header(&Skb::new(skb), &Loaded).pack()
}

#[inline(never)]
fn walk_outer(skb: *mut __sk_buff, gso: u32, hook: u32, key: *mut TunnelKey) -> u64 {
    keep_key(tunnel::outer(&Skb::new(skb), &Loaded, gso != 0), hook, key).pack()
}

#[inline(never)]
fn walk_outer_xdp(context: *mut xdp_md, length: u32, hook: u32, key: *mut TunnelKey) -> u64 {
    keep_key(tunnel::outer(&Xdp::new(context, length), &Loaded, false), hook, key).pack()
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
