//! Which counters a netdev feeds: its port's record, and the one word that points its programs at them.

use std::time::SystemTime;

use meter_ebpf::abi::SlotRef;

use super::{
    AttachError, Attachment, Target,
    failure::{bind_error, describe, full_error},
    kernel::KernelDatapath,
    ledger::{Claim, Claimed, Full, Write},
    maps::LiveSlots,
    record::{class_number, device_uuid, port_uuid, reported_device},
};
use crate::{meter::PortId, netdev::NetdevId};

impl KernelDatapath {
    /// Gives the port its counters and points the netdev at them, in one write: a frame counts for the port from before
    /// or for this one. Returns the target as far as there is room for it, and what there is none for.
    pub(super) fn bind(
        &mut self,
        target: &Target,
        before: Option<&Attachment>,
    ) -> Result<(Target, Option<AttachError>), AttachError> {
        let from = before.map(|before| before.target.port).filter(|port| *port != target.port);
        let claimed = match (self.claim(target)?, from) {
            (Err(Full::Slots), Some(port)) => {
                // The slot that it leaves is the last one. Until it is bound again its frames are nobody's.
                self.unbind(target.id, port);
                self.claim(target)?
            }
            (claimed, _) => claimed,
        };
        let claimed = claimed.map_err(|full| full_error(target, full))?;
        self.meters_expect_no_more(target);
        self.ports_of_rules_changed();
        self.maps
            .set_network(claimed.slot.slot(), target.network)
            .and_then(|()| self.maps.set_slot(target.id, claimed.slot))
            .map_err(|error| bind_error(target, &describe(&error), "map_write"))?;
        if let Some(port) = from {
            self.release(target.id, port);
        }
        let fits =
            Target { underlay: claimed.underlay, device: reported_device(claimed.device), ..target.clone() };
        Ok((fits, claimed.lacks.first().map(|full| full_error(target, *full))))
    }

    /// Gives the port its counters, and remembers that.
    pub(super) fn claim(&mut self, target: &Target) -> Result<Result<Claimed, Full>, AttachError> {
        let claim = Claim {
            port: port_uuid(target.port),
            class: class_number(target.class),
            netdev: target.id,
            device: device_uuid(target.device),
            underlay: target.underlay,
        };
        let live = LiveSlots::new(&self.maps, &self.grace);
        let claimed = self.ledger.claim(&claim, now_ns(), &live);
        live.into_result().map_err(|error| bind_error(target, &error.to_string(), "read"))?;
        if let Ok(claimed) = &claimed {
            self.write(target, &claimed.writes)?;
            self.ledger.take_up(claimed);
            self.capture_port(claim.port);
        }
        Ok(claimed)
    }

    pub(super) fn write(&mut self, target: &Target, writes: &[Write]) -> Result<(), AttachError> {
        writes.iter().try_for_each(|write| {
            self.maps.write(write).map_err(|error| bind_error(target, &describe(&error), "map_write"))
        })
    }

    /// Takes the netdev away from its port. The port keeps its totals.
    pub(super) fn unbind(&mut self, id: NetdevId, port: PortId) {
        if let Err(error) = self.maps.set_slot(id, SlotRef::UNBOUND) {
            tracing::error!(netdev = %id, port = %port, error = %describe(&error), "netdev not unbound");
        }
        self.release(id, port);
    }

    /// Remembers that the netdev does not carry the port any more.
    pub(super) fn release(&mut self, id: NetdevId, port: PortId) {
        let write = self.ledger.release(port_uuid(port), id);
        if let Some(Err(error)) = write.map(|write| self.maps.write(&write)) {
            tracing::error!(netdev = %id, port = %port, error = %describe(&error), "release failed");
        }
    }

    /// Remembers how the port's netdev is attached.
    pub(super) fn record(&mut self, target: &Target, hooks: u32) -> Result<(), AttachError> {
        let write = self.ledger.set_hooks(port_uuid(target.port), hooks);
        self.write(target, write.as_slice())
    }

    /// Returns what is remembered of how the netdev that carries the port is attached.
    pub(super) fn recorded(&self, port: PortId) -> u32 {
        self.ledger.records().get(&port_uuid(port)).map_or(0, |record| record.hooks)
    }
}

/// Nanoseconds since the Unix epoch.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
