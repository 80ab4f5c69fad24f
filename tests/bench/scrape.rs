//! `cargo xtask bench`: what a scrape of a large host costs, beside writing the same bytes.
//!
//! A host of 10,000 ports and 1,000 tunnels each way is written again and again, in turn with the floors, so that what
//! disturbs the machine disturbs all; the least CPU time of each counts, over all threads. A whole scrape is one of an
//! agent on a datapath of memory: it makes a snapshot of the reading, writes and compresses it. Two floors: one copy of
//! the finished text, and the text put together from its lines, each number printed anew: the least that an exposition
//! can do.
#![expect(clippy::print_stdout, reason = "the report is this program's output")]

mod whole;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fmt::Write as _,
    hint::black_box,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use meter_agent::{
    binding::Source,
    datapath::{Class, HookKind},
    http::{
        device_stats,
        prometheus::{Exposition, Format, Options, Stopwatch},
    },
    meter::{DeviceId, FlowStats, PortId},
    process::Process,
    snapshot::{Carrier, Port, SharedSnapshot, Since, Snapshot, TunnelId, TunnelTotals},
};
use meter_ebpf::abi::{Encap, HookCounter};
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

const PORTS: u32 = 10_000;
const TUNNELS: u32 = 1_000;
const DEVICES: u128 = 100;
const ROUNDS: usize = 15;

/// Counts what is allocated, reallocations included.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's own; a counter beside it touches no memory of its callers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What one way of writing costs.
#[derive(Debug, Clone, Copy)]
struct Cost {
    least: Duration,
    bytes: usize,
    allocations: u64,
}

impl Cost {
    const NONE: Self = Self { least: Duration::MAX, bytes: 0, allocations: 0 };

    /// Measures one more time.
    fn measure(&mut self, work: impl FnOnce() -> usize) -> Result<()> {
        let allocated = ALLOCATIONS.load(Ordering::Relaxed);
        let before = cpu_time()?;
        self.bytes = work();
        self.least = self.least.min(cpu_time()? - before);
        self.allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocated;
        Ok(())
    }

    fn ratio(self, floor: Self) -> f64 {
        self.least.as_secs_f64() / floor.least.as_secs_f64()
    }
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("CPU time of this process")?.into())
}

fn run() -> Result<bool> {
    let snapshot: SharedSnapshot = Arc::new(snapshot());
    let exposition =
        |scraper, max_series| Exposition::new(Options { max_series, scraper, ..plain_options() });
    let whole = whole::Whole::start(&snapshot, plain_options())?;
    let (plain, scraper, bounded) =
        (exposition(false, 20_000), exposition(true, 20_000), exposition(false, 5_000));
    let text = |exposition: &Exposition, format| {
        exposition.render(&snapshot, Process::default(), format, Stopwatch::Stopped(Duration::ZERO))
    };
    let finished = text(&plain, Format::Text);
    let samples = finished.lines().filter(|line| !line.starts_with('#')).count();
    let lines: Vec<(&str, u64)> = finished
        .split_inclusive('\n')
        .map(|line| match line.rsplit_once(' ') {
            Some((series, value)) => value.trim_end().parse().map_or((line, 0), |value| (series, value)),
            None => (line, 0),
        })
        .collect();
    let rows = [
        "text 0.0.4",
        "OpenMetrics 1.0",
        "with the scraper's families",
        "5,000 series a family at most",
        "/device_stats",
        "gzip of text 0.0.4",
        "whole scrape, text",
        "whole scrape, gzip",
        "floor: lines and numbers",
        "floor: one copy",
    ];
    let mut costs = [Cost::NONE; 10];
    for _ in 0..ROUNDS {
        let [
            plain_text,
            open_metrics,
            scraped,
            over,
            stats,
            gzip,
            whole_text,
            whole_gzip,
            floor_lines,
            floor_copy,
        ] = &mut costs;
        plain_text.measure(|| black_box(text(&plain, Format::Text)).len())?;
        open_metrics.measure(|| black_box(text(&plain, Format::OpenMetrics)).len())?;
        scraped.measure(|| black_box(text(&scraper, Format::Text)).len())?;
        over.measure(|| black_box(text(&bounded, Format::Text)).len())?;
        stats.measure(|| black_box(device_stats::render(&snapshot)).len())?;
        gzip.measure(|| black_box(compressed(&finished)).len())?;
        whole_text.measure(|| whole.scrape(false))?;
        whole_gzip.measure(|| whole.scrape(true))?;
        floor_lines.measure(|| black_box(from_lines(&lines, finished.len())).len())?;
        floor_copy.measure(|| black_box(finished.clone()).len())?;
    }
    println!("{PORTS} ports and {TUNNELS} tunnels each way: {samples} samples; least of {ROUNDS} rounds");
    println!("  {:<32} {:>8} {:>8} {:>12} {:>8}", "", "ms", "MB", "allocations", "x lines");
    let [
        plain_text,
        open_metrics,
        scraped,
        over,
        stats,
        gzip,
        whole_text,
        whole_gzip,
        floor_lines,
        floor_copy,
    ] = costs;
    for (row, cost) in rows.into_iter().zip(costs) {
        println!(
            "  {row:<32} {:>8.1} {:>8.2} {:>12} {:>8.2}",
            cost.least.as_secs_f64() * 1e3,
            megabytes(cost.bytes),
            cost.allocations,
            cost.ratio(floor_lines),
        );
    }
    println!("  a copy takes {:.2} of the lines", floor_copy.ratio(floor_lines));
    Ok(report(
        samples,
        [plain_text, open_metrics, scraped, over, stats, gzip, whole_text, whole_gzip],
        floor_lines,
    ))
}

/// Prints the goals; returns whether all hold.
fn report(samples: usize, costs: [Cost; 8], lines: Cost) -> bool {
    let [text, open_metrics, scraped, over, stats, gzip, whole_text, whole_gzip] = costs;
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let per_sample = |cost: Cost| cost.allocations as f64 / samples as f64;
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let shrinks = gzip.bytes as f64 / text.bytes as f64;
    let goals = [
        ("text / lines and numbers", text.ratio(lines), 10.0),
        ("OpenMetrics / lines and numbers", open_metrics.ratio(lines), 15.0),
        ("gzip / lines and numbers", gzip.ratio(lines), 20.0),
        ("gzip: bytes / bytes of text", shrinks, 0.33),
        ("allocations a sample, text", per_sample(text), 0.01),
        ("allocations a sample, OpenMetrics", per_sample(open_metrics), 0.01),
        ("allocations a sample, whole scrape", per_sample(whole_text), 1.5),
        ("whole scrape / text", whole_text.ratio(text), 3.0),
        ("milliseconds for a whole scrape, gzip", whole_gzip.least.as_secs_f64() * 1e3, 250.0),
        ("half of the series in others / text", over.ratio(text), 1.2),
        ("with the scraper's families / text", scraped.ratio(text), 4.0),
        ("/device_stats / text", stats.ratio(text), 1.0),
    ];
    println!("goals");
    for (name, value, limit) in goals {
        let verdict = if value <= limit { "holds" } else { "MISSED" };
        println!("  {name:<52} {value:>7.3}  at most {limit:.3}  {verdict}");
    }
    goals.iter().all(|(_, value, limit)| value <= limit)
}

fn plain_options() -> Options {
    let scraper_agent = "compute1:7200".to_owned();
    Options { max_series: 20_000, midonet: false, scraper: false, scraper_agent, ..Options::default() }
}

fn megabytes(bytes: usize) -> f64 {
    u32::try_from(bytes).map_or(f64::INFINITY, f64::from) / 1e6
}

fn compressed(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 4), Compression::fast());
    std::io::Write::write_all(&mut encoder, text.as_bytes())
        .and_then(|()| encoder.finish())
        .expect("memory takes everything")
}

fn from_lines(lines: &[(&str, u64)], capacity: usize) -> String {
    let mut text = String::with_capacity(capacity + 1024);
    for (series, value) in lines {
        text.push_str(series);
        writeln!(text, " {value}").expect("a string takes everything");
    }
    text
}

/// Returns a host like those of a cloud, with totals of many digits.
fn snapshot() -> Snapshot {
    let hook = |seed: u32| HookCounter {
        skb_packets: u64::from(seed) * 1_234_567,
        skb_bytes: u64::from(seed) * 1_234_567_890,
        extra_packets: u64::from(seed) * 345_678,
        extra_bytes: u64::from(seed) * 22_814_748,
    };
    let port = |seed: u32| Port {
        port: PortId(Uuid::new_v5(&Uuid::NAMESPACE_OID, &seed.to_be_bytes())),
        class: Class::Port,
        created_ns: 1_789_000_000_000_000_000 + u64::from(seed),
        ingress: hook(seed),
        egress: hook(seed + 1),
        device: Some(device(u128::from(seed) % DEVICES)),
        carrier: Some(Carrier {
            id: seed.into(),
            netns: String::new(),
            netdev: format!("tap{seed:08x}"),
            kind: "tun".to_owned(),
            alias: None,
            mac: Some("52:54:00:12:34:56".to_owned()),
            device_name: Some("br-int".to_owned()),
            vni: None,
            source: Source::Alias,
            hooks: (HookKind::Tcx, HookKind::Tcx),
            since: Since { attach: 1, gaps: 0 },
        }),
    };
    let tunnel = |seed: u32, swap: bool| {
        let ends = [[10, 0, 0, 1].into(), (0x0a01_0000 + seed).to_be_bytes().into()];
        let [src, dst] = if swap { [ends[1], ends[0]] } else { ends };
        let id = TunnelId { src, dst, vni: 7_000 + seed % 50, encap: Encap::Vxlan };
        let packets = u64::from(seed) * 7_654_321;
        (id, TunnelTotals { packets, inner_bytes: packets * 900, outer_bytes: packets * 950 })
    };
    let mut ports: Vec<Port> = (1..=PORTS).map(port).collect();
    ports.sort_by_key(|port| port.port);
    Snapshot {
        generation: 1,
        host: "compute1".to_owned(),
        ports,
        devices: (0..DEVICES)
            .map(|id| (device(id), FlowStats { packets: 1_000_000_000, bytes: 900_000_000_000 }))
            .collect(),
        tunnels_transmit: (0..TUNNELS).map(|seed| tunnel(seed, false)).collect(),
        tunnels_receive: (0..TUNNELS).map(|seed| tunnel(seed, true)).collect(),
        ..Snapshot::default()
    }
}

fn device(id: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(0x845a_54bf_b702_4dc2_8958_0000_0000_0000 + id))
}
