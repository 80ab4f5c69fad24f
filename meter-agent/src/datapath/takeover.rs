//! The start: what an earlier agent left is taken over, and what is not there is made.

use meter_ebpf::abi::map;

use super::{
    Options,
    bind::now_ns,
    grace::Grace,
    kernel::KernelDatapath,
    ledger::{Capacity, Ledger},
    maps::{self, Maps},
    meters::Meters,
    object::{METER_PROGRAMS, OBJECT, Pinned, has_tcx, load_object, load_programs, settings},
    open::{OpenError, check_kernel, load_error, lock, make_directory},
    pins,
    record::adopted,
    saved,
    slots::SlotTable,
    unrecorded,
};
use crate::totals::Totals;

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
        let links = maps::link_directory(&options.pin_path);
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
        let grace = Grace::new().map_err(|error| load_error("make the map of grace periods", &error))?;
        let meters = Meters::take(&mut ebpf, &map_pins, &lost)?;
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
            grace,
            repairs: settled.repairs,
            logger,
            _lock: lock,
        })
    }
}
