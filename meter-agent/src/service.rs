//! The daemon: what runs beside what, from the start to the end.
//!
//! | where | what |
//! |---|---|
//! | thread `agent` | [`Agent::run`]: owns all mutable state |
//! | thread `netdevs` | [`Monitor`]: turns netlink into events |
//! | thread `namespaces` | [`crate::netdev::namespaces::Watcher`]: the same for named network namespaces, where these are followed |
//! | tokio | the servers, the audits, the statistics of netdevs, the signals, one tick a second, one every five seconds for the rates of beans, the service manager's news |
//!
//! They meet in one channel of events and in the published snapshot. When the daemon ends the hooks stay attached and
//! count on; the next one takes them over. Where nothing can be pinned they end with it.

mod activation;
mod audit;
mod beans;
mod namespaces;
mod notify;
mod servers;
mod states;
mod totals;

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::SigSet,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};

use activation::Inherited;
use notify::Herald;
use totals::TotalsFile;

use crate::{
    agent::{Agent, Configured, Event},
    config::{Config, ConfigError, HostIdSource},
    control::{self, Desk},
    datapath::{
        Datapath as _,
        kernel::{Before, KernelDatapath, OpenError, keep_no_big_blocks},
    },
    definitions::{
        Definitions,
        state::{State, StateError},
    },
    http::web::Web,
    netdev::monitor::{Monitor, MonitorError, StopGuard},
    publish::SnapshotReader,
    snapshot::Snapshot,
    survey::Policy,
};

/// How long a monitor that failed waits before it starts again.
const MONITOR_RETRY: Duration = Duration::from_secs(1);

/// The daemon could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The kernel half could not be set up.
    #[error(transparent)]
    Datapath(#[from] OpenError),
    /// The kernel does not tell what netdevs there are.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// A thread, the runtime or a signal handler could not be made.
    #[error("{action}: {source}")]
    Start {
        /// What was being done.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The agent's thread ended by itself.
    #[error("the agent's thread ended; see the log for the panic")]
    AgentEnded,
}

impl ServiceError {
    /// Returns whether a new start ends in the same way, until somebody has changed the host.
    #[must_use]
    pub const fn lasts(&self) -> bool {
        matches!(self, Self::Datapath(error) if error.lasts())
    }
}

/// Runs until SIGTERM or SIGINT. `web` is what the configuration names; `reload` reads the configuration again, for SIGHUP.
///
/// # Errors
///
/// What keeps it from counting. An address that can't be listened on does not: it is tried again while the rest goes on. Nor
/// does a control socket that can't be made.
pub fn run(
    config: &Config,
    web: Option<Web>,
    reload: impl Fn() -> Result<Config, ConfigError>,
) -> Result<(), ServiceError> {
    // First of all, while there is one thread.
    keep_no_big_blocks();
    let inherited = Inherited::take();
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(failed("start the runtime"))?;
    // A reload that is asked for during the start comes after it. The other signals end the process meanwhile.
    let hangup = runtime.block_on(async { handle(SignalKind::hangup()) })?;
    // The runtime's threads take it: the verifier gives a program up where a signal waits for the thread that loads it.
    let hangup_alone = SigSet::from(nix::sys::signal::Signal::SIGHUP);
    hangup_alone.thread_block().map_err(|error| failed("block a signal")(error.into()))?;
    let (state_file, state) = config.state_file.as_deref().and_then(TotalsFile::open).unzip();
    let added = State::open(&config.state_directory);
    let wanted = Definitions::new(config.meters.clone(), added.meters.clone()).set().ok();
    let state = state.flatten();
    let of_another_boot =
        state_file.as_ref().zip(state.as_ref()).is_some_and(|(file, state)| file.is_older(state));
    let before = Before { totals: state.as_ref(), of_another_boot, meters: wanted.as_ref() };
    let datapath = KernelDatapath::open_after(&config.datapath, before)?;
    hangup_alone.thread_unblock().map_err(|error| failed("unblock a signal")(error.into()))?;
    drop(state);
    let counts_on = datapath.unpinned().is_none();
    let work = datapath.work();
    if let Some(file) = state_file.as_ref().filter(|_| datapath.unrestored() > 0) {
        file.keep_unrestored();
    }
    let state_file = state_file.map(Arc::new);
    let monitor = Monitor::new()?;
    if config.host_id_source == HostIdSource::HostName {
        tracing::warn!(
            host = %config.host_name,
            "no host_id and no /etc/machine-id: derived UUIDs come from the host's name; set host_id"
        );
    }
    let (events, channel) = mpsc::channel();
    let latest = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    if let Some(trouble) = &added.trouble {
        match trouble {
            StateError::NoDirectory(_) | StateError::ReadOnly { .. } => {
                tracing::warn!(error = %trouble, "no meter can be added at run time");
            }
            StateError::NoMeters { .. } => {
                tracing::error!(error = %trouble, "some meters that were added at run time don't count");
            }
            _ => tracing::error!(error = %trouble, "the meters that were added at run time don't count"),
        }
    }
    let agent = Agent::new(
        datapath,
        configured(config),
        added,
        config.host_name.clone(),
        config.namespaces.is_on(),
        Arc::clone(&latest),
    );
    // Before the agent's thread runs, and so before anything says that it is ready: whoever reads that may end it at once.
    let signals = runtime.block_on(async { Signals::with(hangup) })?;
    let control = runtime.block_on(async { control::bind(&config.control_socket) });
    if let Err(error) = &control {
        tracing::error!(error = %error, "no control socket: meter-agent ls can't ask this agent; it counts all the same");
    }
    let control = control.ok();
    let has_control = control.is_some();
    let (ended, agent_ended) = oneshot::channel::<()>();
    let agent = spawn("agent", move || {
        // Dropped when the thread ends, in whichever way.
        let _ended = ended;
        agent.run(&channel)
    })?;
    spawn("netdevs", {
        let events = events.clone();
        move || watch(monitor, &events)
    })?;
    if config.namespaces.is_on() {
        let selection = config.namespaces.clone();
        let events = events.clone();
        spawn("namespaces", move || namespaces::follow(&selection, &events))?;
    }
    let reader = SnapshotReader::new(latest, {
        let events = events.clone();
        // An agent that has ended answers nobody; its reader takes what was published last.
        move |wish| drop(events.send(Event::Refresh(wish)))
    });

    let result = runtime.block_on(async {
        let audits = audit::start(config.audit_interval, reader.clone(), {
            let events = events.clone();
            move |report| drop(events.send(Event::Audited(report)))
        });
        if config.compat.skydive || !config.compat.skydive_listen.is_empty() {
            let events = events.clone();
            let publish = move |states| events.send(Event::NetdevStates(states)).is_ok();
            tokio::spawn(states::keep(reader.clone(), publish));
        }
        let socket = control.map(|listener| {
            let events = events.clone();
            let change = move |change, answer| drop(events.send(Event::Change(change, answer)));
            (listener, Desk::new(reader.clone(), audits, change))
        });
        servers::start(config, web, inherited, socket, &reader);
        if let Some((file, every)) = state_file.clone().zip(config.state_interval) {
            tokio::spawn(totals::keep(file, every, events.clone()));
        }
        let herald = Herald::start(reader.clone(), work);
        let result = supervise(config, &events, reload, agent_ended, signals, &herald).await;
        if counts_on {
            tracing::info!("ending; the hooks stay attached and count on");
        } else {
            tracing::warn!("ending, with all counters: they are not pinned");
        }
        herald.stopping(counts_on);
        result
    });
    // Work that nobody waits for any more, such as a bcrypt, does not keep the process.
    runtime.shutdown_background();
    drop(events.send(Event::Shutdown));
    let ended = agent.join().map(|mut datapath| {
        // Once before all hooks are gone as well: that may take longer than the service manager waits.
        if let Some(file) = state_file.as_ref().filter(|_| datapath.unpinned().is_some()) {
            file.write_last(datapath.totals());
        }
        datapath.end();
        if let Some(file) = &state_file {
            file.write_last(datapath.totals());
        }
    });
    let result = ended.map_err(|_| ServiceError::AgentEnded).and(result);
    if has_control && let Err(error) = std::fs::remove_file(&config.control_socket) {
        tracing::debug!(error = %error, "control socket left behind");
    }
    result
}

/// Lets the process have as many descriptors as it may give itself.
///
/// It is mostly 1,024 otherwise, and there may be 512 connections to each of five servers: attaching takes descriptors
/// too, and must not depend on who connects.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(error = %error, "the limit of open files stays as it is");
    }
}

/// The signals that mean something to the agent. One that comes before it is waited for is kept.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Adds those that end the agent, which are handled from now on, on the current runtime.
    fn with(hangup: Signal) -> Result<Self, ServiceError> {
        let [terminate, interrupt] = [SignalKind::terminate(), SignalKind::interrupt()].map(handle);
        Ok(Self { hangup, terminate: terminate?, interrupt: interrupt? })
    }
}

/// Has a signal handled from now on, on the current runtime.
fn handle(kind: SignalKind) -> Result<Signal, ServiceError> {
    signal(kind).map_err(failed("handle signals"))
}

/// Handles signals and lets the seconds pass, until something says to end.
async fn supervise(
    config: &Config,
    events: &mpsc::Sender<Event>,
    reload: impl Fn() -> Result<Config, ConfigError>,
    mut agent_ended: oneshot::Receiver<()>,
    mut signals: Signals,
    herald: &Herald,
) -> Result<(), ServiceError> {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut current = config.clone();
    loop {
        let event = tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = &mut agent_ended => return Err(ServiceError::AgentEnded),
            _ = tick.tick() => Event::Tick,
            _ = signals.hangup.recv() => {
                herald.reloading();
                reloaded(&mut current, &reload)
            }
        };
        let is_reload = matches!(event, Event::Configured(_) | Event::Misconfigured);
        if events.send(event).is_err() {
            return Err(ServiceError::AgentEnded);
        }
        if is_reload {
            herald.reloaded();
        }
    }
    Ok(())
}

/// Reads the configuration again. What is wrong with it is logged, and the old one stays in force.
fn reloaded(current: &mut Config, reload: impl Fn() -> Result<Config, ConfigError>) -> Event {
    match reload() {
        Ok(config) => {
            for key in needs_restart(current, &config) {
                tracing::warn!(key, "a change of this key takes effect at the next start");
            }
            let configured = configured(&config);
            *current = config;
            Event::Configured(Box::new(configured))
        }
        Err(error) => {
            for line in error.to_string().lines() {
                tracing::error!(error = line, "the configuration is wrong; the old one stays in force");
            }
            Event::Misconfigured
        }
    }
}

/// Returns the keys and tables that differ and are read only at the start.
fn needs_restart(old: &Config, new: &Config) -> impl Iterator<Item = &'static str> {
    [
        ("host_name", old.host_name != new.host_name),
        ("datapath, tunnels or connections.max_entries", old.datapath != new.datapath),
        ("namespaces", old.namespaces != new.namespaces),
        ("http.listen", old.http_listen != new.http_listen),
        ("http.config_file", old.web_config != new.web_config),
        ("jolokia.listen", old.jolokia_listen != new.jolokia_listen),
        (
            "connections.max_series, drop_labels, group_networks, internal_networks or exclude_classes",
            old.connections_view != new.connections_view,
        ),
        ("metrics", old.metrics != new.metrics),
        ("compat", old.compat != new.compat),
        (
            "state.totals_file or state.totals_interval",
            (&old.state_file, old.state_interval) != (&new.state_file, new.state_interval),
        ),
        ("audit.interval", old.audit_interval != new.audit_interval),
        ("control.socket", old.control_socket != new.control_socket),
        ("state.directory", old.state_directory != new.state_directory),
        ("log", old.log != new.log),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
}

/// Sends what the monitor sees, for as long as somebody receives it. A monitor that fails is replaced, and its successor
/// begins with a complete dump.
fn watch(first: (Monitor, StopGuard), events: &mpsc::Sender<Event>) {
    let mut next = Ok(first);
    loop {
        let ended = next.and_then(|(mut monitor, _running)| {
            monitor.run(|event| events.send(Event::Netdev(event)).is_ok())
        });
        let Err(error) = ended else { return };
        tracing::error!(error = %error, "the netdev monitor failed; starting another");
        thread::sleep(MONITOR_RETRY);
        next = Monitor::new();
    }
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, ServiceError> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(failed("start a thread"))
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> ServiceError {
    move |source| ServiceError::Start { action, source }
}

/// Returns what the agent takes up of a configuration that was read just now.
fn configured(config: &Config) -> Configured {
    let policy = Policy {
        bindings: config.bindings.clone(),
        rules: config.rules.clone(),
        connections: config.connections.clone(),
    };
    Configured { policy, meters: config.meters.clone(), read_s: now_s() }
}

/// Seconds since the Unix epoch.
fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
