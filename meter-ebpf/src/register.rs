//! Results of the walk as one 64-bit register: all that a BPF function can return.
//!
//! Offsets within headers are below 64 KiB: the deepest walk ends after some 4,000 bytes. The top bit says that the
//! rest is an error.

use crate::{
    abi::{Bucket, Encap, Fault},
    packet::{
        Ethernet, Fragment, Ip, Stop,
        gso::GsoHeader,
        numbers::{ETH_IPV4, ETH_IPV6, ETH_TEB},
        tunnel::{Inner, Inside},
    },
};

const FAILED: u64 = 1 << 63;

/// A value that fits a register.
pub trait Register: Sized {
    /// Packs it.
    fn pack(self) -> u64;

    /// Unpacks what [`Register::pack`] made.
    fn unpack(register: u64) -> Self;
}

/// Returns `width` bits of a register, from bit `shift` on.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "`width` is 32 at most")]
const fn bits(register: u64, shift: u32, width: u32) -> u32 {
    ((register >> shift) & ((1 << width) - 1)) as u32
}

impl Register for Result<Ethernet, Stop> {
    #[inline(always)]
    fn pack(self) -> u64 {
        match self {
            Ok(ethernet) => (ethernet.ethertype as u64) | (ethernet.payload as u64) << 16,
            Err(stop) => FAILED | stop as u64,
        }
    }

    #[inline(always)]
    fn unpack(register: u64) -> Self {
        if register & FAILED != 0 {
            return Err(stop(register));
        }
        let [low, high, ..] = register.to_le_bytes();
        Ok(Ethernet { ethertype: u16::from_le_bytes([low, high]), payload: bits(register, 16, 16) })
    }
}

impl Register for Result<Ip, Stop> {
    #[inline(always)]
    fn pack(self) -> u64 {
        match self {
            Ok(ip) => {
                (ip.protocol as u64)
                    | (ip.jumbo as u64) << 8
                    | (ip.fragment as u64) << 9
                    | (ip.payload as u64) << 16
                    | (ip.end as u64) << 32
            }
            Err(stop) => FAILED | stop as u64,
        }
    }

    #[inline(always)]
    fn unpack(register: u64) -> Self {
        if register & FAILED != 0 {
            return Err(stop(register));
        }
        let [protocol, ..] = register.to_le_bytes();
        Ok(Ip {
            protocol,
            jumbo: bits(register, 8, 1) != 0,
            fragment: match bits(register, 9, 2) {
                0 => Fragment::Whole,
                1 => Fragment::First,
                _ => Fragment::Later,
            },
            payload: bits(register, 16, 16),
            end: bits(register, 32, 31),
        })
    }
}

#[inline(always)]
const fn stop(register: u64) -> Stop {
    match bits(register, 0, 2) {
        0 => Stop::Truncated,
        1 => Stop::Unknown,
        _ => Stop::TooMany,
    }
}

impl Register for Result<GsoHeader, Fault> {
    #[inline(always)]
    fn pack(self) -> u64 {
        match self {
            Ok(header) => (header.length as u64) | (header.removed as u64) << 32,
            Err(fault) => FAILED | fault as u64,
        }
    }

    #[inline(always)]
    fn unpack(register: u64) -> Self {
        if register & FAILED != 0 {
            return Err(Fault::from_number(bits(register, 0, 32)).unwrap_or(Fault::GsoUnknownProtocol));
        }
        Ok(GsoHeader { length: bits(register, 0, 32), removed: bits(register, 32, 31) })
    }
}

impl Register for Result<Inner, Bucket> {
    #[inline(always)]
    fn pack(self) -> u64 {
        match self {
            Ok(inner) => {
                (inner.offset as u64) | (inner.trailer as u64) << 16 | (inner.fragmented as u64) << 32
            }
            Err(bucket) => FAILED | bucket as u64,
        }
    }

    #[inline(always)]
    fn unpack(register: u64) -> Self {
        if register & FAILED != 0 {
            return Err(Bucket::from_number(bits(register, 0, 32)).unwrap_or(Bucket::UnknownEncapsulation));
        }
        Ok(Inner {
            offset: bits(register, 0, 16),
            trailer: bits(register, 16, 16),
            fragmented: bits(register, 32, 16),
        })
    }
}

/// What a tunnel packet holds, and none.
impl Register for Option<Inside> {
    #[inline(always)]
    fn pack(self) -> u64 {
        let Some(inside) = self else { return 0 };
        // Others than these hold no connection.
        let kind = match inside.ethertype {
            ETH_TEB => 1,
            ETH_IPV4 => 2,
            ETH_IPV6 => 3,
            _ => 0,
        };
        (inside.vni as u64) << 32 | (inside.offset as u64 & 0xffff) << 16 | kind << 8 | inside.encap as u64
    }

    #[inline(always)]
    fn unpack(register: u64) -> Self {
        let encap = match bits(register, 0, 8) {
            1 => Encap::Vxlan,
            2 => Encap::Geneve,
            3 => Encap::Gre,
            _ => return None,
        };
        let ethertype = match bits(register, 8, 8) {
            1 => ETH_TEB,
            2 => ETH_IPV4,
            3 => ETH_IPV6,
            _ => 0,
        };
        Some(Inside { encap, vni: (register >> 32) as u32, offset: bits(register, 16, 16), ethertype })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{
        Bucket, ETH_IPV4, ETH_TEB, Encap, Ethernet, Fault, Fragment, GsoHeader, Inner, Inside, Ip, Register,
        Stop,
    };

    proptest! {
        #[test]
        fn what_fits_a_register_comes_back(
            (ethertype, protocol, jumbo) in any::<(u16, u8, bool)>(),
            (payload, end, trailer, fragmented) in any::<(u16, u16, u16, u16)>(),
            part in 0..3_usize,
        ) {
            let (payload, end) = (u32::from(payload), u32::from(end));
            let fragment = [Fragment::Whole, Fragment::First, Fragment::Later][part];
            let ethernet: Result<_, Stop> = Ok(Ethernet { ethertype, payload });
            prop_assert_eq!(Result::<Ethernet, Stop>::unpack(ethernet.pack()), ethernet);
            let ip: Result<_, Stop> = Ok(Ip { protocol, payload, end, fragment, jumbo });
            prop_assert_eq!(Result::<Ip, Stop>::unpack(ip.pack()), ip);
            let header: Result<_, Fault> = Ok(GsoHeader { length: payload, removed: end });
            prop_assert_eq!(Result::<GsoHeader, Fault>::unpack(header.pack()), header);
            let inner: Result<_, Bucket> =
                Ok(Inner { offset: payload, trailer: trailer.into(), fragmented: fragmented.into() });
            prop_assert_eq!(Result::<Inner, Bucket>::unpack(inner.pack()), inner);
            let encap = Encap::ALL[part];
            let inside =
                Some(Inside { encap, vni: end << 16 | payload, offset: payload, ethertype: [ETH_TEB, ETH_IPV4, 0][part] });
            prop_assert_eq!(Option::<Inside>::unpack(inside.pack()), inside);
        }
    }

    fn round_trip<T: Register + Copy + PartialEq + std::fmt::Debug>(value: T) {
        assert_eq!(T::unpack(value.pack()), value);
    }

    #[test]
    fn every_error_comes_back() {
        for stop in [Stop::Truncated, Stop::Unknown, Stop::TooMany] {
            round_trip::<Result<Ethernet, Stop>>(Err(stop));
            round_trip::<Result<Ip, Stop>>(Err(stop));
        }
        round_trip::<Option<Inside>>(None);
        for &fault in Fault::ALL {
            round_trip::<Result<GsoHeader, Fault>>(Err(fault));
        }
        for &bucket in Bucket::ALL {
            round_trip::<Result<Inner, Bucket>>(Err(bucket));
        }
    }
}
