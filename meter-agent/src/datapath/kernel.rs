//! The real datapath: loads the object, owns the pinned maps, attaches and reads.
//!
//! Maps and links stay pinned when the agent ends: counting goes on, and the next agent takes over what it finds.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::SystemTime,
};

use aya::{Ebpf, EbpfLoader, maps::MapError, programs::SchedClassifier, util::KernelVersion};
use meter_ebpf::abi::{
    Direction, GENEVE_PORTS, PortRecord, PortUuid, Settings, SlotCounters, SlotRef, UNBOUND_SLOT,
    VXLAN_PORTS, hooks, map,
};
use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

pub use super::hook::TcMode;
use super::{
    AttachError, Attachment, BucketReading, Class, Datapath, HookKind, IngressHook, PortReading, ReadError,
    Reading, Retry, Target, TunnelReading, clsact,
    hook::{Hook, describe, load, remove_link},
    ledger::{Capacity, Claim, Full, Ledger, Slots, total},
    maps::{self, LiveSlots, Maps},
};
use crate::meter::{DeviceId, FlowStats, PortId};

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// The oldest kernel whose verifier takes the programs.
const OLDEST_KERNEL: (u8, u8) = (5, 10);

/// `BPF_FS_MAGIC`.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/magic.h#L88>
const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;

/// Programs for TC; those for XDP are loaded when a netdev asks for them.
const TC_PROGRAMS: [&str; 4] = ["meter_in", "meter_out", "meter_up_in", "meter_up_out"];

/// What the datapath needs to know of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Directory on a bpffs for everything that outlives the agent.
    pub pin_path: PathBuf,
    /// How to attach TC programs.
    pub tc: TcMode,
    /// Ports that are remembered, with or without a netdev.
    pub max_ports: u32,
    /// Netdevs that can be metered at a time.
    pub max_netdevs: u32,
    /// Tunnels, by source, destination, VNI, uplink and direction.
    pub max_tunnels: u32,
    /// Entries of each CPU's tunnel cache: a power of two.
    pub tunnel_cache_entries: u32,
    /// UDP destination ports of VXLAN, at most [`VXLAN_PORTS`].
    pub vxlan_ports: Vec<u16>,
    /// UDP destination ports of GENEVE, at most [`GENEVE_PORTS`].
    pub geneve_ports: Vec<u16>,
    /// Whether GRE keys of packets that carry Ethernet are NVGRE's.
    pub nvgre: bool,
}

/// The datapath could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The build has no object.
    #[error("this build carries no eBPF object: build it with `cargo xtask build`")]
    NoObject,
    /// The kernel is too old.
    #[error("Linux {found} is too old: the eBPF programs need {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    OldKernel {
        /// Its release.
        found: String,
    },
    /// Not permitted.
    #[error("{action}: not permitted; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission {
        /// What was being done.
        action: String,
    },
    /// The pin path is not on a bpffs.
    #[error(
        "{path} is not on a bpffs ({why}); mount one with `mount -t bpf bpf /sys/fs/bpf`, or set datapath.pin_path"
    )]
    NoBpffs {
        /// The path.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A path could not be used.
    #[error("{action} {path}: {source}")]
    Path {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent uses the maps.
    #[error("another agent uses {path}; stop it, or set datapath.pin_path")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Something that is not ours, or not of this version, is pinned.
    #[error(
        "{path} is not this version's map {map}: {found}; remove it, or remove everything with `meter-agent detach`"
    )]
    ForeignPin {
        /// The pin.
        path: PathBuf,
        /// The map that belongs there.
        map: &'static str,
        /// What is there.
        found: String,
    },
    /// The object is not what this agent expects.
    #[error("eBPF object: {0}")]
    Object(String),
    /// The kernel refused the object.
    #[error("load the eBPF object: {0}")]
    Load(String),
    /// A map could not be written.
    #[error("write map {map}: {source}")]
    Write {
        /// Its name.
        map: &'static str,
        /// Why not.
        source: MapError,
    },
    /// A map could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What [`remove_all`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Hooks, by links or filters.
    pub hooks: usize,
    /// Maps.
    pub maps: usize,
}

/// The datapath in the kernel.
pub struct KernelDatapath {
    ebpf: Ebpf,
    maps: Maps,
    ledger: Ledger,
    attached: BTreeMap<u32, Attachment>,
    tc: TcMode,
    links: PathBuf,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    /// Held while the agent lives: nobody else writes to the maps.
    _lock: Flock<OwnedFd>,
}

impl std::fmt::Debug for KernelDatapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelDatapath").field("links", &self.links).finish_non_exhaustive()
    }
}

impl KernelDatapath {
    /// Loads the programs and takes over the maps that an earlier agent left, or makes them.
    ///
    /// # Errors
    ///
    /// Each says what is missing and what to do.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        if OBJECT.is_empty() {
            return Err(OpenError::NoObject);
        }
        check_kernel()?;
        let map_pins = maps::pin_directory(&options.pin_path);
        let links = link_directory(&options.pin_path);
        make_directory(&map_pins, &options.pin_path)?;
        make_directory(&links, &options.pin_path)?;
        let lock = lock(&map_pins)?;

        let mut specs = maps::specs(options);
        for spec in &mut specs {
            if let Some(entries) = maps::check_pin(spec, &map_pins.join(spec.name))?
                && entries != spec.max_entries
            {
                tracing::warn!(
                    map = spec.name,
                    entries,
                    configured = spec.max_entries,
                    "pinned map keeps its size until `meter-agent detach`"
                );
                spec.max_entries = entries;
            }
        }
        let entries_of =
            |name: &str| specs.iter().find(|spec| spec.name == name).map_or(0, |spec| spec.max_entries);
        let mut settings = settings(options);
        settings.cache_mask = entries_of(map::TUNNEL_CACHE).max(1) - 1;

        let mut loader = EbpfLoader::new();
        for spec in &specs {
            loader
                .map_max_entries(spec.name, spec.max_entries)
                .map_pin_path(spec.name, map_pins.join(spec.name));
        }
        loader.override_global("SETTINGS", &settings, true);
        let mut ebpf = loader.load(OBJECT).map_err(|error| load_error("make the maps", &error))?;
        let logger = aya_log::EbpfLogger::init(&mut ebpf).ok();
        for name in TC_PROGRAMS {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .and_then(|program| program.try_into().ok())
                .ok_or_else(|| OpenError::Object(format!("program {name} is missing")))?;
            load(|| program.load()).map_err(|error| load_error(&format!("load program {name}"), &error))?;
        }

        let mut maps = Maps::take(&mut ebpf, &specs)?;
        maps.prepare(entries_of(map::TUNNEL_FREE))?;
        let capacity = Capacity {
            slots: entries_of(map::COUNTERS) * meter_ebpf::abi::SLOTS_PER_BLOCK,
            ports: usize::try_from(entries_of(map::PORTS)).unwrap_or(usize::MAX),
            members: usize::try_from(entries_of(map::MEMBERS)).unwrap_or(usize::MAX),
        };
        let ledger = Ledger::new(maps.port_records()?, maps.member_records()?, capacity);
        let attached = adopted(&ledger);
        Ok(Self { ebpf, maps, ledger, attached, tc: options.tc, links, logger, _lock: lock })
    }

    /// Returns what is attached, after [`KernelDatapath::open`] what an earlier agent left attached.
    ///
    /// Names are empty until the netdev is attached again.
    #[must_use]
    pub fn attachments(&self) -> &BTreeMap<u32, Attachment> {
        &self.attached
    }

    /// Gives the port its counters and points the netdev at them.
    fn bind(&mut self, target: &Target) -> Result<(), AttachError> {
        let claim = Claim {
            port: port_uuid(target.port),
            class: class_number(target.class),
            ifindex: target.ifindex,
            device: target
                .device
                .map_or_else(PortUuid::default, |device| PortUuid { uuid: *device.0.as_bytes() }),
            underlay: target.underlay,
        };
        let live = LiveSlots::new(&self.maps);
        let claimed = self.ledger.claim(&claim, now_ns(), &live);
        live.into_result().map_err(|error| bind_error(target, &error.to_string(), "read"))?;
        let (slot, writes) = claimed.map_err(|full| full_error(target, full))?;
        for write in &writes {
            self.maps.write(write).map_err(|error| bind_error(target, &describe(&error), "map_write"))?;
        }
        self.maps
            .set_slot(target.ifindex, slot)
            .map_err(|error| bind_error(target, &describe(&error), "map_write"))
    }

    /// Takes the netdev away from its port. The port keeps its totals.
    fn unbind(&mut self, ifindex: u32, port: PortId) {
        let result = self.maps.set_slot(ifindex, SlotRef::default()).and_then(|()| {
            self.ledger.release(port_uuid(port)).map_or(Ok(()), |write| self.maps.write(&write))
        });
        if let Err(error) = result {
            tracing::error!(ifindex, port = %port, error = %describe(&error), "release failed");
        }
    }

    fn attach_hooks(&mut self, target: &Target) -> Result<(HookKind, HookKind, bool), AttachError> {
        let xdp = target.ingress == IngressHook::Xdp && target.underlay;
        let [ingress, egress] = hooks_of(target, &self.links);
        if xdp {
            // Never both: a TC program left on ingress would count each frame again.
            remove_other_kind(&ingress, &self.attached)?;
        }
        let made_ingress = ingress.attach(&mut self.ebpf, self.tc, xdp)?;
        match egress.attach(&mut self.ebpf, self.tc, false) {
            Ok(made_egress) => {
                Ok((made_ingress.kind, made_egress.kind, made_ingress.clsact || made_egress.clsact))
            }
            Err(error) => {
                self.remove_hooks(target, made_ingress.clsact);
                Err(error)
            }
        }
    }

    /// Removes every hook of the netdev, and the clsact qdisc where it is ours, after an attach that failed: that
    /// has an error to return already.
    fn remove_hooks(&self, target: &Target, clsact_ours: bool) {
        for hook in hooks_of(target, &self.links) {
            if let Err(error) = hook.detach() {
                tracing::error!(error = %error, "detach failed");
            }
        }
        if clsact_ours {
            remove_qdisc(target.ifindex);
        }
    }

    /// Returns whether the clsact qdisc of the netdev that carries the port is ours.
    fn owns_clsact(&self, port: PortId) -> bool {
        let record = self.ledger.records().get(&port_uuid(port));
        record.is_some_and(|record| record.hooks & hooks::CLSACT_OURS != 0)
    }

    /// Binds the target, attaches its hooks where others than those `before` are needed, and records them.
    fn bind_and_attach(
        &mut self,
        target: &Target,
        before: Option<&Attachment>,
        clsact_ours: bool,
    ) -> Result<Attachment, AttachError> {
        self.bind(target)?;
        let keeps_hooks = before.filter(|before| {
            !before.target.netdev.is_empty()
                && before.target.underlay == target.underlay
                && before.target.ingress == target.ingress
        });
        let (ingress, egress, made_clsact) = match keeps_hooks {
            // The same programs: only the names or the counters are others.
            Some(before) => (before.ingress, before.egress, false),
            None => self.attach_hooks(target)?,
        };
        let mut clsact = clsact_ours || made_clsact;
        if clsact && ingress != HookKind::Clsact && egress != HookKind::Clsact {
            remove_qdisc(target.ifindex);
            clsact = false;
        }
        if let Some(write) = self.ledger.set_hooks(port_uuid(target.port), hook_bits(ingress, egress, clsact))
        {
            self.maps.write(&write).map_err(|error| bind_error(target, &describe(&error), "map_write"))?;
        }
        Ok(Attachment { target: target.clone(), ingress, egress })
    }
}

impl Datapath for KernelDatapath {
    fn attach(&mut self, target: &Target) -> Result<Attachment, AttachError> {
        let carries_port = |attachment: &&Attachment| attachment.target.port == target.port;
        let other = self.attached.values().filter(carries_port).map(|other| other.target.ifindex);
        if let Some(other) = other.clone().find(|other| *other != target.ifindex) {
            // A port is on one netdev: its record has room for one, and so the next agent would know of one.
            self.detach(other)?;
        }
        let before = self.attached.get(&target.ifindex).cloned();
        let mut clsact_ours = false;
        if let Some(before) = &before {
            clsact_ours = self.owns_clsact(before.target.port);
            if before.target.port != target.port {
                self.unbind(target.ifindex, before.target.port);
            }
        }
        match self.bind_and_attach(target, before.as_ref(), clsact_ours) {
            Ok(attachment) => {
                self.attached.insert(target.ifindex, attachment.clone());
                Ok(attachment)
            }
            Err(error) => {
                self.remove_hooks(target, clsact_ours);
                self.attached.remove(&target.ifindex);
                self.unbind(target.ifindex, target.port);
                Err(error)
            }
        }
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        let Some(attachment) = self.attached.get(&ifindex) else { return Ok(()) };
        let target = attachment.target.clone();
        for hook in hooks_of(&target, &self.links) {
            hook.detach()?;
        }
        if self.owns_clsact(target.port) {
            remove_qdisc(ifindex);
        }
        self.unbind(ifindex, target.port);
        self.attached.remove(&ifindex);
        Ok(())
    }

    fn read(&mut self) -> Result<Reading, ReadError> {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let slots = self.maps.slot_counters(self.ledger.last_slot())?;
        let tunnels = self.read_tunnels()?;
        let mut buckets = Vec::new();
        for (uuid, record) in self.ledger.records().iter().filter(|(_, record)| record.uplink != 0) {
            for direction in Direction::ALL {
                let hook = record.uplink * 2 + direction as u32;
                buckets.push(BucketReading {
                    uplink: port_id(*uuid),
                    direction,
                    buckets: self.maps.buckets(hook)?,
                });
            }
        }
        let ports: Vec<PortReading> =
            self.ledger.records().iter().map(|(uuid, record)| port_reading(*uuid, record, &slots)).collect();
        let devices = self
            .ledger
            .devices(&slots)
            .into_iter()
            .map(|(device, sum)| {
                let stats = FlowStats { packets: sum.packets, bytes: sum.bytes };
                (DeviceId(Uuid::from_bytes(device.uuid)), stats)
            })
            .collect();
        let usage = self.maps.usage(|name, capacity| match name {
            map::SLOTS => count(self.attached.range(..maps::SLOT_ENTRIES).count()),
            map::SLOTS_HIGH => count(self.attached.range(maps::SLOT_ENTRIES..).count()),
            map::COUNTERS => {
                count(self.ledger.slots_used()).div_ceil(u64::from(meter_ebpf::abi::SLOTS_PER_BLOCK))
            }
            map::PORTS => count(self.ledger.records().len()),
            map::MEMBERS => count(self.ledger.members()),
            map::TUNNELS => count(tunnels.len()),
            map::TUNNEL_FREE => u64::from(capacity).saturating_sub(count(tunnels.len())),
            map::TUNNEL_COUNTERS => {
                count(tunnels.len()).div_ceil(u64::from(meter_ebpf::abi::TUNNELS_PER_BLOCK))
            }
            _ => u64::from(capacity),
        });
        Ok(Reading {
            ports,
            devices,
            tunnels,
            buckets,
            faults: self.maps.faults()?,
            unbound: slots.counters(UNBOUND_SLOT),
            maps: usage,
        })
    }
}

impl KernelDatapath {
    fn read_tunnels(&self) -> Result<Vec<TunnelReading>, ReadError> {
        let entries = self.maps.tunnel_entries()?;
        let Some(last) = entries.iter().map(|(_, index)| *index).max() else { return Ok(Vec::new()) };
        let counters = self.maps.tunnel_counters(last)?;
        let uplinks: BTreeMap<u32, PortId> = self
            .ledger
            .records()
            .iter()
            .filter(|(_, record)| record.uplink != 0)
            .map(|(uuid, record)| (record.uplink, port_id(*uuid)))
            .collect();
        let reading = entries.into_iter().filter_map(|(key, index)| {
            let counter = counters.get(usize::try_from(index).ok()?)?;
            Some(TunnelReading {
                uplink: *uplinks.get(&u32::from(key.hook() / 2))?,
                direction: if key.hook() % 2 == 0 { Direction::Ingress } else { Direction::Egress },
                src: maps::ip_address(&key.src),
                dst: maps::ip_address(&key.dst),
                vni: key.vni(),
                encap: key.encap()?,
                packets: counter.packets,
                inner_bytes: counter.inner_bytes,
                outer_bytes: counter.outer_bytes,
            })
        });
        Ok(reading.collect())
    }
}

/// Detaches every hook of ours and removes every pin below `pin_path`, of this version.
///
/// # Errors
///
/// The first thing that could not be removed; the rest may be gone already, and calling again is safe.
pub fn remove_all(pin_path: &Path) -> Result<Removed, OpenError> {
    let map_pins = maps::pin_directory(pin_path);
    let links = link_directory(pin_path);
    let mut removed = Removed::default();
    if !map_pins.exists() {
        return Ok(removed);
    }
    let lock = lock(&map_pins)?;
    let ports = map_pins.join(map::PORTS);
    if ports.exists() {
        for (uuid, record) in pinned_records(&ports)? {
            removed.hooks += remove_clsact(uuid, &record)?;
        }
    }
    removed.hooks += remove_files(&links, remove_link)?;
    removed.maps += remove_files(&map_pins, |path| fs::remove_file(path))?;
    drop(lock);
    let version = map_pins.parent().unwrap_or(pin_path);
    for directory in [links.as_path(), map_pins.as_path(), version, pin_path] {
        match fs::remove_dir(directory) {
            Ok(()) => {}
            // Another version's pins, or somebody else's.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(path_error("remove", directory, source)),
        }
    }
    Ok(removed)
}

fn pinned_records(path: &Path) -> Result<Vec<(PortUuid, PortRecord)>, OpenError> {
    use aya::maps::{HashMap, Map, MapData};
    let foreign = |found: String| OpenError::ForeignPin { path: path.to_owned(), map: map::PORTS, found };
    let data = MapData::from_pin(path).map_err(|error| foreign(describe(&error)))?;
    let map: HashMap<MapData, PortUuid, PortRecord> =
        Map::from_map_data(data).and_then(TryInto::try_into).map_err(|error| foreign(describe(&error)))?;
    map.iter().collect::<Result<_, _>>().map_err(|error| foreign(describe(&error)))
}

/// Removes the filters that a record tells of; returns how many.
fn remove_clsact(uuid: PortUuid, record: &PortRecord) -> Result<usize, OpenError> {
    let filters = [(hooks::INGRESS_CLSACT, Direction::Ingress), (hooks::EGRESS_CLSACT, Direction::Egress)];
    let mut removed = 0;
    if record.ifindex == 0 || record.hooks & (hooks::INGRESS_CLSACT | hooks::EGRESS_CLSACT) == 0 {
        return Ok(removed);
    }
    let target = recorded_target(uuid, record);
    for (bit, direction) in filters {
        if record.hooks & bit != 0 {
            Hook { target: &target, direction, links: Path::new("") }
                .detach_clsact()
                .map_err(|error| OpenError::Object(error.message))?;
            removed += 1;
        }
    }
    if record.hooks & hooks::CLSACT_OURS != 0 {
        remove_qdisc(record.ifindex);
    }
    Ok(removed)
}

/// Removes a clsact qdisc of ours, unless somebody's filter hangs on it.
fn remove_qdisc(ifindex: u32) {
    if let Err(error) = clsact::remove_empty_qdisc(ifindex) {
        tracing::warn!(ifindex, error = %error, "clsact qdisc left in place");
    }
}

fn remove_files(directory: &Path, remove: impl Fn(&Path) -> io::Result<()>) -> Result<usize, OpenError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(path_error("list", directory, source)),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(|source| path_error("list", directory, source))?.path();
        remove(&path).map_err(|source| path_error("remove", &path, source))?;
        removed += 1;
    }
    Ok(removed)
}

/// Rebuilds what an earlier agent attached from its records.
fn adopted(ledger: &Ledger) -> BTreeMap<u32, Attachment> {
    ledger
        .records()
        .iter()
        .filter(|(_, record)| record.ifindex != 0)
        .map(|(uuid, record)| {
            let ingress = hook_kind(record.hooks, hooks::INGRESS_CLSACT, hooks::INGRESS_XDP);
            let egress = hook_kind(record.hooks, hooks::EGRESS_CLSACT, 0);
            (record.ifindex, Attachment { target: recorded_target(*uuid, record), ingress, egress })
        })
        .collect()
}

fn recorded_target(uuid: PortUuid, record: &PortRecord) -> Target {
    let device = Uuid::from_bytes(record.device.uuid);
    Target {
        ifindex: record.ifindex,
        netdev: String::new(),
        port: port_id(uuid),
        class: class_of(record.class),
        device: (!device.is_nil()).then_some(DeviceId(device)),
        underlay: record.uplink != 0,
        ingress: if record.hooks & hooks::INGRESS_XDP == 0 { IngressHook::Tc } else { IngressHook::Xdp },
    }
}

fn hook_kind(bits: u32, clsact: u32, xdp: u32) -> HookKind {
    if bits & clsact != 0 {
        HookKind::Clsact
    } else if bits & xdp != 0 {
        HookKind::Xdp
    } else {
        HookKind::Tcx
    }
}

fn hook_bits(ingress: HookKind, egress: HookKind, clsact_ours: bool) -> u32 {
    let ingress = match ingress {
        HookKind::Tcx => hooks::INGRESS_TCX,
        HookKind::Clsact => hooks::INGRESS_CLSACT,
        HookKind::Xdp => hooks::INGRESS_XDP,
    };
    let egress = if egress == HookKind::Clsact { hooks::EGRESS_CLSACT } else { hooks::EGRESS_TCX };
    ingress | egress | if clsact_ours { hooks::CLSACT_OURS } else { 0 }
}

fn hooks_of<'a>(target: &'a Target, links: &'a Path) -> [Hook<'a>; 2] {
    Direction::ALL.map(|direction| Hook { target, direction, links })
}

/// Removes a hook of another kind than the one that is to come. What is not there is no error.
fn remove_other_kind(hook: &Hook<'_>, attached: &BTreeMap<u32, Attachment>) -> Result<(), AttachError> {
    match attached.get(&hook.target.ifindex) {
        Some(attachment) if attachment.ingress == HookKind::Xdp => Ok(()),
        _ => hook.detach(),
    }
}

fn port_reading(uuid: PortUuid, record: &PortRecord, slots: &impl Slots) -> PortReading {
    let device = Uuid::from_bytes(record.device.uuid);
    let totals: SlotCounters = total(record, slots);
    PortReading {
        port: port_id(uuid),
        class: class_of(record.class),
        ifindex: (record.ifindex != 0).then_some(record.ifindex),
        device: (!device.is_nil()).then_some(DeviceId(device)),
        created_ns: record.created_ns,
        totals,
    }
}

fn port_uuid(port: PortId) -> PortUuid {
    PortUuid { uuid: *port.0.as_bytes() }
}

fn port_id(uuid: PortUuid) -> PortId {
    PortId(Uuid::from_bytes(uuid.uuid))
}

const fn class_number(class: Class) -> u32 {
    match class {
        Class::Port => 0,
        Class::Uplink => 1,
        Class::Tunnel => 2,
    }
}

const fn class_of(number: u32) -> Class {
    match number {
        1 => Class::Uplink,
        2 => Class::Tunnel,
        _ => Class::Port,
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn settings(options: &Options) -> Settings {
    let mut settings =
        Settings { vxlan_ports: [0; VXLAN_PORTS], geneve_ports: [0; GENEVE_PORTS], ..Settings::DEFAULT };
    settings.vxlan_ports.iter_mut().zip(&options.vxlan_ports).for_each(|(to, from)| *to = *from);
    settings.geneve_ports.iter_mut().zip(&options.geneve_ports).for_each(|(to, from)| *to = *from);
    settings.nvgre = u32::from(options.nvgre);
    settings
}

fn check_kernel() -> Result<(), OpenError> {
    let (major, minor) = OLDEST_KERNEL;
    let oldest = KernelVersion::new(major, minor, 0);
    if KernelVersion::current().is_ok_and(|current| current >= oldest) {
        return Ok(());
    }
    let found = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Err(OpenError::OldKernel { found: found.trim().to_owned() })
}

fn link_directory(pin_path: &Path) -> PathBuf {
    pin_path.join(format!("v{}", meter_ebpf::abi::VERSION)).join("links")
}

/// Makes a directory of ours on a bpffs, only for us; mounts a bpffs at its usual place if there is none.
fn make_directory(directory: &Path, pin_path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;

    let existing = pin_path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !on_bpffs(existing)? {
        let usual = Path::new("/sys/fs/bpf");
        if existing != usual || !mount_bpffs(usual) {
            let why = format!("{} is on another file system", existing.display());
            return Err(OpenError::NoBpffs { path: pin_path.to_owned(), why });
        }
        tracing::info!(path = %usual.display(), "mounted a bpffs");
    }
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // bpffs says the same for a name with a dot.
            let action = format!("make directory {} (bpffs refuses names with a dot)", directory.display());
            Err(OpenError::Permission { action })
        }
        Err(source) => Err(path_error("make directory", directory, source)),
    }
}

fn on_bpffs(path: &Path) -> Result<bool, OpenError> {
    let status = nix::sys::statfs::statfs(path)
        .map_err(|errno| path_error("look at the file system of", path, errno.into()))?;
    Ok(status.filesystem_type().0 == BPF_FS_MAGIC)
}

fn mount_bpffs(path: &Path) -> bool {
    use nix::mount::{MsFlags, mount};
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>).is_ok()
}

/// Takes the lock that makes one agent the only writer. It goes with the process.
fn lock(directory: &Path) -> Result<Flock<OwnedFd>, OpenError> {
    let file = fs::File::open(directory).map_err(|source| path_error("open", directory, source))?;
    Flock::lock(OwnedFd::from(file), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => OpenError::Locked { path: directory.to_owned() },
        errno => path_error("lock", directory, errno.into()),
    })
}

fn path_error(action: &'static str, path: &Path, source: io::Error) -> OpenError {
    if source.kind() == io::ErrorKind::PermissionDenied {
        return OpenError::Permission { action: format!("{action} {}", path.display()) };
    }
    OpenError::Path { action, path: path.to_owned(), source }
}

/// Tells a missing permission from everything else that can go wrong when the object is loaded.
fn load_error(action: &str, error: &(dyn std::error::Error + 'static)) -> OpenError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let denied = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.raw_os_error(), Some(libc::EPERM)));
        if denied {
            return OpenError::Permission { action: action.to_owned() };
        }
        cause = error.source();
    }
    OpenError::Load(format!("{action}: {}", describe(error)))
}

fn bind_error(target: &Target, why: &str, reason: &'static str) -> AttachError {
    let Target { netdev, ifindex, port, .. } = target;
    AttachError {
        message: format!("bind {netdev} (ifindex {ifindex}) to port {port}: {why}"),
        reason,
        retry: Retry::Later,
    }
}

fn full_error(target: &Target, full: Full) -> AttachError {
    let (why, reason) = match full {
        Full::Slots => ("every slot is in use; raise datapath.max_netdevs and detach", "slots_full"),
        Full::Ports => ("no room for another port; raise datapath.max_ports and detach", "ports_full"),
        Full::Members => ("no room for another port of a device; raise datapath.max_ports", "members_full"),
        Full::Uplinks => ("63 netdevs are or were uplinks; no room for another", "uplinks_full"),
    };
    bind_error(target, why, reason)
}
