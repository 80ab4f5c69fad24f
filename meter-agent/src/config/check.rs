//! Single values: of which type, in which range, and what to say of the others.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use toml::de::DeValue;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use uuid::Uuid;

use super::{
    document::type_of,
    report::{quote, shorten},
};
use crate::netdev::{Glob, MacAddress, Pattern};

/// Bytes of the longest pattern.
const MAX_PATTERN: usize = 128;
/// Bytes of the longest name of a netdev: `IFNAMSIZ` without its NUL.
const MAX_NAME: usize = 15;
/// Bytes of the longest name of a namespace: `NAME_MAX`.
const MAX_NETNS: usize = 255;
/// Bytes of the longest log directive.
const MAX_LEVEL: usize = 1024;
/// Bytes of the longest host name, by RFC 1035.
const MAX_HOST_NAME: usize = 253;

/// Reads a boolean.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("expected true or false, found {}", type_of(value)))
}

/// Reads an integer of a range.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Result<T, String>
where
    T: TryFrom<i128> + PartialOrd + Display,
{
    move |value| {
        let DeValue::Integer(integer) = value else {
            return Err(format!("expected an integer, found {}", type_of(value)));
        };
        // What does not fit into an i128 is out of every range.
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number =
            number.and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let shown = shorten(&integer.to_string());
            format!("{shown} is out of range ({} to {})", range.start(), range.end())
        })
    }
}

/// Reads a string, and what it says by another function.
pub(super) fn string<T>(
    read: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| match value {
        DeValue::String(text) => read(text),
        other => Err(format!("expected a string, found {}", type_of(other))),
    }
}

/// Reads one of a few words.
pub(super) fn word<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            format!("{} is not one of {}", quote(text), known.join(", "))
        })
    }
}

/// Reads a UUID that means something.
pub(super) fn uuid(text: &str) -> Result<Uuid, String> {
    match Uuid::try_parse(text) {
        Ok(uuid) if uuid.is_nil() => Err("the nil UUID names nothing; leave the key out instead".to_owned()),
        Ok(uuid) => Ok(uuid),
        Err(_) => Err(format!(
            "{} is not a UUID, expected one such as \"123e4567-e89b-12d3-a456-426614174000\"",
            quote(text)
        )),
    }
}

/// Reads a hardware address that a netdev can have.
pub(super) fn mac(text: &str) -> Result<MacAddress, String> {
    let mut bytes = text.split(':').map(|part| {
        let is_byte = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_byte.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    });
    let mut address = MacAddress::default();
    let is_complete =
        address.iter_mut().all(|byte| bytes.next().flatten().map(|read| *byte = read).is_some());
    if !is_complete || bytes.next().is_some() {
        return Err(format!(
            "{} is not a MAC address, expected one such as \"52:54:00:12:34:56\"",
            quote(text)
        ));
    }
    if address[0] & 1 == 1 {
        return Err(format!("{} is a group's address, which no netdev has", quote(text)));
    }
    if address == [0; 6] {
        return Err(format!("{} is no netdev's own address", quote(text)));
    }
    Ok(address)
}

/// Reads a pattern of netdevs.
pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    if text.len() > MAX_PATTERN {
        return Err(format!("{} is longer than {MAX_PATTERN} bytes", quote(text)));
    }
    // A run of characters may be empty; everything else is at least a byte.
    if !text.contains(':') && text.bytes().filter(|&byte| byte != b'*').count() > MAX_NAME {
        return Err(format!("{} matches no netdev: their names have at most {MAX_NAME} bytes", quote(text)));
    }
    text.parse::<Pattern>().map_err(|error| error.to_string())
}

/// Reads a pattern of names of network namespaces, which are names of files.
pub(super) fn netns(text: &str) -> Result<Glob, String> {
    if text.is_empty() || text.bytes().filter(|&byte| byte != b'*').count() > MAX_NETNS {
        let length = text.len();
        return Err(format!("{} has {length} bytes, and a namespace's name 1 to {MAX_NETNS}", quote(text)));
    }
    if text.contains(|c: char| c == '/' || c.is_control()) {
        return Err(format!(
            "{} matches no namespace: give its name below /run/netns, such as \"qrouter-*\"",
            quote(text)
        ));
    }
    Ok(Glob::new(text))
}

/// Returns whether a pattern can match more than one netdev.
pub(super) fn matches_many(pattern: &Pattern) -> bool {
    pattern.to_string().contains(['*', '?', ':'])
}

/// Reads an address to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    // Without a host it is all of them, as Prometheus' own exporters take it.
    let all = format!("[::]{text}");
    if text.starts_with(':') { all.as_str() } else { text }.parse().map_err(|_| {
        format!(
            "{} is not an address with a port, expected one such as \"[::]:7300\" or \"127.0.0.1:7300\"",
            quote(text)
        )
    })
}

/// Returns whether two addresses cannot both be listened on. Port 0 is a free one of the kernel's choice.
pub(super) fn overlaps(a: &SocketAddr, b: &SocketAddr) -> bool {
    let covers = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    let (one, other) = (a.ip().to_canonical(), b.ip().to_canonical());
    let is_same = a == b || (one == other && one.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (is_same || covers(one, other) || covers(other, one))
}

/// Reads an interval, and `None` for zero, which switches it off.
pub(super) fn interval(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Option<Duration>, String> {
    move |text| {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let read =
            number.parse().ok().zip(unit).and_then(|(number, unit): (u64, u64)| number.checked_mul(unit));
        let Some(milliseconds) = read else {
            return Err(format!("{} is not a duration, expected one such as \"60s\" or \"5m\"", quote(text)));
        };
        let duration = Duration::from_millis(milliseconds);
        if !duration.is_zero() && !range.contains(&duration) {
            let (least, most) = (range.start(), range.end());
            return Err(format!(
                "{} is out of range ({least:?} to {most:?}, or \"0s\" for never)",
                quote(text)
            ));
        }
        Ok((!duration.is_zero()).then_some(duration))
    }
}

/// Reads something that may be empty, for none.
pub(super) fn optional<T>(
    read: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| if text.is_empty() { Ok(None) } else { read(text).map(Some) }
}

/// Reads an absolute path of at most so many bytes.
pub(super) fn path(most: usize) -> impl Fn(&str) -> Result<PathBuf, String> {
    move |text| {
        if !text.starts_with('/') {
            return Err(format!("{} is not an absolute path, expected one that begins with /", quote(text)));
        }
        if text.len() > most {
            return Err(format!("{} is longer than {most} bytes", quote(text)));
        }
        if text.contains('\0') {
            return Err(format!("{} has a NUL in it, which no path has", quote(text)));
        }
        if text.split('/').any(|part| part == "..") {
            return Err(format!("{} has .. in it; write where it leads to", quote(text)));
        }
        if text.trim_end_matches('/').is_empty() {
            return Err(format!("{} is the root directory; use a path below it", quote(text)));
        }
        Ok(PathBuf::from(text))
    }
}

/// Reads a log level or directives, and returns them without blanks around them, which `EnvFilter` miscounts.
pub(super) fn level(text: &str) -> Result<String, String> {
    const EXPECTED: &str =
        "expected off, error, warn, info, debug, trace, or directives such as \"info,aya=debug\"";
    if text.len() > MAX_LEVEL {
        return Err(format!("{} is longer than {MAX_LEVEL} bytes", quote(text)));
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    for part in &parts {
        // A word alone that is no level would be a target of which everything is logged: a misspelled level, mostly.
        let is_level = !part.is_empty() && part.parse::<LevelFilter>().is_ok();
        if !is_level && !part.contains(['=', '[']) {
            return Err(format!("{} is not a log level; {EXPECTED}", quote(part)));
        }
    }
    let level = parts.join(",");
    match EnvFilter::builder().parse(&level) {
        Ok(_) => Ok(level),
        Err(error) => Err(format!("{} is not a log directive ({error}); {EXPECTED}", quote(text))),
    }
}

/// Reads what the JMX scraper's families call an agent: a label's value, such as its address.
pub(super) fn agent(text: &str) -> Result<String, String> {
    let agent = host_name(text)?;
    if agent.contains(['"', '\\']) {
        return Err(format!("{} has a quote or a backslash in it, which no address has", quote(text)));
    }
    Ok(agent)
}

/// Reads the name of a host.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_HOST_NAME {
        return Err(format!("{} has {} bytes, expected 1 to {MAX_HOST_NAME}", quote(text), text.len()));
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("{} has white space in it, which no host name has", quote(text)));
    }
    Ok(text.to_owned())
}
