//! A datapath without a kernel: counts what a test sends, and fails when it is told to.

use std::collections::{BTreeMap, VecDeque};

use meter_ebpf::abi::{Direction, HookCounter, SlotCounters};

use super::{
    AttachError, Attachment, Datapath, HookKind, IngressHook, PortReading, ReadError, Reading, Retry, Target,
};
use crate::meter::PortId;

/// The fake. Its fields are what a test looks at and sets.
#[derive(Debug, Default)]
pub struct FakeDatapath {
    /// What is attached, by ifindex.
    pub attached: BTreeMap<u32, Attachment>,
    /// Every call that changed something, in order: `attach tap0`, `detach 3`.
    pub calls: Vec<String>,
    /// What the next attaches of a netdev end in, by its name; without an entry they succeed.
    pub attach_errors: BTreeMap<String, VecDeque<AttachError>>,
    /// Whether the next detaches fail.
    pub detach_fails: bool,
    /// Whether readings fail.
    pub read_fails: bool,
    totals: BTreeMap<PortId, PortReading>,
}

impl FakeDatapath {
    /// Makes one on which an earlier agent left this attached.
    pub fn adopting(attached: BTreeMap<u32, Attachment>) -> Self {
        Self { attached, ..Self::default() }
    }

    /// Lets a netdev receive frames; nobody counts them where it is not attached.
    pub fn receive(&mut self, ifindex: u32, packets: u64, bytes: u64) {
        let Some(attachment) = self.attached.get(&ifindex) else { return };
        if let Some(reading) = self.totals.get_mut(&attachment.target.port) {
            let counter = HookCounter { skb_packets: packets, skb_bytes: bytes, ..HookCounter::default() };
            reading.totals.hooks[Direction::Ingress as usize].add(&counter);
        }
    }
}

/// Makes an error for [`FakeDatapath::attach_errors`].
pub fn error(reason: &'static str, retry: Retry) -> AttachError {
    AttachError { message: format!("attach failed for {reason}"), reason, retry }
}

impl Datapath for FakeDatapath {
    fn attach(&mut self, target: &Target) -> Result<Attachment, AttachError> {
        self.calls.push(format!("attach {}", target.netdev));
        if let Some(error) = self.attach_errors.get_mut(&target.netdev).and_then(VecDeque::pop_front) {
            self.attached.remove(&target.ifindex);
            return Err(error);
        }
        let ingress = if target.ingress == IngressHook::Xdp { HookKind::Xdp } else { HookKind::Tcx };
        let attachment = Attachment { target: target.clone(), ingress, egress: HookKind::Tcx };
        self.attached.insert(target.ifindex, attachment.clone());
        let reading = self.totals.entry(target.port).or_insert_with(|| PortReading {
            port: target.port,
            class: target.class,
            ifindex: None,
            device: None,
            created_ns: 1,
            totals: SlotCounters::default(),
        });
        reading.ifindex = Some(target.ifindex);
        reading.device = target.device;
        Ok(attachment)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.calls.push(format!("detach {ifindex}"));
        if self.detach_fails {
            return Err(error("detach", Retry::Later));
        }
        if let Some(attachment) = self.attached.remove(&ifindex)
            && let Some(reading) = self.totals.get_mut(&attachment.target.port)
        {
            reading.ifindex = None;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Reading, ReadError> {
        if self.read_fails {
            return Err(ReadError { map: "COUNTERS", source: std::io::ErrorKind::OutOfMemory.into() });
        }
        Ok(Reading { ports: self.totals.values().cloned().collect(), ..Reading::default() })
    }
}
