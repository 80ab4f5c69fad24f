//! The direction of packets in their connections, told from the packets themselves: what the programs do, said plainly.
//!
//! - TCP: all packets between two pairs of address and port. Forward is the way of the SYN (without ACK); where that was not
//!   seen, of the first packet, unless that is a SYN with ACK, which is the answer. A SYN begins the connection anew once both
//!   ends have sent FIN or one has sent RST, or where it began without one that was seen.
//! - UDP and SCTP: the same with the first packet.
//! - ICMP and ICMPv6 echo: a request is forward and a reply is return.
//! - Everything else is forward: ARP, other ICMP, other protocols, later fragments.

use std::{collections::HashMap, net::IpAddr};

use meter_ebpf::packet::numbers::{IP_ICMP, IP_ICMPV6, IP_SCTP, IP_TCP, IP_UDP};

use super::{condition::Flow, packet::Packet};
use crate::meter::PortId;

/// Connections that are remembered. Packets of others are told by what they say of themselves.
const MAX_CONNECTIONS: usize = 1_000_000;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

type End = (IpAddr, u16);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    at: Option<PortId>,
    protocol: u8,
    ends: [End; 2],
}

/// A connection that is known. Its ends are told by their places in its key.
#[derive(Debug)]
struct Known {
    initiator: usize,
    /// Whether a SYN said so.
    opened: bool,
    reset: bool,
    finished: [bool; 2],
}

impl Known {
    const fn began(initiator: usize, opened: bool) -> Self {
        Self { initiator, opened, reset: false, finished: [false; 2] }
    }

    const fn has_ended(&self) -> bool {
        self.reset || self.finished[0] && self.finished[1]
    }
}

/// The connections of some packets, which come in the order of time.
#[derive(Debug, Default)]
pub struct Flows(HashMap<Key, Known>);

impl Flows {
    /// Takes the next packet at a port and returns which way it goes. `flags` are those of TCP.
    ///
    /// Idle connections are not forgotten, since a packet doesn't say when it came.
    pub fn note(&mut self, at: Option<PortId>, packet: &Packet, flags: Option<u8>) -> Flow {
        let (Some(protocol), Some(src), Some(dst)) = (packet.proto, packet.src, packet.dst) else {
            return Flow::Forward;
        };
        let (Some(src_port), Some(dst_port)) = (packet.src_port, packet.dst_port) else {
            return match (protocol, packet.src_port) {
                (IP_ICMP, Some(0)) | (IP_ICMPV6, Some(129)) => Flow::Return,
                _ => Flow::Forward,
            };
        };
        match (protocol, src_port) {
            (IP_ICMP, 0) | (IP_ICMPV6, 129) => return Flow::Return,
            (IP_TCP | IP_UDP | IP_SCTP, _) => {}
            _ => return Flow::Forward,
        }
        let mut ends = [(src, src_port), (dst, dst_port)];
        ends.sort_unstable();
        // Where both ends are the same, it is the first that sends.
        let from = usize::from(ends[0] != (src, src_port));
        let key = Key { at, protocol, ends };
        let flags = flags.filter(|_| protocol == IP_TCP).unwrap_or_default();
        let is_syn = flags & (SYN | ACK | RST) == SYN;
        let is_answer = flags & SYN != 0 && flags & ACK != 0;
        if self.0.len() >= MAX_CONNECTIONS && !self.0.contains_key(&key) {
            return if is_answer { Flow::Return } else { Flow::Forward };
        }
        let known = self
            .0
            .entry(key)
            .or_insert_with(|| Known::began(if is_answer { 1 - from } else { from }, flags & SYN != 0));
        if is_syn && (!known.opened || known.has_ended()) {
            *known = Known::began(from, true);
        }
        if !is_syn {
            known.reset |= flags & RST != 0;
            known.finished[from] |= flags & FIN != 0;
        }
        if from == known.initiator { Flow::Forward } else { Flow::Return }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As programs tell it, which know the ends of a connection by their order.
    #[test]
    fn packets_from_an_end_to_itself_go_as_the_first_says() {
        let end = Some("192.0.2.1".parse().unwrap());
        let packet = Packet {
            proto: Some(IP_TCP),
            src: end,
            dst: end,
            src_port: Some(4),
            dst_port: Some(4),
            ..Packet::default()
        };
        for (first, flow) in [(SYN, Flow::Forward), (ACK, Flow::Forward), (SYN | ACK, Flow::Return)] {
            let mut flows = Flows::default();
            for flags in [first, ACK, FIN, ACK] {
                assert_eq!(flows.note(None, &packet, Some(flags)), flow, "{first:#x} {flags:#x}");
            }
        }
    }
}
