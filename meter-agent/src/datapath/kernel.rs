//! The real datapath: loads the object, owns the pinned maps, attaches and reads.
//!
//! Maps and links stay pinned when the agent ends: counting goes on, and the next agent takes over what it finds.

use std::{collections::BTreeMap, os::fd::OwnedFd, path::PathBuf};

use aya::Ebpf;
use meter_ebpf::abi::hooks as bits;
use nix::fcntl::Flock;

use super::{
    AttachError, Attachment, Class, Datapath, HookKind, Lost, MetersError, ReadError, Reading, Repairs,
    Target,
    connections::Connections,
    failure::{bind_error, describe, full_error},
    grace::Grace,
    hooks::{self, ProgramIds, Refused, Site, remove_qdisc},
    ledger::Ledger,
    maps::Maps,
    meters::Meters,
    record::{hook_bits, reported_device},
};
pub use super::{
    Options, TcMode,
    object::OBJECT,
    open::OpenError,
    remove::{Removed, remove_all},
    takeover::Before,
};
use crate::{rules::MeterSet, totals::Totals};

/// The datapath in the kernel.
pub struct KernelDatapath {
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    /// Places that the tunnels' hashes lead to; behind them are the spare ones.
    pub(super) tunnel_places: u32,
    pub(super) ledger: Ledger,
    pub(super) attached: BTreeMap<u32, Attachment>,
    pub(super) tc: TcMode,
    pub(super) has_tcx: bool,
    pub(super) programs: ProgramIds,
    pub(super) links: PathBuf,
    pub(super) meters: Meters,
    pub(super) grace: Grace,
    pub(super) connections: Connections,
    pub(super) repairs: Repairs,
    pub(super) logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    /// Held while the agent lives: nobody else writes to the maps.
    pub(super) _lock: Flock<OwnedFd>,
}

impl std::fmt::Debug for KernelDatapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelDatapath").field("links", &self.links).finish_non_exhaustive()
    }
}

impl KernelDatapath {
    /// Returns how many totals from before there was no room for.
    #[must_use]
    pub const fn unrestored(&self) -> u64 {
        self.repairs.unrestored
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

    fn prepare(&mut self, targets: &[Target]) {
        self.prepare_meters(targets);
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

    fn meters_in_force(&self) -> bool {
        self.meters_are_in_force()
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

/// Returns the seconds since the host was started.
fn uptime_s() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.ok().and_then(|now| u32::try_from(now.tv_sec()).ok()).unwrap_or_default()
}
