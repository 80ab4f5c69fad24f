//! The header walk: Ethernet and IP here, then where a super-packet's headers end ([`gso`]), and which tunnel a frame
//! belongs to ([`tunnel`]).
//!
//! Pure arithmetic over [`Frame`]; it never reads past the frame and never trusts a length that the frame itself
//! claims. Both questions have a fast path, which looks at fixed offsets of what nearly every frame is, and a complete
//! walk; where the fast path answers, the walk would answer the same (a property test holds that).

pub mod encapsulations;
pub mod gso;
pub mod numbers;
#[cfg(test)]
mod tests;
pub mod tunnel;

use numbers::{
    ETH_IPV4, ETH_IPV6, ETH_QINQ, ETH_TEB, ETH_VLAN, IP_AUTHENTICATION, IP_DESTINATION, IP_FRAGMENT, IP_GRE,
    IP_HOP_BY_HOP, IP_IPV4, IP_IPV6, IP_ROUTING, IP_SCTP, IP_TCP, IP_UDP,
};

/// Read access to one frame, whatever holds it: an skb, an XDP buffer, a byte slice.
///
/// Offsets count from the start of the Ethernet header.
pub trait Frame {
    /// Returns the first `N` bytes where they lie in one piece.
    ///
    /// `None` is no statement about the frame's length: an skb may keep all but a few bytes in pages.
    fn head<const N: usize>(&self) -> Option<&[u8; N]>;

    /// Reads two bytes of a head, as they lie in memory. `at` is even.
    ///
    /// A program overrides it: the BPF back end makes a load of each single byte where it doesn't know an alignment.
    #[inline(always)]
    fn half<const N: usize>(head: &[u8; N], at: usize) -> u16 {
        u16::from_ne_bytes([head[at], head[at + 1]])
    }

    /// Reads four bytes of a head, as they lie in memory. `at + 2` is divisible by 4, as in an IP header of a plain
    /// Ethernet frame.
    #[inline(always)]
    fn word<const N: usize>(head: &[u8; N], at: usize) -> u32 {
        u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
    }

    /// Copies `N` bytes at `offset`.
    ///
    /// `None` past the end of the frame, or where the hook cannot reach.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Returns the frame's length in bytes; for a super-packet, of the whole.
    fn length(&self) -> u32;

    /// Follows the Ethernet header at `start` and its VLAN tags; returns the ethertype and the offset behind it.
    ///
    /// A program makes this and [`Frame::ip`] calls of functions that the verifier checks apart: inlined at every
    /// level of nesting, their paths multiply beyond its limit.
    ///
    /// # Errors
    ///
    /// Why it can't be followed.
    #[inline(always)]
    fn ethernet(&self, start: u32) -> Result<Ethernet, Stop> {
        ethernet(self, start)
    }

    /// Follows the IP header of this ethertype at `start`, with its options or extension headers.
    ///
    /// # Errors
    ///
    /// Why it can't be followed.
    #[inline(always)]
    fn ip(&self, ethertype: u16, start: u32) -> Result<Ip, Stop> {
        ip(self, ethertype, start)
    }
}

impl Frame for [u8] {
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        self.first_chunk()
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let offset = usize::try_from(offset).ok()?;
        self.get(offset..)?.first_chunk().copied()
    }

    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

const ETHERNET: u32 = 14;
const VLAN_TAG: u32 = 4;
const UDP: u32 = 8;
/// A VXLAN header, and a GENEVE header without options.
const UDP_TUNNEL: u32 = 8;

/// VLAN tags that are followed inside the frame. One more may be in the skb's metadata.
const MAX_VLAN_TAGS: u32 = 3;
/// IPv6 extension headers that are followed.
const MAX_EXTENSIONS: u32 = 6;

/// The hop-by-hop header that Linux puts into an IPv6 packet of more than 64 KiB (BIG TCP), and takes out again
/// before the wire: next header, length 0, then the jumbo payload option of RFC 2675.
const JUMBO_OPTION: [u8; 2] = [0xc2, 4];
/// Bytes of that header.
pub const JUMBO_HEADER: u32 = 8;

const fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

/// Reads a number of two bytes in a head.
#[inline(always)]
pub(crate) fn half<F: Frame + ?Sized, const N: usize>(head: &[u8; N], at: usize) -> u16 {
    u16::from_be(F::half(head, at))
}

/// Reads eight bytes of a head, as they lie in memory.
#[inline(always)]
fn double_word<F: Frame + ?Sized, const N: usize>(head: &[u8; N], at: usize) -> u64 {
    let first = u64::from(F::word(head, at));
    let second = u64::from(F::word(head, at + 4));
    if cfg!(target_endian = "little") { first | second << 32 } else { first << 32 | second }
}

/// Why a header could not be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stop {
    /// The frame ends first.
    Truncated = 0,
    /// Not a header that is known here.
    Unknown = 1,
    /// More of them than are followed.
    TooMany = 2,
}

/// What an Ethernet header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// The ethertype behind all VLAN tags.
    pub ethertype: u16,
    /// Where the payload begins.
    pub payload: u32,
}

/// Which part of an IP packet a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Fragment {
    /// All of it.
    Whole = 0,
    /// The beginning, with the L4 header.
    First = 1,
    /// Something behind the beginning.
    Later = 2,
}

/// What an IP header says, with its options or extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Protocol number of the payload.
    pub protocol: u8,
    /// Where the payload begins.
    pub payload: u32,
    /// Where the packet says that it ends; 0 where it does not say (BIG TCP).
    pub end: u32,
    /// Which part of the packet this is.
    pub fragment: Fragment,
    /// Whether BIG TCP's header of [`JUMBO_HEADER`] bytes is in it, which is not on the wire.
    pub jumbo: bool,
}

/// Follows the Ethernet header and its VLAN tags; returns the ethertype and the offset behind it.
#[inline(always)]
pub fn ethernet(frame: &(impl Frame + ?Sized), start: u32) -> Result<Ethernet, Stop> {
    let [high, low] = frame.read::<2>(start + ETHERNET - 2).ok_or(Stop::Truncated)?;
    let mut ethertype = be16(high, low);
    let mut offset = start + ETHERNET;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETH_VLAN && ethertype != ETH_QINQ {
            return Ok(Ethernet { ethertype, payload: offset });
        }
        let [high, low] = frame.read::<2>(offset + 2).ok_or(Stop::Truncated)?;
        ethertype = be16(high, low);
        offset += VLAN_TAG;
    }
    if ethertype == ETH_VLAN || ethertype == ETH_QINQ {
        Err(Stop::TooMany)
    } else {
        Ok(Ethernet { ethertype, payload: offset })
    }
}

#[inline(always)]
fn ipv4(frame: &(impl Frame + ?Sized), start: u32) -> Result<Ip, Stop> {
    let header = frame.read::<12>(start).ok_or(Stop::Truncated)?;
    let words = u32::from(header[0] & 0x0f);
    if header[0] >> 4 != 4 || words < 5 {
        return Err(Stop::Unknown);
    }
    let total = u32::from(be16(header[2], header[3]));
    let flags = be16(header[6], header[7]);
    let fragment = match (flags & 0x1fff, flags & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    Ok(Ip {
        protocol: header[9],
        payload: start + words * 4,
        end: if total == 0 { 0 } else { start + total },
        fragment,
        jumbo: false,
    })
}

#[inline(always)]
fn ipv6(frame: &(impl Frame + ?Sized), start: u32) -> Result<Ip, Stop> {
    let header = frame.read::<8>(start).ok_or(Stop::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(Stop::Unknown);
    }
    let length = u32::from(be16(header[4], header[5]));
    let mut ip = Ip {
        protocol: header[6],
        payload: start + 40,
        end: if length == 0 { 0 } else { start + 40 + length },
        fragment: Fragment::Whole,
        jumbo: false,
    };
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(ip.protocol) {
            return Ok(ip);
        }
        let extension = frame.read::<4>(ip.payload).ok_or(Stop::Truncated)?;
        let size = match ip.protocol {
            IP_FRAGMENT => {
                let field = be16(extension[2], extension[3]);
                ip.fragment = match (field & 0xfff8, field & 1) {
                    // An atomic fragment (RFC 6946) is a whole packet.
                    (0, 0) => ip.fragment,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                8
            }
            IP_AUTHENTICATION => (u32::from(extension[1]) + 2) * 4,
            _ => (u32::from(extension[1]) + 1) * 8,
        };
        if ip.protocol == IP_HOP_BY_HOP
            && length == 0
            && extension[1] == 0
            && [extension[2], extension[3]] == JUMBO_OPTION
        {
            ip.jumbo = true;
        }
        ip.protocol = extension[0];
        ip.payload += size;
        if ip.fragment == Fragment::Later {
            return Ok(ip);
        }
    }
    if is_extension(ip.protocol) { Err(Stop::TooMany) } else { Ok(ip) }
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, IP_HOP_BY_HOP | IP_ROUTING | IP_FRAGMENT | IP_AUTHENTICATION | IP_DESTINATION)
}

/// Follows the IP header of this ethertype at `start`.
#[inline(always)]
pub fn ip(frame: &(impl Frame + ?Sized), ethertype: u16, start: u32) -> Result<Ip, Stop> {
    match ethertype {
        ETH_IPV4 => ipv4(frame, start),
        ETH_IPV6 => ipv6(frame, start),
        _ => Err(Stop::Unknown),
    }
}

/// A GRE header of version 0.
struct Gre {
    ethertype: u16,
    key: Option<u32>,
    payload: u32,
}

#[inline(always)]
fn gre(frame: &(impl Frame + ?Sized), start: u32) -> Result<Gre, Stop> {
    let header = frame.read::<4>(start).ok_or(Stop::Truncated)?;
    // Version 1 is PPTP's; the routing bit of RFC 1701 is dead.
    if header[1] & 0x07 != 0 || header[0] & 0x40 != 0 {
        return Err(Stop::Unknown);
    }
    let ethertype = be16(header[2], header[3]);
    let mut payload = start + 4;
    if header[0] & 0x80 != 0 {
        payload += 4;
    }
    let key = if header[0] & 0x20 != 0 {
        let key = frame.read::<4>(payload).ok_or(Stop::Truncated)?;
        payload += 4;
        Some(u32::from_be_bytes(key))
    } else {
        None
    };
    if header[0] & 0x10 != 0 {
        payload += 4;
    }
    Ok(Gre { ethertype, key, payload })
}
