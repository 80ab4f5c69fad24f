//! What a verdict depends on: the fields of a frame that rules look at, and where it is.

use super::{DST_WORD, GENERATION_WORD, HW_DST_WORD, HW_MASK, HW_SRC_WORD, PORTS_WORD, SLOTS_WORD, SRC_WORD};
use crate::{
    abi::{
        Direction, Network,
        rules::{Field, FlowKey, GENERATION_BITS, KEY_WORDS, RuleTables, present},
    },
    packet::numbers::{IP_ICMP, IP_ICMPV6, IP_SCTP, IP_TCP, IP_UDP},
};

/// Types of ICMP and ICMPv6: the answer to an echo request.
/// <https://www.rfc-editor.org/rfc/rfc792>, <https://www.rfc-editor.org/rfc/rfc4443#section-4.2>
const ECHO_REPLY: u64 = 0;
const ECHO_REPLY_V6: u64 = 129;

impl FlowKey {
    /// Sets the hook, and the slots of the ports through which a frame came in and goes out; 0 for none.
    #[inline(always)]
    pub fn set_hook(&mut self, direction: Direction, in_slot: u32, out_slot: u32) {
        if direction as u32 == Direction::Egress as u32 {
            self.words[HW_DST_WORD] |= present::EGRESS;
        }
        self.words[SLOTS_WORD] = (in_slot as u64) << 32 | out_slot as u64;
    }

    /// Says in which overlay network the frame is.
    #[inline(always)]
    pub fn set_network(&mut self, network: Network) {
        self.words[GENERATION_WORD] = network.key() << GENERATION_BITS;
    }

    /// Returns whether rules ask for the overlay network, of the key that masks others.
    #[inline(always)]
    #[must_use]
    pub fn asks_for_network(&self) -> bool {
        self.words[GENERATION_WORD] != 0
    }

    /// Says that the packet goes against the first one of its connection.
    #[inline(always)]
    pub fn set_return(&mut self) {
        self.words[HW_DST_WORD] |= present::RETURN;
    }

    /// Returns whether rules look at a packet's direction in its connection, of the key that masks others.
    #[inline(always)]
    #[must_use]
    pub fn asks_for_flow(&self) -> bool {
        self.has(present::RETURN)
    }

    /// Returns whether it is the answer to an echo request: what goes against its connection and needs no table to say so.
    #[inline(always)]
    #[must_use]
    pub fn is_echo_reply(&self) -> bool {
        let kind = self.words[PORTS_WORD] >> 48;
        let reply = match self.protocol() {
            IP_ICMP => ECHO_REPLY,
            IP_ICMPV6 => ECHO_REPLY_V6,
            _ => return false,
        };
        self.has(present::SRC_PORT) && kind == reply
    }

    /// Returns the ends of a packet that has ports, from source to destination.
    #[inline(always)]
    #[must_use]
    pub fn ends(&self) -> Option<Ends> {
        const ALL: u64 = present::PROTO | present::SRC | present::DST | present::SRC_PORT | present::DST_PORT;
        let protocol = self.protocol();
        let has_ports = matches!(protocol, IP_TCP | IP_UDP | IP_SCTP);
        if !has_ports || self.words[HW_DST_WORD] & ALL != ALL {
            return None;
        }
        Some(Ends {
            addresses: [self.words[0], self.words[1], self.words[2], self.words[3]],
            ports: (self.words[PORTS_WORD] >> 32) as u32,
            protocol,
            ipv6: self.has(present::IPV6),
        })
    }

    /// Returns the ends of an echo request or reply, each with the identifier for its port.
    #[inline(always)]
    #[must_use]
    pub fn echo_ends(&self, identifier: u16) -> Ends {
        Ends {
            addresses: [self.words[0], self.words[1], self.words[2], self.words[3]],
            ports: u32::from(identifier) << 16 | u32::from(identifier),
            protocol: self.protocol(),
            ipv6: self.has(present::IPV6),
        }
    }

    #[inline(always)]
    const fn protocol(&self) -> u8 {
        (self.words[HW_SRC_WORD] >> 48 & 0xff) as u8
    }

    /// Leaves what the rules of a set look at, and makes the key one of that set.
    #[inline(always)]
    pub fn restrict(&mut self, tables: &RuleTables) {
        for word in 0..GENERATION_WORD {
            self.words[word] &= tables.key_mask.words[word];
        }
        let network = self.words[GENERATION_WORD] & tables.key_mask.words[GENERATION_WORD];
        self.words[GENERATION_WORD] = network | tables.generation;
    }

    /// Returns whether it is one of this set.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, tables: &RuleTables) -> bool {
        const GENERATION: u64 = (1 << GENERATION_BITS) - 1;
        self.words[GENERATION_WORD] & GENERATION == tables.generation
    }

    /// Makes it the key of no frame.
    #[inline(always)]
    pub fn make_void(&mut self) {
        self.words[GENERATION_WORD] = 0;
    }

    /// Returns the bits of a key that belong to a field.
    #[must_use]
    pub const fn mask_of(field: Field) -> Self {
        let mut words = [0; KEY_WORDS];
        match field {
            Field::InPort | Field::TraversedIn | Field::RouterIn => words[SLOTS_WORD] = 0xffff_ffff << 32,
            Field::OutPort | Field::TraversedOut | Field::RouterOut => words[SLOTS_WORD] = 0xffff_ffff,
            Field::Ethertype => {
                words[PORTS_WORD] = 0xffff << 16;
                words[HW_DST_WORD] = present::ETHERTYPE;
            }
            Field::Vlan => {
                words[PORTS_WORD] = 0xffff;
                words[HW_DST_WORD] = present::VLAN;
            }
            Field::Proto => {
                words[HW_SRC_WORD] = 0xff << 48;
                words[HW_DST_WORD] = present::PROTO;
            }
            Field::Tos => {
                words[HW_SRC_WORD] = 0xff << 56;
                words[HW_DST_WORD] = present::TOS;
            }
            Field::SrcPort => {
                words[PORTS_WORD] = 0xffff << 48;
                words[HW_DST_WORD] = present::SRC_PORT;
            }
            Field::DstPort => {
                words[PORTS_WORD] = 0xffff << 32;
                words[HW_DST_WORD] = present::DST_PORT;
            }
            Field::HwSrc => {
                words[HW_SRC_WORD] = HW_MASK;
                words[HW_DST_WORD] = present::HW;
            }
            Field::HwDst => words[HW_DST_WORD] = HW_MASK | present::HW,
            Field::RouterSrc => {
                words[HW_SRC_WORD] = HW_MASK;
                words[HW_DST_WORD] = present::HW | present::VLAN;
            }
            Field::RouterDst => words[HW_DST_WORD] = HW_MASK | present::HW | present::VLAN,
            Field::Vni => words[GENERATION_WORD] = u64::MAX << GENERATION_BITS,
            Field::Src4 | Field::Src6 => {
                words[SRC_WORD] = u64::MAX;
                words[SRC_WORD + 1] = u64::MAX;
                words[HW_DST_WORD] = present::SRC | present::IPV6;
            }
            Field::Dst4 | Field::Dst6 => {
                words[DST_WORD] = u64::MAX;
                words[DST_WORD + 1] = u64::MAX;
                words[HW_DST_WORD] = present::DST | present::IPV6;
            }
        }
        Self { words }
    }

    /// The bit of a packet's direction in its connection.
    pub const FLOW: Self = {
        let mut words = [0; KEY_WORDS];
        words[HW_DST_WORD] = present::RETURN;
        Self { words }
    };

    /// The bits that every set looks at: the hook and the part of a fragmented packet.
    pub const ALWAYS: Self = {
        let mut words = [0; KEY_WORDS];
        words[HW_DST_WORD] = present::EGRESS | 3 << present::FRAGMENT_SHIFT;
        Self { words }
    };

    /// Returns whether it is another one. By words: as arrays they would be compared by a function, byte after byte.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let mut differs = 0;
        for word in 0..KEY_WORDS {
            differs |= self.words[word] ^ other.words[word];
        }
        differs == 0
    }

    /// Mixes all words into one number, by products that don't wait for each other.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self) -> u32 {
        const ODD: [u64; KEY_WORDS] = [
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
            0xd6e8_feb8_6659_fd93,
            0xa076_1d64_78bd_642f,
            0xe703_7ed1_a0b4_28db,
            0x8ebc_6af0_9c88_c6e3,
            0x5899_65cc_7537_4cc3,
            0x1d8e_4e27_c47d_124f,
        ];
        let mut sum = 0_u64;
        for (word, odd) in self.words.iter().zip(ODD) {
            sum = sum.wrapping_add(word.wrapping_mul(odd));
        }
        ((sum ^ sum >> 32).wrapping_mul(ODD[0]) >> 40) as u32
    }

    #[inline(always)]
    pub(super) fn has(&self, bit: u64) -> bool {
        self.words[HW_DST_WORD] & bit != 0
    }

    /// Returns 1 if it has a bit, else 0.
    #[inline(always)]
    pub(super) fn bit(&self, bit: u64) -> usize {
        (self.words[HW_DST_WORD] >> bit.trailing_zeros() & 1) as usize
    }
}

/// Who sends a packet to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The addresses of source and destination, two words each as in a [`FlowKey`].
    pub addresses: [u64; 4],
    /// The source port above the destination port.
    pub ports: u32,
    /// The IP protocol.
    pub protocol: u8,
    /// Whether the addresses are of IPv6.
    pub ipv6: bool,
}
