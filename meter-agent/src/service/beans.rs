//! The beans of the running daemon, and the task that moves their rates on.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    config::Config,
    jmx::{BeanServer, Identity, rates},
    publish::SnapshotReader,
};

/// Makes the beans and starts to move their rates on, on the current runtime.
pub(super) fn start(config: &Config, reader: &SnapshotReader) -> Arc<BeanServer> {
    let identity = Identity {
        host: config.host_name.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let beans = Arc::new(BeanServer::new(identity, now()));
    tokio::spawn(tick(Arc::clone(&beans), reader.clone()));
    beans
}

/// Moves the rates on, for ever: each time with totals of that moment, so that rates are those of what was counted, not of
/// when somebody asked.
async fn tick(beans: Arc<BeanServer>, reader: SnapshotReader) {
    let mut ticks = interval(rates::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        beans.tick(&*reader.fresh().await, now());
    }
}

/// Returns the time since the Unix epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
