//! Follows the named network namespaces for as long as the daemon runs.

use std::{path::PathBuf, sync::mpsc, thread};

use super::MONITOR_RETRY;
use crate::{
    agent::Event,
    netdev::namespaces::{DIRECTORY, Selection, Watcher},
};

/// Sends what happens to namespaces, for as long as somebody receives it. What fails costs the host's own netdevs nothing.
pub(super) fn follow(selection: &Selection, events: &mpsc::Sender<Event>) {
    let mut watcher = loop {
        match Watcher::new(PathBuf::from(DIRECTORY), selection.clone()) {
            Ok(watcher) => break watcher,
            Err(error) => failed(&error),
        }
    };
    while let Err(error) = watcher.run(|event| events.send(Event::Namespace(event)).is_ok()) {
        failed(&error);
    }
}

fn failed(error: &std::io::Error) {
    tracing::error!(error = %error, "the namespaces can't be followed; will retry");
    thread::sleep(MONITOR_RETRY);
}
