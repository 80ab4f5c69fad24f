//! What every kernel test stands on: a namespace and a pin path of its own, and a datapath that uses both.

pub(crate) mod capabilities;
pub(crate) mod daemon;
pub(crate) mod foreign;
pub(crate) mod frames;
pub(crate) mod hooks;
pub(crate) mod programs;
pub(crate) mod raw;
pub(crate) mod seccomp;
pub(crate) mod table;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Once},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, ArrayOfMaps, Map, MapData, MapError},
    programs::{ProgramInfo, SchedClassifier, TcAttachType},
};
use lab::{netns::Netns, require};
use meter_agent::{
    datapath::{
        AttachError, Attachment, Class, Datapath as _, HookKind, IngressHook, MetersError, Reading, Target,
        kernel::{Before, KernelDatapath, OBJECT, Options, TcMode, remove_all},
    },
    meter::PortId,
    netdev::NetdevId,
    rules::{Meter as UserMeter, MeterSet, RuleLine},
    totals::Totals,
};
use uuid::Uuid;

use table::Table;

/// How long a netdev has to be silent before what it carried is over.
pub(crate) const STILL: Duration = Duration::from_millis(200);
/// How long anything may take, in an emulated machine too.
pub(crate) const WITHIN: Duration = Duration::from_secs(180);

/// Returns whether kernel tests can run here: root, and a build that carries the object.
pub(crate) fn ready() -> bool {
    require::root() && require::met("object", !OBJECT.is_empty(), "the eBPF object (cargo xtask build-ebpf)")
}

/// A host with a pin path of its own. When it is dropped everything of ours is removed, and has to be gone.
pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) pins: PathBuf,
    /// What keeps pins from being made.
    in_the_way: Option<PathBuf>,
}

impl Host {
    /// Makes a host; `label` is the test's own where namespaces are followed by it.
    pub(crate) fn new(label: &str) -> Self {
        mount_bpffs();
        let netns = Netns::new(label).unwrap();
        // As much its own as the namespace. A bpffs takes no dots.
        let pins = format!("/sys/fs/bpf/meter-test-{}", netns.name().replace('.', "-"));
        Self { netns, pins: pins.into(), in_the_way: None }
    }

    /// Makes a host where nothing can be pinned: its pin path leads through the pin of a map.
    pub(crate) fn without_pins(label: &str) -> Self {
        let mut host = Self::new(label);
        let pin = host.pins.clone();
        Array::<MapData, u32>::create(1, 0).unwrap().pin(&pin).unwrap();
        host.pins = pin.join("below");
        host.in_the_way = Some(pin);
        host
    }

    /// Returns options of a small datapath.
    pub(crate) fn options(&self) -> Options {
        Options { pin_path: self.pins.clone(), ..small_options() }
    }

    /// Opens the datapath with [`Host::options`].
    pub(crate) fn open(&self) -> Meter<'_> {
        self.open_with(&self.options())
    }

    /// Opens the datapath as after a reboot, with what was written down before.
    pub(crate) fn open_after(&self, options: &Options, state: &Totals) -> Meter<'_> {
        let opened = self
            .netns
            .run_in(|| {
                let before = Before { totals: Some(state), of_another_boot: true, ..Before::default() };
                KernelDatapath::open_after(options, before)
            })
            .unwrap();
        Meter { netns: &self.netns, datapath: opened.unwrap() }
    }

    /// Opens the datapath with what there was before.
    pub(crate) fn open_before(&self, options: &Options, before: Before<'_>) -> Meter<'_> {
        let opened = self.netns.run_in(|| KernelDatapath::open_after(options, before)).unwrap();
        Meter { netns: &self.netns, datapath: opened.unwrap() }
    }

    /// Opens the datapath with other options.
    pub(crate) fn open_with(&self, options: &Options) -> Meter<'_> {
        let opened = self.netns.run_in(|| KernelDatapath::open(options)).unwrap();
        Meter { netns: &self.netns, datapath: opened.unwrap() }
    }

    /// Returns a target for a netdev of this host, whose port's UUID is this number.
    pub(crate) fn target(&self, netdev: &str, port: u128, class: Class) -> Target {
        Target {
            id: self.ifindex(netdev).into(),
            netdev: netdev.to_owned(),
            netns: String::new(),
            port: PortId(Uuid::from_u128(port)),
            class,
            device: None,
            underlay: class == Class::Uplink,
            ingress: IngressHook::Tc,
            network: meter_ebpf::abi::Network::NONE,
        }
    }

    /// Returns the number of a netdev of this host.
    pub(crate) fn ifindex(&self, netdev: &str) -> u32 {
        self.netns.run_in(|| nix::net::if_::if_nametoindex(netdev)).unwrap().unwrap()
    }

    /// Returns every hook of every netdev here, whoever's it is: `eth0 tcx ingress meter_in` and the like.
    pub(crate) fn hooks(&self) -> Vec<String> {
        let netdevs = self.netns.netdevs().unwrap();
        let look = hooks::Look::at(&self.netns).unwrap();
        let hooks = |netdev: &String| {
            let hooks = look.hooks(netdev);
            // A netdev whose other end went with a guest goes while it is looked at.
            let is_gone = || !self.netns.netdevs().unwrap().contains(netdev);
            hooks.or_else(|error| if is_gone() { Ok(Vec::new()) } else { Err(error) }).unwrap()
        };
        netdevs.iter().flat_map(hooks).collect()
    }

    /// Removes what filters left that nobody can tell for ours any more, since what said so is gone: their qdiscs, with them.
    pub(crate) fn remove_qdiscs(&self) {
        for hook in self.hooks() {
            if let Some(netdev) = hook.strip_suffix(" qdisc clsact") {
                self.netns.run("tc", &["qdisc", "del", "dev", netdev, "clsact"]).unwrap();
            }
        }
    }

    /// Returns the ids of the programs that hang on both sides of a netdev, by TCX or clsact, whoever's they are.
    pub(crate) fn programs(&self, netdev: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for (direction, attach_type) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)]
        {
            let tcx = self.netns.run_in(|| SchedClassifier::query_tcx(netdev, attach_type)).unwrap();
            ids.extend(tcx.iter().flat_map(|(_, programs)| programs).map(ProgramInfo::id));
            let filters = self.netns.run("tc", &["filter", "show", "dev", netdev, direction]).unwrap();
            ids.extend(
                filters
                    .split(" id ")
                    .skip(1)
                    .map(|rest| -> u32 { rest.split_whitespace().next().unwrap().parse().unwrap() }),
            );
        }
        ids
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A filter belongs to the namespace of its netdev.
        let removed = self.netns.run_in(|| remove_all(&self.pins));
        let cleared = self.in_the_way.as_ref().map_or(Ok(()), fs::remove_file);
        if thread::panicking() {
            return;
        }
        removed.unwrap().unwrap();
        cleared.unwrap();
        assert!(!self.pins.exists(), "{} is left", self.pins.display());
        assert_eq!(self.hooks(), [""; 0], "hooks are left");
    }
}

/// Returns the TC hook that [`TcMode::Auto`] takes in this kernel.
pub(crate) fn auto_kind() -> HookKind {
    if require::is_kernel(6, 6) { HookKind::Tcx } else { HookKind::Clsact }
}

/// Returns the ways to hang TC's programs that differ in this kernel.
pub(crate) fn tc_modes() -> &'static [TcMode] {
    if auto_kind() == HookKind::Tcx { &[TcMode::Auto, TcMode::Clsact] } else { &[TcMode::Auto] }
}

/// Returns options of a small datapath, without a pin path.
pub(crate) fn small_options() -> Options {
    Options {
        version: meter_ebpf::abi::VERSION,
        pin_path: PathBuf::new(),
        tc: TcMode::Auto,
        max_ports: 64,
        max_netdevs: 200,
        max_tunnels: 1024,
        max_connections: 1024,
        vxlan_ports: vec![4789, 8472, 6677],
        geneve_ports: vec![6081],
        nvgre: false,
    }
}

/// The datapath of a host, as an agent has it.
pub(crate) struct Meter<'a> {
    netns: &'a Netns,
    pub(crate) datapath: KernelDatapath,
}

impl Meter<'_> {
    /// Attaches, in the host's namespace.
    pub(crate) fn try_attach(&mut self, target: &Target) -> Result<Attachment, AttachError> {
        self.netns.run_in(|| self.datapath.attach(target)).unwrap()?;
        Ok(self.attached()[&target.id].clone())
    }

    /// Returns what is attached.
    pub(crate) fn attached(&self) -> &BTreeMap<NetdevId, Attachment> {
        self.datapath.attached()
    }

    /// Lets netdevs exchange their ports.
    pub(crate) fn exchange(&mut self, targets: &[Target]) {
        self.netns.run_in(|| self.datapath.exchange(targets)).unwrap().unwrap();
    }

    /// Returns which hooks have vanished: `eth0 Ingress tcx`.
    pub(crate) fn verify(&mut self) -> Vec<String> {
        let lost = self.netns.run_in(|| self.datapath.verify()).unwrap();
        lost.iter().map(|lost| format!("{} {:?} {}", lost.target.netdev, lost.direction, lost.kind)).collect()
    }

    /// Attaches what can be attached.
    pub(crate) fn attach(&mut self, target: &Target) -> Attachment {
        self.try_attach(target).unwrap()
    }

    /// Detaches, in the host's namespace.
    pub(crate) fn detach(&mut self, id: impl Into<NetdevId>) {
        let id = id.into();
        self.netns.run_in(|| self.datapath.detach(id)).unwrap().unwrap();
    }

    /// Lets another set of user-defined meters count, in the host's namespace.
    pub(crate) fn set_meters(&mut self, set: &MeterSet) {
        self.try_set_meters(set).unwrap();
    }

    /// The same, where it may be refused.
    pub(crate) fn try_set_meters(&mut self, set: &MeterSet) -> Result<(), MetersError> {
        self.netns.run_in(|| self.datapath.set_meters(set)).unwrap()
    }

    /// Returns whether the set of meters that was given last counts.
    pub(crate) fn meters_in_force(&self) -> bool {
        self.datapath.meters_in_force()
    }

    /// Reads what the user-defined meters counted: packets and bytes, by name.
    pub(crate) fn meters(&mut self) -> BTreeMap<String, [u64; 2]> {
        let stats = self.reading().user_meters.into_iter();
        stats.map(|(name, meter)| (name, [meter.stats.packets, meter.stats.bytes])).collect()
    }

    /// Reads everything.
    pub(crate) fn reading(&mut self) -> Reading {
        self.datapath.read().unwrap()
    }

    /// Reads everything as a table.
    pub(crate) fn table(&mut self) -> Table {
        Table::of(&self.reading())
    }

    /// Waits until what came after `before` is `expected`, and nothing else.
    pub(crate) fn expect(&mut self, before: &Table, expected: &Table, what: &str) {
        // What differs says more than that something does.
        holds_within(WITHIN, || self.table().since(before) == *expected);
        let moved = self.table().since(before);
        assert_eq!(&moved, expected, "{what}");
    }
}

/// Makes meters of one rule line each.
pub(crate) fn meters(lines: &[(&str, &str)]) -> MeterSet {
    let meter = |(name, line): &(&str, &str)| {
        let rule = RuleLine::parse(line).unwrap_or_else(|errors| panic!("{line}: {errors:?}"));
        UserMeter { name: (*name).to_owned(), rules: vec![rule.condition] }
    };
    MeterSet { meters: lines.iter().map(meter).collect(), ..MeterSet::default() }
}

/// Returns rules of connections.
pub(crate) fn rules(lines: &[&str]) -> Arc<MeterSet> {
    let MeterSet { meters, .. } = meters(&lines.iter().map(|line| ("", *line)).collect::<Vec<_>>());
    let conditions = meters.into_iter().flat_map(|meter| meter.rules).collect();
    Arc::new(MeterSet::default().with_rules(conditions))
}

/// Waits until something holds, which has to be in time.
#[track_caller]
pub(crate) fn until(holds: impl FnMut() -> bool) {
    assert!(holds_within(WITHIN, holds), "not within {WITHIN:?}");
}

/// Waits until a value is what is expected, which has to be in time.
#[track_caller]
pub(crate) fn becomes<T: PartialEq + std::fmt::Debug>(mut value: impl FnMut() -> T, expected: T) {
    holds_within(WITHIN, || value() == expected);
    assert_eq!(value(), expected, "not within {WITHIN:?}");
}

/// Returns whether something holds in time.
pub(crate) fn holds_within(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Opens a map that is pinned below this path.
pub(crate) fn pinned_map<T: TryFrom<Map>>(pins: &Path, name: &str) -> T
where
    T::Error: std::fmt::Debug,
{
    let pin = pins.join(format!("v{}/maps/{name}", meter_ebpf::abi::VERSION));
    T::try_from(Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap()).unwrap()
}

/// Returns whether a map of maps that is pinned below this path leads nowhere.
pub(crate) fn leads_nowhere(pins: &Path, name: &str) -> bool {
    let outer: ArrayOfMaps<MapData, Array<MapData, u32>> = pinned_map(pins, name);
    matches!(outer.get(&0, 0), Err(MapError::KeyNotFound))
}

/// Mounts a bpffs at its usual place where there is none: once, since two tests at a time would make two.
fn mount_bpffs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        use nix::{
            mount::{MsFlags, mount},
            sys::statfs::{FsType, statfs},
        };
        let path = Path::new("/sys/fs/bpf");
        if statfs(path).unwrap().filesystem_type() != FsType(0xcafe_4a11) {
            mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        }
    });
}
