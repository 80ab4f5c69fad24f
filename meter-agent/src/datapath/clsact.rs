//! The clsact way to hang on a netdev: our filter on its qdisc, and the qdisc itself where there was none.
//!
//! By ifindex throughout: a name may be another netdev's by now. Our filter is told by its preference and handle,
//! whoever asks and whichever agent made it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use meter_ebpf::abi::Direction;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp},
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `TC_H_CLSACT`, major number of the qdisc and of its two hooks.
const CLSACT: u16 = 0xffff;
/// Minor number of the place that clsact and ingress qdiscs have.
const CLSACT_PLACE: u16 = 0xfff1;
/// `ETH_P_ALL` in network order, as filters of every protocol have it.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();
/// Preference of our filters: ingress early and egress late, so that they see the frames of the wire.
const PREFERENCE: [u16; 2] = [2, 65_000];
/// Handle of our filters; with the preference it names them, whoever asks.
const HANDLE: u32 = 0x4d41_4752;

const fn parent(direction: Direction) -> TcHandle {
    let minor = match direction {
        Direction::Ingress => 0xfff2,
        Direction::Egress => 0xfff3,
    };
    TcHandle { major: CLSACT, minor }
}

/// Makes the clsact qdisc; returns whether there was none.
pub(super) fn add_qdisc(ifindex: u32) -> io::Result<bool> {
    let mut message = message(ifindex, TcHandle { major: CLSACT, minor: CLSACT_PLACE })?;
    message.header.handle = TcHandle { major: CLSACT, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match request(RouteNetlinkMessage::NewQueueDiscipline(message), flags) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes our filter of this program, or puts the program into the place of the one that it has, atomically.
pub(super) fn set_filter(
    ifindex: u32,
    direction: Direction,
    program: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    let mut message = filter_message(ifindex, direction)?;
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(name.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    message.attributes.push(TcAttribute::Options(options.map(TcOption::Bpf).into()));
    request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_ACK | NLM_F_CREATE).map(drop)
}

/// Returns the id of the program that our filter runs; `None` without a filter of ours.
pub(super) fn filter_program(ifindex: u32, direction: Direction) -> io::Result<Option<u32>> {
    filter_option(ifindex, direction, |option| match option {
        TcFilterBpfOption::ProgId(id) => Some(id),
        _ => None,
    })
}

/// Returns the name of our filter; `None` without one.
pub(super) fn filter_name(ifindex: u32, direction: Direction) -> io::Result<Option<String>> {
    filter_option(ifindex, direction, |option| match option {
        TcFilterBpfOption::ProgName(name) => Some(name),
        _ => None,
    })
}

fn filter_option<T>(
    ifindex: u32,
    direction: Direction,
    mut pick: impl FnMut(TcFilterBpfOption) -> Option<T>,
) -> io::Result<Option<T>> {
    // NLM_F_ECHO as for `qdisc_kind`.
    let ask = RouteNetlinkMessage::GetTrafficFilter(filter_message(ifindex, direction)?);
    let answers = match request(ask, NLM_F_ACK | NLM_F_ECHO) {
        Err(error) if is_absent(&error) => return Ok(None),
        answers => answers?,
    };
    let options = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) => {
            filter.attributes.into_iter().find_map(|attribute| match attribute {
                TcAttribute::Options(options) => Some(options),
                _ => None,
            })
        }
        _ => None,
    });
    Ok(options.into_iter().flatten().find_map(|option| match option {
        TcOption::Bpf(option) => pick(option),
        _ => None,
    }))
}

/// Removes our filter. One that is not there, nor its netdev, is no error; returns whether there was one.
pub(super) fn remove_filter(ifindex: u32, direction: Direction) -> io::Result<bool> {
    let message = RouteNetlinkMessage::DelTrafficFilter(filter_message(ifindex, direction)?);
    match request(message, NLM_F_ACK) {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the kind of the qdisc at the place of clsact: `clsact`, or `ingress`, whose one hook both of ours would hang on.
pub(super) fn qdisc_kind(ifindex: u32) -> io::Result<Option<String>> {
    let place = TcHandle { major: CLSACT, minor: CLSACT_PLACE };
    let ask = RouteNetlinkMessage::GetQueueDiscipline(message(ifindex, place)?);
    // Without NLM_F_ECHO the kernel tells everybody who listens, and not who asks.
    let answers = match request(ask, NLM_F_ACK | NLM_F_ECHO) {
        // No netdev is another thing than no qdisc.
        Err(error) if is_absent(&error) && error.raw_os_error() != Some(libc::ENODEV) => return Ok(None),
        answers => answers?,
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => kind(qdisc),
        _ => None,
    }))
}

/// Returns the netdevs of this network namespace that have a clsact qdisc, whoever's.
pub(super) fn netdevs() -> io::Result<Vec<u32>> {
    let dump = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let netdevs = request(dump, NLM_F_DUMP)?.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            let ifindex = u32::try_from(qdisc.header.index).ok()?;
            (kind(qdisc)? == "clsact").then_some(ifindex)
        }
        _ => None,
    });
    Ok(netdevs.collect())
}

/// Returns how many filters of other tools there are.
pub(super) fn other_filters(ifindex: u32, direction: Direction) -> io::Result<usize> {
    foreign_filters(ifindex, direction).map(|kinds| kinds.len())
}

/// Returns the kinds of the filters at a clsact or `ingress` qdisc that are not ours, such as `bpf` or `flower`.
pub(super) fn foreign_filters(ifindex: u32, direction: Direction) -> io::Result<Vec<String>> {
    let dump = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, parent(direction))?);
    let filters = match request(dump, NLM_F_DUMP) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        filters => filters?,
    };
    let foreign = filters.into_iter().filter_map(|answer| match answer {
        // A filter's list is there as well, with the handle 0.
        RouteNetlinkMessage::NewTrafficFilter(filter) => {
            let handle = u32::from(filter.header.handle);
            let preference = u32::from(PREFERENCE[direction as usize]);
            let is_ours = (handle, filter.header.info >> 16) == (HANDLE, preference);
            (handle != 0 && !is_ours).then(|| kind(filter))?
        }
        _ => None,
    });
    Ok(foreign.collect())
}

/// Returns the number of the XDP program of a netdev, whoever's.
pub(super) fn xdp_program(ifindex: u32) -> io::Result<Option<u32>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let answers = request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK)?;
    Ok(answers.into_iter().find_map(|answer| {
        let RouteNetlinkMessage::NewLink(netdev) = answer else { return None };
        netdev.attributes.into_iter().find_map(|attribute| {
            let LinkAttribute::Xdp(parts) = attribute else { return None };
            parts.into_iter().find_map(|part| match part {
                LinkXdp::ProgId(id) if id != 0 => Some(id),
                _ => None,
            })
        })
    }))
}

fn kind(message: TcMessage) -> Option<String> {
    message.attributes.into_iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind),
        _ => None,
    })
}

/// Removes the clsact qdisc if no filter hangs on it.
pub(super) fn remove_empty_qdisc(ifindex: u32) -> io::Result<()> {
    for direction in Direction::ALL {
        let dump = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, parent(direction))?);
        match request(dump, NLM_F_DUMP) {
            Ok(filters) if filters.is_empty() => {}
            Ok(_) => return Ok(()),
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    let mut message = message(ifindex, TcHandle { major: CLSACT, minor: CLSACT_PLACE })?;
    message.header.handle = TcHandle { major: CLSACT, minor: 0 };
    match request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The kernel says `ENOENT` for an absent filter or qdisc, `EINVAL` for an absent parent, `ENODEV` for a netdev.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}

fn filter_message(ifindex: u32, direction: Direction) -> io::Result<TcMessage> {
    let mut message = message(ifindex, parent(direction))?;
    message.header.handle = HANDLE.into();
    message.header.info = u32::from(PREFERENCE[direction as usize]) << 16 | u32::from(ETH_P_ALL);
    Ok(message)
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
