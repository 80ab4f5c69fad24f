//! `cargo xtask bench`: what a packet costs, beside the floors, and what reading the counters costs.
//!
//! Programs run by `BPF_PROG_TEST_RUN` on one CPU, all of them in turn in each of many short rounds, so that what
//! disturbs the machine disturbs all. A cost is the thread's CPU time for a packet less that of an empty program: of
//! each loading of the programs the least over its rounds, since other work only adds, and of those the median, since
//! where the kernel puts a program costs or saves it a nanosecond. The lowest and the highest loading stand beside it.
//! Goals are held against the median. Ratios are what counts: the numbers themselves are this machine's.
#![expect(clippy::print_stdout, reason = "the report is this program's output")]

mod report;
mod rules;

use std::{collections::BTreeMap, ffi::OsStr, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap, ProgramArray, Queue},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use meter_agent::datapath::kernel::OBJECT;
use meter_ebpf::abi::{
    SLOT_ENTRIES, SLOTS_PER_BLOCK, Settings, SlotBlock, SlotRef, TunnelCounter, TunnelKey,
    connection::{Capture, Connection, ConnectionKey, capture},
    map,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use report::{Cost, Reads, report};
use rules::Sets;

/// Packets of one test run.
const REPEAT: u32 = 20_000;
/// Rounds of all test runs with the programs in one place.
const ROUNDS: usize = 8;
/// Times that the programs are loaded.
const LOADS: usize = 31;
/// Readings of all counters.
const READS: usize = 25;
/// Tunnels in the rows that vary them.
const TUNNELS: [u32; 3] = [1, 100, 1_000];
/// Ports in the row that reads them.
const PORTS: u32 = 10_000;

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

fn run() -> Result<bool> {
    let path = std::env::var_os("METER_FLOORS_OBJECT")
        .context("METER_FLOORS_OBJECT is not set: run `cargo xtask bench`")?;
    if OBJECT.is_empty() {
        bail!("this build carries no eBPF object: run `cargo xtask bench`");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("loading eBPF programs needs root");
    }
    let mut one_cpu = CpuSet::new();
    one_cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &one_cpu).context("stay on one CPU")?;
    let subjects = subjects();
    let mut samples = Samples::new();
    for _ in 0..LOADS {
        let (mut floors, mut meter) = objects(&path)?;
        packets(&subjects, &mut floors, &mut meter, &mut samples)?;
    }
    let costs = costs(&subjects, &samples);
    let (mut floors, mut meter) = objects(&path)?;
    packets(&subjects, &mut floors, &mut meter, &mut Samples::new())?;
    let reads = reading(&mut floors, &mut meter)?;
    Ok(report(&costs, &reads))
}

/// Loads both objects.
fn objects(floors: &OsStr) -> Result<(Ebpf, Ebpf)> {
    let floors = EbpfLoader::new().load_file(floors).context("load the floor programs")?;
    let mut meter = EbpfLoader::new()
        .map_max_entries(map::COUNTERS, PORTS.div_ceil(SLOTS_PER_BLOCK))
        .map_max_entries(map::CONNECTIONS, REPEAT + 1)
        .map_max_entries(map::CONNECTION_TIMES, REPEAT + 1)
        .map_max_entries(map::CONNECTION_KEYS, REPEAT)
        .map_max_entries(map::CONNECTION_FREE, REPEAT)
        .load(OBJECT)
        .context("load the meter programs")?;
    prepare(&mut meter)?;
    Ok((floors, meter))
}

/// Claims slot 1 and uplink 1 for the netdev of test runs, the loopback, and frees the spare places of tunnels.
fn prepare(meter: &mut Ebpf) -> Result<()> {
    let mut slots: Array<&mut MapData, [SlotRef; SLOT_ENTRIES as usize]> =
        meter.map_mut(map::SLOTS_SECTION).context("SLOTS")?.try_into()?;
    let mut table = Box::new([SlotRef::UNBOUND; SLOT_ENTRIES as usize]);
    table[1] = SlotRef::new(1, 1);
    slots.set(0, *table, 0)?;
    let mut spare: Queue<&mut MapData, u32> =
        meter.map_mut(map::TUNNEL_SPARE).context("TUNNEL_SPARE")?.try_into()?;
    let hashed = Settings::DEFAULT.tunnel_mask + 1;
    for place in hashed..hashed + hashed / 2 {
        spare.push(place, 0)?;
    }
    Ok(())
}

/// One timed program.
struct Subject {
    name: String,
    /// Which object it is in, and its name there.
    program: &'static str,
    ours: bool,
    frame: Vec<u8>,
    gso: Option<(u32, u32)>,
    /// How many tunnels or sources its packets go through, 0 to run it without [`floors::vary`].
    tunnels: u32,
    /// How many rules of user-defined meters there are, for the programs that ask for them.
    rules: Option<u32>,
    /// How many connections there may be, for the programs that count them.
    share: Option<u32>,
    /// Whether rules refuse all of them.
    refused: bool,
}

fn subject(name: &str, program: &'static str, ours: bool, frame: Vec<u8>) -> Subject {
    Subject {
        name: name.to_owned(),
        program,
        ours,
        frame,
        gso: None,
        tunnels: 0,
        rules: None,
        share: None,
        refused: false,
    }
}

fn subjects() -> Vec<Subject> {
    let mut subjects = vec![
        subject("empty", "floor_empty", false, tcp()),
        subject("constant slot", "floor_slot", false, tcp()),
        subject("per-CPU hash", "floor_hash", false, tcp()),
        subject("port meter", "meter_in", true, tcp()),
        Subject { gso: Some((1_448, 0)), ..subject("port meter, super-packet", "meter_in", true, tcp()) },
        subject("uplink, no tunnel", "meter_up_in", true, tcp()),
        subject("tunnel, parse only", "floor_parse", false, vxlan()),
        subject("tunnel, per-CPU hash", "floor_tun_hash", false, vxlan()),
        subject("port and tunnel meter", "meter_up_in", true, vxlan()),
    ];
    for tunnels in TUNNELS {
        for (name, program, ours) in [
            ("vary", "floor_empty", false),
            ("vary, constant slot", "floor_slot", false),
            ("vary, parse only", "floor_parse", false),
            ("vary, per-CPU hash", "floor_tun_hash", false),
            ("vary, port meter", "meter_in", true),
            ("vary, port and tunnel meter", "meter_up_in", true),
        ] {
            let name = format!("{tunnels} {name}");
            subjects.push(Subject { tunnels, ..subject(&name, program, ours, vxlan()) });
        }
    }
    // A CPU remembers what the rules say of a frame, or it doesn't.
    let tunnels = rules::SOURCES;
    subjects.push(Subject { tunnels, ..subject(&format!("{tunnels} vary"), "floor_empty", false, tcp()) });
    for number in rules::RULES {
        let hit = subject(&format!("{number} rules, known"), "meter_user_in", true, tcp());
        let miss = subject(&format!("{number} rules, unknown"), "meter_user_in", true, tcp());
        subjects.push(Subject { rules: Some(number), ..hit });
        subjects.push(Subject { rules: Some(number), tunnels, ..miss });
    }
    // One that the table has, so many of them, each packet another for which there is room, and for which there is none. The
    // usual table is full as well in the rows of new ones.
    let connections =
        |name: &str, share| Subject { share: Some(share), ..subject(name, "meter_conn_in", true, tcp()) };
    subjects.push(subject("a connection, per-CPU LRU hash", "floor_flow", false, tcp()));
    subjects.push(connections("a connection", 1));
    subjects.push(Subject { refused: true, ..connections("a connection, refused", 1) });
    let tunnels = TUNNELS[2];
    subjects.push(Subject { tunnels, ..connections(&format!("{tunnels} connections"), tunnels) });
    let tunnels = REPEAT;
    let varied = |name: &str, program, ours| Subject { tunnels, ..subject(name, program, ours, tcp()) };
    subjects.push(varied(&format!("{tunnels} vary"), "floor_empty", false));
    subjects.push(varied("new connection, per-CPU LRU hash", "floor_flow", false));
    subjects.push(Subject { tunnels, ..connections("new connection", REPEAT) });
    subjects.push(Subject { tunnels, ..connections("new connection, no room", 0) });
    subjects.push(Subject { tunnels, refused: true, ..connections("new connection, refused", REPEAT) });
    subjects
}

/// Lets the programs count connections of slot 1, up to so many, beginning with none.
fn capture(meter: &mut Ebpf, share: u32, refused: bool) -> Result<()> {
    if refused {
        rules::refuse(meter)?;
    }
    let mut captures: Array<&mut MapData, Capture> =
        meter.map_mut(map::CAPTURES).context("CAPTURES")?.try_into()?;
    let rules = if refused { capture::RULES } else { 0 };
    let wanted = capture::ON | capture::TCP | capture::IPV4 | rules;
    captures.set(1, Capture { wanted, share, ..Capture::default() }, 0)?;
    let mut keys: HashMap<&mut MapData, ConnectionKey, u32> =
        meter.map_mut(map::CONNECTION_KEYS).context("CONNECTION_KEYS")?.try_into()?;
    let known: Vec<(ConnectionKey, u32)> = keys.iter().collect::<Result<_, _>>()?;
    for (key, _) in &known {
        keys.remove(key)?;
    }
    let mut places: Array<&mut MapData, Connection> =
        meter.map_mut(map::CONNECTIONS).context("CONNECTIONS")?.try_into()?;
    for (_, place) in &known {
        places.set(*place, Connection::default(), 0)?;
    }
    let mut free: Queue<&mut MapData, u32> =
        meter.map_mut(map::CONNECTION_FREE).context("CONNECTION_FREE")?.try_into()?;
    while free.pop(0).is_ok() {}
    (1..=share).try_for_each(|place| free.push(place, 0))?;
    Ok(())
}

/// Nanoseconds of a packet, by subject: the least of each loading.
type Samples = BTreeMap<String, Vec<f64>>;

/// Runs all subjects in turn, [`ROUNDS`] times.
fn packets(subjects: &[Subject], floors: &mut Ebpf, meter: &mut Ebpf, samples: &mut Samples) -> Result<()> {
    for (object, ours) in [(&mut *floors, false), (&mut *meter, true)] {
        for name in subjects.iter().filter(|subject| subject.ours == ours).map(|subject| subject.program) {
            load(object, name)?;
        }
    }
    load(floors, "vary")?;
    let sets = Sets::make(meter)?;
    let mut least = vec![f64::INFINITY; subjects.len()];
    for _ in 0..ROUNDS {
        for (subject, least) in subjects.iter().zip(&mut least) {
            if let Some(rules) = subject.rules {
                sets.put(meter, rules)?;
            }
            if let Some(share) = subject.share {
                capture(meter, share, subject.refused)?;
            }
            *least = least.min(time(floors, meter, subject)?);
        }
    }
    for (subject, least) in subjects.iter().zip(least) {
        samples.entry(subject.name.clone()).or_default().push(least);
    }
    Ok(())
}

fn costs(subjects: &[Subject], samples: &Samples) -> BTreeMap<String, Cost> {
    let cost = |subject: &Subject| {
        let empty =
            if subject.tunnels == 0 { "empty".to_owned() } else { format!("{} vary", subject.tunnels) };
        let empty = median(samples[&empty].clone());
        let own = &samples[&subject.name];
        let cost = Cost {
            lowest: own.iter().copied().fold(f64::INFINITY, f64::min) - empty,
            median: median(own.clone()) - empty,
            highest: own.iter().copied().fold(f64::NEG_INFINITY, f64::max) - empty,
        };
        (subject.name.clone(), cost)
    };
    subjects.iter().map(cost).collect()
}

fn load(object: &mut Ebpf, name: &str) -> Result<()> {
    match program(object, name)?.load() {
        Ok(()) | Err(aya::programs::ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(error).context(format!("load program {name}")),
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(object.program_mut(name).with_context(|| format!("program {name} is missing"))?.try_into()?)
}

/// Runs the subject [`REPEAT`] times; returns nanoseconds of CPU time for each.
fn time(floors: &mut Ebpf, meter: &mut Ebpf, subject: &Subject) -> Result<f64> {
    let context = context(subject.gso);
    let mut options = TestRunOptions::new();
    options.data_in = Some(&subject.frame);
    options.ctx_in = Some(&context);
    options.repeat = REPEAT;
    let (object, name) = if subject.tunnels == 0 {
        (if subject.ours { meter } else { floors }, subject.program)
    } else {
        let target =
            program(if subject.ours { meter } else { floors }, subject.program)?.fd()?.try_clone()?;
        let mut targets: ProgramArray<&mut MapData> =
            floors.map_mut("TARGET").context("TARGET")?.try_into()?;
        targets.set(0, &target, 0)?;
        let mut sources: Array<&mut MapData, [u32; 2]> =
            floors.map_mut("SOURCES").context("SOURCES")?.try_into()?;
        sources.set(0, [subject.tunnels, 0], 0)?;
        (floors, "vary")
    };
    let program = program(object, name)?;
    let before = cpu_time()?;
    let result = program.test_run(options).with_context(|| format!("run {}", subject.name))?;
    let spent = cpu_time()? - before;
    if result.return_value != u32::MAX {
        bail!("{} returned {}, not \"next\"", subject.name, result.return_value);
    }
    Ok(spent.as_secs_f64() * 1e9 / f64::from(REPEAT))
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// `struct __sk_buff` with only `gso_segs` and `gso_size` set, if at all.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/bpf.h#L6185>
fn context(gso: Option<(u32, u32)>) -> [u8; 192] {
    let mut context = [0; 192];
    if let Some((size, segments)) = gso {
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        context[176..180].copy_from_slice(&size.to_ne_bytes());
    }
    context
}

fn reading(floors: &mut Ebpf, meter: &mut Ebpf) -> Result<Reads> {
    let blocks: PerCpuArray<&MapData, SlotBlock> =
        meter.map(map::COUNTERS).context("COUNTERS")?.try_into()?;
    let read_blocks = || -> Result<u64> {
        let mut packets = 0_u64;
        for block in 0..PORTS.div_ceil(SLOTS_PER_BLOCK) {
            for value in blocks.get(&block, 0)?.iter() {
                packets += value.slots.iter().map(|slot| slot.hooks[0].wire().packets).sum::<u64>();
            }
        }
        Ok(packets)
    };
    let counters: PerCpuArray<&MapData, [u64; 2]> =
        floors.map("ONE_BY_ONE").context("ONE_BY_ONE")?.try_into()?;
    let read_one_by_one = || -> Result<u64> {
        counters.iter().map(|values| Ok(values?.iter().map(|value| value[0]).sum::<u64>())).sum()
    };
    let tunnels: PerCpuHashMap<&MapData, TunnelKey, TunnelCounter> =
        floors.map("BY_TUNNEL").context("BY_TUNNEL")?.try_into()?;
    let read_tunnels = || -> Result<u64> {
        tunnels.iter().map(|entry| Ok(entry?.1.iter().map(|value| value.packets).sum::<u64>())).sum()
    };
    Ok(Reads {
        blocks: microseconds(read_blocks)?,
        one_by_one: microseconds(read_one_by_one)?,
        tunnel_hash: microseconds(read_tunnels)?,
    })
}

fn microseconds(read: impl Fn() -> Result<u64>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..READS {
        let before = cpu_time()?;
        std::hint::black_box(read()?);
        times.push((cpu_time()? - before).as_secs_f64() * 1e6);
    }
    Ok(median(times))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A TCP segment of 1,514 bytes.
fn tcp() -> Vec<u8> {
    let mut frame = vec![0; 1_514];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&1_500_u16.to_be_bytes());
    frame[23] = 6;
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[46] = 0x80;
    frame
}

/// A VXLAN packet of 1,514 bytes.
fn vxlan() -> Vec<u8> {
    let mut frame = tcp();
    frame[23] = 17;
    frame[36..38].copy_from_slice(&4_789_u16.to_be_bytes());
    frame[42] = 0x08;
    frame[46..49].copy_from_slice(&[0, 0, 7]);
    frame
}
