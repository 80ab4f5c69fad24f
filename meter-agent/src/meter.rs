//! The names of meters and what a meter holds.
//!
//! Owns the grammar that MidoNet gave its meters. Imports nothing of this crate.

use std::{fmt, net::IpAddr, str::FromStr};

use uuid::Uuid;

/// A virtual port: whose traffic is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub Uuid);

/// A virtual device (bridge or router) that owns ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub Uuid);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Packets and bytes of one meter since it began, in wire units. Both only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Frames.
    pub packets: u64,
    /// L2 bytes.
    pub bytes: u64,
}

impl std::ops::AddAssign for FlowStats {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

/// The name of one meter.
///
/// Written as MidoNet writes it; tunnels have two forms (see [`MeterKey::native`]) and both are read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeterKey {
    /// `meters:device:<uuid>`: a bridge, a router, or a port.
    Device(Uuid),
    /// `meters:port:rx:<uuid>`: frames that enter the virtual device through the port.
    PortRx(PortId),
    /// `meters:port:tx:<uuid>`: frames that leave the virtual device through the port.
    PortTx(PortId),
    /// `meters:tunnel:<source>:<destination>`.
    Tunnel {
        /// Outer source address.
        src: IpAddr,
        /// Outer destination address.
        dst: IpAddr,
    },
    /// `meters:user:<name>`: free text, which may hold colons and blanks.
    User(String),
}

impl fmt::Display for MeterKey {
    /// Writes MidoNet's form: tunnels of IPv4 addresses as signed 32-bit integers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(uuid) => write!(f, "meters:device:{uuid}"),
            Self::PortRx(port) => write!(f, "meters:port:rx:{port}"),
            Self::PortTx(port) => write!(f, "meters:port:tx:{port}"),
            Self::Tunnel { src, dst } => {
                f.write_str("meters:tunnel:")?;
                write_midonet(f, src)?;
                f.write_str(":")?;
                write_midonet(f, dst)
            }
            Self::User(name) => write!(f, "meters:user:{name}"),
        }
    }
}

fn write_midonet(f: &mut fmt::Formatter<'_>, address: &IpAddr) -> fmt::Result {
    match address {
        IpAddr::V4(v4) => write!(f, "{}", u32::from(*v4).cast_signed()),
        IpAddr::V6(v6) => write!(f, "[{v6}]"),
    }
}

impl MeterKey {
    /// Returns the name with readable addresses: `meters:tunnel:10.0.0.9:10.0.0.10`.
    #[must_use]
    pub fn native(&self) -> String {
        match self {
            Self::Tunnel { src: IpAddr::V4(src), dst: IpAddr::V4(dst) } => {
                format!("meters:tunnel:{src}:{dst}")
            }
            other => other.to_string(),
        }
    }
}

/// Why a text is not the name of a meter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a meter: expected meters:device:<uuid>, meters:port:rx|tx:<uuid>, \
     meters:tunnel:<source>:<destination> or meters:user:<name>"
)]
pub struct ParseMeterKeyError(String);

impl FromStr for MeterKey {
    type Err = ParseMeterKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseMeterKeyError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<MeterKey> {
    let rest = text.strip_prefix("meters:")?;
    let (kind, rest) = rest.split_once(':')?;
    match kind {
        "device" => Some(MeterKey::Device(parse_uuid(rest)?)),
        "port" => match rest.split_once(':')? {
            ("rx", uuid) => Some(MeterKey::PortRx(PortId(parse_uuid(uuid)?))),
            ("tx", uuid) => Some(MeterKey::PortTx(PortId(parse_uuid(uuid)?))),
            _ => None,
        },
        "tunnel" => {
            let (src, rest) = parse_address(rest)?;
            let (dst, rest) = parse_address(rest.strip_prefix(':')?)?;
            rest.is_empty().then_some(MeterKey::Tunnel { src, dst })
        }
        "user" if !rest.is_empty() => Some(MeterKey::User(rest.to_owned())),
        _ => None,
    }
}

fn parse_uuid(text: &str) -> Option<Uuid> {
    // The crate also reads braces, URNs and forms without hyphens; a meter name has exactly one form.
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// Reads an address in either form from the start of `text`; returns it and the rest.
fn parse_address(text: &str) -> Option<(IpAddr, &str)> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']')?;
        return Some((IpAddr::V6(address.parse().ok()?), rest));
    }
    let end = text.find(':').unwrap_or(text.len());
    let (address, rest) = text.split_at(end);
    if let Ok(v4) = address.parse() {
        return Some((IpAddr::V4(v4), rest));
    }
    // `parse` would take a leading plus sign, which no Java integer prints.
    if address.starts_with('+') {
        return None;
    }
    let number: i32 = address.parse().ok()?;
    Some((IpAddr::V4(number.cast_unsigned().into()), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{DeviceId, IpAddr, MeterKey, PortId, Uuid};

    #[test]
    fn tunnel_of_midonets_manual_has_its_integers() {
        let key = MeterKey::Tunnel { src: [10, 0, 0, 9].into(), dst: [192, 168, 1, 1].into() };
        assert_eq!(key.to_string(), "meters:tunnel:167772169:-1062731519");
        assert_eq!(key.native(), "meters:tunnel:10.0.0.9:192.168.1.1");
    }

    #[test]
    fn names_that_are_not_meters_are_refused() {
        for name in [
            "",
            "meters:",
            "meters:device:",
            "meters:device:845a54bfb7024dc28958bbe7156bc4ef",
            "meters:device:{845a54bf-b702-4dc2-8958-bbe7156bc4ef}",
            "meters:port:845a54bf-b702-4dc2-8958-bbe7156bc4ef",
            "meters:port:up:845a54bf-b702-4dc2-8958-bbe7156bc4ef",
            "meters:tunnel:1",
            "meters:tunnel:1:2:3",
            "meters:tunnel:+1:2",
            "meters:tunnel:4294967295:1",
            "meters:tunnel:[::1]",
            "meters:user:",
            "tun_key:7",
        ] {
            assert!(name.parse::<MeterKey>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn both_forms_of_a_tunnel_name_read_back(src in any::<IpAddr>(), dst in any::<IpAddr>()) {
            let key = MeterKey::Tunnel { src, dst };
            prop_assert_eq!(key.to_string().parse(), Ok(key.clone()));
            prop_assert_eq!(key.native().parse(), Ok(key));
        }

        #[test]
        fn every_other_name_reads_back(bytes in any::<[u8; 16]>(), name in ".+") {
            let uuid = Uuid::from_bytes(bytes);
            for key in [
                MeterKey::Device(DeviceId(uuid).0),
                MeterKey::PortRx(PortId(uuid)),
                MeterKey::PortTx(PortId(uuid)),
                MeterKey::User(name.clone()),
            ] {
                prop_assert_eq!(key.to_string().parse(), Ok(key));
            }
        }

        #[test]
        fn no_text_panics(text in ".*") {
            if let Ok(key) = text.parse::<MeterKey>() {
                prop_assert_eq!(key.to_string().parse(), Ok(key));
            }
        }
    }
}
