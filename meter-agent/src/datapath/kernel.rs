//! The real datapath: loads the object, owns the pinned maps, attaches and reads.
//!
//! Maps and links stay pinned when the agent ends: counting goes on, and the next agent takes over what it finds.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::SystemTime,
};

use aya::{Ebpf, EbpfLoader, programs::SchedClassifier};
use meter_ebpf::abi::{
    Direction, GENEVE_PORTS, PortUuid, Settings, SlotRef, UNBOUND_SLOT, VXLAN_PORTS, hooks, map,
};
use nix::fcntl::Flock;
use uuid::Uuid;

use super::{
    AttachError, Attachment, BucketReading, Datapath, HookKind, IngressHook, PortReading, ReadError, Reading,
    Retry, Target,
    hook::{Hook, describe, load, remove_qdisc},
    ledger::{Capacity, Claim, Full, Ledger, Slots as _},
    maps::{self, LiveSlots, Maps},
    open::{check_kernel, load_error, lock, make_directory},
    record::{adopted, class_number, hook_bits, port_id, port_reading, port_uuid},
    tunnels,
};
pub use super::{
    Options, TcMode,
    open::OpenError,
    remove::{Removed, remove_all},
};
use crate::meter::{DeviceId, FlowStats, PortId};

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// Programs for TC; those for XDP are loaded when a netdev asks for them.
const TC_PROGRAMS: [&str; 4] = ["meter_in", "meter_out", "meter_up_in", "meter_up_out"];

/// The datapath in the kernel.
pub struct KernelDatapath {
    ebpf: Ebpf,
    maps: Maps,
    /// Places that the tunnels' hashes lead to; behind them are the spare ones.
    tunnel_places: u32,
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
        let tunnel_places = entries_of(map::TUNNEL_TAKEN);
        settings.tunnel_mask = tunnel_places.saturating_sub(1);

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
        maps.prepare(tunnel_places..tunnel_places + entries_of(map::TUNNEL_SPARE))?;
        let capacity = Capacity {
            slots: entries_of(map::COUNTERS) * meter_ebpf::abi::SLOTS_PER_BLOCK,
            ports: usize::try_from(entries_of(map::PORTS)).unwrap_or(usize::MAX),
            members: usize::try_from(entries_of(map::MEMBERS)).unwrap_or(usize::MAX),
        };
        let ledger = Ledger::new(maps.port_records()?, maps.member_records()?, capacity);
        let attached = adopted(&ledger);
        Ok(Self { ebpf, maps, tunnel_places, ledger, attached, tc: options.tc, links, logger, _lock: lock })
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
            self.ledger.release(port_uuid(port), ifindex).map_or(Ok(()), |write| self.maps.write(&write))
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
        let tunnels = self.maps.tunnel_entries()?;
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
        let tunnel_use = tunnels::Use::of(&tunnels, self.tunnel_places);
        let usage = self.maps.usage(|name, capacity| match name {
            map::SLOTS => count(self.attached.range(..maps::SLOT_ENTRIES).count()),
            map::SLOTS_HIGH => count(self.attached.range(maps::SLOT_ENTRIES..).count()),
            map::COUNTERS => {
                count(self.ledger.slots_used()).div_ceil(u64::from(meter_ebpf::abi::SLOTS_PER_BLOCK))
            }
            map::PORTS => count(self.ledger.records().len()),
            map::MEMBERS => count(self.ledger.members()),
            map::TUNNELS => count(tunnel_use.hashed + tunnel_use.spare),
            map::TUNNEL_TAKEN => count(tunnel_use.hashed),
            map::TUNNEL_SPARE => u64::from(capacity).saturating_sub(count(tunnel_use.spare)),
            map::TUNNEL_COUNTERS => count(tunnel_use.blocks),
            _ => u64::from(capacity),
        });
        Ok(Reading {
            ports,
            devices,
            tunnels: tunnels::readings(&self.maps, tunnels, &self.ledger)?,
            buckets,
            faults: self.maps.faults()?,
            unbound: slots.counters(UNBOUND_SLOT),
            maps: usage,
        })
    }
}

impl KernelDatapath {}

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

/// Where the links are pinned.
pub(super) fn link_directory(pin_path: &Path) -> PathBuf {
    pin_path.join(format!("v{}", meter_ebpf::abi::VERSION)).join("links")
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
        Full::Slots => (
            "every slot is in use; raise datapath.max_netdevs and `meter-agent detach`, which ends all totals",
            "slots_full",
        ),
        Full::Ports => (
            "no room for another port; raise datapath.max_ports and `meter-agent detach`, which ends all totals",
            "ports_full",
        ),
        Full::Members => (
            "no room for another port of a device; raise datapath.max_ports and `meter-agent detach`, which ends all totals",
            "members_full",
        ),
        Full::Uplinks => (
            "63 netdevs are or were uplinks; name fewer in uplinks.netdevs and `meter-agent detach`, which ends all totals",
            "uplinks_full",
        ),
    };
    bind_error(target, why, reason)
}
