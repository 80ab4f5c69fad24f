//! Another set of meters, or other ports that it names: rules and programs are put in each other's places.

use std::collections::BTreeMap;

use meter_ebpf::abi::{UNBOUND_SLOT, rules::MeterName};

use super::{
    super::{
        Attachment, Class, HookKind, MetersError, Retry, Target,
        bind::now_ns,
        hooks,
        kernel::{KernelDatapath, uptime_s},
        maps::LiveSlots,
        namespaces::loaded,
        object::METER_PROGRAMS,
        record::{class_number, class_of, port_id, port_uuid, reported_device},
    },
    Meters, asks_for_flow, at, ledger, meter_name, write,
};
use crate::{
    netdev::NetdevId,
    rules::{MeterSet, SlotPort, compile},
};

impl KernelDatapath {
    /// Lets another set of meters count.
    pub(in crate::datapath) fn change_meters(&mut self, set: &MeterSet) -> Result<(), MetersError> {
        let set = &set.with_routers();
        let names: Vec<MeterName> = set.meters.iter().map(|meter| meter_name(&meter.name)).collect();
        if names.is_empty() {
            self.end_meters()?;
        } else {
            self.count_meters(set, &names)?;
        }
        self.meters.set = set.clone();
        let retired = self.retire_meters(&names);
        self.meters.in_force = retired.is_ok();
        retired
    }

    fn count_meters(&mut self, set: &MeterSet, names: &[MeterName]) -> Result<(), MetersError> {
        let captured = self.captures.wanted().ports.clone();
        let [first, _] = METER_PROGRAMS;
        self.load_changed(first, true, &captured)?;
        let counted = self.meters.sums().map_err(|error| MetersError(error.to_string()))?;
        let mut ledger = self.meters.ledger.clone();
        let mut writes = Vec::new();
        let counters = ledger
            .claim(names, now_ns(), |counter| at(&counted, counter), &mut writes)
            .map_err(|ledger::Full| MetersError("too many meters at a time".to_owned()))?;
        let slots = self.slots_of(set, false);
        if self.meters.on && !self.meters.tables.are_held() {
            // What can't be held must not be in use when it is replaced.
            self.end_meters()?;
        }
        if asks_for_flow(set) {
            // What programs note from now on says when it came.
            self.connections.set_clock(uptime_s());
        }
        // A counter has its meter before a program counts there.
        let Meters { tables, names: map, ledger: kept, .. } = &mut self.meters;
        let compile = |generation| compile(set, &counters, &slots, generation);
        let put = tables.put(compile, || {
            *kept = ledger;
            write(map, kept, &writes)
        });
        if let Err(error) = put {
            let before: Vec<MeterName> =
                self.meters.set.meters.iter().map(|meter| meter_name(&meter.name)).collect();
            // Without a set of its own, an agent doesn't know which meters the one before left counting.
            if !before.is_empty() {
                self.retire_meters(&before)?;
            }
            return Err(error);
        }
        self.meters.counters_of_set = counters;
        self.meters.slots = slots;
        if !self.meters.on {
            self.meters.on = true;
            self.swap_programs();
        }
        Ok(())
    }

    /// Lets no meter count.
    fn end_meters(&mut self) -> Result<(), MetersError> {
        if self.meters.on {
            let captured = self.captures.wanted().ports.clone();
            self.load_changed([], false, &captured)?;
            self.meters.on = false;
            self.swap_programs();
            // Programs that run still read the rules.
            self.grace.wait().map_err(|error| MetersError(format!("wait for programs: {error}")))?;
        }
        self.meters.stop()
    }

    fn retire_meters(&mut self, names: &[MeterName]) -> Result<(), MetersError> {
        let mut writes = Vec::new();
        self.meters.ledger.retire(names, now_ns(), &mut writes);
        self.meters.write(&writes)
    }

    /// Returns whether programs count by the set that was given last, and by nothing else.
    pub(in crate::datapath) const fn meters_are_in_force(&self) -> bool {
        self.meters.in_force
    }

    /// Gives the ports of these targets that rules name their slots, and compiles the rules for all of them at once.
    pub(in crate::datapath) fn prepare_rules(&mut self, targets: &[Target]) {
        self.meters.expected.clear();
        let mut named = self.admission.set().names();
        if self.meters.in_force {
            named.append(&mut self.meters.set.names());
        }
        let is_named = |target: &&Target| {
            named.contains(&target.port.0) || target.device.is_some_and(|device| named.contains(&device.0))
        };
        for target in targets.iter().filter(is_named) {
            let port = port_uuid(target.port);
            let live = LiveSlots::new(&self.maps, &self.grace);
            let reserved = self.ledger.reserve(port, class_number(target.class), now_ns(), &live);
            // Where that can't be, the rules are compiled when the port is bound.
            if live.into_result().is_ok()
                && let Some(reserved) = reserved
                && self.write(target, &reserved.writes).is_ok()
            {
                self.ledger.take_up(&reserved);
            }
            // One that has a netdev counts for the device that it belongs to until it is attached anew.
            if self.ledger.records().get(&port).is_some_and(|record| record.ifindex == 0) {
                self.meters.expected.insert(port, target.device);
            }
        }
        self.ports_of_rules_changed();
    }

    /// Compiles the rules anew that name a port which has got another slot, or another device.
    pub(in crate::datapath) fn ports_of_rules_changed(&mut self) {
        self.meter_ports_changed();
        self.admission_ports_changed();
    }

    /// What the rules expected of a port has come, or something else.
    pub(in crate::datapath) fn meters_expect_no_more(&mut self, target: &Target) {
        self.meters.expected.remove(&port_uuid(target.port));
    }

    /// Returns how often rules were compiled since, for ports that changed.
    #[must_use]
    pub const fn rules_compiled(&self) -> u64 {
        self.meters.puts
    }

    /// Compiles the rules anew where they name a port that has got another slot, or another device. Where that fails no
    /// rules are in force: those from before would count a port for another.
    fn meter_ports_changed(&mut self) {
        if !self.meters.in_force || self.meters.set.meters.is_empty() {
            return;
        }
        let slots = self.slots_of(&self.meters.set, false);
        if slots == self.meters.slots {
            return;
        }
        let Meters { tables, set, counters_of_set, .. } = &mut self.meters;
        match tables.put(|generation| compile(set, counters_of_set, &slots, generation), || Ok(())) {
            Ok(()) => {
                self.meters.slots = slots;
                self.meters.puts += 1;
            }
            Err(error) => {
                tracing::error!(error = %error, "a port of the user-defined meters has changed, and no meter counts until they are set again");
                if let Err(error) = self.meters.stop() {
                    tracing::error!(error = %error, "taking the programs of meters away instead");
                    self.meters.on = false;
                    self.swap_programs();
                }
            }
        }
    }

    /// Returns the ports with a slot that a set's rules tell from others; those of uplinks only where they count as well.
    pub(in crate::datapath) fn slots_of(&self, set: &MeterSet, uplinks: bool) -> BTreeMap<u32, SlotPort> {
        let named = set.names();
        let ports = self.ledger.records().iter().filter(|(_, record)| {
            record.slot != UNBOUND_SLOT && (uplinks || class_of(record.class) != Class::Uplink)
        });
        ports
            .map(|(uuid, record)| {
                let expected = self.meters.expected.get(uuid).copied();
                let device = expected.unwrap_or_else(|| reported_device(record.device));
                (record.slot, SlotPort { port: port_id(*uuid), device })
            })
            .filter(|(_, port)| {
                named.contains(&port.port.0) || port.device.is_some_and(|device| named.contains(&device.0))
            })
            .collect()
    }

    /// Puts the programs that ports now need, with meters or without, into the place of those that they have, each
    /// atomically.
    fn swap_programs(&mut self) {
        let site = self.site();
        let programs = |target, meters| {
            hooks::both(target, hooks::Site { meters, ..site }).map(|hook| hook.program_name())
        };
        let others = |target| programs(target, true) != programs(target, false);
        let concerned = self.attached.values().filter(|known| others(&known.target));
        let concerned: Vec<NetdevId> = concerned.map(|known| known.target.id).collect();
        concerned.into_iter().for_each(|id| self.swap_programs_of(id));
    }

    /// The same for one netdev. One whose programs can't be changed is taken for lost, and attached anew later.
    pub(in crate::datapath) fn swap_programs_of(&mut self, id: NetdevId) {
        self.work.step();
        let Some(attachment) = self.attached.get(&id).filter(|attachment| !attachment.lost) else {
            return;
        };
        if !self.namespaces.is_known(id.namespace) {
            // It is attached anew, with the programs that it needs then, once its namespace is followed.
            return;
        }
        let attachment = attachment.clone();
        let target = &attachment.target;
        let changed = self.prepare_programs(target).and_then(|()| {
            let swapped = self.within(target, |this| {
                let site = hooks::Site {
                    links: &this.links,
                    meters: this.meters.on,
                    captured: &this.captures.wanted().ports,
                };
                let mut loaded = loaded(&mut this.ebpf, &mut this.programs, &this.namespaces, target);
                hooks::both(target, site).into_iter().try_for_each(|hook| {
                    match attachment.kind(hook.direction) {
                        // A program of XDP asks for no rules.
                        HookKind::Xdp => Ok(()),
                        kind => hook.attach(&mut loaded, kind),
                    }
                })
            })?;
            // A namespace that has gone took its hooks along.
            swapped.unwrap_or(Ok(()))
        });
        match changed {
            Ok(()) => {}
            Err(error) if error.retry == Retry::Gone => {}
            Err(error) => {
                tracing::error!(error = %error, "programs not changed");
                self.attached.insert(id, Attachment { lost: true, ..attachment });
            }
        }
    }
}
