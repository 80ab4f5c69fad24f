//! What the servers say of their clients, and of the web configuration.

use std::fmt;

use super::families::{Families, Family, Labels, Value};
use crate::http::server::Published;

/// Writes every family of the servers; none where none is published.
pub(super) fn write(families: &mut Families<'_>, servers: &[Published]) -> fmt::Result {
    let by_server = |server: &Published| Labels([("server", Value::Text(server.name))]);
    families.gauges(
        &Family::new(
            "meter_agent_http_connections",
            "Connections that are open now, by the server that they are to.",
        ),
        servers
            .iter()
            .map(|server| (by_server(server), u64::try_from(server.stats.open).unwrap_or(u64::MAX))),
    )?;
    families.counters(
        &Family::new("meter_agent_http_connections_accepted", "Connections that were let in."),
        servers.iter().map(|server| (by_server(server), server.stats.accepted)),
    )?;
    families.counters(
        &Family::new(
            "meter_agent_http_connections_refused",
            "Connections that found no place, by reason. peer_full: their address has all that it may have. \
             full: all places are taken; in both cases nobody there waits for its client.",
        ),
        servers.iter().flat_map(|server| {
            let refused = server.stats.refused.iter();
            refused.map(|(reason, count)| (by_reason(server.name, reason.label()), *count))
        }),
    )?;
    families.counters(
        &Family::new(
            "meter_agent_http_connections_cut",
            "Connections that the agent ended, by reason. head_timeout: the head of a request took too long. \
             idle: nothing was asked for long. write_stalled: nothing of an answer was taken for long. \
             write_timeout: an answer was taken too slowly. displaced: another client needed the place or the memory. \
             tls_handshake: no TLS could be agreed upon.",
        ),
        servers.iter().flat_map(|server| {
            let cut = server.stats.cut.iter();
            cut.map(|(reason, count)| (by_reason(server.name, reason.label()), *count))
        }),
    )?;
    let Some(web) = servers.iter().find_map(|server| server.web) else { return Ok(()) };
    families.gauge(
        &Family::new(
            "meter_agent_web_config_last_reload_successful",
            "1 when what the files of the web configuration say is in force, 0 when the one before stays in force.",
        ),
        u32::from(web.is_ok),
    )?;
    families.gauge(
        &Family::seconds(
            "meter_agent_web_config_last_reload_success_timestamp",
            "When the web configuration in force was read, since the Unix epoch.",
        ),
        web.loaded_s,
    )
}

fn by_reason(server: &'static str, reason: &'static str) -> Labels<'static, 2> {
    Labels([("server", Value::Text(server)), ("reason", Value::Text(reason))])
}
