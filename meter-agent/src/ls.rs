//! `meter-agent ls`: each netdev, what it is, which port and device, which hooks, and why not if not.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use crate::{
    control::{self, AskError},
    netdev::monitor::{self, MonitorError},
    snapshot::NetdevStatus,
    survey::{Policy, Survey},
};

/// Who says what the list says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    /// The agent that runs.
    Agent,
    /// Nobody: no agent runs, and this is what one with this configuration would do.
    Nobody,
}

/// The list could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LsError {
    /// The agent could not be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// No agent runs, and the kernel could not be asked either.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// Asks the agent behind the socket, or where none runs the kernel.
///
/// # Errors
///
/// When neither answers.
pub async fn netdevs(socket: &Path, policy: &Policy) -> Result<(Witness, Vec<NetdevStatus>), LsError> {
    match control::netdevs(socket).await {
        Ok(netdevs) => Ok((Witness::Agent, netdevs)),
        Err(AskError::NoAgent(_)) => {
            let table = monitor::dump()?;
            let statuses = Survey::new(&table, policy).statuses(&table, &BTreeMap::new(), |_| None);
            Ok((Witness::Nobody, statuses))
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes the list as a table: one line each, columns as wide as their widest value.
#[must_use]
pub fn table(netdevs: &[NetdevStatus]) -> String {
    const HEAD: [&str; 9] = ["NETDEV", "IFINDEX", "KIND", "ROLE", "HOOKS", "PORT", "DEVICE", "SOURCE", "WHY"];
    let mut rows = vec![HEAD.map(ToOwned::to_owned)];
    rows.extend(netdevs.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; HEAD.len()] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let (why, cells) = row.split_last().expect("a row has nine cells");
        for (cell, width) in cells.iter().zip(widths) {
            // Writing to a `String` can't fail.
            write!(text, "{cell:width$}  ").unwrap_or_default();
        }
        text.push_str(why);
        text.push('\n');
    }
    text
}

fn row(netdev: &NetdevStatus) -> [String; 9] {
    let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let hooks = match (&netdev.ingress, &netdev.egress) {
        (None, None) => "-".to_owned(),
        (Some(ingress), Some(egress)) if ingress == egress => ingress.clone(),
        (ingress, egress) => format!("{}/{}", or_dash(ingress), or_dash(egress)),
    };
    [
        printable(&netdev.netdev),
        netdev.ifindex.to_string(),
        netdev.kind.clone(),
        netdev.role.clone(),
        hooks,
        or_dash(&netdev.port),
        or_dash(&netdev.device),
        or_dash(&netdev.source),
        printable(&netdev.reason),
    ]
}

/// Replaces control characters, which the kernel allows in a name and a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::{NetdevStatus, table};

    #[test]
    fn columns_are_as_wide_as_their_widest_value() {
        let port = NetdevStatus {
            ifindex: 3,
            netdev: "tap\u{1b}0".to_owned(),
            kind: "tap".to_owned(),
            role: "port".to_owned(),
            port: Some("3f2a7c1e-0000-4000-8000-000000000001".to_owned()),
            device: None,
            source: Some("config".to_owned()),
            ingress: Some("tcx".to_owned()),
            egress: Some("tcx".to_owned()),
            reason: "a [[binding]] names its port".to_owned(),
        };
        let uplink = NetdevStatus {
            ifindex: 1200,
            netdev: "eth0".to_owned(),
            kind: "physical".to_owned(),
            role: "uplink".to_owned(),
            port: None,
            source: None,
            ingress: Some("xdp".to_owned()),
            egress: Some("clsact".to_owned()),
            reason: "carries a default route".to_owned(),
            ..port.clone()
        };
        let idle = NetdevStatus { ingress: None, egress: None, role: "-".to_owned(), ..uplink.clone() };
        assert_eq!(
            table(&[port, uplink, idle]),
            "\
NETDEV  IFINDEX  KIND      ROLE    HOOKS       PORT                                  DEVICE  SOURCE  WHY
tap\u{fffd}0   3        tap       port    tcx         3f2a7c1e-0000-4000-8000-000000000001  -       config  a [[binding]] names its port
eth0    1200     physical  uplink  xdp/clsact  -                                     -       -       carries a default route
eth0    1200     physical  -       -           -                                     -       -       carries a default route
"
        );
    }
}
