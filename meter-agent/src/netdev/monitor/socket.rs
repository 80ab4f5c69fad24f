//! Netlink sockets: opening them, asking for a dump, receiving.
//!
//! A socket belongs to the network namespace of the thread that opened it, whoever uses it later.

use std::{io, os::fd::AsFd};

use netlink_packet_core::{
    ErrorBuffer, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};

/// Room for one datagram: the kernel makes those of a dump 32 KiB at most, and a netdev's message has 2 KiB.
const DATAGRAM: usize = 1 << 16;

/// Groups of `linux/rtnetlink.h`: `LINK`, `IPV4_IFADDR`, `IPV4_ROUTE`, `IPV6_IFADDR`, `IPV6_ROUTE`.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

/// One message: its type (`RTM_…`) and its payload.
pub(super) type RawMessage<'a> = (u16, &'a [u8]);

/// A socket that asks.
#[derive(Debug)]
pub(super) struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Whether a dump is a picture of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dumped {
    /// It is.
    Whole,
    /// Something changed meanwhile (`NLM_F_DUMP_INTR`): objects may be missing.
    Interrupted,
}

impl Requests {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = open()?;
        // The kernel then leaves out what was not asked for, and says so where it can't. Linux 4.20.
        if let Err(error) = socket.set_netlink_get_strict_chk(true) {
            tracing::debug!(error = %error, "no strict checking");
        }
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Dumps what `request` asks for and hands out each message.
    pub(super) fn dump(
        &mut self,
        request: RouteNetlinkMessage,
        mut each: impl FnMut(RawMessage<'_>),
    ) -> io::Result<Dumped> {
        self.send(request)?;
        let mut dumped = Dumped::Whole;
        loop {
            match receive(&self.socket, &mut self.buffer) {
                Ok(Received::Datagram) => {}
                Ok(Received::Lost) => return Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // What is left of an earlier dump has another number.
            for message in messages(&self.buffer).filter(|m| m.sequence_number() == self.sequence) {
                if message.flags() & NLM_F_DUMP_INTR != 0 {
                    dumped = Dumped::Interrupted;
                }
                match message.message_type() {
                    // The end of a dump has an error number as well.
                    NLMSG_DONE | NLMSG_ERROR => return error_of(message.payload()).map(|()| dumped),
                    message_type => each((message_type, message.payload())),
                }
            }
        }
    }

    fn send(&mut self, request: RouteNetlinkMessage) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(request));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }
}

/// A socket that hears of changes.
#[derive(Debug)]
pub(super) struct Subscription {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    /// A datagram, whole.
    Datagram,
    /// The kernel had to drop messages.
    Lost,
}

/// What a subscription has.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    /// Nothing now.
    Nothing,
    /// The messages of one datagram.
    Datagram(&'a [u8]),
    /// The kernel had to drop messages.
    Lost,
}

impl Subscription {
    /// Subscribes. The receive buffer is as large as the kernel allows, up to this many bytes.
    pub(super) fn open(receive_buffer: usize) -> io::Result<Self> {
        let mut socket = open()?;
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN.
        setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &receive_buffer))?;
        socket.set_non_blocking(true)?;
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Receives what is there, without waiting.
    pub(super) fn hear(&mut self) -> io::Result<Heard<'_>> {
        match receive(&self.socket, &mut self.buffer) {
            Ok(Received::Datagram) => Ok(Heard::Datagram(&self.buffer)),
            Ok(Received::Lost) => Ok(Heard::Lost),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Heard::Nothing),
                _ => Err(error),
            },
        }
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Splits a datagram into its messages; what comes after a malformed one is left out.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(message.length()).ok()?.next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        Some(message)
    })
}

fn open() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    if let Err(error) = socket.set_ext_ack(true) {
        tracing::debug!(error = %error, "no extended acknowledgements");
    }
    Ok(socket)
}

fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<Received> {
    buffer.clear();
    match socket.recv_from(buffer, libc::MSG_TRUNC) {
        // Another process may send to us; only the kernel is believed.
        Ok((_, sender)) if sender.port_number() != 0 => {
            buffer.clear();
            Ok(Received::Datagram)
        }
        Ok((length, _)) if length > buffer.len() => Ok(Received::Lost),
        Ok(_) => Ok(Received::Datagram),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Received::Lost),
        Err(error) => Err(error),
    }
}

fn error_of(payload: &[u8]) -> io::Result<()> {
    let code = ErrorBuffer::new_checked(payload).ok().and_then(|error| error.code());
    code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().saturating_abs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(message_type: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(message_type.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn split(datagram: &[u8]) -> Vec<(u16, &[u8])> {
        messages(datagram).map(|message| (message.message_type(), message.payload())).collect()
    }

    #[test]
    fn datagram_is_split_up_to_what_is_malformed() {
        let whole = [raw(16, &[1, 2, 3]), raw(20, &[4])].concat();
        assert_eq!(split(&whole), [(16, &[1_u8, 2, 3][..]), (20, &[4])]);
        // The last one may lack its padding.
        assert_eq!(split(&whole[..whole.len() - 3]).len(), 2);
        assert_eq!(split(&whole[..whole.len() - 4]), [(16, &[1_u8, 2, 3][..])]);
        let endless = [0_u8; 16];
        assert!(split(&endless).is_empty());
        assert!(split(&[]).is_empty());
    }

    #[test]
    fn end_of_a_dump_tells_its_error() {
        let errno = |payload: &[u8]| error_of(payload).map_err(|error| error.raw_os_error());
        assert_eq!(errno(&0_i32.to_ne_bytes()), Ok(()));
        assert_eq!(errno(&(-libc::EPERM).to_ne_bytes()), Err(Some(libc::EPERM)));
        assert_eq!(errno(&[]), Ok(()));
    }
}
