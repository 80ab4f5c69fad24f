//! [`Frame`] for the two kinds of context: the only packet-pointer `unsafe` of the programs.

use core::{mem::MaybeUninit, ptr::NonNull};

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::bpf_skb_load_bytes,
};
use meter_ebpf::{
    packet::{self, Ethernet, Frame, Ip, Stop},
    register::Register,
};

/// What passes a hook of a netdev.
pub(crate) trait OnNetdev {
    /// Returns the netdev's ifindex. Read from the context each time, which is cheaper than keeping it.
    fn ifindex(&self) -> u32;
}

/// An skb at a TC hook. Headers outside its linear part are copied by a helper; nothing is pulled.
#[derive(Clone, Copy)]
pub(crate) struct Skb {
    skb: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// Returns the context, to hand it to a function that is not inlined.
    #[inline(always)]
    pub(crate) fn context(self) -> *mut __sk_buff {
        self.skb
    }

    #[inline(always)]
    fn field<T: Copy>(self, field: impl Fn(*mut __sk_buff) -> *const T) -> T {
        // SAFETY: the kernel passes a valid context, and the verifier checks each field's offset and size.
        unsafe { *field(self.skb) }
    }

    #[inline(always)]
    pub(crate) fn gso_size(self) -> u32 {
        // SAFETY: only the field's address is taken.
        self.field(|skb| unsafe { &raw const (*skb).gso_size })
    }

    #[inline(always)]
    pub(crate) fn gso_segs(self) -> u32 {
        // SAFETY: only the field's address is taken.
        self.field(|skb| unsafe { &raw const (*skb).gso_segs })
    }

    /// Returns whether the skb is one frame on the wire, all of it in its data.
    #[inline(always)]
    pub(crate) fn is_plain(self) -> bool {
        self.gso_size() == 0 && self.tag_bytes() == 0
    }

    /// Bytes of a VLAN tag that is kept beside the data.
    #[inline(always)]
    pub(crate) fn tag_bytes(self) -> u32 {
        // A tag has a protocol; only what a removed tag may leave behind needs the second question, which is dearer.
        // SAFETY: only the fields' addresses are taken.
        let untagged = self.field(|skb| unsafe { &raw const (*skb).vlan_proto }) == 0
            || self.field(|skb| unsafe { &raw const (*skb).vlan_present }) == 0;
        if untagged { 0 } else { 4 }
    }

    /// Returns the id of that tag.
    #[inline(always)]
    pub(crate) fn tag_id(self) -> Option<u16> {
        // SAFETY: only the field's address is taken.
        (self.tag_bytes() != 0)
            .then(|| self.field(|skb| unsafe { &raw const (*skb).vlan_tci }) as u16 & 0x0fff)
    }

    /// Returns the ifindex of the netdev on which the host received the skb; 0 for what it made itself.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(self) -> u32 {
        // SAFETY: only the field's address is taken.
        self.field(|skb| unsafe { &raw const (*skb).ingress_ifindex })
    }
}

impl OnNetdev for Skb {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: only the field's address is taken.
        self.field(|skb| unsafe { &raw const (*skb).ifindex })
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        // SAFETY: only the fields' addresses are taken.
        let data = self.field(|skb| unsafe { &raw const (*skb).data }) as usize;
        // SAFETY: as above.
        let end = self.field(|skb| unsafe { &raw const (*skb).data_end }) as usize;
        // SAFETY: the N bytes lie below `data_end`, and the verifier holds us to it. Nobody writes to the packet
        // while the program runs.
        (data + N <= end).then(|| unsafe { NonNull::new_unchecked(data as *mut [u8; N]).as_ref() })
    }

    #[inline(always)]
    fn half<const N: usize>(head: &[u8; N], at: usize) -> u16 {
        aligned_half(head, at)
    }

    #[inline(always)]
    fn word<const N: usize>(head: &[u8; N], at: usize) -> u32 {
        aligned_word(head, at)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // Not zeroed first: that would be a call to memset, which the verifier refuses.
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes N bytes into an array of N, or fails; it checks the offset.
        let result =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
        // SAFETY: the helper succeeded, so all N bytes are written.
        (result == 0).then(|| unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: only the field's address is taken.
        self.field(|skb| unsafe { &raw const (*skb).len })
    }

    #[inline(always)]
    fn ethernet(&self, start: u32) -> Result<Ethernet, Stop> {
        Register::unpack(skb_ethernet(self.skb, start))
    }

    #[inline(always)]
    fn ip(&self, ethertype: u16, start: u32) -> Result<Ip, Stop> {
        Register::unpack(skb_ip(self.skb, u32::from(ethertype), start))
    }
}

/// Reads two bytes at an even offset by one load.
#[inline(always)]
fn aligned_half<const N: usize>(head: &[u8; N], at: usize) -> u16 {
    // SAFETY: both bytes are in the array: every caller passes a constant below N - 1, and the verifier checks it
    // again. The kernel begins a frame at an even address (`NET_SKB_PAD`, `NET_IP_ALIGN`); where a driver does not,
    // the machine still loads it, since the verifier lets programs load unaligned packet data only on machines that
    // can.
    unsafe { head.as_ptr().add(at).cast::<u16>().read() }
}

/// Reads four bytes by one load, where an aligned IP header has a number of four.
#[inline(always)]
fn aligned_word<const N: usize>(head: &[u8; N], at: usize) -> u32 {
    // SAFETY: as in `aligned_half`: a constant below N - 3. With `NET_IP_ALIGN` the IP header is aligned to 4 bytes;
    // the kernel leaves it out only for machines that load any address.
    unsafe { head.as_ptr().add(at).cast::<u32>().read() }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn skb_ethernet(skb: *mut __sk_buff, start: u32) -> u64 {
    packet::ethernet(&Skb { skb }, start).pack()
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn skb_ip(skb: *mut __sk_buff, ethertype: u32, start: u32) -> u64 {
    packet::ip(&Skb { skb }, ethertype as u16, start).pack()
}

/// A frame at an XDP hook: what lies in its first buffer.
pub(crate) struct Xdp {
    context: *mut xdp_md,
    data: usize,
    end: usize,
    length: u32,
}

impl Xdp {
    /// `length` is the whole frame's, which may go on in further buffers.
    #[inline(always)]
    pub(crate) fn new(context: *mut xdp_md, length: u32) -> Self {
        // Volatile, so that the compiler does not load them in a caller and pass them on: as arguments they would
        // be plain numbers to the verifier.
        // SAFETY: the kernel passes a valid context.
        let (data, end) = unsafe {
            ((&raw const (*context).data).read_volatile(), (&raw const (*context).data_end).read_volatile())
        };
        Self { context, data: data as usize, end: end as usize, length }
    }
}

/// How deep headers are followed at an XDP hook, in bytes: the verifier wants a bound.
///
/// With room for what is read there below the next power of two: Linux 7 cuts what it knows of a sum at that power, and of
/// parts of the sum it does not, so that a part would seem to be beyond the whole.
const REACH: usize = 0x1c0;

impl OnNetdev for Xdp {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        unsafe { (*self.context).ingress_ifindex }
    }
}

impl Frame for Xdp {
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        // SAFETY: as for `Skb`.
        (self.data + N <= self.end)
            .then(|| unsafe { NonNull::new_unchecked(self.data as *mut [u8; N]).as_ref() })
    }

    #[inline(always)]
    fn half<const N: usize>(head: &[u8; N], at: usize) -> u16 {
        aligned_half(head, at)
    }

    #[inline(always)]
    fn word<const N: usize>(head: &[u8; N], at: usize) -> u32 {
        aligned_word(head, at)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let offset = offset as usize;
        if offset > REACH {
            return None;
        }
        let start = self.data + offset;
        // SAFETY: as in `head`; the check above bounds the offset for the verifier.
        (start + N <= self.end).then(|| unsafe { *(start as *const [u8; N]) })
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.length
    }
}
