//! Frames of uplinks: in their tunnels, or in the buckets of those that are in none.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    programs::XdpContext,
};
use meter_ebpf::{
    abi::{Bucket, Counter, Direction, SlotRef, TunnelKey},
    packet::{
        Frame,
        tunnel::{self, FoundV4, Inner, Tunnel, TunnelV4},
    },
    register::Register,
};

use crate::{
    Loaded, NOTHING,
    context::{Skb, Xdp},
    gso_extra, gso_extra_fast, log, maps, tunnel_mask, with_tags,
};

/// Counts an skb of an uplink at its hook, and in its tunnel or its bucket.
///
/// Nothing but the context is needed behind the look-ups of the hook, and four numbers behind those of the tunnel: as
/// many as there are registers that a call leaves alone.
#[inline(always)]
pub(crate) fn count_uplink_skb(skb: Skb, direction: Direction) {
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
pub(crate) fn count_uplink_xdp(context: &XdpContext, length: u32) {
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
        maps::count_tunnel_v4(self.frame, &tunnel, self.hook as u16, tunnel_mask())
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
            if maps::count_tunnel(&key, tunnel_mask(), wire.counter, inner_bytes) {
                return;
            }
            Bucket::TunnelTableFull
        }
        Err(bucket) => bucket,
    };
    maps::count_bucket(hook, bucket, wire.counter);
    log::bucket(hook, bucket, wire.counter);
}

// Functions of their own, as those that the verifier checks once.

#[inline(never)]
fn walk_outer(skb: *mut __sk_buff, gso: u32, hook: u32, key: *mut TunnelKey) -> u64 {
    keep_key(tunnel::outer(&Skb::new(skb), &Loaded, gso != 0), hook, key).pack()
}

#[inline(never)]
fn walk_outer_xdp(context: *mut xdp_md, length: u32, hook: u32, key: *mut TunnelKey) -> u64 {
    keep_key(tunnel::outer(&Xdp::new(context, length), &Loaded, false), hook, key).pack()
}
