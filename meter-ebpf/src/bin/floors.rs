//! What the cheapest and the usual designs cost: programs that `cargo xtask bench` times beside ours, in one run.
//!
//! Never attached to a netdev.
#![no_std]
#![no_main]

#[path = "../context.rs"]
#[expect(dead_code, reason = "only the reading of a frame is used here")]
mod context;

use aya_ebpf::{
    bindings::{BPF_ANY, TC_ACT_UNSPEC},
    btf_maps::{Array, LruPerCpuHashMap, PerCpuArray, PerCpuHashMap, ProgramArray},
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, classifier},
    programs::TcContext,
};
use context::{OnNetdev, Skb};
use meter_ebpf::{
    abi::{Counter, Settings, TunnelCounter, TunnelKey, connection::ConnectionKey},
    packet::{Frame, encapsulations::Encapsulations, tunnel},
};

/// The usual VXLAN port, known when the object is built.
struct Fixed;

impl Encapsulations for Fixed {
    #[inline(always)]
    fn vxlan_port(&self, index: usize) -> u16 {
        if index == 0 { Settings::DEFAULT.vxlan_ports[0] } else { 0 }
    }

    #[inline(always)]
    fn geneve_port(&self, _: usize) -> u16 {
        0
    }

    #[inline(always)]
    fn nvgre(&self) -> bool {
        false
    }
}

/// What is known of a connection.
#[repr(C)]
struct Flow {
    counter: Counter,
    first_ns: u64,
    last_ns: u64,
}

#[btf_map]
static SLOT: PerCpuArray<Counter, 1> = PerCpuArray::new();
#[btf_map]
static BY_IFINDEX: PerCpuHashMap<u32, Counter, 1_024> = PerCpuHashMap::new();
#[btf_map]
static BY_TUNNEL: PerCpuHashMap<TunnelKey, TunnelCounter, 8_192> = PerCpuHashMap::new();
#[btf_map]
static BY_FLOW: LruPerCpuHashMap<ConnectionKey, Flow, 16_384> = LruPerCpuHashMap::new();
/// The program that [`vary`] goes on to.
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();
/// How many sources [`vary`] makes, and the next one.
#[btf_map]
static SOURCES: Array<[u32; 2], 1> = Array::new();
/// 10,000 counters, one to a key, for the time of reading them.
#[btf_map]
static ONE_BY_ONE: PerCpuArray<Counter, 10_000> = PerCpuArray::new();

/// Nothing: what the loop of a test run costs.
#[classifier]
fn floor_empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// A counter at a place that is known when the object is built.
#[classifier]
fn floor_slot(context: TcContext) -> i32 {
    if let Some(counter) = SLOT.get_ptr_mut(0) {
        add(counter, &context);
    }
    TC_ACT_UNSPEC
}

/// A counter found by a hash of the ifindex.
#[classifier]
fn floor_hash(context: TcContext) -> i32 {
    let ifindex = Skb::new(context.skb.skb).ifindex();
    match BY_IFINDEX.get_ptr_mut(ifindex) {
        Some(counter) => add(counter, &context),
        None => {
            let counter = Counter { packets: 1, bytes: u64::from(context.len()) };
            if BY_IFINDEX.insert(ifindex, counter, u64::from(BPF_ANY)).is_err() {
                return 0;
            }
        }
    }
    TC_ACT_UNSPEC
}

/// The outer headers of a tunnel packet, and nothing done with them.
#[classifier]
fn floor_parse(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    let Some(Ok(tunnel)) = tunnel::outer_fast(&skb, &Fixed, false) else { return 0 };
    let words = tunnel.key(0).words();
    // What keeps the compiler from dropping the walk; no tunnel has all bits set.
    if words[0] & words[1] & words[2] & words[3] & words[4] == u64::MAX { 0 } else { TC_ACT_UNSPEC }
}

/// The same, and a counter found by a hash of the tunnel.
#[classifier]
fn floor_tun_hash(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    let Some(Ok(tunnel)) = tunnel::outer_fast(&skb, &Fixed, false) else { return 0 };
    let key = tunnel.key(0);
    let length = skb.length();
    let inner_bytes = u64::from(length - tunnel.inner.offset);
    match BY_TUNNEL.get_ptr_mut(key) {
        Some(counter) => {
            // SAFETY: this CPU's value, non-null by the match; nothing interrupts the program on this CPU.
            let counter = unsafe { &mut *counter };
            counter.packets += 1;
            counter.inner_bytes += inner_bytes;
            counter.outer_bytes += u64::from(length);
        }
        None => {
            let counter = TunnelCounter { packets: 1, inner_bytes, outer_bytes: u64::from(length) };
            if BY_TUNNEL.insert(key, counter, u64::from(BPF_ANY)).is_err() {
                return 0;
            }
        }
    }
    TC_ACT_UNSPEC
}

/// Connections as the usual agents have them: a table of each CPU's own, with the time of each packet, in which what was used
/// least gives way.
#[classifier]
fn floor_flow(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    let Some(head) = skb.head::<38>() else { return 0 };
    let address = |at| u64::from(u32::from_be(Skb::word(head, at)));
    let ports = u64::from(u32::from_be(Skb::word(head, 34)));
    let key = ConnectionKey { words: [address(26), 0, address(30), 0, ports << 32, u64::from(head[23])] };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    match BY_FLOW.get_ptr_mut(key) {
        Some(flow) => {
            // SAFETY: this CPU's value, non-null by the match; nothing interrupts the program on this CPU.
            let flow = unsafe { &mut *flow };
            flow.counter.packets += 1;
            flow.counter.bytes += u64::from(context.len());
            flow.last_ns = now;
        }
        None => {
            let counter = Counter { packets: 1, bytes: u64::from(context.len()) };
            let flow = Flow { counter, first_ns: now, last_ns: now };
            if BY_FLOW.insert(key, flow, u64::from(BPF_ANY)).is_err() {
                return 0;
            }
        }
    }
    TC_ACT_UNSPEC
}

/// Gives the frame one of many outer sources, then goes on to the program under test.
#[classifier]
fn vary(context: TcContext) -> i32 {
    if let Some(sources) = SOURCES.get_ptr_mut(0) {
        // SAFETY: non-null by the `if let`; a bench runs one program at a time.
        let [count, next] = unsafe { &mut *sources };
        let source = *next;
        *next = if source + 1 >= *count { 0 } else { source + 1 };
        // The whole address: a load that is wider than the store before it would wait for that store.
        let address = [10, 1, (source >> 8) as u8, source as u8];
        if context.store(26, &address, 0).is_err() {
            return 0;
        }
    }
    // SAFETY: the program array belongs to this object.
    unsafe { TARGET.tail_call(&context, 0) };
    0
}

#[inline(always)]
fn add(counter: *mut Counter, context: &TcContext) {
    // SAFETY: this CPU's value, non-null by the callers; nothing interrupts the program on this CPU.
    let counter = unsafe { &mut *counter };
    counter.packets += 1;
    counter.bytes += u64::from(context.len());
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
