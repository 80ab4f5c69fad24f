//! What the datapath does to netdevs of the calling thread's network namespace: attach, detach, look.

use meter_ebpf::abi::hooks as bits;

use super::{
    AttachError, Attachment, Class, HookKind, Lost, Target,
    hooks::{self, Refused, Site, remove_qdisc},
    kernel::KernelDatapath,
    namespaces::loaded,
    record::hook_bits,
};
use crate::netdev::NamespaceId;

impl KernelDatapath {
    /// Attaches a netdev of the calling thread's namespace; `prepared` says whether what its namespace takes is there.
    pub(super) fn attach_here(
        &mut self,
        target: &Target,
        prepared: Result<(), AttachError>,
    ) -> Result<(), AttachError> {
        let known = self.attached.get(&target.id).cloned();
        let ours =
            known.as_ref().is_some_and(|known| self.recorded(known.target.port) & bits::CLSACT_OURS != 0);
        // Hooks that have vanished are nothing to go back to.
        let before = known.clone().filter(|known| hooks::missing(known, self.site(), None).is_empty());
        // The verifier is asked before anything is written down that a refusal, or a crash meanwhile, would make untrue.
        let provided = prepared.and_then(|()| self.provide(target));
        let wanted = match (&provided, &before) {
            (Ok(_), _) => target.clone(),
            (Err(_), Some(before)) => before.on_to(target),
            (Err(_), None) => {
                if known.is_some() {
                    self.let_go(target, ours);
                }
                return provided;
            }
        };
        let bound = self.bind(&wanted, known.as_ref());
        let (fits, lacks) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                self.let_go(target, ours);
                return Err(error);
            }
        };
        let hung = provided
            .map_err(|error| Refused { error, kept: before.is_some() })
            .and_then(|()| self.hang(&fits, before.as_ref(), ours));
        match hung {
            Ok(kinds) => {
                self.attached.insert(target.id, Attachment::new(fits, kinds));
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

    /// Removes the hooks of a netdev of the calling thread's namespace, and the clsact qdisc where it is `recorded` as ours.
    pub(super) fn detach_here(&self, target: &Target, recorded: u32) -> Result<(), AttachError> {
        hooks::both(target, self.site()).into_iter().try_for_each(|hook| hook.detach())?;
        if recorded & bits::CLSACT_OURS != 0 {
            remove_qdisc(target.id.ifindex);
        }
        Ok(())
    }

    /// Looks at the hooks of netdevs of the calling thread's namespace.
    pub(super) fn verify_here(&mut self, known: &[Attachment]) -> Vec<Lost> {
        let mut all_lost = Vec::new();
        for known in known {
            let ids = match known.target.id.namespace {
                NamespaceId::HOST => &self.programs,
                namespace => &self.namespaces.programs(namespace).ids,
            };
            let missing = hooks::missing(known, self.site(), (!known.earlier).then_some(ids));
            if missing.is_empty() || !hooks::is_netdev(known.target.id.ifindex) {
                // A netdev that has gone took its hooks along.
                continue;
            }
            let target = &known.target;
            let filters = known.kinds().into_iter().filter(|kind| *kind == HookKind::Clsact).count();
            let absent = hooks::missing(known, self.site(), None);
            if filters == absent.iter().filter(|(_, kind)| *kind == HookKind::Clsact).count() {
                // Where every filter of ours has gone, the qdisc has, and the one that is there may be another's.
                let hooks = self.recorded(target.port) & !bits::CLSACT_OURS;
                if let Err(error) = self.record(target, hooks) {
                    tracing::debug!(error = %error, "lost qdisc not recorded");
                }
            }
            let lost = |(direction, kind)| Lost { target: target.clone(), direction, kind };
            all_lost.extend(missing.into_iter().map(lost));
            self.attached.insert(target.id, Attachment { lost: true, ..known.clone() });
        }
        all_lost
    }

    /// Goes on with the hooks from before, for the port that the target is bound to now.
    fn keep(&mut self, before: Attachment, bound: &Target, ours: bool) {
        let target = before.on_to(bound);
        // Programs that count connections, or don't, for one port and not for the other are to be changed still; and so are those
        // that were.
        let lost = before.lost || self.captures.wants(before.target.port) != self.captures.wants(target.port);
        if (target.class, target.underlay) != (bound.class, bound.underlay)
            && let Err(error) = self.bind(&target, None)
        {
            // Without an uplink's index its frames count, but not its tunnels.
            tracing::debug!(error = %error, "not bound again as what it was");
        }
        if let Err(error) = self.record(&target, hook_bits(before.kinds(), ours)) {
            tracing::error!(error = %error, "hooks not recorded");
        }
        self.attached.insert(target.id, Attachment { target, lost, ..before });
    }

    /// Has the programs loaded that the hooks of a target take.
    fn provide(&mut self, target: &Target) -> Result<(), AttachError> {
        let kinds = hooks::kinds(target, self.tc, self.has_tcx)?;
        let mut loaded = loaded(&mut self.ebpf, &mut self.programs, &self.namespaces, target);
        let site =
            Site { links: &self.links, meters: self.meters.on, captured: &self.captures.wanted().ports };
        let mut hooks = hooks::both(target, site).into_iter().zip(kinds);
        hooks.try_for_each(|(hook, kind)| hook.provide(&mut loaded, kind))
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
        if before.is_some_and(|before| self.is_the_same(before, target, kinds)) {
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
        self.links.set_qdisc(target.id, ours);
        let mut loaded = loaded(&mut self.ebpf, &mut self.programs, &self.namespaces, target);
        let site =
            Site { links: &self.links, meters: self.meters.on, captured: &self.captures.wanted().ports };
        let changed = hooks::change(&mut loaded, site, target, kinds, before);
        let in_use = kinds.contains(&HookKind::Clsact);
        if ours && ((!in_use && changed.is_ok()) || (adds && changed.is_err())) {
            remove_qdisc(target.id.ifindex);
            ours = false;
        }
        changed?;
        self.record(target, hook_bits(kinds, ours)).map_err(refused)?;
        Ok(kinds)
    }

    /// Returns whether hooks that are there run the programs of the target already.
    fn is_the_same(&self, before: &Attachment, target: &Target, kinds: [HookKind; 2]) -> bool {
        !before.is_stale()
            && (before.target.class == Class::Uplink) == (target.class == Class::Uplink)
            && before.target.underlay == target.underlay
            && self.captures.wants(before.target.port) == self.captures.wants(target.port)
            && before.kinds() == kinds
    }

    /// Removes every hook of the netdev and the clsact qdisc where it is ours, as far as that is possible, after an
    /// attach that failed: that has an error to return already.
    fn let_go(&mut self, target: &Target, ours: bool) {
        let mut fails = false;
        for hook in hooks::both(target, self.site()) {
            if let Err(error) = hook.detach() {
                tracing::error!(error = %error, "detach failed");
                fails = true;
            }
        }
        if fails {
            self.kept.doubt(target.id.namespace);
        }
        if ours {
            remove_qdisc(target.id.ifindex);
        }
        self.links.set_qdisc(target.id, false);
        let before = self.attached.remove(&target.id);
        if let Some(before) = before.filter(|before| before.target.port != target.port) {
            self.release(target.id, before.target.port);
        }
        self.unbind(target.id, target.port);
    }
}
