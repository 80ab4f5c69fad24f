//! Single values: text to value with what is wrong with it, and back.

use std::{collections::BTreeSet, fmt::Display, net::IpAddr};

use uuid::Uuid;

use super::condition::{PortRange, Prefix};
use crate::{meter::PortId, netdev::MacAddress};

/// A mask of which every bit counts.
pub(super) const ALL_ONES: MacAddress = [0xff; 6];
/// Ports that one attribute names at most.
pub(super) const MAX_PORTS: usize = 256;
/// Bytes of the longest name of a meter or group.
pub(super) const MAX_NAME: usize = 255;
/// Characters of a wrong value that a message shows.
const MAX_SHOWN: usize = 60;

/// Returns a text in quotes on one line, shortened where it is long.
pub(super) fn quote(text: &str) -> String {
    let shown = text.char_indices().nth(MAX_SHOWN).and_then(|(end, _)| text.get(..end));
    shown.map_or_else(|| format!("{text:?}"), |shown| format!("{shown:?}…"))
}

/// Reads an integer of a range: decimal digits, or hexadecimal ones behind `0x`.
pub(super) fn number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    // `from_str_radix` takes signs, and says "too large" of numbers that are merely long.
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(format!("{} is not a number, expected {least} to {most}", quote(text)));
    }
    let number = u32::from_str_radix(digits, radix).ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{} is out of range ({least} to {most})", quote(text)))
}

/// Reads an octet.
pub(super) fn byte(text: &str) -> Result<u8, String> {
    narrow(number(text, 0, u8::MAX.into()))
}

/// Reads a number of at most 16 bits.
pub(super) fn short(text: &str, least: u16, most: u16) -> Result<u16, String> {
    narrow(number(text, least.into(), most.into()))
}

fn narrow<T: TryFrom<u32>>(number: Result<u32, String>) -> Result<T, String>
where
    T::Error: Display,
{
    number.and_then(|number| T::try_from(number).map_err(|error| error.to_string()))
}

/// Reads an ethertype. `midonet-cli` shows those above 32767 as negative numbers.
pub(super) fn ethertype(text: &str) -> Result<u16, String> {
    let negative = text.starts_with('-').then(|| text.parse::<i16>().ok()).flatten();
    negative.map_or_else(|| short(text, 0x600, u16::MAX), |number| Ok(number.cast_unsigned()))
}

/// Reads a MAC address of six groups of one or two digits.
pub(super) fn mac(text: &str) -> Result<MacAddress, String> {
    let octet = |group: &str| {
        let is_octet = matches!(group.len(), 1 | 2) && group.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_octet.then(|| u8::from_str_radix(group, 16).ok()).flatten()
    };
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    octets.and_then(|octets| octets.try_into().ok()).ok_or_else(|| {
        format!("{} is not a MAC address, expected one such as 52:54:00:12:34:56", quote(text))
    })
}

/// Reads a mask of a MAC address.
pub(super) fn mask(text: &str) -> Result<MacAddress, String> {
    let wrong = || format!("{} is not a mask, expected one such as ffff.ff00.0000", quote(text));
    let groups: Vec<&str> = text.split('.').collect();
    let is_mask = groups.len() == 3
        && groups
            .iter()
            .all(|group| group.len() == 4 && group.bytes().all(|digit| digit.is_ascii_hexdigit()));
    if !is_mask {
        return Err(wrong());
    }
    let bits = u64::from_str_radix(&groups.concat(), 16).map_err(|_| wrong())?;
    let [_, _, octets @ ..] = bits.to_be_bytes();
    Ok(octets)
}

/// Reads a UUID.
pub(super) fn uuid(text: &str) -> Result<Uuid, String> {
    let uuid = (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten();
    uuid.ok_or_else(|| {
        format!(
            "{} is not a UUID; midonet-cli writes UUIDs in place of its aliases with -e (--eval)",
            quote(text)
        )
    })
}

/// Reads ports that are separated by commas. An empty list is none at all.
pub(super) fn ports(text: &str) -> Result<Option<BTreeSet<PortId>>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let ports =
        text.split(',').map(|port| uuid(port.trim()).map(PortId)).collect::<Result<BTreeSet<_>, _>>()?;
    if ports.len() > MAX_PORTS {
        return Err(format!("has {} ports, at most {MAX_PORTS} are possible; use a port group", ports.len()));
    }
    Ok(Some(ports))
}

/// Reads an address.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{} is not an IP address", quote(text)))
}

/// Reads an address with or without the length of its prefix.
///
/// # Errors
///
/// What is wrong with it, and what is allowed.
pub fn prefix(text: &str) -> Result<Prefix, String> {
    let (address, length) =
        text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address = address.parse::<IpAddr>().map_err(|_| {
        format!("{} is not a CIDR, expected one such as 10.0.0.0/8 or 2001:db8::/32", quote(text))
    })?;
    let host = Prefix::host(address);
    let Some(length) = length else { return Ok(host) };
    let most = host.length;
    let length = narrow(number(length, 0, most.into()))
        .map_err(|_| format!("{} has no possible prefix length, expected /0 to /{most}", quote(text)))?;
    Ok(Prefix { address, length })
}

/// Reads a port or a range of them, of which either end may be open.
pub(super) fn port_range(text: &str) -> Result<PortRange, String> {
    let bound = |text: &str| {
        if text.is_empty() { Ok(None) } else { short(text, 0, u16::MAX).map(Some) }
    };
    let Some((start, end)) = text.split_once('-') else {
        let port = short(text, 0, u16::MAX)?;
        return Ok(PortRange { start: Some(port), end: Some(port) });
    };
    let range = PortRange { start: bound(start)?, end: bound(end)? };
    match range {
        PortRange { start: None, end: None } => {
            Err(format!("{} has neither bound; expected N, N-M, N- or -M", quote(text)))
        }
        PortRange { start: Some(start), end: Some(end) } if start > end => {
            Err(format!("{} is upside down; expected {end}-{start}", quote(text)))
        }
        _ => Ok(range),
    }
}

/// Reads one of a few words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("{} is not one of {}", quote(text), known.join(", "))
    })
}

/// Reads `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    word(text, &[("true", true), ("false", false)])
}

/// Reads the name of a meter: anything that fits on a line.
///
/// # Errors
///
/// What is wrong with it, and what is allowed.
pub fn meter_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_NAME {
        return Err(format!("{} has {} bytes, expected 1 to {MAX_NAME}", quote(text), text.len()));
    }
    if text.contains(char::is_control) {
        return Err(format!("{} has a control character in it", quote(text)));
    }
    Ok(text.to_owned())
}

/// Reads the name of a group, which MidoNet gives a UUID.
///
/// # Errors
///
/// What is wrong with it, and what is allowed.
pub fn group_name(text: &str) -> Result<String, String> {
    let name = meter_name(text)?;
    if name.contains(|c: char| c.is_whitespace() || c == ',') {
        return Err(format!("{} has a blank or a comma in it", quote(text)));
    }
    if name.starts_with('!') || name == "None" {
        return Err(format!("{} means something else in a rule", quote(text)));
    }
    Ok(name)
}

/// Returns the word of a value.
pub(super) fn word_of<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| word)
}

/// Writes a MAC address.
pub(super) fn mac_text(address: MacAddress) -> String {
    address.map(|octet| format!("{octet:02x}")).join(":")
}

/// Writes a mask.
pub(super) fn mask_text([a, b, c, d, e, f]: MacAddress) -> String {
    format!("{a:02x}{b:02x}.{c:02x}{d:02x}.{e:02x}{f:02x}")
}

/// Writes an octet. Zero is hexadecimal: `proto 0` and `tos 0` are what `midonet-cli` writes where nothing is set.
pub(super) fn byte_text(byte: u8) -> String {
    if byte == 0 { "0x0".to_owned() } else { byte.to_string() }
}

/// Writes a list.
pub(super) fn list_text<'a, T: Display + 'a>(list: impl IntoIterator<Item = &'a T>) -> String {
    list.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
