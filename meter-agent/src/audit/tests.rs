use std::collections::BTreeMap;

use meter_ebpf::abi::{Counter, Direction, HookCounter};
use proptest::prelude::*;
use uuid::Uuid;

use super::{Auditor, Cause, Drift, Metered, Report, Sample, table};
use crate::{
    datapath::Class,
    meter::PortId,
    netdev::{NetdevSample, NetdevStats},
};

/// A netdev at rest: what both sides have counted.
#[derive(Debug, Clone)]
struct Netdev {
    metered: Metered,
    kernel: NetdevSample,
}

impl Netdev {
    fn new(kind: &str, class: Class) -> Self {
        let metered = Metered {
            port: PortId(Uuid::from_u128(5)),
            class,
            netdev_id: 3.into(),
            netdev: "netdev3".to_owned(),
            netns: String::new(),
            kind: kind.to_owned(),
            attach: 1,
            gaps: 0,
            by_xdp: false,
            hooks: [HookCounter::default(); 2],
            parts: None,
        };
        Self { metered, kernel: NetdevSample::default() }
    }

    /// Lets the hook of ingress count so many super-packets of so many frames, 66 bytes of headers and 1000 of payload each.
    fn receive(&mut self, packets: u64, frames: u64) {
        self.hook(Direction::Ingress, packets, frames);
    }

    fn hook(&mut self, direction: Direction, packets: u64, frames: u64) {
        let extra = packets * (frames - 1);
        self.metered.hooks[direction as usize].add(&HookCounter {
            skb_packets: packets,
            skb_bytes: packets * (66 + frames * 1000),
            extra_packets: extra,
            extra_bytes: extra * 66,
        });
    }

    fn send(&mut self, packets: u64) {
        self.hook(Direction::Egress, packets, 1);
    }

    const fn kernel_receives(&mut self, packets: u64, bytes: u64) {
        self.kernel.stats.rx_packets += packets;
        self.kernel.stats.rx_bytes += bytes;
    }

    const fn kernel_sends(&mut self, packets: u64) {
        self.kernel.stats.tx_packets += packets;
        self.kernel.stats.tx_bytes += packets * 1066;
    }

    fn sample(&self) -> Sample {
        Sample {
            at_s: 7,
            kernel_first: [(3.into(), self.kernel)].into(),
            ours_first: vec![self.metered.clone()],
            ours_second: vec![self.metered.clone()],
            kernel_second: [(3.into(), self.kernel)].into(),
        }
    }
}

/// Takes a base line at rest, changes something, and returns what is found then, on receive and on transmit.
fn found(
    mut netdev: Netdev,
    is_shared: bool,
    change: impl FnOnce(&mut Netdev),
) -> [Vec<(Cause, i64, i64)>; 2] {
    let mut auditor = Auditor::default();
    let report = auditor.judge(&netdev.sample(), &|_, _| is_shared);
    assert!(report.rows.iter().all(|row| row.drifts.is_empty()), "{report:?}");
    change(&mut netdev);
    let report = auditor.judge(&netdev.sample(), &|_, _| is_shared);
    let drifts: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            let sum: i64 = row.drifts.iter().map(|drift| drift.packets).sum();
            assert_eq!(row.kernel - row.ours, sum, "the causes add up");
            row.drifts.iter().map(|drift| (drift.cause, drift.packets, drift.bytes)).collect()
        })
        .collect();
    drifts.try_into().unwrap()
}

const NOTHING: [Vec<(Cause, i64, i64)>; 2] = [Vec::new(), Vec::new()];

#[test]
fn each_way_in_which_a_driver_counts_is_no_drift() {
    for (kind, class, packets, bytes) in [
        // Ten super-packets of four frames.
        ("veth", Class::Port, 10, 40_660),
        ("veth", Class::Port, 10, 40_660 - 140),
        ("tap", Class::Port, 10, 40_660),
        ("tap", Class::Port, 40, 42_640),
        ("vxlan", Class::Tunnel, 10, 40_660 - 140),
        ("vxlan", Class::Tunnel, 40, 42_640 - 560),
        // Half of them as their frames.
        ("vxlan", Class::Tunnel, 25, 41_650 - 350),
        ("gretap", Class::Tunnel, 10, 40_660),
        ("physical", Class::Uplink, 10, 40_660),
        ("physical", Class::Uplink, 40, 42_640),
        ("physical", Class::Uplink, 25, 41_650),
    ] {
        let drifts = found(Netdev::new(kind, class), false, |netdev| {
            netdev.receive(10, 4);
            netdev.kernel_receives(packets, bytes);
        });
        assert_eq!(drifts, NOTHING, "{kind} {packets} {bytes}");
    }
}

#[test]
fn what_is_segmented_behind_the_hook_is_no_drift_and_what_is_lost_there_is() {
    for (kind, class, header) in
        [("veth", Class::Port, 0), ("tap", Class::Port, 0), ("vxlan", Class::Tunnel, 14)]
    {
        let sent = |packets: u64, bytes: u64| {
            found(Netdev::new(kind, class), false, |netdev| {
                netdev.hook(Direction::Egress, 10, 4);
                netdev.kernel.stats.tx_packets += packets;
                netdev.kernel.stats.tx_bytes += bytes - packets * header;
            })
        };
        // All whole, half of them as their frames, all as their frames.
        for (packets, bytes) in [(10, 40_660), (25, 41_650), (40, 42_640)] {
            assert_eq!(sent(packets, bytes), NOTHING, "{kind} {packets} {bytes}");
        }
        let lost = vec![(Cause::Unknown, -1, -4_066)];
        assert_eq!(sent(9, 9 * 4_066), [vec![], lost], "{kind}");
        let lost = vec![(Cause::Unknown, -1, -1_066)];
        assert_eq!(sent(39, 39 * 1_066), [vec![], lost], "{kind}");
    }
}

#[test]
fn bytes_that_a_nic_counts_otherwise_have_their_cause() {
    for bytes in [4, -14] {
        let drifts = found(Netdev::new("physical", Class::Uplink), false, |netdev| {
            netdev.receive(100, 1);
            netdev.kernel_receives(100, (106_600 + 100 * bytes).try_into().unwrap());
        });
        assert_eq!(drifts, [vec![(Cause::DriverUnits, 0, 100 * bytes)], vec![]]);
    }
    let drifts = found(Netdev::new("veth", Class::Port), false, |netdev| {
        netdev.receive(100, 1);
        netdev.kernel_receives(100, 107_000);
    });
    assert_eq!(drifts, [vec![(Cause::Unknown, 0, 400)], vec![]], "a veth does no such thing");
}

#[test]
fn frames_that_never_reach_the_hook_are_blamed_on_who_stands_before_it() {
    let lost = |kind, is_shared, prepare: fn(&mut NetdevSample)| {
        let mut netdev = Netdev::new(kind, Class::Port);
        prepare(&mut netdev.kernel);
        found(netdev, is_shared, |netdev| {
            netdev.receive(90, 1);
            netdev.kernel_receives(100, 106_600);
        })
    };
    let blamed = |cause| [vec![(cause, 10, 10_660)], vec![]];
    // A veth with XDP leaves out the Ethernet headers; here it doesn't.
    let by_xdp = [vec![(Cause::Xdp, 10, 10_660 + 1400)], vec![]];
    assert_eq!(lost("veth", false, |_| {}), blamed(Cause::Unknown));
    assert_eq!(lost("veth", true, |_| {}), blamed(Cause::ForeignProgram));
    assert_eq!(lost("veth", true, |kernel| kernel.has_xdp = true), by_xdp);
    assert_eq!(lost("physical", false, |kernel| kernel.is_switched = true), blamed(Cause::HardwareOffload));
}

#[test]
fn program_that_has_gone_is_still_to_blame_for_what_it_took_and_for_no_more() {
    let mut netdev = Netdev::new("veth", Class::Port);
    let mut auditor = Auditor::default();
    auditor.judge(&netdev.sample(), &|_, _| true);
    netdev.kernel_receives(10, 10_660);
    auditor.judge(&netdev.sample(), &|_, _| true);
    netdev.receive(7, 1);
    netdev.kernel_receives(7, 7_462);
    let foreign = Drift { cause: Cause::ForeignProgram, packets: 10, bytes: 10_660 };
    assert_eq!(only(&auditor.judge(&netdev.sample(), &|_, _| false), 0), [foreign]);
    netdev.kernel_receives(2, 2_132);
    let unknown = Drift { cause: Cause::Unknown, packets: 2, bytes: 2_132 };
    assert_eq!(only(&auditor.judge(&netdev.sample(), &|_, _| false), 0), [foreign, unknown]);
    netdev.kernel.has_xdp = true;
    netdev.kernel_receives(0, 0);
    let causes = auditor.judge(&netdev.sample(), &|_, _| false).rows[0].drifts.clone();
    assert_eq!(
        causes.iter().map(|drift| drift.cause).collect::<Vec<_>>(),
        [Cause::ForeignProgram, Cause::Xdp]
    );
}

#[test]
fn what_passed_while_a_hook_was_missing_is_told() {
    let mut netdev = Netdev::new("veth", Class::Port);
    let mut auditor = Auditor::default();
    auditor.judge(&netdev.sample(), &|_, _| true);
    netdev.kernel_receives(10, 10_660);
    netdev.kernel_sends(5);
    netdev.metered.gaps = 1;
    let hook_lost = |packets| Drift { cause: Cause::HookLost, packets, bytes: packets * 1066 };
    let report = auditor.judge(&netdev.sample(), &|_, _| true);
    assert_eq!([only(&report, 0), only(&report, 1)], [[hook_lost(10)], [hook_lost(5)]]);
    netdev.kernel_receives(1, 1_066);
    let unknown = Drift { cause: Cause::Unknown, packets: 1, bytes: 1_066 };
    assert_eq!(only(&auditor.judge(&netdev.sample(), &|_, _| false), 0), [hook_lost(10), unknown]);
}

#[test]
fn dropper_on_a_veth_does_not_hide_behind_super_packets() {
    let drifts = found(Netdev::new("veth", Class::Port), true, |netdev| {
        netdev.receive(1000, 40);
        netdev.kernel_receives(1001, 1000 * 40_066 + 66);
    });
    assert_eq!(drifts, [vec![(Cause::ForeignProgram, 1, 66)], vec![]]);
}

#[test]
fn frames_behind_the_hook_of_egress_are_told_by_who_dropped_them() {
    let drifts = found(Netdev::new("tap", Class::Port), true, |netdev| {
        netdev.send(100);
        netdev.kernel_sends(60);
        netdev.kernel.stats.tx_dropped = 20;
        netdev.kernel.queue_dropped = 7;
        netdev.kernel.queue_waiting = 3;
    });
    let expected = vec![(Cause::TxDropped, -27, 0), (Cause::Queued, -3, 0), (Cause::ForeignProgram, -10, 0)];
    assert_eq!(drifts, [vec![], expected]);
    let drifts = found(Netdev::new("tap", Class::Port), false, |netdev| {
        netdev.send(100);
        netdev.kernel_sends(60);
        netdev.kernel.queue_limit = 1000;
    });
    assert_eq!(drifts, [vec![], vec![(Cause::Queued, -40, 0)]]);
}

#[test]
fn what_the_other_end_received_beyond_is_a_redirect() {
    let mut netdev = Netdev::new("veth", Class::Port);
    netdev.kernel.peer_received = Some((50, 5_000));
    let drifts = found(netdev, false, |netdev| {
        netdev.send(10);
        netdev.kernel_sends(10);
        netdev.kernel.peer_received = Some((50 + 10 + 4, 5_000 + 10_660 + 400));
    });
    assert_eq!(drifts, [vec![], vec![(Cause::RedirectPeer, 4, 400)]]);
}

#[test]
fn copies_of_a_flooding_tunnel_are_copies() {
    let drifts = found(Netdev::new("vxlan", Class::Tunnel), false, |netdev| {
        netdev.send(10);
        netdev.kernel_sends(30);
    });
    // The kernel counts them here with their Ethernet headers.
    assert_eq!(drifts[1], [(Cause::Copies, 20, 21_320 + 30 * 14)]);
}

#[test]
fn double_counting_is_never_explained() {
    let drifts = found(Netdev::new("veth", Class::Port), true, |netdev| {
        netdev.receive(20, 1);
        netdev.kernel_receives(10, 10_660);
    });
    assert_eq!(drifts, [vec![(Cause::Unknown, -10, -10_660)], vec![]]);
}

fn only(report: &Report, row: usize) -> Vec<Drift> {
    report.rows[row].drifts.clone()
}

#[test]
fn traffic_from_before_is_told_where_the_hooks_are_young_and_only_there() {
    let mut netdev = Netdev::new("veth", Class::Port);
    netdev.kernel_receives(110, 117_260);
    netdev.receive(10, 1);
    let before = vec![Drift { cause: Cause::AttachedLater, packets: 100, bytes: 106_600 }];
    let report = Auditor::default().judge(&netdev.sample(), &|_, _| false);
    assert_eq!(only(&report, 0), before);
    assert_eq!((report.rows[0].ours, report.rows[0].kernel), (10, 110));
    assert!(report.is_explained());
    netdev.metered.attach = 0;
    let mut auditor = Auditor::default();
    assert!(auditor.lacks(std::slice::from_ref(&netdev.metered)));
    let report = auditor.judge(&netdev.sample(), &|_, _| false);
    assert_eq!(only(&report, 0), []);
    assert!(!auditor.lacks(std::slice::from_ref(&netdev.metered)));
    // Another attach is another base line, and what the netdev carried for another port is not missing.
    netdev.metered.attach = 2;
    netdev.kernel_receives(40, 42_640);
    assert!(auditor.lacks(std::slice::from_ref(&netdev.metered)));
    let report = auditor.judge(&netdev.sample(), &|_, _| false);
    assert_eq!(only(&report, 0), []);
}

#[test]
fn dropped_packets_of_a_port_go_on_over_its_netdevs() {
    let mut netdev = Netdev::new("tap", Class::Port);
    netdev.kernel.stats.tx_dropped = 1000;
    let mut auditor = Auditor::default();
    let mut dropped = |netdev: &Netdev| {
        let report = auditor.judge(&netdev.sample(), &|_, _| false);
        report.transmit_dropped.iter().map(|dropped| dropped.packets).collect::<Vec<_>>()
    };
    assert_eq!(dropped(&netdev), [0], "what was before is not the port's");
    netdev.kernel.stats.tx_dropped = 1003;
    assert_eq!(dropped(&netdev), [3]);
    netdev.metered.attach = 2;
    netdev.kernel.stats.tx_dropped = 0;
    assert_eq!(dropped(&netdev), [3]);
    netdev.kernel.stats.tx_dropped = 5;
    assert_eq!(dropped(&netdev), [8]);
}

#[test]
fn uplink_that_does_not_close_is_unexplained() {
    let mut netdev = Netdev::new("physical", Class::Uplink);
    netdev.metered.parts = Some([Counter::default(); 2]);
    let mut auditor = Auditor::default();
    assert!(auditor.judge(&netdev.sample(), &|_, _| false).is_explained());
    netdev.receive(10, 1);
    netdev.kernel_receives(10, 10_660);
    netdev.metered.parts = Some([Counter { packets: 9, bytes: 10_000 }, Counter::default()]);
    let report = auditor.judge(&netdev.sample(), &|_, _| false);
    let open: Vec<_> = report.closures.iter().map(|closure| (closure.packets, closure.bytes)).collect();
    assert_eq!(open, [(1, 660), (0, 0)]);
    assert!(!report.is_explained());
    assert!(report.rows.iter().all(|row| row.drifts.is_empty()));
}

#[test]
fn table_says_what_each_cause_means() {
    let mut netdev = Netdev::new("veth", Class::Port);
    netdev.kernel_receives(100, 10_000);
    let mut auditor = Auditor::default();
    auditor.judge(&netdev.sample(), &|_, _| false);
    netdev.kernel_receives(10, 10_660);
    let report = auditor.judge(&netdev.sample(), &|_, _| false);
    assert_eq!(
        table(&report),
        format!(
            "\
NETDEV   DIRECTION  OURS  KERNEL  DRIFT  CAUSE           BYTES
netdev3  receive       0     110   +100  attached_later  +10000
netdev3  receive       0     110    +10  unknown         +10660
netdev3  transmit      0       0      0  -               0

attached_later: {}
unknown: {}
",
            Cause::AttachedLater.sentence(),
            Cause::Unknown.sentence()
        )
    );
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

/// How long a sample rests between the kernel's counters and ours; no frame takes longer from one to the other.
const PAUSE: i64 = 10;

/// A frame: when the kernel counts it, how much later the hook does (or earlier), its bytes, and whether it is lost.
type Frame = (i64, i64, u64, bool);

fn sample(frames: &[Frame], at: i64) -> Sample {
    let kernel = |at: i64| {
        let counted = frames.iter().filter(|(time, ..)| *time <= at);
        let (rx_packets, rx_bytes) =
            counted.fold((0, 0), |(packets, sum), (_, _, bytes, _)| (packets + 1, sum + bytes));
        let stats = NetdevStats { rx_packets, rx_bytes, ..NetdevStats::default() };
        BTreeMap::from([(3.into(), NetdevSample { stats, ..NetdevSample::default() })])
    };
    let ours = |at: i64| {
        let mut netdev = Netdev::new("veth", Class::Port).metered;
        for (_, _, bytes, _) in frames.iter().filter(|(time, later, _, lost)| !lost && time + later <= at) {
            let one = HookCounter { skb_packets: 1, skb_bytes: *bytes, ..HookCounter::default() };
            netdev.hooks[Direction::Ingress as usize].add(&one);
        }
        vec![netdev]
    };
    Sample {
        at_s: 0,
        kernel_first: kernel(at),
        ours_first: ours(at + PAUSE),
        ours_second: ours(at + PAUSE + 1),
        kernel_second: kernel(at + 2 * PAUSE + 1),
    }
}

proptest! {
    #[test]
    fn frames_on_their_way_are_no_drift_and_lost_ones_are_never_overstated(
        frames in prop::collection::vec((100..900_i64, -PAUSE..=PAUSE, 60..1500_u64, any::<bool>()), 0..200),
        times in prop::collection::vec(0..900_i64, 1..20),
        loses in any::<bool>(),
    ) {
        let frames: Vec<Frame> =
            frames.into_iter().map(|(time, later, bytes, lost)| (time, later, bytes, lost && loses)).collect();
        let mut times = times;
        times.sort_unstable();
        let mut auditor = Auditor::default();
        let sum = |report: &Report| -> (i64, i64) {
            let drifts = report.rows[0].drifts.iter().filter(|drift| drift.cause != Cause::AttachedLater);
            drifts.fold((0, 0), |sum, drift| (sum.0 + drift.packets, sum.1 + drift.bytes))
        };
        // At rest before the first frame, so that the base line is exact.
        auditor.judge(&sample(&frames, 0), &|_, _| true);
        for at in times {
            let (packets, bytes) = sum(&auditor.judge(&sample(&frames, at), &|_, _| true));
            let lost = frames.iter().filter(|(time, _, _, lost)| *lost && *time <= at + 2 * PAUSE + 1);
            let (most, most_bytes) =
                lost.fold((0, 0), |sum, frame| (sum.0 + 1, sum.1 + i64::try_from(frame.2).unwrap()));
            prop_assert!((0..=most).contains(&packets), "{packets} of {most}");
            prop_assert!((0..=most_bytes).contains(&bytes), "{bytes} of {most_bytes}");
        }
        let all = frames.iter().filter(|frame| frame.3);
        let all = all.fold((0, 0), |sum, frame| (sum.0 + 1, sum.1 + i64::try_from(frame.2).unwrap()));
        let last = sum(&auditor.judge(&sample(&frames, 2000), &|_, _| true));
        // So much of so many that it looks like veth's other way to count: see `FRAME_HEADERS`.
        prop_assert!(last == all || last.0 == 0 && all.0 == 0, "{last:?} of {all:?}");
    }
}
