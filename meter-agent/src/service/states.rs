//! The kernel's statistics of metered netdevs, and their addresses: asked for every few seconds, for the page of the
//! Skydive-Prometheus connector. Skydive read them every 30 seconds, and the connector those every 20.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::block_in_place,
    time::{Instant, sleep_until},
};

use super::audit::in_namespace;
use crate::{
    netdev::{
        NamespaceId, NetdevId, NetdevState,
        monitor::{MonitorError, Sampler},
    },
    publish::SnapshotReader,
    snapshot::Snapshot,
};

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(5);
/// While there is no metered netdev yet.
const SOON: Duration = Duration::from_secs(1);
/// Looks take at most one part in so many of the time.
const REST: u32 = 20;

/// Has them told to `publish` again and again, until that says that nobody hears it.
pub(super) async fn keep(
    reader: SnapshotReader,
    publish: impl Fn(Arc<BTreeMap<NetdevId, NetdevState>>) -> bool + Send + Sync,
) {
    let mut last_error = String::new();
    loop {
        let began = Instant::now();
        let netdevs = metered(&reader.latest());
        let looked = block_in_place(|| states(&netdevs));
        let every = if netdevs.is_empty() { SOON } else { EVERY };
        match looked {
            Ok(states) => {
                last_error.clear();
                if !publish(Arc::new(states)) {
                    return;
                }
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let text = format!("{error}: {cause}");
                if text != last_error {
                    tracing::warn!(error = %text, "skydive_network_interface is as it was; will retry");
                }
                last_error = text;
            }
        }
        sleep_until(began + every.max(began.elapsed() * REST)).await;
    }
}

/// Netdevs of a namespace, by its name; the host's has none.
type Netdevs = BTreeMap<NamespaceId, (String, BTreeSet<u32>)>;

fn metered(snapshot: &Snapshot) -> Netdevs {
    let mut netdevs = Netdevs::new();
    for carrier in snapshot.ports.iter().filter_map(|port| port.carrier.as_ref()) {
        let there = netdevs.entry(carrier.id.namespace).or_insert((carrier.netns.clone(), BTreeSet::new()));
        there.1.insert(carrier.id.ifindex);
    }
    netdevs
}

fn states(netdevs: &Netdevs) -> Result<BTreeMap<NetdevId, NetdevState>, MonitorError> {
    let mut all = BTreeMap::new();
    for (&namespace, (netns, there)) in netdevs {
        // A socket that stays would keep a namespace alive.
        let ask = || Sampler::open()?.states(there);
        let asked =
            if netns.is_empty() { ask() } else { in_namespace(netns, ask).unwrap_or(Ok(BTreeMap::new())) };
        match asked {
            Ok(states) => {
                all.extend(
                    states.into_iter().map(|(ifindex, state)| (NetdevId { namespace, ifindex }, state)),
                );
            }
            Err(error) if netns.is_empty() => return Err(error),
            Err(error) => tracing::debug!(netns, error = %error, "statistics of a namespace not looked at"),
        }
    }
    Ok(all)
}
