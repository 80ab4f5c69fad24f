//! Which programs are loaded: those of ports, and those that the netdevs take which are attached. The verifier takes many times
//! as long for those that look into tunnels.

use std::collections::BTreeSet;

use aya::{maps::MapInfo, programs::loaded_programs};
use meter_agent::{datapath::Datapath as _, meter::DeviceId};
use meter_ebpf::abi::{VERSION, map};
use uuid::Uuid;

use super::{
    super::support::{
        Meter, auto_kind,
        capabilities::{Capability, without},
        meters, tc_modes, until,
    },
    BYTES, Class, HookKind, IngressHook, Pair, Retry, Target, TcMode, hooks, moved, ready,
};

/// What it takes to load programs.
const LOADING: &[Capability] = &[Capability::SysAdmin, Capability::Bpf];

impl Pair {
    /// Returns the names of the programs that count in the host's maps, whether something runs them or not.
    fn loaded(&self) -> BTreeSet<String> {
        let pin = self.host.pins.join(format!("v{VERSION}/maps/{}", map::COUNTERS));
        let counters = MapInfo::from_pin(pin).unwrap().id();
        // One that goes meanwhile, of another host, is none of these.
        let programs = loaded_programs().filter_map(Result::ok);
        let ours = programs.filter(|program| {
            program.map_ids().is_ok_and(|maps| maps.is_some_and(|maps| maps.contains(&counters)))
        });
        ours.map(|program| program.name_as_str().unwrap().to_owned()).collect()
    }

    /// Asserts that these programs are loaded and no others. The kernel lets programs go a little later.
    fn has_loaded(&self, names: &[&str]) {
        let expected: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
        until(|| self.loaded() == expected);
    }
}

#[test]
fn programs_are_loaded_for_the_netdevs_that_take_them() {
    if !ready() {
        return;
    }
    let pair = Pair::new("loaded");
    let options = pair.options(TcMode::Auto);
    let mut meter = pair.host.open_with(&options);
    let ports = ["meter_in", "meter_out"];
    pair.has_loaded(&ports);
    meter.attach(&pair.port());
    pair.has_loaded(&ports);
    pair.count(&mut meter, Class::Port, "a port");

    meter.set_meters(&meters(&[("any", "direction tx")]));
    let with_meters = ["meter_in", "meter_out", "meter_user_in", "meter_user_out"];
    pair.has_loaded(&with_meters);
    drop(meter);
    // What is attached is loaded still.
    pair.has_loaded(&["meter_user_in", "meter_user_out"]);
    let mut meter = pair.host.open_with(&options);
    pair.has_loaded(&with_meters);
    meter.set_meters(&meters(&[]));
    meter.attach(&pair.port());
    pair.count(&mut meter, Class::Port, "without meters");

    meter.attach(&pair.uplink(IngressHook::Tc));
    pair.count(&mut meter, Class::Uplink, "an uplink");
    drop(meter);
    pair.has_loaded(&["meter_up_in", "meter_up_out"]);
    // The next agent needs those of uplinks before it touches one.
    let mut meter = pair.host.open_with(&options);
    pair.has_loaded(&["meter_in", "meter_out", "meter_up_in", "meter_up_out"]);
    // An uplink has no meters of one's own.
    meter.attach(&pair.uplink(IngressHook::Tc));
    meter.set_meters(&meters(&[("any", "direction tx")]));
    pair.has_loaded(&[
        "meter_in",
        "meter_out",
        "meter_up_in",
        "meter_up_out",
        "meter_user_in",
        "meter_user_out",
    ]);
    pair.count(&mut meter, Class::Uplink, "an uplink beside meters");
}

#[test]
fn netdev_whose_program_is_refused_counts_on_as_before() {
    if !ready() || !lab::require::kernel(5, 19, "maps that are written without CAP_BPF") {
        return;
    }
    let (auto, clsact) = ((TcMode::Auto, auto_kind()), (TcMode::Clsact, HookKind::Clsact));
    // The last by another kind of hook than it has.
    let ways = [(auto, auto), (clsact, clsact), (auto, clsact)];
    let is_one = |(tc, _): (TcMode, HookKind)| tc_modes().contains(&tc);
    for ((tc, kind), (next, next_kind)) in ways.into_iter().filter(|(is, next)| is_one(*is) && is_one(*next))
    {
        let pair = Pair::new(&format!("refused-{}-{}", kind.name(), next_kind.name()));
        let device = Some(DeviceId(Uuid::from_u128(11)));
        pair.host.open_with(&pair.options(tc)).attach(&Target { device, ..pair.port() });
        let mut meter = pair.host.open_with(&pair.options(next));
        let before = meter.table();
        let uplink = pair.uplink(IngressHook::Tc);
        let refuse = |meter: &mut Meter<'_>| {
            let datapath = &mut meter.datapath;
            let attached = pair.host.netns.run_in(|| without(LOADING, || datapath.attach(&uplink)));
            let error = attached.unwrap().unwrap_err();
            assert_eq!((error.reason, error.retry), ("permission", Retry::Later), "{error}");
        };
        let (frames, ()) = pair.while_sending(|| refuse(&mut meter));
        assert_eq!(pair.host.hooks(), hooks(kind, Class::Port));
        let expected = moved(Class::Port, frames, frames).row("device 11", [frames, frames * BYTES, 0]);
        meter.expect(&before, &expected, "while it is refused");
        let is = meter.attached()[&uplink.id].target.clone();
        let expected = ("eth0", Class::Port, false, device);
        assert_eq!((&*is.netdev, is.class, is.underlay, is.device), expected, "what its programs make of it");
        assert!(meter.reading().buckets.is_empty());
        // A hook that another tool removes then is missed, though an earlier agent made it, and the refusal does not keep it from
        // being made again.
        pair.remove_egress(kind);
        assert_eq!(meter.verify(), [format!("eth0 Egress {}", kind.name())]);
        meter.attach(&is);
        refuse(&mut meter);
        assert_eq!(pair.host.hooks(), hooks(next_kind, Class::Port));
        let before = meter.table();
        pair.send(3, 5);
        let expected = moved(Class::Port, 3, 5).row("device 11", [3, 3 * BYTES, 0]);
        meter.expect(&before, &expected, "made again");
        // Nor does the next agent take it for an uplink, and ask for an uplink's programs.
        drop(meter);
        let mut meter = pair.host.open_with(&pair.options(next));
        let uplinks = |name: &String| name.starts_with("meter_up_");
        assert!(!pair.loaded().iter().any(uplinks), "{:?}", pair.loaded());
        meter.attach(&uplink);
        assert_eq!(pair.host.hooks(), hooks(next_kind, Class::Uplink));
        pair.count(&mut meter, Class::Uplink, "once it is let");
    }
}
