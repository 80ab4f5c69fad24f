//! What is at the place of a clsact qdisc; removing our filter from it, and a qdisc that we added once it is empty.
//!
//! aya attaches by netlink and detaches what it attached itself; a filter that an earlier agent left is found by its
//! preference and handle, and by ifindex, not by a name that may have changed.

use std::io;

use meter_ebpf::abi::Direction;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_ECHO, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `TC_H_CLSACT`, major number of the qdisc and of its two hooks.
const CLSACT: u16 = 0xffff;
/// `ETH_P_ALL` in network order, as filters of every protocol have it.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();

const fn parent(direction: Direction) -> TcHandle {
    let minor = match direction {
        Direction::Ingress => 0xfff2,
        Direction::Egress => 0xfff3,
    };
    TcHandle { major: CLSACT, minor }
}

/// Removes the filter with this preference and handle. One that is not there, nor its netdev, is no error.
pub(super) fn remove_filter(
    ifindex: u32,
    direction: Direction,
    preference: u16,
    handle: u32,
) -> io::Result<()> {
    let mut message = message(ifindex, parent(direction))?;
    message.header.handle = handle.into();
    message.header.info = u32::from(preference) << 16 | u32::from(ETH_P_ALL);
    absent_is_fine(request(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK).map(drop))
}

/// Returns the kind of the qdisc at the place of clsact: `clsact`, or `ingress`, whose one hook both of ours would hang on.
pub(super) fn qdisc_kind(ifindex: u32) -> io::Result<Option<String>> {
    let ask =
        RouteNetlinkMessage::GetQueueDiscipline(message(ifindex, TcHandle { major: CLSACT, minor: 0xfff1 })?);
    // Without NLM_F_ECHO the kernel tells everybody who listens, and not who asks.
    let answers = request(ask, NLM_F_ACK | NLM_F_ECHO)?;
    let kind = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            qdisc.attributes.into_iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            })
        }
        _ => None,
    });
    Ok(kind)
}

/// Removes the clsact qdisc if no filter hangs on it.
pub(super) fn remove_empty_qdisc(ifindex: u32) -> io::Result<()> {
    for direction in Direction::ALL {
        let dump = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, parent(direction))?);
        match request(dump, NLM_F_DUMP) {
            Ok(filters) if filters.is_empty() => {}
            Ok(_) => return Ok(()),
            Err(error) => return absent_is_fine(Err(error)),
        }
    }
    let mut message = message(ifindex, TcHandle { major: CLSACT, minor: 0xfff1 })?;
    message.header.handle = TcHandle { major: CLSACT, minor: 0 };
    absent_is_fine(request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK).map(drop))
}

/// The kernel says `ENOENT` for an absent filter or qdisc, `EINVAL` for an absent parent, `ENODEV` for a netdev.
fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Ok(())
        }
        other => other,
    }
}

fn message(ifindex: u32, parent: TcHandle) -> io::Result<TcMessage> {
    let index = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let mut message = TcMessage::with_index(index);
    message.header.parent = parent;
    Ok(message)
}

/// Sends one request and reads its answer to the end; returns the objects in it.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut buffer = vec![0; packet.buffer_len()];
    packet.serialize(&mut buffer);
    socket.send(&buffer, 0)?;

    let mut objects = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            match message.payload {
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => Ok(objects),
                        Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
                    };
                }
                NetlinkPayload::Done(_) => return Ok(objects),
                NetlinkPayload::InnerMessage(object) => objects.push(object),
                _ => {}
            }
            let length = usize::try_from(message.header.length).unwrap_or(0).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}
