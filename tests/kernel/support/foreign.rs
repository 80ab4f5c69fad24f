//! Another tool's programs: one of the object's, over maps of its own, so that what it sees can be told.

use std::{ffi::CString, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        tc::{NlOptions, TcAttachOptions},
    },
};
use lab::netns::Netns;
use meter_agent::datapath::kernel::OBJECT;
use meter_ebpf::abi::{Direction, SlotBlock, SlotCounters, UNBOUND_SLOT, map};

use super::programs::load;

/// A program that is not ours. What it is attached to it leaves when it is dropped.
pub(crate) struct Foreign<'a> {
    netns: &'a Netns,
    ebpf: Ebpf,
}

impl<'a> Foreign<'a> {
    /// Loads the object a second time.
    pub(crate) fn load(netns: &'a Netns) -> Self {
        Self { netns, ebpf: EbpfLoader::new().load(OBJECT).unwrap() }
    }

    /// Attaches by TCX, behind what is there.
    pub(crate) fn tcx(&mut self, netdev: &str, direction: Direction) {
        self.tc(netdev, direction, TcAttachOptions::TcxOrder(LinkOrder::last()));
    }

    /// Attaches by TCX, before what is there.
    pub(crate) fn tcx_first(&mut self, netdev: &str, direction: Direction) {
        self.tc(netdev, direction, TcAttachOptions::TcxOrder(LinkOrder::first()));
    }

    /// Attaches as a filter of a clsact qdisc that is there.
    pub(crate) fn clsact(&mut self, netdev: &str, direction: Direction, priority: u16) {
        let options = NlOptions { priority, ..NlOptions::default() };
        self.tc(netdev, direction, TcAttachOptions::Netlink(options));
    }

    fn tc(&mut self, netdev: &str, direction: Direction, options: TcAttachOptions) {
        let (name, attach_type) = match direction {
            Direction::Ingress => ("meter_in", TcAttachType::Ingress),
            Direction::Egress => ("meter_out", TcAttachType::Egress),
        };
        let program: &mut SchedClassifier = self.ebpf.program_mut(name).unwrap().try_into().unwrap();
        if program.fd().is_err() {
            load(|| program.load());
        }
        self.netns.run_in(|| program.attach_with_options(netdev, attach_type, options)).unwrap().unwrap();
    }

    /// Attaches by XDP in the driver.
    pub(crate) fn xdp(&mut self, netdev: &str) {
        let program: &mut Xdp = self.ebpf.program_mut("meter_up_xdp").unwrap().try_into().unwrap();
        load(|| program.load());
        self.netns.run_in(|| program.attach(netdev, XdpMode::Driver)).unwrap().unwrap();
    }

    /// Pins a program at a path.
    pub(crate) fn pin(&mut self, path: &Path) {
        let program: &mut SchedClassifier = self.ebpf.program_mut("meter_in").unwrap().try_into().unwrap();
        load(|| program.load());
        program.pin(path).unwrap();
    }

    /// Returns how many skbs or XDP frames it saw.
    pub(crate) fn seen(&self, direction: Direction) -> u64 {
        let counters: PerCpuArray<&MapData, SlotBlock> =
            self.ebpf.map(map::COUNTERS).unwrap().try_into().unwrap();
        let mut sum = SlotCounters::default();
        for block in counters.get(&0, 0).unwrap().iter() {
            sum.add(&block.slots[usize::try_from(UNBOUND_SLOT).unwrap()]);
        }
        sum.hook(direction).skb_packets
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        // Filters are removed by name, in the netdev's own namespace.
        let ebpf = std::mem::replace(&mut self.ebpf, EbpfLoader::new().load(OBJECT).unwrap());
        self.netns.run_in(|| drop(ebpf)).unwrap();
    }
}

/// Detaches a pinned link, as `bpftool link detach pinned` does; the pin stays.
pub(crate) fn detach_link(pin: &Path) {
    /// `BPF_OBJ_GET`.
    const GET: libc::c_long = 7;
    /// `BPF_LINK_DETACH`.
    const DETACH: libc::c_long = 34;
    let path = CString::new(pin.to_str().unwrap()).unwrap();
    let mut get = [path.as_ptr() as u64, 0];
    // SAFETY: both commands read the 16 bytes of their attributes; the path lives through the first.
    let detached = unsafe {
        let link = libc::syscall(libc::SYS_bpf, GET, get.as_mut_ptr(), 16);
        assert!(link >= 0, "{}", pin.display());
        let mut detach = [u32::try_from(link).unwrap(), 0, 0, 0];
        let detached = libc::syscall(libc::SYS_bpf, DETACH, detach.as_mut_ptr(), 4);
        libc::close(i32::try_from(link).unwrap());
        detached
    };
    assert_eq!(detached, 0, "{}", std::io::Error::last_os_error());
}
