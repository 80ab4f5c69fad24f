//! Which programs are loaded: those that the netdevs take which are attached. The verifier takes many times as long for those
//! that look into tunnels.

use std::collections::BTreeSet;

use aya::{maps::MapInfo, programs::loaded_programs};
use meter_ebpf::abi::{VERSION, map};

use super::{
    super::support::{meters, until},
    Class, IngressHook, Pair, TcMode, ready,
};

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
