//! The object: its programs are loaded over maps that are pinned, or pinned there.

use std::{os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, SchedClassifier},
};
use meter_ebpf::abi::{GENEVE_PORTS, Settings, VXLAN_PORTS, map};

use super::{
    Options,
    hook::load,
    hooks::ProgramIds,
    open::{OpenError, load_error, program_error},
    specs::Spec,
    store::{HeldMaps, stand_in},
    sys::{self, LinkPlace},
};

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// Programs for TC: of netdevs that have a port only, and of those whose frames may be in tunnels. The second two are loaded
/// when the first such netdev takes them, as those for XDP are: the verifier takes many times as long for them.
pub(super) const TC_PROGRAMS: [[&str; 2]; 2] = [["meter_in", "meter_out"], ["meter_up_in", "meter_up_out"]];
/// The same for ports while there are user-defined meters; the first two are loaded when there are.
pub(super) const METER_PROGRAMS: [[&str; 2]; 2] =
    [["meter_user_in", "meter_user_out"], ["meter_user_uin", "meter_user_uout"]];

/// The same for netdevs whose connections are counted.
pub(super) const CONNECTION_PROGRAMS: [[&str; 2]; 2] =
    [["meter_conn_in", "meter_conn_out"], ["meter_conn_uin", "meter_conn_uout"]];

/// Asks the kernel for a TCX link on no netdev: it complains of TCX first where it has none.
pub(super) fn has_tcx(ebpf: &Ebpf) -> bool {
    let program: Option<&SchedClassifier> =
        ebpf.program("meter_in").and_then(|program| program.try_into().ok());
    let Some(program) = program.and_then(|program| program.fd().ok()) else { return false };
    let answer = sys::create_link(program.as_fd(), 0, LinkPlace::TcxIngress);
    answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// Where the maps are over which programs are loaded.
#[derive(Debug, Clone, Copy)]
pub(super) enum Over<'a> {
    /// Nowhere yet: they go with what is loaded.
    New,
    /// Pinned, or pinned there now.
    Pinned {
        /// Where.
        maps: &'a Path,
        /// What `SLOTS` holds. aya writes the sections of an object whenever it loads it, also into maps that are there
        /// already, so it has to write what is there: programs go on reading it.
        slots: &'a [u64],
    },
    /// Held by this process, these of them; the others go with what is loaded.
    Held(&'a HeldMaps),
}

/// Returns what loads the object.
///
/// The object names no type of the kernel, so the kernel's BTF, which aya reads first and which takes tens of megabytes, goes
/// before anything is loaded, and its memory back to the kernel.
pub(super) fn loader<'a>() -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    sys::return_free_memory();
    loader
}

/// Makes the maps and loads the TC programs that any host takes.
pub(super) fn load_object(
    specs: &[Spec],
    settings: &Settings,
    over: Over<'_>,
) -> Result<(Ebpf, ProgramIds), OpenError> {
    let mut loader = loader();
    for spec in specs {
        let name = if spec.name == map::SLOTS { map::SLOTS_SECTION } else { spec.name };
        loader.map_max_entries(name, spec.max_entries);
        if let Over::Pinned { maps, .. } = over {
            loader.map_pin_path(name, maps.join(spec.name));
        }
    }
    if let Over::Pinned { slots, .. } = over {
        loader.override_global(map::SLOTS, slots, true);
    }
    loader.override_global("SETTINGS", settings, true);
    let mut ebpf = loader.load(OBJECT).map_err(|error| load_error("make the maps", &error))?;
    if let Over::Held(held) = over {
        stand_in(&ebpf, held)?;
    }
    let mut programs = ProgramIds::new();
    let [first, _] = TC_PROGRAMS;
    load_programs(&mut ebpf, first, &mut programs)?;
    Ok((ebpf, programs))
}

/// Loads TC programs, those that aren't yet.
pub(super) fn load_programs(
    ebpf: &mut Ebpf,
    names: impl IntoIterator<Item = &'static str>,
    programs: &mut ProgramIds,
) -> Result<(), OpenError> {
    for name in names {
        if programs.contains_key(name) {
            continue;
        }
        let program =
            tc_program(ebpf, name).ok_or_else(|| OpenError::Object(format!("program {name} is missing")))?;
        let id = load_program(program).map_err(|error| program_error(name, &error))?;
        programs.insert(name, id);
    }
    Ok(())
}

/// Returns a TC program of the object, loaded or not.
pub(super) fn tc_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Option<&'a mut SchedClassifier> {
    ebpf.program_mut(name)?.try_into().ok()
}

/// Loads a TC program; returns its id.
pub(super) fn load_program(program: &mut SchedClassifier) -> Result<u32, ProgramError> {
    match load(|| program.load()) {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(error),
    }
    Ok(program.info()?.id())
}

pub(super) fn settings(options: &Options) -> Settings {
    let mut settings =
        Settings { vxlan_ports: [0; VXLAN_PORTS], geneve_ports: [0; GENEVE_PORTS], ..Settings::DEFAULT };
    settings.vxlan_ports.iter_mut().zip(&options.vxlan_ports).for_each(|(to, from)| *to = *from);
    settings.geneve_ports.iter_mut().zip(&options.geneve_ports).for_each(|(to, from)| *to = *from);
    settings.nvgre = u32::from(options.nvgre);
    settings
}
