//! The real datapath: loads the object, owns the pinned maps, attaches and reads.
//!
//! Maps and links stay pinned when the agent ends: counting goes on, and the next agent takes over what it finds.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader, programs::SchedClassifier};
use meter_ebpf::abi::{GENEVE_PORTS, Settings, VXLAN_PORTS, hooks as bits, map};
use nix::fcntl::Flock;

use super::{
    AttachError, Attachment, Class, Datapath, HookKind, Lost, MetersError, ReadError, Reading, Repairs,
    Target,
    bind::now_ns,
    connections::Connections,
    failure::{bind_error, describe, full_error},
    hook::load,
    hooks::{self, ProgramIds, Refused, Site, remove_qdisc},
    ledger::{Capacity, Ledger},
    maps::{self, Maps},
    meters::Meters,
    open::{check_kernel, load_error, lock, make_directory},
    pins,
    record::{adopted, hook_bits, reported_device},
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
use crate::{rules::MeterSet, totals::Totals};

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
    pub(super) attached: BTreeMap<u32, Attachment>,
    tc: TcMode,
    has_tcx: bool,
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
        let (released, left) =
            ledger.one_port_each(|ifindex| maps.slot(ifindex).map_or(0, |slot| slot.slot()));
        writes.extend(released);
        for write in writes {
            let failed = |source| OpenError::Write { map: map::PORTS, source };
            maps.write(&write).map_err(failed)?;
        }
        unrecorded::record(&mut maps, &mut ledger, &links, left);
        let attached = adopted(&ledger);
        let tc = options.tc;
        Ok(Self {
            ebpf,
            maps,
            tunnel_places,
            ledger,
            attached,
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

    /// Makes the hooks of a bound target what they should be, if they are not, and records them; `ours` says whether its
    /// clsact qdisc is.
    fn hang(
        &mut self,
        target: &Target,
        before: Option<&Attachment>,
        ours: bool,
    ) -> Result<[HookKind; 2], Refused> {
        let refused = |error| Refused { error, kept: before.is_some() };
        let kinds = hooks::kinds(target, self.tc, self.has_tcx).map_err(refused)?;
        let mut ours = ours;
        if before.is_some_and(|before| is_the_same(before, target, kinds)) {
            // The same programs: only the names or the counters are others.
            self.record(target, hook_bits(kinds, ours)).map_err(refused)?;
            return Ok(kinds);
        }
        let adds = kinds.contains(&HookKind::Clsact) && !hooks::has_clsact(target).map_err(refused)?;
        // The intention goes first: whoever comes after a crash knows what there may be to remove.
        let old = before.map_or(0, |before| hook_bits(before.kinds(), false));
        self.record(target, old | hook_bits(kinds, ours || adds)).map_err(refused)?;
        if adds {
            ours = hooks::add_clsact(target).map_err(refused)?;
        }
        let changed = hooks::change(
            &mut self.ebpf,
            Site { links: &self.links, meters: self.meters.on },
            target,
            kinds,
            before,
        );
        let in_use = kinds.contains(&HookKind::Clsact);
        if ours && ((!in_use && changed.is_ok()) || (adds && changed.is_err())) {
            remove_qdisc(target.ifindex);
            ours = false;
        }
        changed?;
        self.record(target, hook_bits(kinds, ours)).map_err(refused)?;
        Ok(kinds)
    }

    /// As [`Datapath::tend`], at this many seconds since the host was started.
    pub fn tend_at(&mut self, now: u32) {
        let in_use = self.meters.on && self.meters.asks_for_flow();
        self.connections.tend(now, in_use);
    }

    fn site(&self) -> Site<'_> {
        Site { links: &self.links, meters: self.meters.on }
    }

    /// Removes every hook of the netdev and the clsact qdisc where it is ours, as far as that is possible, after an
    /// attach that failed: that has an error to return already.
    fn let_go(&mut self, target: &Target, ours: bool) {
        for hook in hooks::both(target, self.site()) {
            if let Err(error) = hook.detach() {
                tracing::error!(error = %error, "detach failed");
            }
        }
        if ours {
            remove_qdisc(target.ifindex);
        }
        let before = self.attached.remove(&target.ifindex);
        if let Some(before) = before.filter(|before| before.target.port != target.port) {
            self.release(target.ifindex, before.target.port);
        }
        self.unbind(target.ifindex, target.port);
    }
}

impl Datapath for KernelDatapath {
    fn attached(&self) -> &BTreeMap<u32, Attachment> {
        &self.attached
    }

    fn attach(&mut self, target: &Target) -> Result<(), AttachError> {
        hooks::check_name(target)?;
        let carries_port = |other: &&Attachment| other.target.port == target.port;
        let others = self.attached.values().filter(carries_port).map(|other| other.target.ifindex);
        if let Some(other) = others.clone().find(|other| *other != target.ifindex) {
            // A port is on one netdev: its record has room for one, and so the next agent would know of one.
            self.detach(other)?;
        }
        let known = self.attached.get(&target.ifindex).cloned();
        let ours =
            known.as_ref().is_some_and(|known| self.recorded(known.target.port) & bits::CLSACT_OURS != 0);
        let bound = self.bind(target, known.as_ref());
        let (fits, lacks) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                self.let_go(target, ours);
                return Err(error);
            }
        };
        // Hooks that have vanished are nothing to go back to.
        let before = known.filter(|known| hooks::missing(known, self.site(), None).is_empty());
        match self.hang(&fits, before.as_ref(), ours) {
            Ok([ingress, egress]) => {
                let attachment = Attachment { target: fits, ingress, egress, lost: false };
                self.attached.insert(target.ifindex, attachment);
                lacks.map_or(Ok(()), Err)
            }
            Err(Refused { error, kept }) => {
                match before.filter(|_| kept) {
                    Some(before) => self.keep(before, &fits, ours),
                    None => self.let_go(target, ours),
                }
                Err(error)
            }
        }
    }

    fn exchange(&mut self, targets: &[Target]) -> Result<(), AttachError> {
        let moves: Vec<(Target, Attachment, u32)> = targets
            .iter()
            .filter_map(|target| {
                let before = self.attached.get(&target.ifindex)?;
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
                .set_slot(target.ifindex, claimed.slot)
                .map_err(|error| bind_error(&target, &describe(&error), "map_write"))?;
            let device = reported_device(claimed.device);
            let ifindex = target.ifindex;
            let is_other = before.target.class != target.class;
            self.attached.insert(ifindex, Attachment { target: Target { device, ..target }, ..before });
            if is_other {
                self.swap_programs_of(ifindex);
            }
        }
        Ok(())
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        let Some(attachment) = self.attached.get(&ifindex) else { return Ok(()) };
        let target = attachment.target.clone();
        for hook in hooks::both(&target, self.site()) {
            hook.detach()?;
        }
        if self.recorded(target.port) & bits::CLSACT_OURS != 0 {
            remove_qdisc(ifindex);
        }
        self.unbind(ifindex, target.port);
        self.attached.remove(&ifindex);
        Ok(())
    }

    fn verify(&mut self) -> Vec<Lost> {
        let mut all_lost = Vec::new();
        // What an earlier agent left has no name yet, and is attached anew anyway.
        let known = self.attached.values().filter(|known| !known.lost && !known.target.netdev.is_empty());
        for known in known.cloned().collect::<Vec<_>>() {
            let missing = hooks::missing(&known, self.site(), Some(&self.programs));
            if missing.is_empty() || !hooks::is_netdev(known.target.ifindex) {
                // A netdev that has gone took its hooks along.
                continue;
            }
            let target = &known.target;
            let filters = known.kinds().into_iter().filter(|kind| *kind == HookKind::Clsact).count();
            let absent = hooks::missing(&known, self.site(), None);
            if filters == absent.iter().filter(|(_, kind)| *kind == HookKind::Clsact).count() {
                // Where every filter of ours has gone, the qdisc has, and the one that is there may be another's.
                let hooks = self.recorded(target.port) & !bits::CLSACT_OURS;
                if let Err(error) = self.record(target, hooks) {
                    tracing::debug!(error = %error, "lost qdisc not recorded");
                }
            }
            let lost = |(direction, kind)| Lost { target: target.clone(), direction, kind };
            all_lost.extend(missing.into_iter().map(lost));
            self.attached.insert(target.ifindex, Attachment { lost: true, ..known.clone() });
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

impl KernelDatapath {
    /// Goes on with the hooks from before, for the port that the target has now.
    fn keep(&mut self, before: Attachment, target: &Target, ours: bool) {
        let target = before.with_port_of(target);
        if target.underlay
            && let Err(error) = self.bind(&target, None)
        {
            // Without an uplink's index its frames count, but not its tunnels.
            tracing::debug!(error = %error, "uplink not bound again");
        }
        if let Err(error) = self.record(&target, hook_bits(before.kinds(), ours)) {
            tracing::error!(error = %error, "hooks not recorded");
        }
        self.attached.insert(target.ifindex, Attachment { target, lost: false, ..before });
    }
}

/// Returns whether hooks that are there run the programs of the target already.
fn is_the_same(before: &Attachment, target: &Target, kinds: [HookKind; 2]) -> bool {
    !before.lost
        && !before.target.netdev.is_empty()
        && (before.target.class == Class::Port) == (target.class == Class::Port)
        && before.target.underlay == target.underlay
        && before.kinds() == kinds
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
