//! What a debug build of the object says through aya-log: each frame that no tunnel meter or not all of a meter counts.
//!
//! Without the feature `log` nothing of it is in the object, not even the ring buffer.

use meter_ebpf::abi::{Bucket, Counter, Fault};

/// Says that a frame at a hook (uplink * 2 + direction) went to a bucket. Plain frames are silent: they are most.
#[cfg(feature = "log")]
#[inline(never)]
pub(crate) fn bucket(hook: u32, bucket: Bucket, wire: Counter) {
    if bucket as u32 != Bucket::Plain as u32 {
        aya_log_ebpf::debug!(
            &(),
            "uplink {} direction {}: bucket {}, {} packets of {} bytes",
            hook / 2,
            hook % 2,
            bucket as u32,
            wire.packets,
            wire.bytes
        );
    }
}

/// Says that a super-packet was counted as one frame.
#[cfg(feature = "log")]
#[inline(never)]
pub(crate) fn fault(fault: Fault, length: u32) {
    aya_log_ebpf::debug!(
        &(),
        "super-packet of {} bytes counted as one frame: fault {}",
        length,
        fault as u32
    );
}

/// Says nothing: this build has no logs.
#[cfg(not(feature = "log"))]
#[inline(always)]
pub(crate) fn bucket(_: u32, _: Bucket, _: Counter) {}

/// Says nothing: this build has no logs.
#[cfg(not(feature = "log"))]
#[inline(always)]
pub(crate) fn fault(_: Fault, _: u32) {}
