//! What was counted on the way, in frames as they are on a wire.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    mac::Mac,
};

/// Frames and their bytes: Ethernet header and VLAN tags in, FCS out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub frames: u64,
    /// L2 bytes.
    pub bytes: u64,
}

impl Count {
    pub(crate) const fn add(&mut self, frames: u64, bytes: u64) {
        self.frames += frames;
        self.bytes += bytes;
    }

    /// Returns what came after `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self { frames: self.frames - earlier.frames, bytes: self.bytes - earlier.bytes }
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.add(other.frames, other.bytes);
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        let mut sum = Self::default();
        counts.for_each(|count| sum += count);
        sum
    }
}

/// From which station to which.
pub type Stations = (Mac, Mac);

/// Of what protocol, from where to where.
pub type Flow = (u8, SocketAddr, SocketAddr);

/// Which encapsulation a tunnel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encap {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
    /// RFC 2784 and 2890.
    Gre,
}

impl fmt::Display for Encap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Gre => "gre",
        })
    }
}

/// A tunnel as its outer headers name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelKey {
    /// Outer source address.
    pub src: IpAddr,
    /// Outer destination address.
    pub dst: IpAddr,
    /// VNI, or GRE's key; 0 for GRE without one.
    pub vni: u32,
    /// Encapsulation.
    pub encap: Encap,
}

/// The frames of one tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunnelCount {
    /// Outer frames.
    pub frames: u64,
    /// Bytes of the frames inside.
    pub inner_bytes: u64,
    /// Bytes of the outer frames.
    pub outer_bytes: u64,
}

impl TunnelCount {
    /// Returns what came after `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            frames: self.frames - earlier.frames,
            inner_bytes: self.inner_bytes - earlier.inner_bytes,
            outer_bytes: self.outer_bytes - earlier.outer_bytes,
        }
    }
}

/// Returns what came after `earlier` for each key, and nothing for those that stood still.
pub(crate) fn map_since<K: Ord + Copy, V: Copy + Default + PartialEq>(
    now: &BTreeMap<K, V>,
    earlier: &BTreeMap<K, V>,
    since: impl Fn(V, V) -> V,
) -> BTreeMap<K, V> {
    now.iter()
        .map(|(key, value)| (*key, since(*value, earlier.get(key).copied().unwrap_or_default())))
        .filter(|(_, value)| *value != V::default())
        .collect()
}

/// Waits until what `read` returns has not changed for as long as `still`, and returns it.
///
/// # Errors
///
/// [`Error::Deadline`] when it still changes after `within`.
pub fn settled<T: PartialEq>(
    what: &str,
    still: Duration,
    within: Duration,
    mut read: impl FnMut() -> T,
) -> Result<T> {
    let deadline = Instant::now() + within;
    let mut last = read();
    let mut since = Instant::now();
    while since.elapsed() < still {
        if Instant::now() > deadline {
            return Err(Error::Deadline { what: format!("the end of {what}"), after: within });
        }
        thread::sleep(Duration::from_millis(10).min(still));
        let now = read();
        if now != last {
            last = now;
            since = Instant::now();
        }
    }
    Ok(last)
}
