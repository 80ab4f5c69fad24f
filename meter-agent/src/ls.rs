//! `meter-agent ls`: each netdev, what it is, which port and device, which hooks, and why not if not.

use std::{collections::BTreeMap, path::Path};

use crate::{
    columns::{self, printable},
    control::{self, AgentStatus, AskError},
    netdev::{
        Netdevs,
        monitor::{self, MonitorError},
        namespaces::{self, Selection},
    },
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
pub async fn netdevs(
    socket: &Path,
    policy: &Policy,
    selection: &Selection,
) -> Result<(Witness, Vec<NetdevStatus>), LsError> {
    match control::netdevs(socket).await {
        Ok(netdevs) => Ok((Witness::Agent, netdevs)),
        Err(AskError::NoAgent(_)) => {
            let netdevs = all_netdevs(selection)?;
            let statuses = Survey::new(&netdevs, policy).statuses(&netdevs, &BTreeMap::new(), |_| None);
            Ok((Witness::Nobody, statuses))
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns what the agent behind the socket says of itself that whoever lists netdevs ought to know.
pub async fn notices(socket: &Path) -> Vec<String> {
    // An agent of an earlier version has nothing to say.
    let Ok(status) = control::agent(socket).await else { return Vec::new() };
    status.notice().into_iter().chain(not_followed(&status)).collect()
}

/// Says which network namespaces an agent does not follow that it should, and why.
pub(crate) fn not_followed(status: &AgentStatus) -> Option<String> {
    let failed = &status.namespaces_failed;
    let (name, why) = failed.first_key_value()?;
    if name == namespaces::DIRECTORY {
        return Some(format!("{name} can't be looked at: {why}"));
    }
    Some(format!(
        "namespaces that the agent can't follow: {}, such as {}: {why}",
        failed.len(),
        printable(name)
    ))
}

/// Asks the kernel for the netdevs of this namespace and of those that would be followed, as far as they can be entered.
pub(crate) fn all_netdevs(selection: &Selection) -> Result<Netdevs, MonitorError> {
    let host = monitor::dump()?;
    let others = namespaces::dump(Path::new(namespaces::DIRECTORY), selection);
    let (namespaces, failed) = others.unwrap_or_else(|error| {
        tracing::warn!(error = %error, "namespaces not looked at");
        Default::default()
    });
    for (name, why) in failed {
        tracing::warn!(netns = name, error = why, "namespace not looked at");
    }
    Ok(Netdevs { host, namespaces })
}

/// Writes the list as a table: one line each, columns as wide as their widest value. The column of namespaces is there
/// where a netdev is in one.
#[must_use]
pub fn table(netdevs: &[NetdevStatus]) -> String {
    const HEAD: [&str; 10] =
        ["NETDEV", "NETNS", "IFINDEX", "KIND", "ROLE", "HOOKS", "PORT", "DEVICE", "SOURCE", "WHY"];
    let mut rows = vec![HEAD.map(ToOwned::to_owned).to_vec()];
    rows.extend(netdevs.iter().map(|netdev| row(netdev).to_vec()));
    if netdevs.iter().all(|netdev| netdev.netns.is_empty()) {
        rows.iter_mut().for_each(|row| drop(row.remove(1)));
    }
    columns::table(&rows, |_| false)
}

fn row(netdev: &NetdevStatus) -> [String; 10] {
    let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let hooks = match (&netdev.ingress, &netdev.egress) {
        (None, None) => "-".to_owned(),
        (Some(ingress), Some(egress)) if ingress == egress => ingress.clone(),
        (ingress, egress) => format!("{}/{}", or_dash(ingress), or_dash(egress)),
    };
    [
        printable(&netdev.netdev),
        if netdev.netns.is_empty() { "-".to_owned() } else { printable(&netdev.netns) },
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

#[cfg(test)]
mod tests {
    use super::{NetdevStatus, table};

    #[test]
    fn columns_are_as_wide_as_their_widest_value() {
        let port = NetdevStatus {
            ifindex: 3,
            netdev: "tap\u{1b}0".to_owned(),
            netns: String::new(),
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
