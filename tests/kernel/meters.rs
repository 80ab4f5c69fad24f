//! User-defined meters: what the programs count by rules, beside what the plain matcher says.

mod admission;
mod differential;
mod flows;
mod routers;
mod worked;

use std::collections::BTreeSet;

use meter_agent::{
    datapath::{Class, Target, kernel::Options},
    meter::{DeviceId, PortId},
    rules::{self, Direction, Packet},
};
use meter_ebpf::abi::Network;
use uuid::Uuid;

use super::support::{
    Host, Meter, meters,
    programs::{Program, Programs, named},
};

/// Netdevs of the test runs, with their ports, devices and overlay networks. One is nobody's; what is in no test run is the
/// metadata that one in external mode asks for.
const NETDEVS: [(&str, u128, Option<u128>, Network); 6] = [
    ("d1", 1, None, Network::NONE),
    ("d2", 2, Some(4), Network::NONE),
    ("d3", 3, Some(1), Network::NONE),
    ("d4", 0, None, Network::NONE),
    ("d5", 5, None, Network::new(1)),
    ("d6", 6, None, Network::EXTERNAL),
];

/// A host with netdevs that nothing comes through but test runs.
struct World<'h> {
    host: &'h Host,
    options: Options,
    meter: Meter<'h>,
    programs: Programs,
    /// Which of them is at a hook.
    program: fn(Direction) -> Program,
    /// Their numbers.
    netdevs: Vec<u32>,
}

impl World<'_> {
    /// Runs `work` in the namespace of a new world.
    fn with(label: &str, work: impl FnOnce(&mut World<'_>) + Send) {
        Self::with_options(label, |_| {}, |mut world| work(&mut world));
    }

    /// The same with other options than the usual ones, and gives the world away.
    fn with_options(label: &str, change: impl FnOnce(&mut Options), work: impl FnOnce(World<'_>) + Send) {
        Self::with_programs(label, program, change, work);
    }

    /// The same with other programs.
    fn with_programs(
        label: &str,
        program: fn(Direction) -> Program,
        change: impl FnOnce(&mut Options),
        work: impl FnOnce(World<'_>) + Send,
    ) {
        let host = Host::new(label);
        for pair in ["d1 type veth peer name d2", "d3 type veth peer name d4", "d5 type veth peer name d6"] {
            host.netns.ip(&format!("link add {pair}")).unwrap();
        }
        let mut options = host.options();
        change(&mut options);
        let meter = host.open_with(&options);
        let programs = Programs::load(&options, [Direction::Rx, Direction::Tx].map(program));
        let netdevs = NETDEVS.map(|(netdev, ..)| host.ifindex(netdev)).to_vec();
        let mut world = World { host: &host, options, meter, programs, program, netdevs };
        world.attach();
        host.netns.run_in(|| work(world)).unwrap();
    }

    fn attach(&mut self) {
        for (netdev, port, device, network) in NETDEVS.into_iter().filter(|(_, port, ..)| *port != 0) {
            let device = device.map(|device| DeviceId(Uuid::from_u128(device)));
            let class = if network.is_tunnel() { Class::Tunnel } else { Class::Port };
            self.meter.attach(&Target { device, network, ..self.host.target(netdev, port, class) });
        }
    }

    /// Ends the agent's half and opens it again; the programs of the test runs stay.
    fn reopen(self) -> Self {
        let Self { host, options, meter, programs, program, netdevs } = self;
        drop(meter);
        let mut world = Self { host, meter: host.open_with(&options), options, programs, program, netdevs };
        world.attach();
        world
    }

    /// Runs a frame through the program of a hook; returns what the plain matcher sees of it. Netdevs are given by their
    /// place; the one that the frame came in through matters where it goes out.
    fn run(&self, frame: &[u8], direction: Direction, came: Option<usize>, own: usize) -> Packet {
        let ingress = direction == Direction::Rx;
        // Older kernels take no such netdev for a test run. Programs of ingress don't ask for it.
        let came = came.filter(|_| !ingress && lab::require::is_kernel(6, 1));
        let numbers = [came.map_or(0, |place| self.netdevs[place]), self.netdevs[own]];
        self.programs.run_between((self.program)(direction), frame, numbers);
        let came = if ingress { Some(own) } else { came };
        let port = |place: usize| {
            let (_, port, device, _) = NETDEVS[place];
            (port != 0).then_some((PortId(Uuid::from_u128(port)), device.map(Uuid::from_u128)))
        };
        let in_port = came.and_then(port);
        let out_port = if ingress { None } else { port(own) };
        let traversed = in_port.into_iter().chain(out_port);
        let traversed: BTreeSet<Uuid> =
            traversed.flat_map(|(port, device)| [Some(port.0), device]).flatten().collect();
        let in_port = in_port.map(|(port, _)| port);
        let (.., network) = NETDEVS[own];
        let network = if network.is_external() { Network::UNKNOWN } else { network };
        Packet {
            in_port,
            origin_port: in_port,
            out_port: out_port.map(|(port, _)| port),
            traversed,
            direction: Some(direction),
            network,
            ..rules::fields(frame)
        }
    }
}

/// Returns the device that a port belongs to.
fn device_of(port: PortId) -> Option<DeviceId> {
    let mut netdevs = NETDEVS.into_iter();
    let (_, _, device, _) = netdevs.find(|(_, number, ..)| Uuid::from_u128(*number) == port.0)?;
    device.map(|device| DeviceId(Uuid::from_u128(device)))
}

/// Returns the program of a port's hook.
fn program(direction: Direction) -> Program {
    named(match direction {
        Direction::Rx => "meter_user_in",
        Direction::Tx => "meter_user_out",
    })
}
