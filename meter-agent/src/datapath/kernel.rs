//! The real datapath: loads the object, owns the pinned maps, attaches and reads.
//!
//! Maps and links stay pinned when the agent ends: counting goes on, and the next agent takes over what it finds. Where
//! nothing can be pinned both end with the agent (`unpinned`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use aya::Ebpf;

use super::{
    AttachError, Attachment, Capture, Datapath, HookKind, Lost, MetersError, ReadError, Reading, Repairs,
    Retry, Target,
    admission::Admission,
    captures::Captures,
    connections::{Connections, InUse},
    failure::{bind_error, describe, full_error, netdev_error},
    grace::Grace,
    home::Home,
    hooks::{self, ProgramIds, Site},
    ledger::Ledger,
    links::Links,
    maps::Maps,
    meters::Meters,
    namespaces::Namespaces,
    numbers::Kept,
    object::load_programs,
    record::reported_device,
};
pub use super::{
    Options, TcMode,
    object::OBJECT,
    open::OpenError,
    remove::{Removed, remove_all},
    sys::keep_no_big_blocks,
    takeover::Before,
    work::Work,
};
use crate::{
    meter::PortId,
    netdev::{
        NamespaceId, NetdevId,
        namespaces::{Entrance, Identity},
    },
    rules::MeterSet,
    totals::Totals,
};

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
    /// Numbers of namespaces that nobody may have yet.
    pub(super) kept: Kept,
    pub(super) tc: TcMode,
    pub(super) has_tcx: bool,
    pub(super) programs: ProgramIds,
    pub(super) links: Links,
    pub(super) meters: Meters,
    pub(super) grace: Grace,
    pub(super) connections: Connections,
    pub(super) captures: Captures,
    pub(super) admission: Admission,
    pub(super) repairs: Repairs,
    pub(super) logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    pub(super) pin_path: PathBuf,
    pub(super) home: Home,
    pub(super) work: Work,
}

impl std::fmt::Debug for KernelDatapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelDatapath").field("links", &self.links).finish_non_exhaustive()
    }
}

impl KernelDatapath {
    /// Returns what tells from another thread whether this goes on.
    #[must_use]
    pub fn work(&self) -> Work {
        self.work.clone()
    }

    /// Returns how many totals from before there was no room for.
    #[must_use]
    pub const fn unrestored(&self) -> u64 {
        self.repairs.unrestored
    }

    /// Detaches everything where nothing is pinned: what the kernel would keep counts for nobody then. The totals are as
    /// they were, and final.
    pub fn end(&mut self) {
        if self.unpinned().is_none() {
            return;
        }
        let attached: Vec<NetdevId> = self.attached.keys().copied().collect();
        for id in attached {
            if let Err(error) = self.detach(id) {
                tracing::error!(error = %error, "hook not removed; the next agent removes it");
            }
        }
    }

    /// As [`Datapath::tend`], at this many seconds since the host was started.
    pub fn tend_at(&mut self, now: u32) {
        let flow = self.meters.on && self.meters.asks_for_flow();
        let in_use = InUse { flow, capture: !self.captures.wanted().ports.is_empty() };
        let Self { connections, captures, grace, .. } = self;
        connections.tend(now, in_use, captures, || grace.wait());
    }

    /// Loads the programs that the host's attached netdevs are to run.
    pub(super) fn load_taken(&mut self) -> Result<(), OpenError> {
        let names: BTreeSet<&'static str> = self.programs_at(self.site()).collect();
        load_programs(&mut self.ebpf, names, &mut self.programs)
    }

    /// Loads these programs, and those that others of the host's attached netdevs change to beside such meters and with the
    /// connections of these ports counted, before any of them changes. What a netdev takes that comes later is loaded with
    /// it; what runs on as it is need not be loaded.
    pub(super) fn load_changed(
        &mut self,
        programs: impl IntoIterator<Item = &'static str>,
        meters: bool,
        captured: &BTreeSet<PortId>,
    ) -> Result<(), OpenError> {
        let will_be = self.programs_at(Site { links: &self.links, meters, captured });
        let changed = will_be.zip(self.programs_at(self.site())).filter(|(will_be, is)| will_be != is);
        let changed = changed.map(|(will_be, _)| will_be);
        let names: BTreeSet<&'static str> = programs.into_iter().chain(changed).collect();
        load_programs(&mut self.ebpf, names, &mut self.programs)
    }

    /// Returns the program of each of TC's hooks of the host's attached netdevs, in one order.
    fn programs_at<'a>(&'a self, site: Site<'a>) -> impl Iterator<Item = &'static str> + 'a {
        let here = self.attached.values().filter(|known| known.target.id.namespace == NamespaceId::HOST);
        here.flat_map(move |known| {
            let hooks = hooks::both(&known.target, site).into_iter();
            hooks.filter(|hook| known.kind(hook.direction) != HookKind::Xdp).map(|hook| hook.program_name())
        })
    }

    /// Returns what all hooks have in common.
    pub(super) fn site(&self) -> Site<'_> {
        Site { links: &self.links, meters: self.meters.on, captured: &self.captures.wanted().ports }
    }
}

impl Datapath for KernelDatapath {
    fn attached(&self) -> &BTreeMap<NetdevId, Attachment> {
        &self.attached
    }

    fn unpinned(&self) -> Option<&str> {
        self.home.unpinned()
    }

    fn prepare(&mut self, targets: &[Target]) {
        self.prepare_rules(targets);
    }

    fn enter(&mut self, identity: Identity, entrance: Entrance) -> Result<NamespaceId, AttachError> {
        self.enter_namespace(identity, entrance)
    }

    fn leave(&mut self, namespace: NamespaceId) {
        self.leave_namespace(namespace);
    }

    fn attach(&mut self, target: &Target) -> Result<(), AttachError> {
        self.work.step();
        let gone = || netdev_error(target, "its namespace is gone", "gone", Retry::Gone);
        self.within(target, |_| hooks::check_name(target))?.ok_or_else(gone)??;
        let carries_port = |other: &&Attachment| other.target.port == target.port;
        let others = self.attached.values().filter(carries_port).map(|other| other.target.id);
        if let Some(other) = others.clone().find(|other| *other != target.id) {
            // A port is on one netdev: its record has room for one, and so the next agent would know of one.
            self.detach(other)?;
        }
        let prepared = self.prepare_programs(target);
        self.within(target, |this| this.attach_here(target, prepared))?.ok_or_else(gone)?
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
            self.record(&target, hooks)?;
            self.ports_of_rules_changed();
            self.maps
                .set_network(claimed.slot.slot(), target.network)
                .and_then(|()| self.maps.set_slot(target.id, claimed.slot))
                .map_err(|error| bind_error(&target, &describe(&error), "map_write"))?;
            let device = reported_device(claimed.device);
            let id = target.id;
            let is_other = before.target.class != target.class
                || self.captures.wants(before.target.port) != self.captures.wants(target.port);
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
            hooks::both(&target, self.site()).into_iter().try_for_each(|hook| hook.unlink())?;
        }
        if !is_done && !by_links {
            // The namespace took its filters along, or lives on where it can't be found.
            self.kept.doubt(id.namespace);
        }
        self.links.set_qdisc(id, false);
        self.unbind(id, target.port);
        self.attached.remove(&id);
        Ok(())
    }

    fn verify(&mut self) -> Vec<Lost> {
        let mut all_lost = Vec::new();
        // What an earlier agent left has no name until something is attached in its place, which is soon.
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
        self.tend_numbers();
    }

    fn set_meters(&mut self, meters: &MeterSet) -> Result<(), MetersError> {
        self.change_meters(meters)
    }

    fn set_capture(&mut self, capture: &Capture) -> Result<(), MetersError> {
        self.change_capture(capture)
    }

    fn meters_in_force(&self) -> bool {
        self.meters_are_in_force()
    }

    fn capture_in_force(&self) -> bool {
        self.admission.is_as(&self.captures.wanted().rules)
    }

    fn totals(&mut self) -> Result<Totals, ReadError> {
        self.saved()
    }

    fn read(&mut self) -> Result<Reading, ReadError> {
        self.read_all()
    }
}

/// Returns the seconds since the host was started.
pub(super) fn uptime_s() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.ok().and_then(|now| u32::try_from(now.tv_sec()).ok()).unwrap_or_default()
}
