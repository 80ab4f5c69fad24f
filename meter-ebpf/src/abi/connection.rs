//! Connections: who is in one, who began it, how far it is, and what it has moved; and which netdevs' are counted.

use super::Counter;
#[cfg(doc)]
use super::Direction;

/// Ends of a connection at one netdev, in an order that both of its directions share.
///
/// By words: the address of the lesser end and that of the other, two each (IPv4 in the upper half of the first); the
/// ports of both with the slot of the netdev's port below them; and the labels: from the lowest byte 1 for IPv6, the
/// protocol, the number of the [`super::Encap`] of the tunnel that it is in (0 for none), a 0, and the VNI or GRE key of that
/// tunnel in four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ConnectionKey {
    /// The words.
    pub words: [u64; CONNECTION_WORDS],
}

/// Words of a [`ConnectionKey`].
pub const CONNECTION_WORDS: usize = 6;
/// The word that has the ports.
pub const CONNECTION_PORTS: usize = 4;
/// The word that no connection has as 0: it has the protocol.
pub const CONNECTION_LABELS: usize = 5;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum End {
    /// The one whose address, and then port, is the lesser number.
    Low = 0,
    /// The other.
    High = 1,
}

impl End {
    /// Returns the other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }
}

/// What is known of a connection's course. Each part is a byte of its own, so that two CPUs that see its two directions
/// at a time do not undo what the other wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Course {
    /// The number of the [`End`] that began it.
    pub initiator: u8,
    /// 1 once the other end has sent.
    pub answered: u8,
    /// 1 where TCP's SYN said who began it.
    pub opened: u8,
    /// 1 once either end has reset it.
    pub reset: u8,
    /// 1 once the end has sent its last byte (FIN), by [`End`].
    pub finished: [u8; 2],
    /// 1 while user space takes it out of the table.
    pub leaving: u8,
    /// 1 while it is there for its direction alone, and its frames are counted in no connection.
    pub uncounted: u8,
}

/// A connection, as it lies in its place in `CONNECTIONS`: one cache line that each frame asks for, and another.
///
/// Place 0 is no connection's: its `last_seen` is the time that programs take for the present.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Connection {
    /// Who. The word of the labels is 0 while the place is nobody's.
    pub key: ConnectionKey,
    /// How far it is.
    pub course: Course,
    /// When its first frame came, in seconds of the agent's clock.
    pub first_seen: u32,
    /// The same for the latest.
    pub last_seen: u32,
    /// What each [`End`] has sent, by [`Direction`] of the hook, in wire units. Only where its netdev's connections are
    /// counted; by atomic additions of any CPU.
    pub counts: [[Counter; 2]; 2],
}

/// How long the second packet of a connection's handshake took, by the connection's place in `CONNECTION_TIME`: apart, since
/// only handshakes touch it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Handshake {
    /// When its first SYN, or its first echo request, came: nanoseconds of the kernel's monotonic clock; 0 for not.
    pub asked_ns: u64,
    /// Nanoseconds until the answer; 0 where the handshake was not seen.
    pub rtt_ns: u64,
}

/// What of a netdev's connections is counted, and what of its frames is in none: value of `CAPTURES`, by slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Capture {
    /// Bits of [`capture`].
    pub wanted: u32,
    /// Connections that the netdev has at most.
    pub share: u32,
    /// Connections that it has: programs add those that come, user space corrects it.
    pub live: u64,
    /// Frames that are in no connection, by [`Direction`]; by atomic additions.
    pub other: [Counter; 2],
    /// What connections had that are not in the table any more, by [`Direction`]. Only user space writes it.
    pub ended: [Counter; 2],
    /// The UUID of the port whose all of it is, as two words. Only user space reads and writes it, and the next.
    pub port: [u64; 2],
    /// 1 while it is that port's.
    pub owned: u64,
    /// Fills the second cache line.
    pub reserved: [u64; 3],
}

/// Bits of [`Capture::wanted`].
pub mod capture {
    /// TCP.
    pub const TCP: u32 = 1;
    /// UDP.
    pub const UDP: u32 = 1 << 1;
    /// SCTP.
    pub const SCTP: u32 = 1 << 2;
    /// Echo of ICMP and ICMPv6.
    pub const ICMP: u32 = 1 << 3;
    /// Over IPv4.
    pub const IPV4: u32 = 1 << 4;
    /// Over IPv6.
    pub const IPV6: u32 = 1 << 5;
    /// Its frames count in user-defined meters as well.
    pub const METERS: u32 = 1 << 6;
    /// Of tunnel packets, those inside.
    pub const INSIDE: u32 = 1 << 7;
    /// Those alone that rules match.
    pub const RULES: u32 = 1 << 8;
    /// Each frame is counted, in a connection or in none.
    pub const ON: u32 = 1 << 9;
}

/// What a port's frames were that no connection in the table has, while it has no slot: value of `CAPTURE_SAVED`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SavedCapture {
    /// As in [`Capture`].
    pub other: [Counter; 2],
    /// As in [`Capture`].
    pub ended: [Counter; 2],
}

/// Numbers of places in the one value of `CONNECTION_HINT`. A power of two.
pub const HINTS: usize = 32_768;

/// The one value of `CONNECTION_HINT`: by the lower bits of a connection's hash, where it may be. Whoever follows a hint
/// compares the key.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ConnectionHints {
    /// The places.
    pub places: [u32; HINTS],
}

const _: () = {
    assert!(size_of::<ConnectionKey>() == 48);
    assert!(size_of::<Course>() == 8);
    assert!(size_of::<Connection>() == 128);
    assert!(size_of::<Handshake>() == 16);
    assert!(size_of::<Capture>() == 128);
    assert!(size_of::<SavedCapture>() == 64);
    assert!(size_of::<ConnectionHints>() == 128 * 1024);
    assert!(HINTS.is_power_of_two());
};
