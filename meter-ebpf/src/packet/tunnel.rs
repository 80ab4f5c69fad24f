//! Tunnels: which one a frame of the underlay belongs to, and how much of it is inside.

use super::{
    ETH_IPV4, ETH_IPV6, ETH_TEB, ETHERNET, Ethernet, Fragment, Frame, IP_GRE, IP_UDP, Stop, UDP, UDP_TUNNEL,
    be16, double_word, gre, half, word,
};
use crate::abi::{Address, Bucket, Counter, Encap, GENEVE_PORTS, Settings, TunnelKey, VXLAN_PORTS};

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
