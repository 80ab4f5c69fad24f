//! The start: what an earlier agent left is taken over, and what is not there is made.

use meter_ebpf::abi::{Network, UNBOUND_SLOT, map};

use super::{
    Class, Options,
    admission::Admission,
    bind::now_ns,
    captures::Captures,
    carried::carry,
    connections::Connections,
    grace::Grace,
    home::Home,
    kernel::KernelDatapath,
    ledger::{Capacity, Ledger},
    limit,
    maps::{Maps, take},
    meters::Meters,
    namespaces::{self, Namespaces},
    object::{OBJECT, TC_PROGRAMS, has_tcx, load_object, load_programs, settings},
    open::{OpenError, check_kernel, load_error},
    pins::{self, Settled},
    recipe::Recipe,
    record::{adopted, class_of},
    saved,
    softirq::Softirqs,
    specs::{self, Spec},
    unrecorded,
    work::Work,
};
use crate::{rules::MeterSet, totals::Totals};

/// What the datapath may need to know when it is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Before<'a> {
    /// The totals that were written down last. New maps get them where those that counted are gone: by a reboot, or because
    /// nothing was pinned.
    pub totals: Option<&'a Totals>,
    /// Whether that was before a reboot.
    pub of_another_boot: bool,
    /// The user-defined meters. Those that an earlier version's programs count go on without a gap only by these.
    pub meters: Option<&'a MeterSet>,
}

impl KernelDatapath {
    /// Loads the programs and takes over the maps that an earlier agent left, also one whose maps are of an earlier
    /// version, or makes them.
    ///
    /// # Errors
    ///
    /// Each says what is missing and what to do.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        Self::open_after(options, Before::default())
    }

    /// As [`KernelDatapath::open`], with what there was before.
    ///
    /// # Errors
    ///
    /// Each says what is missing and what to do.
    pub fn open_after(options: &Options, before: Before<'_>) -> Result<Self, OpenError> {
        if OBJECT.is_empty() {
            return Err(OpenError::NoObject);
        }
        let release = check_kernel()?;
        if let Some(warning) = Softirqs::of_kernel().warning() {
            tracing::error!(warning, "meters may miss frames");
        }
        let (home, earlier) = Home::find(options)?;
        let mut specs = specs::specs(options);
        if let (Some(earlier), Some(map_pins)) = (&earlier, home.map_pins()) {
            earlier.keep_sizes(&mut specs, map_pins)?;
        }
        let Settled { mut lost, mut repairs } = home.settle(&mut specs)?;
        if let Some(earlier) = &earlier {
            repairs.add(earlier.repairs());
        }
        let is_made = |spec: &&Spec| home.map_pins().is_none() || lost.contains(spec.name);
        let has_rules = before.meters.is_some_and(|meters| meters.rules() > 0);
        limit::check(&release, specs.iter().filter(is_made), has_rules)?;
        let mut settings = settings(options);
        let tunnel_places = entries_of(&specs, map::TUNNEL_TAKEN);
        settings.tunnel_mask = tunnel_places.saturating_sub(1);

        let (slots, held) = home.slots()?;
        let (mut ebpf, mut programs) = load_object(&specs, &settings, home.over(&slots.bits(), &held))?;
        let store = home.store(&ebpf, &specs, held)?;
        let logger = aya_log::EbpfLogger::init(&mut ebpf).ok();
        let has_tcx = has_tcx(&ebpf);
        let grace = Grace::new().map_err(|error| load_error("make the map of grace periods", &error))?;

        let mut maps = Maps::take(|name| take(&mut ebpf, name), &specs, slots)?;
        let mut numbers = Vec::new();
        if let Some(map_pins) = home.map_pins() {
            numbers = pins::numbers(&specs, map_pins)?;
            let counters = numbers.iter().find(|(name, _)| *name == map::COUNTERS).map_or(0, |(_, id)| *id);
            maps.places = namespaces::places(map_pins, counters, &mut repairs)?;
        }
        let captures = Captures::take(&mut ebpf, entries_of(&specs, map::CAPTURES))?;
        let connections = Connections::take(&mut ebpf, entries_of(&specs, map::CONNECTION_FREE), &captures)?;
        let admission = Admission::take(&mut ebpf, home.map_pins())?;
        let mut meters = Meters::take(&mut ebpf, home.map_pins(), &lost)?;
        if let Some(totals) = before.totals
            && (before.of_another_boot || totals.unpinned || home.unpinned().is_some())
            && earlier.is_none()
            && maps.are_new()?
            && saved::is_untouched(&maps.port_records()?)
        {
            let refused = carry(&mut maps, &mut meters, totals)?;
            repairs.unrestored = u64::try_from(refused).unwrap_or(u64::MAX);
            let (ports, tunnels) = (totals.ports.len(), totals.tunnels.len());
            tracing::info!(ports, tunnels, before.of_another_boot, "totals from before");
            if refused > 0 {
                tracing::error!(
                    refused,
                    "some totals from before have no room; raise max_ports or max_tunnels"
                );
            }
            lost.clear();
        }
        if let (Some(earlier), Some(directories)) = (&earlier, home.directories()) {
            // Where something is refused nothing that counts has been touched, and these maps are not finished.
            earlier.make_places(&mut maps, directories)?;
            load_programs(&mut ebpf, TC_PROGRAMS.into_iter().flatten(), &mut programs)?;
        }
        let spare_places = entries_of(&specs, map::TUNNEL_SPARE);
        maps.prepare(options.version, tunnel_places..tunnel_places + spare_places)?;
        if let (Some(earlier), Some(directories)) = (&earlier, home.directories())
            && !maps.have_carried()?
        {
            earlier.bind(&mut maps, directories)?;
        }
        let mut ledger = ledger_of(&maps, &specs)?;
        let mut writes = Vec::new();
        if lost.contains(map::COUNTERS) {
            writes.extend(ledger.counters_lost(now_ns()));
        }
        if lost.contains(map::MEMBERS) {
            writes.extend(ledger.members_lost());
        }
        let (released, left) = ledger.one_port_each(|netdev| maps.slot(netdev).map_or(0, |slot| slot.slot()));
        writes.extend(released);
        for write in writes {
            let failed = |source| OpenError::Write { map: map::PORTS, source };
            maps.write(&write).map_err(failed)?;
        }
        let links = home.links(&options.pin_path);
        unrecorded::record(&mut maps, &mut ledger, &links, left);
        let kept = namespaces::settle(&mut maps, &mut ledger, &links)?;
        of_tunnels(&mut maps, &ledger)?;
        let attached = adopted(&ledger, |slot| maps.network(slot));
        let namespaces = Namespaces::new(Recipe { specs: specs.clone(), settings, store, maps: numbers });
        let mut datapath = Self {
            ebpf,
            maps,
            tunnel_places,
            ledger,
            attached,
            namespaces,
            kept,
            tc: options.tc,
            has_tcx,
            programs,
            links,
            pin_path: options.pin_path.clone(),
            home,
            work: Work::default(),
            meters,
            connections,
            captures,
            admission,
            grace,
            repairs,
            logger,
        };
        // What netdevs that count already are to run is loaded before one of them is touched. What is refused of it costs its
        // own netdevs a change of their hooks, unless all have to change at once.
        match datapath.load_taken() {
            Err(error) if earlier.is_none() => {
                tracing::error!(error = %error, "what counts is kept as it is")
            }
            loaded => loaded?,
        }
        if let Some(earlier) = earlier {
            if let Some(set) = before.meters
                && let Err(error) = datapath.change_meters(set)
            {
                tracing::error!(error = %error, "user-defined meters have a gap until they are set");
            }
            datapath.migrate(earlier)?;
            datapath.ledger = ledger_of(&datapath.maps, &specs)?;
        }
        datapath.forget_captures();
        Ok(datapath)
    }
}

/// Has no tunnel netdev taken for a port whose network is lost: until it is attached anew its frames are in a tunnel of which
/// the VNI is not known.
fn of_tunnels(maps: &mut Maps, ledger: &Ledger) -> Result<(), OpenError> {
    let tunnels = ledger.records().values().filter(|record| {
        class_of(record.class) == Class::Tunnel && record.ifindex != 0 && record.slot != UNBOUND_SLOT
    });
    for record in tunnels {
        if !maps.network(record.slot).is_tunnel() {
            let failed = |source| OpenError::Write { map: map::NETWORKS, source };
            maps.set_network(record.slot, Network::UNKNOWN).map_err(failed)?;
        }
    }
    Ok(())
}

fn entries_of(specs: &[Spec], name: &str) -> u32 {
    specs.iter().find(|spec| spec.name == name).map_or(0, |spec| spec.max_entries)
}

pub(super) fn ledger_of(maps: &Maps, specs: &[Spec]) -> Result<Ledger, OpenError> {
    let entries = |name| usize::try_from(entries_of(specs, name)).unwrap_or(usize::MAX);
    let capacity = Capacity {
        slots: entries_of(specs, map::COUNTERS) * meter_ebpf::abi::SLOTS_PER_BLOCK,
        ports: entries(map::PORTS),
        members: entries(map::MEMBERS),
    };
    Ok(Ledger::new(maps.port_records()?, maps.member_records()?, capacity))
}
