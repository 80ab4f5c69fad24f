//! The object's programs over the maps of an open datapath, run on frames that no netdev carried.

use std::io::ErrorKind;

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp},
};
use meter_agent::datapath::kernel::{OBJECT, Options};
use meter_ebpf::abi::{Direction, Settings, VERSION, map};

const MAPS: [&str; 26] = [
    map::SLOTS,
    map::SLOTS_HIGH,
    map::COUNTERS,
    map::PORTS,
    map::MEMBERS,
    map::TUNNELS,
    map::TUNNEL_TAKEN,
    map::TUNNEL_SPARE,
    map::TUNNEL_COUNTERS,
    map::BUCKETS,
    map::FAULTS,
    map::META,
    map::RULES,
    map::VERDICTS,
    map::METERS,
    map::METER_COUNTERS,
    map::NETWORKS,
    map::CONNECTIONS,
    map::CONNECTION_KEYS,
    map::CONNECTION_FREE,
    map::CONNECTION_HINTS,
    map::CONNECTION_TIMES,
    map::CAPTURES,
    map::CAPTURE_SAVED,
    map::CAPTURE_RULES,
    map::CAPTURE_VERDICTS,
];

/// A program, and what it is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) direction: Direction,
    /// Whether it reads tunnels.
    pub(crate) underlay: bool,
    pub(crate) xdp: bool,
}

const fn program(name: &'static str, direction: Direction, underlay: bool, xdp: bool) -> Program {
    Program { name, direction, underlay, xdp }
}

impl Program {
    /// Returns whether the kernel loads it: XDP over several buffers came with Linux 5.18.
    fn loads(self) -> bool {
        self.name != "meter_up_xdpf" || lab::require::is_kernel(5, 18)
    }

    /// Returns whether the kernel, once it has loaded it, takes such a frame for a test run.
    ///
    /// Super-packets are TC's only; and TC has to be given a complete IP header where the ethertype is IP's (Linux 6.18).
    pub(crate) fn takes(self, frame: &[u8], gso: Option<Gso>) -> bool {
        let shortest = match frame[12..14] {
            [0x08, 0x00] => 14 + 20,
            [0x86, 0xdd] => 14 + 40,
            _ => 15,
        };
        if self.xdp { gso.is_none() } else { frame.len() >= shortest }
    }
}

/// Those that count without meters of one's own and without connections, by TC. The others find tunnels by the same walk.
pub(crate) const PLAIN: [Program; 4] = [
    program("meter_in", Direction::Ingress, false, false),
    program("meter_out", Direction::Egress, false, false),
    program("meter_up_in", Direction::Ingress, true, false),
    program("meter_up_out", Direction::Egress, true, false),
];

/// Every program of the host's own netdevs.
pub(crate) const PROGRAMS: [Program; 14] = [
    PLAIN[0],
    PLAIN[1],
    PLAIN[2],
    PLAIN[3],
    program("meter_user_in", Direction::Ingress, false, false),
    program("meter_user_out", Direction::Egress, false, false),
    program("meter_user_uin", Direction::Ingress, true, false),
    program("meter_user_uout", Direction::Egress, true, false),
    program("meter_conn_in", Direction::Ingress, false, false),
    program("meter_conn_out", Direction::Egress, false, false),
    program("meter_conn_uin", Direction::Ingress, true, false),
    program("meter_conn_uout", Direction::Egress, true, false),
    program("meter_up_xdp", Direction::Ingress, true, true),
    program("meter_up_xdpf", Direction::Ingress, true, true),
];

/// Returns the one with this name.
pub(crate) fn named(name: &str) -> Program {
    PROGRAMS.into_iter().find(|program| program.name == name).unwrap()
}

/// Those of netdevs in other network namespaces, which find the port of a netdev in a map of their own.
pub(crate) const OF_NAMESPACES: [Program; 6] = [
    program("meter_ns_in", Direction::Ingress, false, false),
    program("meter_ns_out", Direction::Egress, false, false),
    program("meter_user_nin", Direction::Ingress, false, false),
    program("meter_user_nout", Direction::Egress, false, false),
    program("meter_conn_nin", Direction::Ingress, false, false),
    program("meter_conn_nout", Direction::Egress, false, false),
];

/// A super-packet's `gso_size` and `gso_segs`.
pub(crate) type Gso = (u32, u32);

/// Some programs, loaded.
pub(crate) struct Programs {
    ebpf: Ebpf,
    loaded: Vec<Program>,
}

impl Programs {
    /// Loads those that this kernel has over the maps that a datapath with these options has pinned.
    ///
    /// Before it attaches anything: what the object's section `SLOTS` holds, which is nothing, is written to the map.
    pub(crate) fn load(options: &Options, programs: impl IntoIterator<Item = Program>) -> Self {
        let maps = options.pin_path.join(format!("v{VERSION}")).join("maps");
        let settings = Settings {
            tunnel_mask: options.max_tunnels.next_power_of_two().max(2) - 1,
            nvgre: u32::from(options.nvgre),
            ..Settings::DEFAULT
        };
        let mut loader = EbpfLoader::new();
        for name in MAPS {
            let section = if name == map::SLOTS { map::SLOTS_SECTION } else { name };
            loader.map_pin_path(section, maps.join(name));
        }
        loader.override_global("SETTINGS", &settings, true);
        let mut ebpf = loader.load(OBJECT).unwrap();
        let loaded: Vec<Program> = programs.into_iter().filter(|program| program.loads()).collect();
        for program in &loaded {
            let loaded = ebpf.program_mut(program.name).unwrap();
            if program.xdp {
                let xdp: &mut Xdp = loaded.try_into().unwrap();
                load(|| xdp.load());
            } else {
                let tc: &mut SchedClassifier = loaded.try_into().unwrap();
                load(|| tc.load());
            }
        }
        Self { ebpf, loaded }
    }

    /// Returns those that the kernel gives such a frame in a test run.
    pub(crate) fn that_take(&self, frame: &[u8], gso: Option<Gso>) -> impl Iterator<Item = Program> {
        self.loaded.iter().copied().filter(move |program| program.takes(frame, gso))
    }

    /// Runs a program on a frame of the calling thread's loopback netdev, once. It has to say "next" and to leave
    /// the frame as it is.
    pub(crate) fn run(&self, program: Program, frame: &[u8], gso: Option<Gso>) {
        self.run_with(program, frame, &context(gso));
    }

    /// Runs a program on a frame of one netdev of the calling thread's namespace that came in through another.
    pub(crate) fn run_between(&self, program: Program, frame: &[u8], [ingress, own]: [u32; 2]) {
        let mut context = context(None);
        context[36..40].copy_from_slice(&ingress.to_ne_bytes());
        context[40..44].copy_from_slice(&own.to_ne_bytes());
        self.run_with(program, frame, &context);
    }

    fn run_with(&self, program: Program, frame: &[u8], context: &[u8; 192]) {
        let mut out = vec![0; frame.len()];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (!program.xdp).then_some(context),
            ..TestRunOptions::new()
        };
        let loaded = self.ebpf.program(program.name).unwrap();
        let (result, next): (Result<TestRunResult, _>, u32) = if program.xdp {
            // XDP_PASS.
            (<&Xdp>::try_from(loaded).unwrap().test_run(options), 2)
        } else {
            // TC_ACT_UNSPEC, which is TCX_NEXT as well.
            (<&SchedClassifier>::try_from(loaded).unwrap().test_run(options), u32::MAX)
        };
        let result = result.unwrap_or_else(|error| panic!("{}: {error}: {frame:02x?}", program.name));
        assert_eq!(result.return_value, next, "{}", program.name);
        assert_eq!(out, frame, "{} changed the frame", program.name);
    }
}

/// Loads a program by `load`, again where a signal ended the verifier's work.
pub(crate) fn load(mut load: impl FnMut() -> Result<(), ProgramError>) {
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == ErrorKind::WouldBlock => {}
            other => return other.unwrap(),
        }
    }
}

/// `struct __sk_buff` with only `gso_segs` and `gso_size` set, if at all.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/bpf.h#L6185>
fn context(gso: Option<Gso>) -> [u8; 192] {
    let mut context = [0; 192];
    if let Some((size, segments)) = gso {
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        context[176..180].copy_from_slice(&size.to_ne_bytes());
    }
    context
}
