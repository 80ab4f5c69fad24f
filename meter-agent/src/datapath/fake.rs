//! A datapath without a kernel: counts what a test sends, and fails when it is told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meter_ebpf::abi::{Direction, HookCounter, SlotCounters};

use uuid::Uuid;

use super::{
    AttachError, Attachment, BucketReading, Capture, Class, Datapath, HookKind, IngressHook, Lost,
    MetersError, PortReading, ReadError, Reading, Retry, Target,
};
use crate::{
    meter::{FlowStats, PortId},
    netdev::{
        NamespaceId, NetdevId,
        namespaces::{Entrance, Identity},
    },
    rules::MeterSet,
    totals::{SavedPort, Totals},
};

/// The reason of an error that leaves the netdev without a port; every other one is of its hooks.
pub const NO_PORT: &str = "ports_full";
/// The reason of an error that says that the verifier refused a program.
pub const NO_PROGRAM: &str = "verifier";

/// The fake. Its fields are what a test looks at and sets.
#[derive(Debug, Default)]
pub struct FakeDatapath {
    /// What is attached.
    pub attached: BTreeMap<NetdevId, Attachment>,
    /// Every call that changed something, in order: `attach tap0`, `exchange tap0 tap1`, `detach 3`.
    pub calls: Vec<String>,
    /// Netdevs whose attaches were prepared for last.
    pub prepared: Vec<String>,
    /// What the next attaches of a netdev end in, by its name; without an entry they succeed.
    pub attach_errors: BTreeMap<String, VecDeque<AttachError>>,
    /// The class whose programs the verifier refuses.
    pub refused: Option<Class>,
    /// Netdevs of which another tool removed the hooks.
    pub removed: BTreeSet<NetdevId>,
    /// The namespaces that were entered and not left, by number.
    pub entered: BTreeMap<NamespaceId, Identity>,
    /// What entering the next namespaces ends in.
    pub enter_errors: VecDeque<AttachError>,
    /// Whether the next detaches fail.
    pub detach_fails: bool,
    /// Whether readings fail.
    pub read_fails: bool,
    /// What the user-defined meters counted, by name; those that aren't in the present set are not read.
    pub user_meters: BTreeMap<String, FlowStats>,
    /// What setting the next sets of meters ends in; those behind them are taken.
    pub meters_errors: VecDeque<MetersError>,
    /// Meters that are refused, by name, and every set with one of them.
    pub meters_refused: BTreeSet<String>,
    /// The set that counts; at first what an earlier agent left.
    pub meters: MeterSet,
    /// Whether it is the one that was given last.
    pub meters_in_force: bool,
    /// Whose connections are counted.
    pub capture: Capture,
    /// What the next changes of them end in; those behind them are taken.
    pub capture_errors: VecDeque<MetersError>,
    /// Whether that was in force, and is not any more.
    pub capture_lost: bool,
    /// What is in no tunnel.
    pub buckets: Vec<BucketReading>,
    totals: BTreeMap<PortId, PortReading>,
}

impl FakeDatapath {
    /// Makes one on which an earlier agent left this attached.
    pub fn adopting(attached: BTreeMap<NetdevId, Attachment>) -> Self {
        Self { attached, ..Self::default() }
    }

    /// Lets a netdev receive frames; nobody counts them where it is not attached.
    pub fn receive(&mut self, id: impl Into<NetdevId>, packets: u64, bytes: u64) {
        let id = id.into();
        if self.removed.contains(&id) {
            return;
        }
        let Some(attachment) = self.attached.get(&id) else { return };
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

impl FakeDatapath {
    /// Lets a netdev carry its target's port, and no other netdev.
    fn carry(&mut self, attachment: Attachment) {
        let target = attachment.target.clone();
        let reading = self.totals.entry(target.port).or_insert_with(|| PortReading {
            port: target.port,
            class: target.class,
            netdev: None,
            device: None,
            created_ns: 1,
            totals: SlotCounters::default(),
        });
        reading.netdev = Some(target.id);
        reading.device = target.device;
        if let Some(before) = self.attached.insert(target.id, attachment)
            && before.target.port != target.port
        {
            self.release(before.target.port, target.id);
        }
    }

    fn release(&mut self, port: PortId, id: NetdevId) {
        if let Some(reading) = self.totals.get_mut(&port)
            && reading.netdev == Some(id)
        {
            reading.netdev = None;
        }
    }

    fn remove(&mut self, id: NetdevId) {
        self.removed.remove(&id);
        if let Some(attachment) = self.attached.remove(&id) {
            self.release(attachment.target.port, id);
        }
    }
}

impl Datapath for FakeDatapath {
    fn attached(&self) -> &BTreeMap<NetdevId, Attachment> {
        &self.attached
    }

    fn unpinned(&self) -> Option<&str> {
        None
    }

    fn prepare(&mut self, targets: &[Target]) {
        self.prepared = targets.iter().map(|target| target.netdev.clone()).collect();
    }

    fn enter(&mut self, identity: Identity, _: Entrance) -> Result<NamespaceId, AttachError> {
        if let Some(error) = self.enter_errors.pop_front() {
            return Err(error);
        }
        let known = self.entered.iter().find(|(_, known)| **known == identity).map(|(number, _)| *number);
        let free = (1..).map(NamespaceId).find(|number| !self.entered.contains_key(number));
        let number = known.or(free).unwrap_or_default();
        self.entered.insert(number, identity);
        Ok(number)
    }

    fn leave(&mut self, namespace: NamespaceId) {
        self.calls.push(format!("leave {}", namespace.0));
        self.entered.remove(&namespace);
    }

    fn attach(&mut self, target: &Target) -> Result<(), AttachError> {
        self.calls.push(format!("attach {}", target.netdev));
        let carries_port = |other: &&Attachment| other.target.port == target.port;
        let others = self.attached.values().filter(carries_port).map(|other| other.target.id);
        if let Some(other) = others.clone().find(|other| *other != target.id) {
            self.detach(other)?;
        }
        let before = self.attached.get(&target.id).cloned();
        let before = before.filter(|_| !self.removed.contains(&target.id));
        let refusal = (self.refused == Some(target.class)).then(|| error(NO_PROGRAM, Retry::Never));
        let next = self.attach_errors.get_mut(&target.netdev).and_then(VecDeque::pop_front);
        if let Some(error) = next.or(refusal) {
            match before.filter(|_| error.reason != NO_PORT) {
                Some(before) => {
                    self.carry(Attachment { target: before.on_to(target), ..before });
                }
                None => self.remove(target.id),
            }
            return Err(error);
        }
        let ingress = if target.ingress == IngressHook::Xdp { HookKind::Xdp } else { HookKind::Tcx };
        self.removed.remove(&target.id);
        self.carry(Attachment::new(target.clone(), [ingress, HookKind::Tcx]));
        Ok(())
    }

    fn exchange(&mut self, targets: &[Target]) -> Result<(), AttachError> {
        let names: Vec<&str> = targets.iter().map(|target| target.netdev.as_str()).collect();
        self.calls.push(format!("exchange {}", names.join(" ")));
        for target in targets {
            let Some(before) = self.attached.get(&target.id).cloned() else { continue };
            self.carry(Attachment { target: before.with_port_of(target), ..before });
        }
        Ok(())
    }

    fn detach(&mut self, id: NetdevId) -> Result<(), AttachError> {
        let place =
            if id.namespace == NamespaceId::HOST { String::new() } else { format!(" of {}", id.namespace.0) };
        self.calls.push(format!("detach {}{place}", id.ifindex));
        if self.detach_fails {
            return Err(error("detach", Retry::Later));
        }
        self.remove(id);
        Ok(())
    }

    fn verify(&mut self) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (id, attachment) in &mut self.attached {
            if self.removed.contains(id) && !attachment.lost {
                attachment.lost = true;
                let (target, kind) = (attachment.target.clone(), attachment.ingress);
                lost.push(Lost { target, direction: Direction::Ingress, kind });
            }
        }
        lost
    }

    fn tend(&mut self) {}

    fn set_meters(&mut self, meters: &MeterSet) -> Result<(), MetersError> {
        if let Some(error) = self.meters_errors.pop_front() {
            return Err(error);
        }
        if meters.meters.iter().any(|meter| self.meters_refused.contains(&meter.name)) {
            return Err(MetersError("refused".to_owned()));
        }
        self.meters = meters.clone();
        self.meters_in_force = true;
        Ok(())
    }

    fn set_capture(&mut self, capture: &Capture) -> Result<(), MetersError> {
        if let Some(error) = self.capture_errors.pop_front() {
            return Err(error);
        }
        self.capture = capture.clone();
        self.capture_lost = false;
        Ok(())
    }

    fn capture_in_force(&self) -> bool {
        !self.capture_lost
    }

    fn meters_in_force(&self) -> bool {
        self.meters_in_force
    }

    fn totals(&mut self) -> Result<Totals, ReadError> {
        let ports = self.read()?.ports.into_iter();
        let ports = ports.map(|port| SavedPort {
            port: port.port.0,
            class: 0,
            uplink: 0,
            created_ns: port.created_ns,
            device: port.device.map_or(Uuid::nil(), |device| device.0),
            hooks: [[0; 4]; 2],
        });
        Ok(Totals { ports: ports.collect(), ..Totals::default() })
    }

    fn read(&mut self) -> Result<Reading, ReadError> {
        if self.read_fails {
            return Err(ReadError { map: "COUNTERS", source: std::io::ErrorKind::OutOfMemory.into() });
        }
        let counted = |name: &String| self.user_meters.get(name).copied().unwrap_or_default();
        Ok(Reading {
            ports: self.totals.values().cloned().collect(),
            buckets: self.buckets.clone(),
            user_meters: self
                .meters
                .meters
                .iter()
                .map(|meter| (meter.name.clone(), counted(&meter.name).into()))
                .collect(),
            ..Reading::default()
        })
    }
}
