//! Super-packets: where their headers end, and what they are on the wire.

use super::{
    ETH_IPV4, ETH_IPV6, ETH_TEB, Ethernet, Frame, IP_GRE, IP_IPV4, IP_IPV6, IP_SCTP, IP_TCP, IP_UDP,
    JUMBO_HEADER, Stop, UDP, UDP_TUNNEL, be16, encapsulations::Encapsulations, gre, half,
};
use crate::abi::{Counter, Fault};

/// `gso_size` of a super-packet whose segments have lengths of their own (SCTP): only `gso_segs` tells their number.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/linux/skbuff.h#L587>
const GSO_BY_FRAGS: u32 = 0xffff;

/// IP headers inside one another that are followed in a super-packet.
const MAX_NESTING: u32 = 3;

/// The headers that every segment of a super-packet repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GsoHeader {
    /// Bytes from the start of the frame to the innermost L4 payload.
    pub length: u32,
    /// Bytes of it that no frame on the wire has (BIG TCP's hop-by-hop header).
    pub removed: u32,
}

/// Stands for no headers: those of a super-packet are longer.
const NO_HEADER: GsoHeader = GsoHeader { length: 0, removed: 0 };

/// Finds the headers of a plain TCP super-packet: no tag in the frame, no options before TCP.
#[inline(always)]
pub fn header_fast<F: Frame + ?Sized>(frame: &F) -> Option<GsoHeader> {
    let head = frame.head::<54>()?;
    match half::<F, 54>(head, 12) {
        ETH_IPV4 if head[14] == 0x45 && head[23] == IP_TCP => {
            Some(GsoHeader { length: 34 + u32::from(head[46] >> 4) * 4, removed: 0 })
        }
        ETH_IPV6 if head[14] >> 4 == 6 && head[20] == IP_TCP => {
            let head = frame.head::<74>()?;
            Some(GsoHeader { length: 54 + u32::from(head[66] >> 4) * 4, removed: 0 })
        }
        _ => None,
    }
}

/// Finds the headers of a super-packet.
///
/// A UDP packet to a tunnel's port may be either an encapsulated super-packet, whose inner packet says that it
/// reaches to the end, or many tunnel packets that were merged (UDP GSO or GRO), of which the first ends sooner.
///
/// # Errors
///
/// Why the headers can't be followed; the caller counts the super-packet as one frame.
#[inline(always)]
pub fn header(frame: &(impl Frame + ?Sized), settings: &impl Encapsulations) -> Result<GsoHeader, Fault> {
    let Ethernet { mut ethertype, payload: mut start } = frame.ethernet(0)?;
    let mut removed = 0;
    // The header of the UDP packet that holds the packet being read, if it turns out not to be a tunnel. Not an
    // `Option`: the compiler would load its value where there is none, and Linux 5.10 refuses such a load.
    let mut merged = NO_HEADER;
    for _ in 0..MAX_NESTING {
        let ip = match frame.ip(ethertype, start) {
            Ok(ip) => ip,
            Err(stop) if merged == NO_HEADER => return Err(stop.into()),
            Err(_) => return Ok(merged),
        };
        if merged != NO_HEADER && ip.end != 0 && ip.end < frame.length() {
            return Ok(merged);
        }
        if ip.jumbo {
            removed += JUMBO_HEADER;
        }
        merged = NO_HEADER;
        match ip.protocol {
            IP_TCP => {
                let [offset] = frame.read::<1>(ip.payload + 12).ok_or(Fault::GsoTruncated)?;
                return Ok(GsoHeader { length: ip.payload + u32::from(offset >> 4) * 4, removed });
            }
            IP_SCTP => return Ok(GsoHeader { length: ip.payload + 12, removed }),
            IP_UDP => {
                let plain = GsoHeader { length: ip.payload + UDP, removed };
                let Some(inner) = udp_tunnel(frame, ip.payload, settings) else {
                    return Ok(plain);
                };
                merged = plain;
                Ethernet { ethertype, payload: start } = match inner.ethertype {
                    ETH_TEB => match frame.ethernet(inner.payload) {
                        Ok(inner) => inner,
                        Err(_) => return Ok(plain),
                    },
                    _ => inner,
                };
            }
            IP_GRE => {
                let gre = gre(frame, ip.payload)?;
                Ethernet { ethertype, payload: start } = if gre.ethertype == ETH_TEB {
                    frame.ethernet(gre.payload)?
                } else {
                    Ethernet { ethertype: gre.ethertype, payload: gre.payload }
                };
            }
            IP_IPV4 => (ethertype, start) = (ETH_IPV4, ip.payload),
            IP_IPV6 => (ethertype, start) = (ETH_IPV6, ip.payload),
            _ => return Err(Fault::GsoUnknownProtocol),
        }
    }
    Err(Fault::GsoTooManyHeaders)
}

/// Returns the ethertype and the offset of what a UDP packet at `udp` tunnels, if it goes to a tunnel's port.
#[inline(always)]
fn udp_tunnel(frame: &(impl Frame + ?Sized), udp: u32, settings: &impl Encapsulations) -> Option<Ethernet> {
    let [high, low] = frame.read::<2>(udp + 2)?;
    let port = be16(high, low);
    if settings.is_vxlan(port) {
        return Some(Ethernet { ethertype: ETH_TEB, payload: udp + UDP + UDP_TUNNEL });
    }
    if settings.is_geneve(port) {
        let header = frame.read::<4>(udp + UDP)?;
        let options = u32::from(header[0] & 0x3f) * 4;
        let ethertype = be16(header[2], header[3]);
        return Some(Ethernet { ethertype, payload: udp + UDP + UDP_TUNNEL + options });
    }
    None
}

impl From<Stop> for Fault {
    #[inline(always)]
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Truncated => Self::GsoTruncated,
            Stop::Unknown => Self::GsoUnknownProtocol,
            Stop::TooMany => Self::GsoTooManyHeaders,
        }
    }
}

/// Computes what a super-packet adds on the wire to its own one packet and `length` bytes.
///
/// `gso_segs` is 0 for what a guest sends through a tap; the number then follows from `gso_size`.
///
/// # Errors
///
/// The headers end beyond the frame, or nothing tells the number of segments.
#[inline(always)]
pub fn extra(length: u32, header: GsoHeader, gso_size: u32, gso_segs: u32) -> Result<Counter, Fault> {
    let payload = match length.checked_sub(header.length) {
        Some(payload) => payload,
        None => return Err(Fault::GsoTruncated),
    };
    let segments = if gso_segs != 0 {
        gso_segs
    } else if gso_size == 0 || gso_size == GSO_BY_FRAGS {
        return Err(Fault::GsoNoSegments);
    } else if payload == 0 {
        1
    } else {
        payload.div_ceil(gso_size)
    };
    let more = u64::from(segments) - 1;
    let repeated = u64::from(header.length - header.removed);
    // The difference may be negative only for a single segment with a BIG TCP header, which is added back by the
    // wrapping sum of skb and extra bytes.
    Ok(Counter { packets: more, bytes: (more * repeated).wrapping_sub(u64::from(header.removed)) })
}
