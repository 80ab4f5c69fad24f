//! One complete picture of a network namespace.

use std::{io, path::Path};

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    route::{RouteAttribute, RouteMessage},
};

use super::{
    MonitorError, driver, parse,
    socket::{Dumped, RawMessage, Requests},
};
use crate::netdev::{NetdevTable, monitor::parse::Message};

/// How often a dump is taken again because something changed meanwhile.
const ATTEMPTS: u32 = 10;

/// Dumps netdevs, addresses and default routes.
pub(super) fn table(requests: &mut Requests) -> Result<NetdevTable, MonitorError> {
    for _ in 0..ATTEMPTS {
        if let Some(table) = attempt(requests)? {
            return Ok(table);
        }
    }
    Err(MonitorError::Unsteady { attempts: ATTEMPTS })
}

/// Returns `None` where one of the dumps was interrupted.
fn attempt(requests: &mut Requests) -> Result<Option<NetdevTable>, MonitorError> {
    let mut table = NetdevTable::default();
    for (what, request) in [("netdevs", links()), ("addresses", addresses()), ("routes", routes())] {
        let dumped = requests
            .dump(request, |message| add(&mut table, message))
            .map_err(|source: io::Error| MonitorError::Dump { what, source })?;
        if dumped == Dumped::Interrupted {
            return Ok(None);
        }
    }
    // What came up after its netdevs were listed: those netdevs will be announced.
    let NetdevTable { netdevs, addresses, default_routes } = &mut table;
    addresses.retain(|ifindex, _| netdevs.contains_key(ifindex));
    default_routes.retain(|ifindex| netdevs.contains_key(ifindex));
    Ok(Some(table))
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
