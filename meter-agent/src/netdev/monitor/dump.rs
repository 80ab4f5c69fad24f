//! One complete picture of a network namespace.

use std::path::Path;

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    route::{RouteAttribute, RouteMessage},
};

use super::{
    MonitorError, driver,
    parse::{self, Message},
    socket::{Dumped, RawMessage, Requests},
};
use crate::netdev::NetdevTable;

/// How often a dump is taken again because something changed meanwhile.
const ATTEMPTS: u32 = 10;

/// Dumps netdevs, addresses and default routes.
pub(super) fn table(requests: &mut Requests) -> Result<NetdevTable, MonitorError> {
    let NetdevTable { netdevs, .. } = whole(requests, "netdevs", &links())?;
    let NetdevTable { mut addresses, .. } = whole(requests, "addresses", &addresses())?;
    let NetdevTable { mut default_routes, .. } = whole(requests, "routes", &routes())?;
    // A netdev that came after the netdevs were listed will be announced, and its addresses then be asked for.
    addresses.retain(|ifindex, _| netdevs.contains_key(ifindex));
    default_routes.retain(|ifindex| netdevs.contains_key(ifindex));
    Ok(NetdevTable { netdevs, addresses, default_routes })
}

/// Takes one dump, again where it was interrupted.
fn whole(
    requests: &mut Requests,
    what: &'static str,
    request: &RouteNetlinkMessage,
) -> Result<NetdevTable, MonitorError> {
    for _ in 0..ATTEMPTS {
        let mut table = NetdevTable::default();
        let dumped = requests
            .dump(request.clone(), |message| add(&mut table, message))
            .map_err(|source| MonitorError::Dump { what, source })?;
        if dumped == Dumped::Whole {
            return Ok(table);
        }
    }
    Err(MonitorError::Unsteady { what, attempts: ATTEMPTS })
}

fn add(table: &mut NetdevTable, (message_type, payload): RawMessage<'_>) {
    match parse::message(message_type, payload) {
        Ok(Message::Netdev(link)) => {
            let netdev = driver::complete(Path::new(driver::SYS), link);
            table.netdevs.insert(netdev.ifindex, netdev);
        }
        Ok(Message::Address(ifindex, address)) => {
            table.addresses.entry(ifindex).or_default().insert(address);
        }
        Ok(Message::DefaultRoute(netdevs)) => table.default_routes.extend(netdevs),
        Ok(
            Message::NetdevGone { .. }
            | Message::AddressGone(..)
            | Message::DefaultRouteGone
            | Message::Other,
        ) => {}
        Err(error) => tracing::debug!(error = %error, "netlink message left out of a dump"),
    }
}

fn links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    // Statistics are most of a netdev's message.
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

fn addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

/// The main table of every family: a family's own dump fails where it has no such table yet.
fn routes() -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.attributes.push(RouteAttribute::Table(u32::from(libc::RT_TABLE_MAIN)));
    RouteNetlinkMessage::GetRoute(message)
}
