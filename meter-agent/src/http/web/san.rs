//! The subject's alternative names of a certificate (RFC 5280, 4.2.1.6), for which rustls has no reader.

use std::net::{Ipv4Addr, Ipv6Addr};

const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const OID: u8 = 0x06;
/// Explicit tag of a certificate's extensions.
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Kinds of names, by their tags.
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

/// Returns the names: DNS, e-mail and URI as they stand, IP addresses as text. `None` where it is no certificate.
pub(super) fn names(certificate: &[u8]) -> Option<Vec<String>> {
    let (body, _) = expect(certificate, SEQUENCE)?;
    let (mut rest, _) = expect(body, SEQUENCE)?;
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (tag, value, after) = element(rest)?;
        rest = after;
        if tag == EXTENSIONS {
            let (mut extensions, _) = expect(value, SEQUENCE)?;
            while !extensions.is_empty() {
                let (extension, after) = expect(extensions, SEQUENCE)?;
                extensions = after;
                names.extend(names_of(extension)?);
            }
        }
    }
    Some(names)
}

/// Returns the names of an extension; none where it is another one.
fn names_of(extension: &[u8]) -> Option<Vec<String>> {
    let (oid, mut rest) = expect(extension, OID)?;
    if oid != SUBJECT_ALT_NAME {
        return Some(Vec::new());
    }
    if let Some((_, after)) = expect(rest, BOOLEAN) {
        rest = after;
    }
    let (value, _) = expect(rest, OCTETS)?;
    let (mut list, _) = expect(value, SEQUENCE)?;
    let mut names = Vec::new();
    while !list.is_empty() {
        let (tag, value, after) = element(list)?;
        list = after;
        let name = match tag {
            EMAIL | DNS | URI => str::from_utf8(value).ok().map(ToOwned::to_owned),
            IP => <[u8; 4]>::try_from(value)
                .map(|octets| Ipv4Addr::from(octets).to_string())
                .or_else(|_| <[u8; 16]>::try_from(value).map(|octets| Ipv6Addr::from(octets).to_string()))
                .ok(),
            _ => None,
        };
        names.extend(name);
    }
    Some(names)
}

/// Returns the value of an element that must have a tag, and what follows it.
fn expect(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, value, rest) = element(input)?;
    (found == tag).then_some((value, rest))
}

/// Splits an element of DER off: tag, value, and what follows it.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = input.split_first_chunk()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.is_empty() || bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
    };
    let (value, rest) = rest.split_at_checked(length)?;
    Some((tag, value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec,
        prelude::{any, proptest},
    };
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::names;

    #[test]
    fn names_of_every_kind_are_read() {
        let mut params = CertificateParams::new(vec!["host.example".to_owned()]).unwrap();
        params.subject_alt_names.extend([
            SanType::Rfc822Name("a@host.example".try_into().unwrap()),
            SanType::URI("spiffe://x/y".try_into().unwrap()),
            SanType::IpAddress([10, 0, 0, 1].into()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ]);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let expected = ["host.example", "a@host.example", "spiffe://x/y", "10.0.0.1", "2001:db8::1"];
        assert_eq!(names(certificate.der()).unwrap(), expected);
    }

    #[test]
    fn certificate_without_names_has_none() {
        let params = CertificateParams::new(Vec::<String>::new()).unwrap();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(names(certificate.der()), Some(Vec::new()));
        assert_eq!(names(b""), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200), at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
            drop(names(&bytes));
            let params = CertificateParams::new(vec!["host.example".to_owned()]).unwrap();
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let mut changed = certificate.der().to_vec();
            *at.get_mut(&mut changed) = byte;
            drop(names(&changed));
        }
    }
}
