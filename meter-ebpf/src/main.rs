//! The programs. Each counts at its hook and returns "next": none decides, none writes to the packet.
#![no_std]
#![no_main]

mod context;
mod log;
mod maps;

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
    abi::{Address, Bucket, Counter, Direction, Encap, Fault, Settings, TunnelKey},
    packet::{
        Frame,
        gso::{self, GsoHeader},
        tunnel::{self, Encapsulations, Inner, Tunnel},
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
    count_port_skb(Skb::new(context.skb.skb), Direction::Ingress);
    TC_ACT_UNSPEC
}

#[classifier]
fn meter_out(context: TcContext) -> i32 {
    count_port_skb(Skb::new(context.skb.skb), Direction::Egress);
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

/// What one skb is on the wire.
struct Wire {
    counter: Counter,
    tag: u32,
    gso: bool,
}

/// Where a frame is counted, found before anything else of it is read: so a plain frame has nothing to keep across the
/// look-ups.
struct Place {
    uplink: u32,
    hook: Option<HookSlot>,
    length: u32,
}

/// Counts an skb for itself.
#[inline(always)]
fn count_skb(skb: Skb, direction: Direction) -> Place {
    let slot = maps::slot_of(skb.ifindex());
    let hook = maps::hook_slot(slot.slot, direction);
    let length = skb.length();
    if let Some(hook) = &hook {
        hook.count(length);
    }
    Place { uplink: slot.uplink, hook, length }
}

/// Returns whether the skb is the one frame that it seems, with nothing kept beside its data.
#[inline(always)]
fn is_one_frame(skb: Skb) -> bool {
    skb.gso_size() == 0 && skb.tag_bytes() == 0
}

/// Counts what an skb stands for beyond itself, and returns what it is on the wire.
#[inline(always)]
fn count_extra(skb: Skb, place: &Place) -> Wire {
    let tag = skb.tag_bytes();
    let gso = skb.gso_size() != 0;
    let extra = if !gso {
        Counter { packets: 0, bytes: u64::from(tag) }
    } else if let Some(Ok(extra)) = gso_extra_fast(skb) {
        with_tags(extra, tag)
    } else {
        gso_extra(skb, tag)
    };
    if let Some(hook) = &place.hook {
        hook.count_extra(extra);
    }
    let bytes = u64::from(place.length).wrapping_add(extra.bytes);
    Wire { counter: Counter { packets: 1 + extra.packets, bytes }, tag, gso }
}

/// Computes what a plain TCP super-packet adds on the wire, without its tags.
#[inline(always)]
fn gso_extra_fast(skb: Skb) -> Option<Result<Counter, Fault>> {
    let header = gso::header_fast(&skb)?;
    Some(gso::extra(skb.length(), header, skb.gso_size(), skb.gso_segs()))
}

/// Computes what a super-packet adds on the wire; one whose headers can't be followed adds nothing but its tag.
#[inline(always)]
fn gso_extra(skb: Skb, tag: u32) -> Counter {
    let length = skb.length();
    let header: Result<GsoHeader, Fault> = Register::unpack(walk_gso_header(skb.context()));
    let extra = header
        .and_then(|header| gso::extra(length, header, skb.gso_size(), skb.gso_segs()))
        .unwrap_or_else(|fault| {
            maps::count_fault(fault, length);
            log::fault(fault, length);
            Counter { packets: 0, bytes: 0 }
        });
    with_tags(extra, tag)
}

/// Adds the tag that each frame of a super-packet has.
#[inline(always)]
fn with_tags(extra: Counter, tag: u32) -> Counter {
    Counter { packets: extra.packets, bytes: extra.bytes.wrapping_add(u64::from(tag) * (extra.packets + 1)) }
}

#[inline(always)]
fn count_port_skb(skb: Skb, direction: Direction) {
    let Some(hook) = count_skb(skb, direction).hook else { return };
    if skb.gso_size() != 0 {
        match gso_extra_fast(skb) {
            Some(Ok(extra)) => hook.count_extra(with_tags(extra, skb.tag_bytes())),
            _ => count_gso(skb.context(), hook),
        }
    } else if skb.tag_bytes() != 0 {
        hook.count_extra(Counter { packets: 0, bytes: u64::from(skb.tag_bytes()) });
    }
}

/// Counts a super-packet that is no plain TCP. Apart, so that the programs of ports save no registers for it.
#[inline(never)]
fn count_gso(skb: *mut __sk_buff, hook: HookSlot) {
    let skb = Skb::new(skb);
    hook.count_extra(gso_extra(skb, skb.tag_bytes()));
}

#[inline(always)]
fn count_uplink_skb(skb: Skb, direction: Direction) {
    let place = count_skb(skb, direction);
    let hook = place.uplink * 2 + direction as u32;
    let wire = if is_one_frame(skb) {
        if count_plain_vxlan(skb, hook, place.length) {
            return;
        }
        one_frame(place.length)
    } else {
        count_extra(skb, &place)
    };
    match tunnel::outer_fast(&skb, &Loaded, wire.gso) {
        Some(tunnel) => count_tunnel(&wire, hook, tunnel),
        None => {
            let mut key = MaybeUninit::uninit();
            let inner = walk_outer(skb.context(), u32::from(wire.gso), hook, key.as_mut_ptr());
            count_walked(&wire, hook, &key, Register::unpack(inner));
        }
    }
}

#[inline(always)]
fn count_uplink_xdp(context: &XdpContext, length: u32) {
    let frame = Xdp::new(context.ctx, length);
    // SAFETY: the kernel passes a valid context.
    let ifindex = unsafe { (*context.ctx).ingress_ifindex };
    let slot = maps::slot_of(ifindex);
    if let Some(hook) = maps::hook_slot(slot.slot, Direction::Ingress) {
        hook.count(length);
    }
    let hook = slot.uplink * 2 + Direction::Ingress as u32;
    let wire = one_frame(length);
    match tunnel::outer_fast(&frame, &Loaded, false) {
        Some(tunnel) => count_tunnel(&wire, hook, tunnel),
        None => {
            let mut key = MaybeUninit::uninit();
            let inner = walk_outer_xdp(context.ctx, length, hook, key.as_mut_ptr());
            count_walked(&wire, hook, &key, Register::unpack(inner));
        }
    }
}

#[inline(always)]
fn one_frame(length: u32) -> Wire {
    Wire { counter: Counter { packets: 1, bytes: u64::from(length) }, tag: 0, gso: false }
}

/// Counts what nearly every frame of an underlay is; returns whether this one is.
#[inline(always)]
fn count_plain_vxlan(skb: Skb, hook: u32, length: u32) -> bool {
    let Some(vxlan) = tunnel::plain_vxlan(&skb, &Loaded, length) else { return false };
    let (src, dst) = (Address::v4(vxlan.src), Address::v4(vxlan.dst));
    let key = TunnelKey::new(src, dst, vxlan.vni, Encap::Vxlan, hook as u16);
    let wire = Counter { packets: 1, bytes: u64::from(length) };
    if !maps::count_tunnel(&key, setting!(cache_mask), wire, u64::from(vxlan.inner_bytes)) {
        maps::count_bucket(hook, Bucket::TunnelTableFull, wire);
        log::bucket(hook, Bucket::TunnelTableFull, wire);
    }
    true
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
            if maps::count_tunnel(&key, setting!(cache_mask), wire.counter, inner_bytes) {
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
