//! The header walk: where a super-packet's headers end, and which tunnel a frame belongs to.
//!
//! Pure arithmetic over [`Frame`]; it never reads past the frame and never trusts a length that the frame itself
//! claims. Both questions have a fast path, which looks at fixed offsets of what nearly every frame is, and a complete
//! walk; where the fast path answers, the walk would answer the same (a property test holds that).

use crate::abi::{Address, Bucket, Counter, Encap, Fault, GENEVE_PORTS, Settings, TunnelKey, VXLAN_PORTS};

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

/// `gso_size` of a super-packet whose segments have lengths of their own (SCTP): only `gso_segs` tells their number.
/// <https://elixir.bootlin.com/linux/v6.12/source/include/linux/skbuff.h#L587>
const GSO_BY_FRAGS: u32 = 0xffff;

const ETHERNET: u32 = 14;
const VLAN_TAG: u32 = 4;
const UDP: u32 = 8;
/// A VXLAN header, and a GENEVE header without options.
const UDP_TUNNEL: u32 = 8;

const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_VLAN: u16 = 0x8100;
const ETH_QINQ: u16 = 0x88a8;
/// Transparent Ethernet bridging: a frame inside GRE or GENEVE.
const ETH_TEB: u16 = 0x6558;

const IP_HOP_BY_HOP: u8 = 0;
const IP_IPV4: u8 = 4;
const IP_TCP: u8 = 6;
const IP_UDP: u8 = 17;
const IP_IPV6: u8 = 41;
const IP_ROUTING: u8 = 43;
const IP_FRAGMENT: u8 = 44;
const IP_GRE: u8 = 47;
const IP_AUTHENTICATION: u8 = 51;
const IP_DESTINATION: u8 = 60;
const IP_SCTP: u8 = 132;

/// VLAN tags that are followed inside the frame. One more may be in the skb's metadata.
const MAX_VLAN_TAGS: u32 = 3;
/// IPv6 extension headers that are followed.
const MAX_EXTENSIONS: u32 = 6;
/// IP headers inside one another that are followed in a super-packet.
const MAX_NESTING: u32 = 3;

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
fn half<F: Frame + ?Sized, const N: usize>(head: &[u8; N], at: usize) -> u16 {
    u16::from_be(F::half(head, at))
}

/// Reads four bytes of a head, as they lie in memory.
#[inline(always)]
fn word<F: Frame + ?Sized, const N: usize>(head: &[u8; N], at: usize) -> u32 {
    let first = u32::from(F::half(head, at));
    let second = u32::from(F::half(head, at + 2));
    if cfg!(target_endian = "little") { first | second << 16 } else { first << 16 | second }
}

/// Reads eight bytes of a head, as they lie in memory.
#[inline(always)]
fn double_word<F: Frame + ?Sized, const N: usize>(head: &[u8; N], at: usize) -> u64 {
    let first = u64::from(word::<F, N>(head, at));
    let second = u64::from(word::<F, N>(head, at + 4));
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

/// What the walk needs to know of the configuration.
///
/// A trait, since a program reads each number from memory that user space fills and the verifier treats as constant,
/// while everything else has [`Settings`] at hand.
pub trait Encapsulations {
    /// Returns one of the VXLAN ports, 0 behind the last.
    fn vxlan_port(&self, index: usize) -> u16;
    /// Returns one of the GENEVE ports, 0 behind the last.
    fn geneve_port(&self, index: usize) -> u16;
    /// Returns whether GRE packets that carry Ethernet are NVGRE.
    fn nvgre(&self) -> bool;

    /// Returns whether UDP packets to this port are VXLAN.
    #[inline(always)]
    fn is_vxlan(&self, port: u16) -> bool {
        for index in 0..VXLAN_PORTS {
            match self.vxlan_port(index) {
                0 => return false,
                known if known == port => return true,
                _ => {}
            }
        }
        false
    }

    /// Returns whether UDP packets to this port are GENEVE.
    #[inline(always)]
    fn is_geneve(&self, port: u16) -> bool {
        for index in 0..GENEVE_PORTS {
            match self.geneve_port(index) {
                0 => return false,
                known if known == port => return true,
                _ => {}
            }
        }
        false
    }

    /// Returns the VNI of a GRE packet; 0 where it has no key.
    #[inline(always)]
    fn gre_vni(&self, gre_ethertype: u16, key: Option<u32>) -> u32 {
        match key {
            None => 0,
            Some(key) if self.nvgre() && gre_ethertype == ETH_TEB => key >> 8,
            Some(key) => key,
        }
    }
}

impl Encapsulations for Settings {
    fn vxlan_port(&self, index: usize) -> u16 {
        self.vxlan_ports[index]
    }

    fn geneve_port(&self, index: usize) -> u16 {
        self.geneve_ports[index]
    }

    fn nvgre(&self) -> bool {
        self.nvgre != 0
    }
}

/// The headers that every segment of a super-packet repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GsoHeader {
    /// Bytes from the start of the frame to the innermost L4 payload.
    pub length: u32,
    /// Bytes of it that no frame on the wire has (BIG TCP's hop-by-hop header).
    pub removed: u32,
}

/// Finds the headers of a plain TCP super-packet: no tag in the frame, no options before TCP.
#[inline(always)]
pub fn gso_header_fast<F: Frame + ?Sized>(frame: &F) -> Option<GsoHeader> {
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
pub fn gso_header(frame: &(impl Frame + ?Sized), settings: &impl Encapsulations) -> Result<GsoHeader, Fault> {
    let Ethernet { mut ethertype, payload: mut start } = frame.ethernet(0)?;
    let mut removed = 0;
    // The header of the UDP packet that holds the packet being read, if it turns out not to be a tunnel.
    let mut merged: Option<GsoHeader> = None;
    for _ in 0..MAX_NESTING {
        let ip = match frame.ip(ethertype, start) {
            Ok(ip) => ip,
            Err(stop) => return merged.ok_or_else(|| Fault::from(stop)),
        };
        if let Some(merged) = merged
            && ip.end != 0
            && ip.end < frame.length()
        {
            return Ok(merged);
        }
        if ip.jumbo {
            removed += JUMBO_HEADER;
        }
        merged = None;
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
                merged = Some(plain);
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
pub fn gso_extra(length: u32, header: GsoHeader, gso_size: u32, gso_segs: u32) -> Result<Counter, Fault> {
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

/// What a tunnel packet holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Bytes before the inner frame, in the frame's data.
    pub offset: u32,
    /// Bytes behind it: padding to Ethernet's minimum.
    pub trailer: u32,
    /// Length of the inner frame when this is the first fragment of the outer packet, else 0.
    pub fragmented: u32,
}

impl Inner {
    /// Returns the bytes of the inner frames, given the outer frames in wire units and the bytes of a VLAN tag that
    /// each has outside its data.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(&self, wire: Counter, tag: u32) -> u64 {
        if self.fragmented != 0 {
            return self.fragmented as u64;
        }
        let overhead = (self.offset + self.trailer + tag) as u64;
        wire.bytes.saturating_sub(wire.packets.wrapping_mul(overhead))
    }
}

/// The tunnel that a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer source address.
    pub src: Address,
    /// Outer destination address.
    pub dst: Address,
    /// VNI of 24 bits, or a GRE key of 32.
    pub vni: u32,
    /// The encapsulation.
    pub encap: Encap,
    /// What it holds.
    pub inner: Inner,
}

impl Tunnel {
    /// Returns the key of the tunnel at one hook of an uplink.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self, hook: u16) -> TunnelKey {
        TunnelKey::new(self.src, self.dst, self.vni, self.encap, hook)
    }
}

/// One frame in VXLAN over IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainVxlan {
    /// Outer source address, its bytes as they lie in memory.
    pub src: u32,
    /// Outer destination address, likewise.
    pub dst: u32,
    /// The VNI.
    pub vni: u32,
    /// Bytes of the frame inside.
    pub inner_bytes: u32,
}

/// Reads what nearly every frame of an underlay is: VXLAN over IPv4 without options, fragments or a tag, and no
/// super-packet. `length` is the frame's.
///
/// `None` leaves the frame to [`outer_fast`], which would answer the same.
#[inline(always)]
pub fn plain_vxlan<F: Frame + ?Sized>(
    frame: &F,
    settings: &impl Encapsulations,
    length: u32,
) -> Option<PlainVxlan> {
    const HEADERS: u32 = 50;
    let head = frame.head::<50>()?;
    let is_plain = half::<F, 50>(head, 12) == ETH_IPV4
        && head[14] == 0x45
        && half::<F, 50>(head, 20) & 0x3fff == 0
        && head[23] == IP_UDP
        && head[42] & 0x08 != 0;
    if !is_plain || !settings.is_vxlan(half::<F, 50>(head, 36)) {
        return None;
    }
    let end = ETHERNET + u32::from(half::<F, 50>(head, 16));
    // What lies behind the outer packet's end is padding.
    let inner_end = if end < HEADERS || end > length { length } else { end };
    Some(PlainVxlan {
        src: word::<F, 50>(head, 26),
        dst: word::<F, 50>(head, 30),
        vni: u32::from_be(word::<F, 50>(head, 46)) >> 8,
        inner_bytes: inner_end - HEADERS,
    })
}

/// Reads the tunnel of an IPv4 or IPv6 packet without options, fragments or a tag in the frame.
///
/// `None` leaves the frame to [`outer`].
#[inline(always)]
pub fn outer_fast<F: Frame + ?Sized>(
    frame: &F,
    settings: &impl Encapsulations,
    gso: bool,
) -> Option<Result<Tunnel, Bucket>> {
    let head = frame.head::<38>()?;
    match half::<F, 38>(head, 12) {
        ETH_IPV4 => outer_ipv4(frame, head, settings, gso),
        ETH_IPV6 => outer_ipv6(frame, head, settings, gso),
        _ => None,
    }
}

#[inline(always)]
fn outer_ipv4<F: Frame + ?Sized>(
    frame: &F,
    head: &[u8; 38],
    settings: &impl Encapsulations,
    gso: bool,
) -> Option<Result<Tunnel, Bucket>> {
    // No options, and neither an offset nor more fragments.
    if head[14] != 0x45 || half::<F, 38>(head, 20) & 0x3fff != 0 {
        return None;
    }
    let (encap, vni, offset) = match head[23] {
        IP_UDP => {
            let port = half::<F, 38>(head, 36);
            let vxlan = settings.is_vxlan(port);
            if !vxlan && !settings.is_geneve(port) {
                return Some(Err(Bucket::Plain));
            }
            let head = frame.head::<50>()?;
            match udp_tunnel_header(vxlan, head[42], u32::from_be(word::<F, 50>(head, 46))) {
                Ok((encap, vni, options)) => (encap, vni, 50 + options),
                Err(bucket) => return Some(Err(bucket)),
            }
        }
        // A key and nothing else.
        IP_GRE if half::<F, 38>(head, 34) == 0x2000 => {
            let ethertype = half::<F, 38>(head, 36);
            let head = frame.head::<42>()?;
            let key = u32::from_be(word::<F, 42>(head, 38));
            (Encap::Gre, settings.gre_vni(ethertype, Some(key)), 42)
        }
        IP_GRE => return None,
        _ => return Some(Err(Bucket::Plain)),
    };
    let end = ETHERNET + u32::from(half::<F, 38>(head, 16));
    let inner = match inside(frame, offset, end, gso) {
        Ok(inner) => inner,
        Err(bucket) => return Some(Err(bucket)),
    };
    let src = Address::v4(word::<F, 38>(head, 26));
    let dst = Address::v4(word::<F, 38>(head, 30));
    Some(Ok(Tunnel { src, dst, vni, encap, inner }))
}

#[inline(always)]
fn outer_ipv6<F: Frame + ?Sized>(
    frame: &F,
    head: &[u8; 38],
    settings: &impl Encapsulations,
    gso: bool,
) -> Option<Result<Tunnel, Bucket>> {
    if head[14] >> 4 != 6 || head[20] != IP_UDP {
        return None;
    }
    let head = frame.head::<70>()?;
    let port = half::<F, 70>(head, 56);
    let vxlan = settings.is_vxlan(port);
    if !vxlan && !settings.is_geneve(port) {
        return Some(Err(Bucket::Plain));
    }
    let (encap, vni, options) =
        match udp_tunnel_header(vxlan, head[62], u32::from_be(word::<F, 70>(head, 66))) {
            Ok(header) => header,
            Err(bucket) => return Some(Err(bucket)),
        };
    let length = u32::from(half::<F, 70>(head, 18));
    let end = if length == 0 { 0 } else { ETHERNET + 40 + length };
    let inner = match inside(frame, 70 + options, end, gso) {
        Ok(inner) => inner,
        Err(bucket) => return Some(Err(bucket)),
    };
    let src = Address { words: [double_word::<F, 70>(head, 22), double_word::<F, 70>(head, 30)] };
    let dst = Address { words: [double_word::<F, 70>(head, 38), double_word::<F, 70>(head, 46)] };
    Some(Ok(Tunnel { src, dst, vni, encap, inner }))
}

/// Reads a VXLAN or GENEVE header: its first byte and its second word, of which the VNI is the upper 24 bits.
/// Returns the bytes of its options as well.
#[inline(always)]
fn udp_tunnel_header(vxlan: bool, flags: u8, vni: u32) -> Result<(Encap, u32, u32), Bucket> {
    if vxlan {
        // RFC 7348: the I flag says that the VNI is valid.
        if flags & 0x08 != 0 { Ok((Encap::Vxlan, vni >> 8, 0)) } else { Err(Bucket::BadTunnelHeader) }
    } else {
        // RFC 8926: version 0, and the length of the options in words.
        if flags >> 6 == 0 {
            Ok((Encap::Geneve, vni >> 8, u32::from(flags & 0x3f) * 4))
        } else {
            Err(Bucket::BadTunnelHeader)
        }
    }
}

/// Bounds the inner frame: it begins inside the frame, and what lies behind the outer packet's end is padding.
#[inline(always)]
fn inside(frame: &(impl Frame + ?Sized), offset: u32, end: u32, gso: bool) -> Result<Inner, Bucket> {
    let length = frame.length();
    if offset > length {
        return Err(Bucket::TruncatedHeader);
    }
    // A super-packet has no padding, and may say a length that is its first segment's or none at all.
    let trailer = if gso || end == 0 || end < offset || end > length { 0 } else { length - end };
    Ok(Inner { offset, trailer, fragmented: 0 })
}

/// Finds the tunnel of any frame.
///
/// # Errors
///
/// The bucket that counts the frame instead.
#[inline(always)]
pub fn outer(
    frame: &(impl Frame + ?Sized),
    settings: &impl Encapsulations,
    gso: bool,
) -> Result<Tunnel, Bucket> {
    let Ethernet { ethertype, payload: start } = frame.ethernet(0)?;
    if ethertype != ETH_IPV4 && ethertype != ETH_IPV6 {
        return Err(Bucket::Plain);
    }
    let ip = frame.ip(ethertype, start)?;
    if ip.fragment == Fragment::Later {
        return Err(if matches!(ip.protocol, IP_UDP | IP_GRE) {
            Bucket::OuterFragment
        } else {
            Bucket::Plain
        });
    }
    let (encap, vni, offset) = match ip.protocol {
        IP_UDP => {
            let [high, low] = frame.read::<2>(ip.payload + 2).ok_or(Bucket::TruncatedHeader)?;
            let port = be16(high, low);
            let vxlan = settings.is_vxlan(port);
            if !vxlan && !settings.is_geneve(port) {
                return Err(Bucket::Plain);
            }
            let header = frame.read::<8>(ip.payload + UDP).ok_or(Bucket::TruncatedHeader)?;
            let (encap, vni, options) = udp_tunnel_header(
                vxlan,
                header[0],
                u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            )?;
            (encap, vni, ip.payload + UDP + UDP_TUNNEL + options)
        }
        IP_GRE => match gre(frame, ip.payload) {
            Ok(gre) => (Encap::Gre, settings.gre_vni(gre.ethertype, gre.key), gre.payload),
            Err(Stop::Truncated) => return Err(Bucket::TruncatedHeader),
            Err(_) => return Err(Bucket::UnknownEncapsulation),
        },
        _ => return Err(Bucket::Plain),
    };
    let (src, dst) = if ethertype == ETH_IPV6 {
        (address_v6(frame, start + 8)?, address_v6(frame, start + 24)?)
    } else {
        (address_v4(frame, start + 12)?, address_v4(frame, start + 16)?)
    };
    let mut inner = inside(frame, offset, ip.end, gso)?;
    if ip.fragment == Fragment::First {
        inner.trailer = 0;
        inner.fragmented = if ip.protocol == IP_UDP {
            // The UDP header of the first fragment has the length of the whole packet, and later fragments count
            // for no tunnel: so the inner frame is counted once, and whole. 16 bits bound what a lie can add.
            let [high, low] = frame.read::<2>(ip.payload + 4).ok_or(Bucket::TruncatedHeader)?;
            (ip.payload + u32::from(be16(high, low))).saturating_sub(offset)
        } else {
            frame.length() - offset
        };
    }
    Ok(Tunnel { src, dst, vni, encap, inner })
}

#[inline(always)]
fn address_v4(frame: &(impl Frame + ?Sized), offset: u32) -> Result<Address, Bucket> {
    let bytes = frame.read(offset).ok_or(Bucket::TruncatedHeader)?;
    Ok(Address::v4(u32::from_ne_bytes(bytes)))
}

#[inline(always)]
fn address_v6(frame: &(impl Frame + ?Sized), offset: u32) -> Result<Address, Bucket> {
    let high = frame.read(offset).ok_or(Bucket::TruncatedHeader)?;
    let low = frame.read(offset + 8).ok_or(Bucket::TruncatedHeader)?;
    Ok(Address { words: [u64::from_ne_bytes(high), u64::from_ne_bytes(low)] })
}

impl From<Stop> for Bucket {
    #[inline(always)]
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Truncated => Self::TruncatedHeader,
            // An IP version that contradicts the ethertype: no tunnel.
            Stop::Unknown => Self::Plain,
            Stop::TooMany => Self::TooManyHeaders,
        }
    }
}
