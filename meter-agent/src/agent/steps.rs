//! The steps that make the hooks what they should be, one at a time.

use super::Agent;
use crate::{
    datapath::{AttachError, Datapath, Retry, Target},
    netdev::NetdevId,
    reconcile::Step,
};

impl<D: Datapath> Agent<D> {
    /// Takes a step. One that fails stays wanted, and is tried again later.
    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Exchange(targets) => self.exchange(targets),
            // Not before what it had under this number is put away.
            Step::Attach(target) if self.gone.contains(&target.id) => {}
            Step::Attach(target) => self.attach(target),
            Step::Detach { id } => self.detach(id),
        }
        self.health.attach_pending = self.pending();
    }

    fn exchange(&mut self, targets: Vec<Target>) {
        match self.datapath.exchange(&targets) {
            Ok(()) => {
                for target in targets {
                    self.attaches.began(target.id);
                    let Target { netdev, id, netns, port, .. } = target;
                    tracing::info!(netdev = %netdev, netns, ifindex = id.ifindex, port = %port, "exchanged ports");
                    self.failures.attached(id);
                }
            }
            Err(error) => targets.into_iter().for_each(|target| self.failed(target, error.clone(), None)),
        }
    }

    fn attach(&mut self, target: Target) {
        let before = self.datapath.attached().get(&target.id).cloned();
        let attached = self.datapath.attach(&target);
        if let Some(is) = self.datapath.attached().get(&target.id) {
            self.attaches.attached(before.as_ref(), is);
        }
        match attached {
            Ok(()) => {
                self.failures.attached(target.id);
                self.failures.detached(target.id);
                let is = self.datapath.attached().get(&target.id);
                tracing::info!(
                    netdev = %target.netdev,
                    netns = target.netns,
                    ifindex = target.id.ifindex,
                    port = %target.port,
                    class = target.class.name(),
                    ingress = is.map(|is| is.ingress.name()),
                    egress = is.map(|is| is.egress.name()),
                    "attached"
                );
            }
            Err(error) => {
                let is = self.datapath.attached().get(&target.id).map(|is| is.target.clone());
                let was = || before.map(|before| before.on_to(&target));
                let instead = is.or_else(was);
                self.failed(target, error, instead);
            }
        }
    }

    fn failed(&mut self, target: Target, error: AttachError, instead: Option<Target>) {
        *self.health.attach_failures.entry(error.reason).or_default() += 1;
        if error.retry == Retry::Gone {
            tracing::debug!(netdev = %target.id, error = %error, "netdev went while it was attached");
        }
        // What it is to be instead may take another step.
        self.stale |= self.failures.failed(target, error, instead);
    }

    fn detach(&mut self, id: NetdevId) {
        let is = self.datapath.attached().get(&id).map(|is| is.target.clone());
        match self.datapath.detach(id) {
            Ok(()) => {
                if let Some(Target { netdev, netns, port, .. }) = is {
                    tracing::info!(netdev = %netdev, netns, ifindex = id.ifindex, port = %port, "detached");
                }
                self.gone.remove(&id);
                self.attaches.detached(id);
                self.failures.forget(id);
                self.failures.detached(id);
            }
            Err(error) => {
                *self.health.attach_failures.entry(error.reason).or_default() += 1;
                self.failures.detach_failed(id, error);
            }
        }
    }
}
