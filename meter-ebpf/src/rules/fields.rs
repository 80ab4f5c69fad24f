//! The fields of a frame that rules look at.

use super::{DST_WORD, HW_DST_WORD, HW_SRC_WORD, PORTS_WORD, SRC_WORD};
use crate::{
    abi::rules::{FlowKey, present},
    packet::{
        Fragment, Frame,
        numbers::{
            ARP_HEAD, ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_LEAST, ETH_QINQ, ETH_VLAN, IP_ICMP, IP_ICMPV6,
            IP_SCTP, IP_TCP, IP_UDP,
        },
    },
};

/// Where TCP begins behind IPv4 without options.
const PLAIN_TCP: u32 = 34;

/// What rules can ask of a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fields {
    /// The fields. The hook, and the direction in its connection, are not known to a frame.
    pub key: FlowKey,
    /// Where the header of TCP begins; 0 for none.
    pub tcp: u32,
    /// Fills the word.
    pub padding: u32,
}

impl Fields {
    /// Returns TCP's flags; 0 for another protocol, and where they can't be read.
    #[inline(always)]
    pub fn tcp_flags(&self, frame: &(impl Frame + ?Sized)) -> u8 {
        match self.tcp {
            0 => 0,
            PLAIN_TCP if let Some(head) = frame.head::<48>() => head[47],
            tcp => frame.read::<1>(tcp + 13).map_or(0, |[flags]| flags),
        }
    }
}

/// Reads the fields of an Ethernet frame that begins with its header. `tag` is the id of a VLAN tag that is kept beside
/// the frame: it is the outermost.
///
/// What can't be read the frame doesn't have.
#[inline(always)]
pub fn fields(frame: &(impl Frame + ?Sized), tag: Option<u16>) -> Fields {
    let mut fields = Fields::default();
    let Fields { key, tcp, .. } = &mut fields;
    let Some(head) = frame.read::<14>(0) else { return fields };
    let [a, b, c, d, e, f, g, h, i, j, k, l, high, low] = head;
    key.words[HW_DST_WORD] = u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | present::HW;
    key.words[HW_SRC_WORD] = u64::from_be_bytes([0, 0, g, h, i, j, k, l]);
    let ethertype = u16::from_be_bytes([high, low]);
    let tag = if tag.is_some() { tag } else { tag_inside(frame, ethertype) };
    if let Some(id) = tag {
        key.words[PORTS_WORD] |= u64::from(id);
        key.words[HW_DST_WORD] |= present::VLAN;
    }
    if ethertype == ETH_IPV4 && plain_v4(frame, key) {
        if key.protocol() == IP_TCP {
            *tcp = PLAIN_TCP;
        }
        return fields;
    }
    let Ok(ethernet) = frame.ethernet(0) else { return fields };
    if ethernet.ethertype >= ETH_LEAST {
        key.words[PORTS_WORD] |= u64::from(ethernet.ethertype) << 16;
        key.words[HW_DST_WORD] |= present::ETHERTYPE;
    }
    match ethernet.ethertype {
        ETH_ARP => arp(frame, ethernet.payload, key),
        ETH_IPV4 | ETH_IPV6 => *tcp = ip(frame, ethernet.ethertype, ethernet.payload, key),
        _ => {}
    }
    fields
}

/// Reads the fields of what most frames are, from its first bytes: IPv4 without options and whole, with ports. Returns
/// whether it is that; else nothing is read. Reading on would find the same.
#[inline(always)]
fn plain_v4<F: Frame + ?Sized>(frame: &F, key: &mut FlowKey) -> bool {
    let Some(head) = frame.head::<38>() else { return false };
    // Any flag or offset but "don't fragment".
    let in_pieces = head[20] & 0x3f != 0 || head[21] != 0;
    if head[14] != 0x45 || in_pieces || !matches!(head[23], IP_TCP | IP_UDP | IP_SCTP) {
        return false;
    }
    key.words[PORTS_WORD] |= u64::from(ETH_IPV4) << 16;
    key.words[HW_DST_WORD] |= present::ETHERTYPE;
    set_tos(key, head[15]);
    set_proto(key, head[23]);
    set_src4(key, [head[26], head[27], head[28], head[29]]);
    set_dst4(key, [head[30], head[31], head[32], head[33]]);
    set_src_port(key, u16::from_be_bytes([head[34], head[35]]));
    set_dst_port(key, u16::from_be_bytes([head[36], head[37]]));
    true
}

/// Returns the id of the tag behind the MAC addresses, where there is one.
#[inline(always)]
fn tag_inside(frame: &(impl Frame + ?Sized), ethertype: u16) -> Option<u16> {
    if ethertype != ETH_VLAN && ethertype != ETH_QINQ {
        return None;
    }
    let [high, low] = frame.read::<2>(14)?;
    Some(u16::from_be_bytes([high, low]) & 0x0fff)
}

/// Protocol and TOS byte stand above the source MAC address.
#[inline(always)]
fn set_proto(key: &mut FlowKey, proto: u8) {
    key.words[HW_SRC_WORD] |= u64::from(proto) << 48;
    key.words[HW_DST_WORD] |= present::PROTO;
}

#[inline(always)]
fn set_tos(key: &mut FlowKey, tos: u8) {
    key.words[HW_SRC_WORD] |= u64::from(tos) << 56;
    key.words[HW_DST_WORD] |= present::TOS;
}

#[inline(always)]
fn set_src4(key: &mut FlowKey, address: [u8; 4]) {
    key.words[SRC_WORD] = u64::from(u32::from_be_bytes(address)) << 32;
    key.words[HW_DST_WORD] |= present::SRC;
}

#[inline(always)]
fn set_dst4(key: &mut FlowKey, address: [u8; 4]) {
    key.words[DST_WORD] = u64::from(u32::from_be_bytes(address)) << 32;
    key.words[HW_DST_WORD] |= present::DST;
}

#[inline(always)]
fn set_address6(key: &mut FlowKey, word: usize, address: [u8; 16], bit: u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    key.words[word] = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    key.words[word + 1] = u64::from_be_bytes([i, j, k, l, m, n, o, p]);
    key.words[HW_DST_WORD] |= bit | present::IPV6;
}

#[inline(always)]
fn set_src_port(key: &mut FlowKey, port: u16) {
    key.words[PORTS_WORD] |= u64::from(port) << 48;
    key.words[HW_DST_WORD] |= present::SRC_PORT;
}

#[inline(always)]
fn set_dst_port(key: &mut FlowKey, port: u16) {
    key.words[PORTS_WORD] |= u64::from(port) << 32;
    key.words[HW_DST_WORD] |= present::DST_PORT;
}

#[inline(always)]
fn arp(frame: &(impl Frame + ?Sized), start: u32, key: &mut FlowKey) {
    let Some(head) = frame.read::<6>(start) else { return };
    if head != ARP_HEAD {
        return;
    }
    if let Some([high, low]) = frame.read::<2>(start + 6)
        && high == 0
    {
        set_proto(key, low);
    }
    if let Some(address) = frame.read::<4>(start + 14) {
        set_src4(key, address);
    }
    if let Some(address) = frame.read::<4>(start + 24) {
        set_dst4(key, address);
    }
}

/// Returns where TCP begins; 0 for none.
#[inline(always)]
fn ip(frame: &(impl Frame + ?Sized), ethertype: u16, start: u32, key: &mut FlowKey) -> u32 {
    let Ok(ip) = frame.ip(ethertype, start) else { return 0 };
    if ethertype == ETH_IPV4 {
        if let Some([tos]) = frame.read::<1>(start + 1) {
            set_tos(key, tos);
        }
        if let Some(address) = frame.read::<4>(start + 12) {
            set_src4(key, address);
        }
        if let Some(address) = frame.read::<4>(start + 16) {
            set_dst4(key, address);
        }
    } else {
        if let Some([high, low]) = frame.read::<2>(start) {
            // Version, traffic class and flow label share the first word.
            set_tos(key, high << 4 | low >> 4);
        }
        if let Some(address) = frame.read::<16>(start + 8) {
            set_address6(key, SRC_WORD, address, present::SRC);
        }
        if let Some(address) = frame.read::<16>(start + 24) {
            set_address6(key, DST_WORD, address, present::DST);
        }
    }
    set_proto(key, ip.protocol);
    key.words[HW_DST_WORD] |= (ip.fragment as u64) << present::FRAGMENT_SHIFT;
    if ip.fragment as u32 == Fragment::Later as u32 {
        return 0;
    }
    match ip.protocol {
        IP_TCP | IP_UDP | IP_SCTP => {
            if let Some(port) = frame.read::<2>(ip.payload) {
                set_src_port(key, u16::from_be_bytes(port));
            }
            if let Some(port) = frame.read::<2>(ip.payload + 2) {
                set_dst_port(key, u16::from_be_bytes(port));
            }
        }
        IP_ICMP | IP_ICMPV6 => {
            if let Some([kind]) = frame.read::<1>(ip.payload) {
                set_src_port(key, u16::from(kind));
            }
            if let Some([code]) = frame.read::<1>(ip.payload + 1) {
                set_dst_port(key, u16::from(code));
            }
        }
        _ => {}
    }
    if ip.protocol == IP_TCP { ip.payload } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::{Frame, fields};

    /// A frame of which no head lies in one piece.
    struct Scattered<'f>(&'f [u8]);

    impl Frame for Scattered<'_> {
        fn head<const N: usize>(&self) -> Option<&[u8; N]> {
            None
        }

        fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            self.0.read(offset)
        }

        fn length(&self) -> u32 {
            self.0.length()
        }
    }

    proptest! {
        #[test]
        fn the_first_bytes_say_what_the_walk_says(
            bytes in prop::collection::vec(any::<u8>(), 24..60),
            version in prop::sample::select(vec![0x45, 0x46, 0x55]),
            flags in prop::sample::select(vec![[0, 0], [0x40, 0], [0x20, 0], [0x80, 0], [0, 1], [0x1f, 0]]),
            proto in prop::sample::select(vec![1, 6, 17, 47, 132]),
        ) {
            let mut frame = bytes;
            frame[12..15].copy_from_slice(&[0x08, 0, version]);
            frame[20..22].copy_from_slice(&flags);
            frame[23] = proto;
            let walked = fields(&Scattered(&frame), None);
            prop_assert_eq!(fields(frame.as_slice(), None), walked, "{:02x?}", frame);
        }
    }
}
