//! Why a frame is in no tunnel, or not counted in full.

use super::Counter;

/// Declares an enum of reasons whose numbers are array indexes, whose names are label values and whose doc
/// sentences are HELP texts.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $help:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[doc = $help])+ $variant,)+ }

        impl $name {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the reason with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                if (number as usize) < Self::ALL.len() { Some(Self::ALL[number as usize]) } else { None }
            }

            /// Returns the label value.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// Returns the sentence that explains it to an operator.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($help),+),)+ }
            }
        }
    };
}

reasons! {
    /// Why a frame at an uplink is in no tunnel's meter. For each uplink and direction the tunnels and these buckets
    /// add up to what the hook saw.
    Bucket {
        /// No tunnel header: ordinary traffic of the underlay.
        Plain = "plain",
        /// The frame ends inside its outer headers.
        TruncatedHeader = "truncated_header",
        /// A later fragment of an outer packet: the tunnel header is in the first one.
        OuterFragment = "outer_fragment",
        /// The tunnel header is not valid, such as a VXLAN header without a VNI.
        BadTunnelHeader = "bad_tunnel_header",
        /// A kind of tunnel header that has no meter, such as GRE version 1.
        UnknownEncapsulation = "unknown_encapsulation",
        /// More VLAN tags or IPv6 extension headers than are followed.
        TooManyHeaders = "too_many_headers",
        /// The table of tunnels is full; raise tunnels.max_tunnels and `meter-agent detach`, which ends all totals.
        TunnelTableFull = "tunnel_table_full",
    }
}

reasons! {
    /// Why a frame was counted with less than is wanted known of it: a super-packet as one frame, a connection's frame as
    /// one of none. These frames are in their port's meter as well.
    Fault {
        /// The headers of a super-packet end beyond the frame.
        GsoTruncated = "gso_truncated",
        /// A super-packet of a protocol whose headers are not known.
        GsoUnknownProtocol = "gso_unknown_protocol",
        /// A super-packet with more nested headers than are followed.
        GsoTooManyHeaders = "gso_too_many_headers",
        /// A super-packet without a number of segments.
        GsoNoSegments = "gso_no_segments",
        /// The table of connections is full.
        ConnectionTableFull = "connection_table_full",
    }
}

impl Fault {
    /// Returns whether it is about super-packets.
    #[must_use]
    pub const fn is_of_super_packet(self) -> bool {
        !matches!(self, Self::ConnectionTableFull)
    }
}

/// Room for reasons in [`Buckets`] and [`Faults`]; more than there are, so that adding one does not change a size.
pub const MAX_REASONS: usize = 16;

/// Frames at one hook of one uplink that no tunnel meter counts, by [`Bucket`], in wire units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Buckets {
    /// By the number of the [`Bucket`].
    pub reasons: [Counter; MAX_REASONS],
}

/// Frames that were counted, but not in full, by [`Fault`]; bytes are skb bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Faults {
    /// By the number of the [`Fault`].
    pub reasons: [Counter; MAX_REASONS],
}
