//! Hardware addresses.

use std::{fmt, str::FromStr};

/// A hardware (MAC) address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Returns the locally administered unicast address `02:00:…` that ends in this number.
    #[must_use]
    pub const fn local(number: u32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        Self([0x02, 0, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text is not six hexadecimal bytes with colons between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address: expected six hexadecimal bytes with colons between them")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| ParseMacError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::Mac;

    #[test]
    fn address_reads_back() {
        let mac = Mac::local(0x0a0b_0c0d);
        assert_eq!(mac.to_string(), "02:00:0a:0b:0c:0d");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert!("02:00:0a:0b:0c".parse::<Mac>().is_err());
    }
}
