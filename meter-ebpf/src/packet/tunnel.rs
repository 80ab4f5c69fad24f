//! Tunnels: which one a frame of the underlay belongs to, and how much of it is inside.

use super::{
    ETH_IPV4, ETH_IPV6, ETH_TEB, ETHERNET, Ethernet, Fragment, Frame, IP_GRE, IP_TCP, IP_UDP, Stop, UDP,
    UDP_TUNNEL, be16, double_word, encapsulations::Encapsulations, gre, half,
};
use crate::abi::{Address, Bucket, Counter, Encap, Network, TunnelKey};

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

/// A tunnel over IPv4 that holds a frame up to the end of its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelV4 {
    /// Outer source address, its bytes as they lie in memory.
    pub src: u32,
    /// Outer destination address, likewise.
    pub dst: u32,
    /// VNI of 24 bits, or a GRE key of 32.
    pub vni: u32,
    /// The encapsulation.
    pub encap: Encap,
    /// Bytes before the inner frame; not beyond the frame's length.
    pub offset: u32,
}

impl From<TunnelV4> for Tunnel {
    #[inline(always)]
    fn from(TunnelV4 { src, dst, vni, encap, offset }: TunnelV4) -> Self {
        let inner = Inner { offset, trailer: 0, fragmented: 0 };
        Self { src: Address::v4(src), dst: Address::v4(dst), vni, encap, inner }
    }
}

/// What to do with a tunnel over IPv4.
///
/// A trait and no closure, since only a method can be told to be inlined. It is, where each encapsulation is
/// recognised: so it is compiled for each, with what is constant for it.
pub trait FoundV4 {
    /// What comes of it.
    type Output;

    /// Does it.
    fn found(&self, tunnel: TunnelV4) -> Self::Output;
}

/// Makes it a [`Tunnel`].
struct Widen;

impl FoundV4 for Widen {
    type Output = Tunnel;

    #[inline(always)]
    fn found(&self, tunnel: TunnelV4) -> Tunnel {
        Tunnel::from(tunnel)
    }
}

/// Reads the tunnel of an IPv4 or IPv6 packet without options, fragments, padding or a tag in the frame.
///
/// `None` leaves the frame to [`outer`].
#[inline(always)]
pub fn outer_fast<F: Frame + ?Sized>(
    frame: &F,
    settings: &impl Encapsulations,
    gso: bool,
) -> Option<Result<Tunnel, Bucket>> {
    let head = frame.head::<50>()?;
    match half::<F, 50>(head, 12) {
        ETH_IPV4 => outer_ipv4(frame, head, settings, gso, &Widen),
        ETH_IPV6 => outer_ipv6(frame, head, settings, gso),
        _ => None,
    }
}

/// What [`outer_fast`] says of an IPv4 packet that is no super-packet, with the addresses as short as they are.
///
/// `None` for every other frame as well.
#[inline(always)]
pub fn outer_fast_v4<F: Frame + ?Sized, T: FoundV4>(
    frame: &F,
    settings: &impl Encapsulations,
    then: &T,
) -> Option<Result<T::Output, Bucket>> {
    let head = frame.head::<50>()?;
    if half::<F, 50>(head, 12) != ETH_IPV4 {
        return None;
    }
    outer_ipv4(frame, head, settings, false, then)
}

#[inline(always)]
fn outer_ipv4<F: Frame + ?Sized, T: FoundV4>(
    frame: &F,
    head: &[u8; 50],
    settings: &impl Encapsulations,
    gso: bool,
    then: &T,
) -> Option<Result<T::Output, Bucket>> {
    // No options, and neither an offset nor more fragments.
    if head[14] != 0x45 || half::<F, 50>(head, 20) & 0x3fff != 0 {
        return None;
    }
    match head[23] {
        IP_UDP => {
            let port = half::<F, 50>(head, 36);
            let vxlan = settings.is_vxlan(port);
            if !vxlan && !settings.is_geneve(port) {
                return Some(Err(Bucket::Plain));
            }
            if !fills_v4(frame, head, gso) {
                return None;
            }
            let second = u32::from_be(F::word(head, 46));
            // A branch for each, so that each has its constants.
            if vxlan {
                return Some(match udp_tunnel_header(true, head[42], second) {
                    Ok((encap, vni, _)) => Ok(then.found(tunnel_v4::<F>(head, encap, vni, 50))),
                    Err(bucket) => Err(bucket),
                });
            }
            Some(match udp_tunnel_header(false, head[42], second) {
                Ok((_, _, options)) if 50 + options > frame.length() => Err(Bucket::TruncatedHeader),
                Ok((encap, vni, options)) => Ok(then.found(tunnel_v4::<F>(head, encap, vni, 50 + options))),
                Err(bucket) => Err(bucket),
            })
        }
        IP_GRE => {
            // A key and nothing else.
            if half::<F, 50>(head, 34) != 0x2000 || !fills_v4(frame, head, gso) {
                return None;
            }
            let vni = settings.gre_vni(half::<F, 50>(head, 36), Some(u32::from_be(F::word(head, 38))));
            Some(Ok(then.found(tunnel_v4::<F>(head, Encap::Gre, vni, 42))))
        }
        _ => Some(Err(Bucket::Plain)),
    }
}

/// Returns whether the packet fills the frame: no padding, and no length that lies. A super-packet may say a length
/// that is its first segment's.
#[inline(always)]
fn fills_v4<F: Frame + ?Sized>(frame: &F, head: &[u8; 50], gso: bool) -> bool {
    gso || ETHERNET + u32::from(half::<F, 50>(head, 16)) == frame.length()
}

#[inline(always)]
fn tunnel_v4<F: Frame + ?Sized>(head: &[u8; 50], encap: Encap, vni: u32, offset: u32) -> TunnelV4 {
    TunnelV4 { src: F::word(head, 26), dst: F::word(head, 30), vni, encap, offset }
}

#[inline(always)]
fn outer_ipv6<F: Frame + ?Sized>(
    frame: &F,
    head: &[u8; 50],
    settings: &impl Encapsulations,
    gso: bool,
) -> Option<Result<Tunnel, Bucket>> {
    if head[14] >> 4 != 6 {
        return None;
    }
    match head[20] {
        IP_UDP => {}
        IP_TCP => return Some(Err(Bucket::Plain)),
        _ => return None,
    }
    let head = frame.head::<70>()?;
    let port = half::<F, 70>(head, 56);
    let vxlan = settings.is_vxlan(port);
    if !vxlan && !settings.is_geneve(port) {
        return Some(Err(Bucket::Plain));
    }
    let (encap, vni, options) = match udp_tunnel_header(vxlan, head[62], u32::from_be(F::word(head, 66))) {
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

/// Where what a tunnel packet holds begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inside {
    /// The encapsulation.
    pub encap: Encap,
    /// VNI of 24 bits, or a GRE key of 32.
    pub vni: u32,
    /// Bytes before it.
    pub offset: u32,
    /// What it is: [`ETH_TEB`] for an Ethernet frame, else the ethertype of the packet that begins there.
    pub ethertype: u16,
}

impl Inside {
    /// Returns encapsulation and VNI as a connection's key has them.
    #[inline(always)]
    #[must_use]
    pub const fn labels(&self) -> u64 {
        (self.vni as u64) << 32 | (self.encap as u64) << 16
    }

    /// Returns the overlay network that such labels say.
    #[inline(always)]
    #[must_use]
    pub const fn network_of(labels: u64) -> Network {
        Network::new((labels >> 32) as u32)
    }
}

/// Finds what a frame that is a tunnel packet holds; `None` for every other frame, and for a part of one that does not begin
/// there.
#[inline(always)]
pub fn inside_of(frame: &(impl Frame + ?Sized), settings: &impl Encapsulations) -> Option<Inside> {
    let Ethernet { ethertype, payload } = frame.ethernet(0).ok()?;
    if ethertype != ETH_IPV4 && ethertype != ETH_IPV6 {
        return None;
    }
    let ip = frame.ip(ethertype, payload).ok()?;
    if ip.fragment as u32 == Fragment::Later as u32 {
        return None;
    }
    match ip.protocol {
        IP_UDP => {
            let [high, low] = frame.read::<2>(ip.payload + 2)?;
            let port = be16(high, low);
            let vxlan = settings.is_vxlan(port);
            if !vxlan && !settings.is_geneve(port) {
                return None;
            }
            let header = frame.read::<8>(ip.payload + UDP)?;
            let vni = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let (encap, vni, options) = udp_tunnel_header(vxlan, header[0], vni).ok()?;
            let ethertype = if vxlan { ETH_TEB } else { be16(header[2], header[3]) };
            Some(Inside { encap, vni, offset: ip.payload + UDP + UDP_TUNNEL + options, ethertype })
        }
        IP_GRE => {
            let gre = gre(frame, ip.payload).ok()?;
            let vni = settings.gre_vni(gre.ethertype, gre.key);
            Some(Inside { encap: Encap::Gre, vni, offset: gre.payload, ethertype: gre.ethertype })
        }
        _ => None,
    }
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
