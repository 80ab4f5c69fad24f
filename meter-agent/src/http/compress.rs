//! Large answers, compressed for clients that take it.

use std::io::{self, Write as _};

use flate2::{Compression, write::GzEncoder};

use super::accept::items;

/// Bodies below this many bytes are sent as they are: they fit into a segment or two.
const LEAST: usize = 1024;

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// As it is.
    Identity,
    /// By gzip (RFC 1952).
    Gzip,
}

impl Coding {
    /// Chooses by the values of a request's `Accept-Encoding` headers (RFC 9110, section 12.5.3).
    ///
    /// gzip is for clients that name it, or anything, and like it at least as much as no coding. Who takes neither gets
    /// the body as it is.
    pub(super) fn negotiate<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut gzip, mut identity, mut any) = (None::<f32>, None::<f32>, None::<f32>);
        for item in accept.into_iter().flat_map(items) {
            let is = |name: &str| item.name.eq_ignore_ascii_case(name);
            let quality = match item.name {
                "*" => &mut any,
                _ if is("gzip") || is("x-gzip") => &mut gzip,
                _ if is("identity") => &mut identity,
                _ => continue,
            };
            *quality = Some(quality.unwrap_or_default().max(item.quality));
        }
        let gzip = gzip.or(any).unwrap_or_default();
        // Not named, no coding is taken, but not preferred.
        if gzip > 0.0 && gzip >= identity.unwrap_or_default() { Self::Gzip } else { Self::Identity }
    }

    /// Returns the body as it is to be sent, and whether that is by gzip. Takes some 5 ms for each MB: not for a task
    /// that others wait for.
    pub(super) fn encode(self, body: Vec<u8>) -> (Vec<u8>, Self) {
        match self {
            Self::Gzip if body.len() >= LEAST => match gzip(&body) {
                Ok(compressed) => (compressed, Self::Gzip),
                Err(_) => (body, Self::Identity),
            },
            Self::Gzip | Self::Identity => (body, Self::Identity),
        }
    }
}

fn gzip(body: &[u8]) -> io::Result<Vec<u8>> {
    // What is left of a line is its UUID and its number, at the fastest level already.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use proptest::prelude::{any, proptest};

    use super::Coding::{self, Gzip, Identity};

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (accept, expected) in [
            (&[][..], Identity),
            (&[""], Identity),
            (&["gzip"], Gzip),
            (&["GZip"], Gzip),
            (&["x-gzip"], Gzip),
            (&["gzip, deflate, br, zstd"], Gzip),
            (&["deflate, br"], Identity),
            (&["*"], Gzip),
            (&["*;q=0"], Identity),
            (&["gzip;q=0"], Identity),
            (&["gzip;q=0, *"], Identity),
            (&["gzip;q=0.000"], Identity),
            (&["gzip;q=0.001"], Gzip),
            (&["gzip;q=nan"], Identity),
            (&["gzip;q=2"], Identity),
            (&["gzip ; Q=1.0"], Gzip),
            (&["identity"], Identity),
            (&["identity, gzip"], Gzip),
            (&["identity;q=0.5, gzip;q=0.4"], Identity),
            (&["identity;q=0.5, gzip;q=0.6"], Gzip),
            (&["identity;q=0, gzip;q=0.1"], Gzip),
            (&["identity;q=0"], Identity),
            (&["*;q=0.5, identity;q=0.6"], Identity),
            (&["br;q=1.0", "gzip;q=0.8"], Gzip),
            (&["gzipped"], Identity),
        ] {
            assert_eq!(Coding::negotiate(accept.iter().copied()), expected, "{accept:?}");
        }
    }

    #[test]
    fn short_bodies_stay_as_they_are() {
        assert_eq!(Gzip.encode(vec![b'a'; 1023]), (vec![b'a'; 1023], Identity));
        assert_eq!(Identity.encode(vec![b'a'; 5000]), (vec![b'a'; 5000], Identity));
    }

    proptest! {
        #[test]
        fn what_is_compressed_reads_back(seed in any::<Vec<u8>>(), times in 1..2000_usize) {
            let body = seed.repeat(times);
            let (sent, coding) = Gzip.encode(body.clone());
            assert_eq!(coding == Gzip, body.len() >= 1024);
            let mut read = Vec::new();
            if coding == Gzip {
                GzDecoder::new(sent.as_slice()).read_to_end(&mut read).unwrap();
            } else {
                read = sent;
            }
            assert!(read == body);
        }

        #[test]
        fn no_header_panics(accept in ".*") {
            Coding::negotiate([accept.as_str()]);
        }
    }
}
