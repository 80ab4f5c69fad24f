//! A real guest: QEMU's virtio NIC on a tap, offloads on, talks through a tunnel to another host.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use lab::{
    count::Count,
    mac::Mac,
    netdev::{Tunnel, TunnelKind, TunnelMode},
    netns::Netns,
    require, traffic,
    wire::{End, Wire, WireOptions},
};
use meter_agent::datapath::Class;
use meter_ebpf::abi::{Counter, Direction, Encap};

use super::support::{
    Host, STILL, WITHIN, ready,
    table::{self, Table},
};

/// The environment variable with the directory of the guest's kernel and initramfs.
const VARIABLE: &str = "METER_TEST_GUEST";

/// How long the guest may take, all of it computed by software.
const PATIENCE: Duration = Duration::from_secs(180);

const TAP: u128 = 1;
const TUNNEL: u128 = 7;
const UPLINK: u128 = 9;
const VNI: u32 = 7;
/// MTU of the guest, below that of the underlay by what VXLAN takes.
const MTU: u32 = 1450;
const GUEST_MAC: Mac = Mac::local(1);
const FAR_MAC: Mac = Mac::local(9);
const UNDERLAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2))];
const FAR: [u8; 4] = [10, 7, 0, 2];
/// Ports of the far end: of a stream from the guest and one to it, of datagrams from it, and of those that it asks for.
const SINK: u16 = 5001;
const SOURCE: u16 = 5002;
const DATAGRAMS: u16 = 5003;
const ANSWERS: u16 = 5004;
/// Bytes of the stream from the guest, and of the one to it: no whole number of segments.
const SENT: usize = 64 * 64 * 1024;
const RECEIVED: usize = 2_000_001;
/// The datagrams that the guest asks for are sent by one system call: how many, and the payload of each.
const ANSWER_COUNT: usize = 60;
const ANSWER_BYTES: u16 = 1_000;

/// Returns the directory of the guest, if there is one.
fn guest() -> Option<PathBuf> {
    let directory = std::env::var_os(VARIABLE).map(PathBuf::from);
    let met = directory.as_deref().is_some_and(|directory| directory.join("initramfs").exists());
    require::met("guest", met, "a guest to boot (cargo xtask test makes it)").then_some(directory).flatten()
}

/// Joins a namespace to the tunnel.
fn join(netns: &Netns, [local, remote]: [IpAddr; 2], mac: Mac) {
    netns.address("eth0", local, 24).unwrap();
    netns.neighbour("eth0", remote, mac).unwrap();
    let (mode, encap) = (TunnelMode::Fixed { vni: VNI, local, remote }, TunnelKind::Vxlan { udp_port: 4789 });
    netns.tunnel(&Tunnel { name: "vxlan7", encap, mode, mtu: MTU }).unwrap();
}

/// The far end of what the guest asks for; where it fails, the guest's connections fail too.
struct Server {
    sink: TcpListener,
    source: TcpListener,
    answers: UdpSocket,
}

impl Server {
    /// Drains a stream, sends another, and sends datagrams to whoever asks for them. Returns the bytes of the first.
    fn serve(self) -> usize {
        let mut drained = Vec::new();
        self.sink.accept().unwrap().0.read_to_end(&mut drained).unwrap();
        self.source.accept().unwrap().0.write_all(&vec![7; RECEIVED]).unwrap();
        let (_, guest) = self.answers.recv_from(&mut [0; 8]).unwrap();
        self.answers.connect(guest).unwrap();
        let bytes = ANSWER_COUNT * usize::from(ANSWER_BYTES);
        traffic::send_segmented(&self.answers, bytes, ANSWER_BYTES).unwrap();
        drained.len()
    }
}

/// Listens for the guest, in the current namespace: the server, and what takes its datagrams.
fn listen() -> (Server, UdpSocket) {
    let at = |port| SocketAddr::from((FAR, port));
    let [sink, source] = [SINK, SOURCE].map(|port| TcpListener::bind(at(port)).unwrap());
    let [datagrams, answers] = [DATAGRAMS, ANSWERS].map(|port| UdpSocket::bind(at(port)).unwrap());
    (Server { sink, source, answers }, datagrams)
}

/// Boots the guest in a namespace and waits until it has ended; returns what it wrote to its console.
fn boot(host: &Host, guest: &Path) -> String {
    let console = tempfile::NamedTempFile::new().unwrap();
    let peer = IpAddr::from(FAR);
    let environment = format!(
        "ADDRESS=10.7.0.1/24 MTU={MTU} PEER={peer} PEER_MAC={FAR_MAC} SINK={SINK} SOURCE={SOURCE} \
         DATAGRAMS={DATAGRAMS} ANSWERS={ANSWERS} ANSWER_COUNT={ANSWER_COUNT} \
         ANSWER_BYTES={ANSWER_BYTES}"
    );
    let mut qemu = host.netns.command("qemu-system-x86_64").unwrap();
    // By software: it is the same NIC, and there everywhere. QEMU 7.2 corrupts the flags after cmpxchg16b.
    qemu.args(["-accel", "tcg", "-cpu", "max,-cx16", "-M", "q35", "-m", "1024", "-no-reboot"]);
    qemu.args(["-display", "none", "-monitor", "none", "-serial"]);
    qemu.arg(format!("file:{}", console.path().display()));
    qemu.args(["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no,vhost=off"]);
    qemu.arg("-device").arg(format!("virtio-net-pci,netdev=net,mac={GUEST_MAC},romfile="));
    qemu.arg("-kernel").arg(guest.join("vmlinuz")).arg("-initrd").arg(guest.join("initramfs"));
    qemu.arg("-append").arg(format!("console=ttyS0 panic=-1 quiet ipv6.disable=1 {environment}"));
    let mut qemu = host.netns.spawn(qemu).unwrap();
    let began = Instant::now();
    while qemu.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "{}", fs::read_to_string(console.path()).unwrap());
        thread::sleep(Duration::from_millis(100));
    }
    fs::read_to_string(console.path()).unwrap()
}

fn counter(count: Count) -> Counter {
    Counter { packets: count.frames, bytes: count.bytes }
}

/// A host with the guest's tap bridged to a tunnel, and the host at the tunnel's other end. Fields are dropped in this
/// order: the host looks at its netdevs while they are there.
struct Site {
    host: Host,
    wire: Wire,
    far: Netns,
}

impl Site {
    fn new() -> Self {
        let (host, far) = (Host::new("qemu"), Netns::new("far").unwrap());
        let wire = Wire::new(
            End { netns: &host.netns, netdev: "eth0", mac: Mac::local(0xa) },
            End { netns: &far, netdev: "eth0", mac: Mac::local(0xb) },
            &WireOptions::default(),
        )
        .unwrap();
        join(&host.netns, UNDERLAY, Mac::local(0xb));
        join(&far, [UNDERLAY[1], UNDERLAY[0]], Mac::local(0xa));
        far.ip(&format!("link set vxlan7 address {FAR_MAC}")).unwrap();
        far.address("vxlan7", FAR.into(), 24).unwrap();
        far.neighbour("vxlan7", [10, 7, 0, 1].into(), GUEST_MAC).unwrap();
        host.netns.add_bridge("br0", MTU).unwrap();
        host.netns.ip("tuntap add dev tap0 mode tap vnet_hdr").unwrap();
        host.netns.ip(&format!("link set tap0 mtu {MTU} up")).unwrap();
        host.netns.enslave_static("tap0", "br0", &[GUEST_MAC]).unwrap();
        host.netns.enslave_static("vxlan7", "br0", &[FAR_MAC]).unwrap();
        Self { host, wire, far }
    }

    /// Lets the guest do all that it does; what it says and what it sends is as it should be.
    fn talk(&self, guest: &Path) {
        let (server, datagrams) = self.far.run_in(listen).unwrap();
        let server = thread::spawn(move || server.serve());
        let console = boot(&self.host, guest);
        assert!(console.lines().any(|line| line.trim() == "guest ended with 0"), "{console}");
        assert_eq!(server.join().unwrap(), SENT);
        datagrams.set_nonblocking(true).unwrap();
        let arrived = std::iter::from_fn(|| datagrams.recv(&mut [0; 2_000]).ok());
        assert_eq!(arrived.collect::<Vec<_>>(), vec![1_000; 100]);
    }
}

#[test]
fn guest_with_a_virtio_nic_is_counted_as_the_wire_counts_it() {
    if !ready() {
        return;
    }
    let Some(guest) = guest() else { return };
    let site = Site::new();
    let mut meter = site.host.open();
    for (netdev, port, class) in
        [("tap0", TAP, Class::Port), ("vxlan7", TUNNEL, Class::Tunnel), ("eth0", UPLINK, Class::Uplink)]
    {
        meter.attach(&site.host.target(netdev, port, class));
    }
    let before = (site.wire.wait_until_quiet(STILL, WITHIN).unwrap(), meter.table());
    site.talk(&guest);
    let after = (site.wire.wait_until_quiet(STILL, WITHIN).unwrap(), meter.table());
    let (counted, table) = (after.0.since(&before.0), after.1.since(&before.1));

    let mut expected = Table::default();
    for (direction, at_the_tap, counts) in [
        (Direction::Egress, Direction::Ingress, &counted.a_to_b),
        (Direction::Ingress, Direction::Egress, &counted.b_to_a),
    ] {
        let (key, count) = counts.tunnels.iter().next().unwrap();
        assert_eq!(
            (counts.tunnels.len(), count.frames),
            (1, counts.total.frames),
            "only the tunnel is on the wire"
        );
        let inner = Counter { packets: count.frames, bytes: count.inner_bytes };
        let tunnel = table::Tunnel { encap: Encap::Vxlan, src: key.src, dst: key.dst, vni: key.vni };
        expected = expected
            .wire(UPLINK, direction, counter(counts.total))
            .tunnel(UPLINK, direction, tunnel, [count.frames, count.inner_bytes, count.outer_bytes])
            .wire(TUNNEL, direction, inner)
            .wire(TAP, at_the_tap, inner);
    }
    assert_eq!(table.clone().on_the_wire(), expected);
    // It was the NIC's offloads that were tested.
    for direction in Direction::ALL {
        let [frames, ..] = table.get(&format!("port {TAP} {direction:?}"));
        let [skbs, ..] = table.get(&format!("port {TAP} {direction:?} skb"));
        assert!(frames > 2 * skbs, "{direction:?}: {frames} frames by {skbs} super-packets");
    }
}
