//! The fields of a frame that rules look at.

use core::hint::black_box;

use super::{DST_WORD, HW_DST_WORD, HW_SRC_WORD, PORTS_WORD, SRC_WORD};
use crate::{
    abi::rules::{FlowKey, present},
    packet::{
        Fragment, Frame, half,
        numbers::{
            ARP_HEAD, ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_LEAST, ETH_QINQ, ETH_TEB, ETH_VLAN, IP_ICMP,
            IP_ICMPV6, IP_SCTP, IP_TCP, IP_UDP,
        },
    },
};

/// Types of ICMP and ICMPv6.
/// <https://www.rfc-editor.org/rfc/rfc792>, <https://www.rfc-editor.org/rfc/rfc4443#section-4>
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

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
    /// Where the header of an echo request or reply begins; 0 for none. Means nothing of a frame with ports.
    pub echo: u32,
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

    /// Returns the identifier of an echo request or reply.
    #[inline(always)]
    pub fn echo_identifier(&self, frame: &(impl Frame + ?Sized)) -> Option<u16> {
        if self.echo == 0 {
            return None;
        }
        frame.read::<2>(self.echo + 4).map(u16::from_be_bytes)
    }
}

/// Reads the fields of what most frames are: IPv4 without options and whole, with ports, by few loads from its first bytes.
/// Returns whether it is that; else nothing is read. [`fields`] would find the same.
#[inline(always)]
pub fn plain_fields<F: Frame + ?Sized>(frame: &F, fields: &mut Fields) -> bool {
    // As long as TCP's flags need it; few packets of UDP are shorter.
    let Some(head) = frame.head::<48>() else { return false };
    // "Don't fragment" is the one flag that a whole packet may have.
    let plain =
        half::<F, 48>(head, 12) == ETH_IPV4 && head[14] == 0x45 && half::<F, 48>(head, 20) & 0xbfff == 0;
    let protocol = head[23];
    if !plain || !matches!(protocol, IP_TCP | IP_UDP | IP_SCTP) {
        return false;
    }
    let word = |at| u64::from(u32::from_be(F::word(head, at)));
    let short = |at| u64::from(half::<F, 48>(head, at));
    let hw_dst = short(0) << 32 | word(2);
    let hw_src = word(6) << 16 | short(10);
    let present = present::HW
        | present::ETHERTYPE
        | present::TOS
        | present::PROTO
        | present::SRC
        | present::DST
        | present::SRC_PORT
        | present::DST_PORT;
    // Where the compiler sees zeros it calls a function to write them.
    let zero = black_box(0);
    fields.key.words = [
        word(26) << 32,
        zero,
        word(30) << 32,
        zero,
        word(34) << 32 | u64::from(ETH_IPV4) << 16,
        hw_src | u64::from(protocol) << 48 | u64::from(head[15]) << 56,
        hw_dst | present,
        zero,
        zero,
    ];
    // What `echo` is from another frame says nothing: nobody asks it of a frame with ports.
    fields.tcp = if protocol == IP_TCP { PLAIN_TCP } else { 0 };
    true
}

/// Reads the fields of an Ethernet frame that begins with its header. `tag` is the id of a VLAN tag that is kept beside
/// the frame: it is the outermost.
///
/// What can't be read the frame doesn't have.
#[inline(always)]
pub fn fields(frame: &(impl Frame + ?Sized), tag: Option<u16>) -> Fields {
    frame_fields(frame, 0, tag)
}

/// The same of an Ethernet frame that begins at `start` of another.
#[inline(always)]
fn frame_fields(frame: &(impl Frame + ?Sized), start: u32, tag: Option<u16>) -> Fields {
    let mut fields = Fields::default();
    let Fields { key, .. } = &mut fields;
    let Some(head) = frame.read::<14>(start) else { return fields };
    let [a, b, c, d, e, f, g, h, i, j, k, l, high, low] = head;
    key.words[HW_DST_WORD] = u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | present::HW;
    key.words[HW_SRC_WORD] = u64::from_be_bytes([0, 0, g, h, i, j, k, l]);
    let ethertype = u16::from_be_bytes([high, low]);
    let tag = if tag.is_some() { tag } else { tag_inside(frame, start, ethertype) };
    if let Some(id) = tag {
        key.words[PORTS_WORD] |= u64::from(id);
        key.words[HW_DST_WORD] |= present::VLAN;
    }
    if let Ok(ethernet) = frame.ethernet(start) {
        packet_fields(frame, ethernet.ethertype, ethernet.payload, &mut fields);
    }
    fields
}

/// Reads the fields of the packet with this ethertype that begins at `start`.
#[inline(always)]
fn packet_fields(frame: &(impl Frame + ?Sized), ethertype: u16, start: u32, fields: &mut Fields) {
    let Fields { key, tcp, echo } = fields;
    if ethertype >= ETH_LEAST {
        key.words[PORTS_WORD] |= u64::from(ethertype) << 16;
        key.words[HW_DST_WORD] |= present::ETHERTYPE;
    }
    match ethertype {
        ETH_ARP => arp(frame, start, key),
        ETH_IPV4 | ETH_IPV6 => [*tcp, *echo] = ip(frame, ethertype, start, key),
        _ => {}
    }
}

/// Reads the fields of what a tunnel packet holds from `start` on: `ethertype` says which packet, or [`ETH_TEB`] an Ethernet
/// frame.
#[inline(always)]
pub fn inner_fields(frame: &(impl Frame + ?Sized), ethertype: u16, start: u32) -> Fields {
    if ethertype == ETH_TEB {
        return frame_fields(frame, start, None);
    }
    let mut fields = Fields::default();
    packet_fields(frame, ethertype, start, &mut fields);
    fields
}

/// Returns the id of the tag behind the MAC addresses, where there is one.
#[inline(always)]
fn tag_inside(frame: &(impl Frame + ?Sized), start: u32, ethertype: u16) -> Option<u16> {
    if ethertype != ETH_VLAN && ethertype != ETH_QINQ {
        return None;
    }
    let [high, low] = frame.read::<2>(start + 14)?;
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

/// Returns where TCP begins, and where an echo request or reply does; 0 for none.
#[inline(always)]
fn ip(frame: &(impl Frame + ?Sized), ethertype: u16, start: u32, key: &mut FlowKey) -> [u32; 2] {
    let Ok(ip) = frame.ip(ethertype, start) else { return [0; 2] };
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
        return [0; 2];
    }
    let mut echo = 0;
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
                if is_echo(ip.protocol, kind) {
                    echo = ip.payload;
                }
            }
            if let Some([code]) = frame.read::<1>(ip.payload + 1) {
                set_dst_port(key, u16::from(code));
            }
        }
        _ => {}
    }
    [if ip.protocol == IP_TCP { ip.payload } else { 0 }, echo]
}

#[inline(always)]
fn is_echo(protocol: u8, kind: u8) -> bool {
    if protocol == IP_ICMP {
        matches!(kind, ECHO_REPLY | ECHO)
    } else {
        matches!(kind, ECHO_V6 | ECHO_REPLY_V6)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::{Fields, Frame, fields, plain_fields};

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
            let mut plain = Fields::default();
            let is_plain = plain_fields(frame.as_slice(), &mut plain);
            let expected = version == 0x45 && matches!(proto, 6 | 17 | 132) && frame.len() >= 48;
            prop_assert_eq!(is_plain, expected && matches!(flags, [0 | 0x40, 0]), "{:02x?}", frame);
            prop_assert_eq!(plain, if is_plain { walked } else { Fields::default() }, "{:02x?}", frame);
        }
    }
}
