//! The real datapath: loads the object, owns the pinned maps, attaches and reads.
//!
//! Maps and links stay pinned when the agent ends: counting goes on, and the next agent takes over what it finds.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader, programs::SchedClassifier};
use meter_ebpf::abi::{GENEVE_PORTS, Settings, VXLAN_PORTS, map};
use nix::fcntl::Flock;

use super::{
    AttachError, Attachment, Datapath, HookKind, Lost, MetersError, ReadError, Reading, Repairs, Retry,
    Target,
    bind::now_ns,
    connections::Connections,
    failure::{bind_error, describe, full_error, netdev_error},
    hook::load,
    hooks::{self, ProgramIds, Site},
    ledger::{Capacity, Ledger},
    maps::{self, Maps},
    meters::Meters,
    namespaces::{self, Namespaces, Recipe},
    open::{check_kernel, load_error, lock, make_directory},
    pins,
    record::{adopted, reported_device},
    saved,
    slots::SlotTable,
    sys::{self, LinkPlace},
    unrecorded,
};
pub use super::{
    Options, TcMode,
    open::OpenError,
    remove::{Removed, remove_all},
};
use crate::{
    netdev::{
        NamespaceId, NetdevId,
        namespaces::{Entrance, Identity},
    },
    rules::MeterSet,
    totals::Totals,
};

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// Programs for TC; those for XDP are loaded when a netdev asks for them.
pub(super) const TC_PROGRAMS: [&str; 4] = ["meter_in", "meter_out", "meter_up_in", "meter_up_out"];
/// The same for ports while there are user-defined meters; they are loaded when there are.
pub(super) const METER_PROGRAMS: [&str; 4] =
    ["meter_user_in", "meter_user_out", "meter_user_uin", "meter_user_uout"];

/// The datapath in the kernel.
pub struct KernelDatapath {
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    /// Places that the tunnels' hashes lead to; behind them are the spare ones.
    pub(super) tunnel_places: u32,
    pub(super) ledger: Ledger,
    pub(super) attached: BTreeMap<NetdevId, Attachment>,
    /// The namespaces that are followed beside the host's own.
    pub(super) namespaces: Namespaces,
    pub(super) tc: TcMode,
    pub(super) has_tcx: bool,
    pub(super) programs: ProgramIds,
    pub(super) links: PathBuf,
    pub(super) meters: Meters,
    pub(super) connections: Connections,
    pub(super) repairs: Repairs,
    pub(super) logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
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
        Self::open_after(options, None)
    }

    /// As [`KernelDatapath::open`]; maps that are new get the totals that were written down before a reboot.
    ///
    /// # Errors
    ///
    /// Each says what is missing and what to do.
    pub fn open_after(options: &Options, state: Option<&Totals>) -> Result<Self, OpenError> {
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
        let settled = pins::settle(&mut specs, &options.pin_path, &links)?;
        let entries_of =
            |name: &str| specs.iter().find(|spec| spec.name == name).map_or(0, |spec| spec.max_entries);
        let mut settings = settings(options);
        let tunnel_places = entries_of(map::TUNNEL_TAKEN);
        settings.tunnel_mask = tunnel_places.saturating_sub(1);

        let slots_pin = map_pins.join(map::SLOTS);
        let slots =
            if slots_pin.exists() { SlotTable::open(&slots_pin) } else { SlotTable::make(&slots_pin) }?;
        let slot_bits = slots.bits();
        let pinned = Pinned { maps: &map_pins, slots: &slot_bits };
        let (mut ebpf, mut programs) = load_object(&specs, &settings, Some(&pinned))?;
        let logger = aya_log::EbpfLogger::init(&mut ebpf).ok();
        let has_tcx = has_tcx(&ebpf);

        let mut maps = Maps::take(&mut ebpf, &specs, slots)?;
        maps.places = namespaces::places(&map_pins)?;
        let spare_places = entries_of(map::TUNNEL_SPARE);
        let mut lost = settled.lost;
        if let Some(state) = state
            && maps.are_new()?
            && saved::is_untouched(&maps.port_records()?)
        {
            let places = (tunnel_places, tunnel_places + spare_places);
            match saved::restore(&mut maps, state, &map_pins, places) {
                Ok(()) => {
                    let (ports, tunnels) = (state.ports.len(), state.tunnels.len());
                    tracing::info!(ports, tunnels, "totals from before the reboot");
                }
                Err(error) => {
                    tracing::error!(error = %error, "totals from before the reboot are not all there");
                }
            }
            lost.clear();
        }
        let connections = Connections::take(&mut ebpf, entries_of(map::CONNECTION_FREE))?;
        let meters = Meters::take(&mut ebpf)?;
        if meters.on {
            load_programs(&mut ebpf, &METER_PROGRAMS, &mut programs)?;
        }
        maps.prepare(tunnel_places..tunnel_places + spare_places)?;
        let capacity = Capacity {
            slots: entries_of(map::COUNTERS) * meter_ebpf::abi::SLOTS_PER_BLOCK,
            ports: usize::try_from(entries_of(map::PORTS)).unwrap_or(usize::MAX),
            members: usize::try_from(entries_of(map::MEMBERS)).unwrap_or(usize::MAX),
        };
        let mut ledger = Ledger::new(maps.port_records()?, maps.member_records()?, capacity);
        let mut writes = Vec::new();
        if lost.contains(map::COUNTERS) {
            writes.extend(ledger.counters_lost(now_ns()));
        }
        if lost.contains(map::MEMBERS) {
            writes.extend(ledger.members_lost());
        }
        let (released, left) = ledger.one_port_each(|netdev| maps.slot(netdev).map_or(0, |slot| slot.slot()));
        writes.extend(released);
        for write in writes {
            let failed = |source| OpenError::Write { map: map::PORTS, source };
            maps.write(&write).map_err(failed)?;
        }
        unrecorded::record(&mut maps, &mut ledger, &links, left);
        namespaces::settle(&mut maps, &mut ledger, &links)?;
        let attached = adopted(&ledger);
        let namespaces = Namespaces::new(Recipe { specs, settings, map_pins });
        let tc = options.tc;
        Ok(Self {
            ebpf,
            maps,
            tunnel_places,
            ledger,
            attached,
            namespaces,
            tc,
            has_tcx,
            programs,
            links,
            meters,
            connections,
            repairs: settled.repairs,
            logger,
            _lock: lock,
        })
    }

    /// As [`Datapath::tend`], at this many seconds since the host was started.
    pub fn tend_at(&mut self, now: u32) {
        let in_use = self.meters.on && self.meters.asks_for_flow();
        self.connections.tend(now, in_use);
    }

    /// Returns what all hooks have in common.
    pub(super) fn site(&self) -> Site<'_> {
        Site { links: &self.links, meters: self.meters.on }
    }
}

impl Datapath for KernelDatapath {
    fn attached(&self) -> &BTreeMap<NetdevId, Attachment> {
        &self.attached
    }

    fn enter(&mut self, identity: Identity, entrance: Entrance) -> Result<NamespaceId, AttachError> {
        self.enter_namespace(identity, entrance)
    }

    fn leave(&mut self, namespace: NamespaceId) {
        self.leave_namespace(namespace);
    }

    fn attach(&mut self, target: &Target) -> Result<(), AttachError> {
        let gone = || netdev_error(target, "its namespace is gone", "gone", Retry::Gone);
        self.within(target, |_| hooks::check_name(target))?.ok_or_else(gone)??;
        let carries_port = |other: &&Attachment| other.target.port == target.port;
        let others = self.attached.values().filter(carries_port).map(|other| other.target.id);
        if let Some(other) = others.clone().find(|other| *other != target.id) {
            // A port is on one netdev: its record has room for one, and so the next agent would know of one.
            self.detach(other)?;
        }
        self.prepare(target)?;
        self.within(target, |this| this.attach_here(target))?.ok_or_else(gone)?
    }

    fn exchange(&mut self, targets: &[Target]) -> Result<(), AttachError> {
        let moves: Vec<(Target, Attachment, u32)> = targets
            .iter()
            .filter_map(|target| {
                let before = self.attached.get(&target.id)?;
                let hooks = self.recorded(before.target.port);
                Some((before.with_port_of(target), before.clone(), hooks))
            })
            .collect();
        for (target, before, hooks) in moves {
            let claimed = self.claim(&target)?.map_err(|full| full_error(&target, full))?;
            self.write(&target, &claimed.writes)?;
            self.record(&target, hooks)?;
            self.meter_ports_changed();
            self.maps
                .set_slot(target.id, claimed.slot)
                .map_err(|error| bind_error(&target, &describe(&error), "map_write"))?;
            let device = reported_device(claimed.device);
            let id = target.id;
            let is_other = before.target.class != target.class;
            self.attached.insert(id, Attachment { target: Target { device, ..target }, ..before });
            if is_other {
                self.swap_programs_of(id);
            }
        }
        Ok(())
    }

    fn detach(&mut self, id: NetdevId) -> Result<(), AttachError> {
        let Some(attachment) = self.attached.get(&id) else { return Ok(()) };
        let target = attachment.target.clone();
        let recorded = self.recorded(target.port);
        // A link goes with its pin, wherever it hangs. Only for a filter its namespace has to be entered.
        let by_links = attachment.kinds() == [HookKind::Tcx; 2];
        let is_elsewhere = id.namespace != NamespaceId::HOST;
        let is_done = !(is_elsewhere && by_links)
            && self.within(&target, |this| this.detach_here(&target, recorded))?.transpose()?.is_some();
        if !is_done {
            // The namespace took its filters along.
            hooks::both(&target, self.site()).into_iter().try_for_each(|hook| hook.unpin())?;
        }
        self.unbind(id, target.port);
        self.attached.remove(&id);
        Ok(())
    }

    fn verify(&mut self) -> Vec<Lost> {
        let mut all_lost = Vec::new();
        // What an earlier agent left has no name yet, and is attached anew anyway.
        let known = self.attached.values().filter(|known| !known.lost && !known.target.netdev.is_empty());
        let known: Vec<Attachment> = known.cloned().collect();
        for known in known.chunk_by(|one, next| one.target.id.namespace == next.target.id.namespace) {
            let Some(first) = known.first() else { continue };
            match self.within(&first.target, |this| this.verify_here(known)) {
                Ok(lost) => all_lost.extend(lost.unwrap_or_default()),
                Err(error) => tracing::debug!(error = %error, "hooks not looked at"),
            }
        }
        all_lost
    }

    fn tend(&mut self) {
        self.tend_at(uptime_s());
    }

    fn set_meters(&mut self, meters: &MeterSet) -> Result<(), MetersError> {
        self.change_meters(meters)
    }

    fn totals(&mut self) -> Result<Totals, ReadError> {
        self.saved()
    }

    fn read(&mut self) -> Result<Reading, ReadError> {
        self.read_all()
    }
}

/// Asks the kernel for a TCX link on no netdev: it complains of TCX first where it has none.
pub(super) fn has_tcx(ebpf: &Ebpf) -> bool {
    let program: Option<&SchedClassifier> =
        ebpf.program("meter_in").and_then(|program| program.try_into().ok());
    let Some(program) = program.and_then(|program| program.fd().ok()) else { return false };
    let answer = sys::create_link(program.as_fd(), 0, LinkPlace::TcxIngress);
    answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// Returns the seconds since the host was started.
fn uptime_s() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.ok().and_then(|now| u32::try_from(now.tv_sec()).ok()).unwrap_or_default()
}

/// Where maps are pinned, and what one of them holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pinned<'a> {
    maps: &'a Path,
    /// What `SLOTS` holds. aya writes the sections of an object whenever it loads it, also into maps that are there
    /// already, so it has to write what is there: programs go on reading it.
    slots: &'a [u64],
}

/// Makes the maps and loads the TC programs. The maps are those that are pinned, or pinned there; without that they go
/// with what is returned.
pub(super) fn load_object(
    specs: &[maps::Spec],
    settings: &Settings,
    pinned: Option<&Pinned<'_>>,
) -> Result<(Ebpf, ProgramIds), OpenError> {
    let mut loader = EbpfLoader::new();
    for spec in specs {
        let name = if spec.name == map::SLOTS { map::SLOTS_SECTION } else { spec.name };
        loader.map_max_entries(name, spec.max_entries);
        if let Some(pinned) = pinned {
            loader.map_pin_path(name, pinned.maps.join(spec.name));
        }
    }
    if let Some(pinned) = pinned {
        loader.override_global(map::SLOTS, pinned.slots, true);
    }
    loader.override_global("SETTINGS", settings, true);
    let mut ebpf = loader.load(OBJECT).map_err(|error| load_error("make the maps", &error))?;
    let mut programs = ProgramIds::new();
    load_programs(&mut ebpf, &TC_PROGRAMS, &mut programs)?;
    Ok((ebpf, programs))
}

/// Loads TC programs, those that aren't yet.
pub(super) fn load_programs(
    ebpf: &mut Ebpf,
    names: &[&'static str],
    programs: &mut ProgramIds,
) -> Result<(), OpenError> {
    for name in names.iter().copied().filter(|name| !programs.contains_key(name)).collect::<Vec<_>>() {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| OpenError::Object(format!("program {name} is missing")))?;
        let failed = |error| load_error(&format!("load program {name}"), &error);
        load(|| program.load()).map_err(failed)?;
        programs.insert(name, program.info().map_err(failed)?.id());
    }
    Ok(())
}

pub(super) fn settings(options: &Options) -> Settings {
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
