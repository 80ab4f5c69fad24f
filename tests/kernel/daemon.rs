//! The daemon: what is counted is what every interface says, whatever happens to the agent or is done to it.

mod audit;
mod bpffs;
mod churn;
mod connections;
mod connector;
mod doctor;
mod hooks;
mod jolokia;
mod meters;
mod namespaces;
mod prometheus;
mod reboot;
mod servers;
mod service;
mod unpinned;

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use lab::{
    guest::{Guest, GuestCounts, GuestOptions, NETDEV, VethGuest},
    mac::Mac,
    netns::Netns,
    require,
    traffic::{Sender, tcp, udp},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Host, STILL, WITHIN,
    daemon::{Daemon, HTTP, JOLOKIA, output},
    ready,
    seccomp::forbid_bpf,
};

/// The port of the guest behind the tap.
const PORT: &str = "11111111-0000-4000-8000-000000000001";
/// The virtual bridge.
const DEVICE: &str = "22222222-0000-4000-8000-000000000002";

/// A guest behind a tap and one behind a veth, on one bridge.
struct Guests {
    vm: Guest,
    container: VethGuest,
}

impl Guests {
    fn new(host: &Netns) -> Self {
        let options =
            |label, host_netdev, n| GuestOptions { label, host_netdev, mac: Mac::local(n), mtu: 1500 };
        let vm = Guest::new(host, &options("vm", "tap1", 1)).unwrap();
        let container = VethGuest::new(host, &options("ct", "veth2", 2)).unwrap();
        if !host.netdevs().unwrap().iter().any(|netdev| netdev == "br0") {
            host.add_bridge("br0", 1500).unwrap();
        }
        host.enslave_static("tap1", "br0", &[vm.mac()]).unwrap();
        host.enslave_static("veth2", "br0", &[container.mac()]).unwrap();
        for (netns, here, there, station) in
            [(vm.netns(), 1, 2, container.mac()), (container.netns(), 2, 1, vm.mac())]
        {
            netns.address(NETDEV, [10, 0, 0, here].into(), 24).unwrap();
            netns.neighbour(NETDEV, [10, 0, 0, there].into(), station).unwrap();
        }
        Self { vm, container }
    }

    fn counts(&self) -> GuestCounts {
        self.vm.wait_until_quiet(STILL, WITHIN).unwrap()
    }

    /// Lets a stream run each way; super-packets cross the tap in both directions.
    fn talk(&self) {
        let server: SocketAddr = (IpAddr::from([10, 0, 0, 2]), 5001).into();
        for sender in [Sender::Client, Sender::Server] {
            tcp(self.vm.netns(), self.container.netns(), server, 500_000, sender, WITHIN).unwrap();
        }
        udp(self.vm.netns(), self.container.netns(), server, &[1, 1400], WITHIN).unwrap();
    }
}

fn bound(netdev: &str) -> String {
    format!("[[binding]]\nnetdev = \"{netdev}\"\nport = \"{PORT}\"\ndevice = \"{DEVICE}\"\n")
}

/// What crossed the tap, as the port's rx and tx.
fn rx_tx(counts: &GuestCounts) -> [(u64, u64); 2] {
    [&counts.from_guest, &counts.to_guest].map(|counts| (counts.total.frames, counts.total.bytes))
}

fn sum(one: [(u64, u64); 2], other: [(u64, u64); 2]) -> [(u64, u64); 2] {
    std::array::from_fn(|i| (one[i].0 + other[i].0, one[i].1 + other[i].1))
}

#[test]
fn every_interface_says_what_crossed() {
    if !ready() {
        return;
    }
    let host = Host::new("interfaces");
    let guests = Guests::new(&host.netns);
    let before = guests.counts();
    let daemon = Daemon::started(&host, &bound("tap1"));
    let zero = daemon.port(PORT).unwrap();
    guests.talk();
    let moved = rx_tx(&guests.counts().since(&before));
    let [rx, tx] = sum(zero, moved);
    assert!(moved[0].0 > 100 && moved[1].0 > 100, "{moved:?}");

    assert_eq!(daemon.port(PORT), Some([rx, tx]));
    let rx_meter = format!("meters:port:rx:{PORT}");
    assert_eq!(
        daemon.mm_meter(&["get", "-n", &rx_meter]),
        format!("     packets        bytes\n{:>12} {:>12}\n", rx.0, rx.1)
    );
    let names = daemon.mm_meter(&["list"]);
    let mut listed: Vec<&str> = names.lines().filter(|name| name.contains(PORT)).collect();
    listed.sort_unstable();
    let device_of_port = format!("meters:device:{PORT}");
    assert_eq!(listed, [&device_of_port, &rx_meter, &format!("meters:port:tx:{PORT}")]);
    assert!(names.lines().any(|name| name == format!("meters:device:{DEVICE}")), "{names}");

    let table = daemon.get("/device_stats");
    let row = |meter: &str, (packets, bytes): (u64, u64)| format!("{meter}\t{packets}\t{bytes}");
    for expected in [
        row(&rx_meter, rx),
        row(&format!("meters:port:tx:{PORT}"), tx),
        row(&device_of_port, (rx.0 + tx.0, rx.1 + tx.1)),
        row(&format!("meters:device:{DEVICE}"), rx),
    ] {
        assert!(table.lines().any(|line| line == expected), "{expected} in\n{table}");
    }

    let request = json!({
        "type": "exec",
        "mbean": "org.midonet.midolman:type=Metering",
        "operation": "getMeter",
        "arguments": [rx_meter],
    });
    let answer: Value = serde_json::from_str(&daemon.jolokia(&request.to_string())).unwrap();
    assert_eq!(answer["value"], json!({"packets": rx.0, "bytes": rx.1}), "{answer}");

    let output = daemon.run(&["ls", "--json"]);
    let netdevs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tap = netdevs.as_array().unwrap().iter().find(|netdev| netdev["netdev"] == "tap1").unwrap();
    assert_eq!(
        (&tap["role"], &tap["port"], &tap["device"], &tap["source"]),
        (&json!("port"), &json!(PORT), &json!(DEVICE), &json!("config"))
    );
    assert!(tap["ingress"].is_string() && tap["ingress"] == tap["egress"], "{tap}");
}

#[test]
fn killed_agent_loses_nothing_and_its_successor_counts_nothing_twice() {
    if !ready() {
        return;
    }
    let host = Host::new("killed");
    let guests = Guests::new(&host.netns);
    let before = guests.counts();
    let mut daemon = Daemon::started(&host, &bound("tap1"));
    let zero = daemon.port(PORT).unwrap();
    guests.talk();
    daemon.kill();
    guests.talk();
    daemon.start();
    daemon.wait_until_ready();
    guests.talk();
    daemon.stop();
    guests.talk();
    daemon.start();
    daemon.wait_until_ready();
    let moved = rx_tx(&guests.counts().since(&before));
    assert_eq!(daemon.port(PORT), Some(sum(zero, moved)));
}

#[test]
fn netdev_that_comes_is_metered_and_leaves_its_total() {
    if !ready() {
        return;
    }
    let host = Host::new("hotplug");
    let daemon = Daemon::started(&host, &bound("tap1"));
    assert_eq!(daemon.port(PORT), None);
    let guests = Guests::new(&host.netns);
    let info = format!("meter_port_info{{port=\"{PORT}\"");
    daemon.wait("the tap is metered", |daemon| daemon.get("/metrics").contains(&info));
    let zero = daemon.port(PORT).unwrap();
    let before = guests.counts();
    guests.talk();
    let moved = rx_tx(&guests.counts().since(&before));
    let total = sum(zero, moved);
    assert_eq!(daemon.port(PORT), Some(total));
    drop(guests);
    daemon.wait("the tap is gone", |daemon| !daemon.get("/metrics").contains(&info));
    // A veth goes some time after its peer's namespace.
    let is_there = |netdev: &str| host.netns.netdevs().unwrap().iter().any(|other| other == netdev);
    daemon.wait("the veth is gone", |_| !is_there("veth2"));
    assert_eq!(daemon.port(PORT), Some(total));
    drop(Guests::new(&host.netns));
    daemon.wait("the port came back", |daemon| daemon.port(PORT).is_some_and(|[rx, _]| rx.0 >= total[0].0));
}

#[test]
fn reload_takes_a_right_configuration_and_refuses_a_wrong_one() {
    if !ready() {
        return;
    }
    let host = Host::new("reload");
    let _guests = Guests::new(&host.netns);
    let daemon = Daemon::started(&host, "");
    assert_eq!(daemon.port(PORT), None);
    daemon.configure(&bound("tap1"));
    daemon.signal(Signal::SIGHUP);
    daemon.wait("the binding is in force", |daemon| daemon.port(PORT).is_some());
    let reload = "meter_agent_config_last_reload_successful";
    assert_eq!(daemon.sample(reload), Some(1));
    daemon.configure("[ports]\nignor = [\"tap*\"]\n[[binding]]\nnetdev = 7\n");
    daemon.signal(Signal::SIGHUP);
    daemon.wait("the reload failed", |daemon| daemon.sample(reload) == Some(0));
    assert!(daemon.port(PORT).is_some());
    let log = daemon.log();
    assert!(log.contains("ports.ignor") && log.contains("binding"), "every mistake is logged:\n{log}");
    daemon.configure(&bound("tap1"));
    daemon.signal(Signal::SIGHUP);
    daemon.wait("the reload worked", |daemon| daemon.sample(reload) == Some(1));
}

#[test]
fn kernel_half_that_cannot_be_had_is_one_clear_line() {
    if !ready() {
        return;
    }
    let host = Host::new("refused");
    let running = Daemon::started(&host, "");
    let second = Daemon::new(&host, "[http]\nlisten = []\n[jolokia]\nlisten = []\n");
    // 1 where another start may do better, 3 where it can't: the unit does not try again then.
    let ends = |mut command: Command, code: i32, expected: &str| {
        let output = output(&mut command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("meter-agent: ") && last.contains(expected), "{command:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    };
    let fails = |daemon: &Daemon<'_>, line: &[&str], code: i32, expected: &str| {
        ends(daemon.command(line, &[]), code, expected);
    };
    fails(&second, &[], 1, "another agent uses");
    drop(running);
    // With pins, which it may not open, and without any, where it may make no map: neither counts on without pins.
    let fresh = Host::new("forbidden");
    for daemon in [&second, &Daemon::new(&fresh, "")] {
        let mut command = daemon.command(&[], &[]);
        forbid_bpf(&mut command);
        ends(command, 3, "look for a security module");
    }
    let util_linux = Command::new("setpriv").arg("--version").output().is_ok();
    if require::met("setpriv", util_linux, "setpriv, setarch and unshare (util-linux)") {
        fails(
            &second,
            &["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
            3,
            "not permitted without CAP_BPF",
        );
        // The kernel says that it is 2.6.
        fails(&second, &["setarch", "--uname-2.6"], 3, "is too old: the eBPF programs need 5.10 or newer");
    }
}

#[test]
fn maps_that_do_not_fit_into_the_memory_are_not_made() {
    if !ready() || !require::kernel(5, 11, "maps in the memory of a control group") {
        return;
    }
    let limited = "mount -t cgroup2 none /sys/fs/cgroup && cd /sys/fs/cgroup && grep -qw memory cgroup.controllers && \
                   echo +memory > cgroup.subtree_control && mkdir -p meter-test && cd meter-test && \
                   echo 64M > memory.max && echo $$ > cgroup.procs";
    let line = |then: &str| -> [String; 5] {
        let script = format!("{limited} && {then}");
        ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned)
    };
    let [program, words @ ..] = line("true");
    let can_limit = Command::new(program).args(words).output().is_ok_and(|output| output.status.success());
    if !require::met("cgroup", can_limit, "a memory controller of control groups of version 2") {
        return;
    }
    let host = Host::new("limit");
    let daemon = Daemon::new(&host, "[tunnels]\nmax_tunnels = 1000000\n");
    let line = line("exec \"$0\" \"$@\"");
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let output = output(&mut daemon.command(&line, &[]));
    let gone = "mount -t cgroup2 none /sys/fs/cgroup && rmdir /sys/fs/cgroup/meter-test";
    assert!(Command::new("unshare").args(["--mount", "sh", "-c", gone]).status().unwrap().success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("which the 64 MiB that /sys/fs/cgroup/meter-test allows"), "{said}");
}

/// In emulated guests they are hidden from all other tests, which parse them each time.
#[test]
fn kernel_with_and_without_types_of_its_own_will_do() {
    if !ready() {
        return;
    }
    let has_types = std::path::Path::new("/sys/kernel/btf").exists();
    if !require::met("btf", has_types, "a kernel with type information (CONFIG_DEBUG_INFO_BTF)") {
        return;
    }
    let host = Host::new("types");
    let daemon = Daemon::new(&host, "");
    let hidden = "mount -t tmpfs none /sys/kernel/btf";
    let shown = "umount /sys/kernel/btf; test -e /sys/kernel/btf/vmlinux";
    for sight in [hidden, shown] {
        let line = format!("{sight} && exec \"$0\" \"$@\"");
        let command = daemon.command(&["unshare", "--mount", "sh", "-c", &line], &[]);
        let _running = host.netns.spawn(command).unwrap();
        daemon.wait_until_ready();
    }
}

#[test]
fn descriptors_are_as_many_as_the_process_may_have() {
    if !ready() {
        return;
    }
    let host = Host::new("files");
    let mut daemon = Daemon::new(&host, "");
    daemon.start_with(&["sh", "-c", "ulimit -Sn 200; ulimit -Hn 3000; exec \"$@\"", "sh"], |_| {});
    daemon.wait_until_ready();
    assert!(daemon.get("/metrics").contains("\nprocess_max_fds 3000\n"));
}
