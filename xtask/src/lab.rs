//! `cargo xtask run --lab`: two hosts in network namespaces, an agent on each, and a count of our own to hold the
//! meters against.
//!
//! | module | owns |
//! |---|---|
//! | [`topology`] | hosts, overlays, guests, the wire between the hosts, and the traffic |
//! | [`agent`] | one agent: its configuration, process, HTTP, and what it leaves in the kernel |
//! | [`exposition`] | what `/metrics` says, as numbers by name and labels |
//! | [`view`] | the live table |
//! | [`audit`] | the comparison at the end |
//! | [`interrupt`] | Ctrl-C |
//!
//! The traffic starts after everything that counts is ready, and the totals are read after it is over. So they are
//! compared without a tolerance.

mod agent;
mod audit;
mod exposition;
mod interrupt;
mod topology;
mod view;

use std::{
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lab::load::Load;

use self::{
    agent::{Agent, Scratch},
    audit::Audit,
    exposition::Exposition,
    interrupt::Interrupt,
    topology::{Topology, Witness},
    view::View,
};
use crate::console::say;

/// What the lab runs, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct LabOptions {
    /// The daemon
    #[arg(long)]
    pub(crate) agent: PathBuf,
    /// The operator's tool
    #[arg(long)]
    pub(crate) mm_meter: PathBuf,
    /// Until when; until Ctrl-C where there is none
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::run::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// How many times longer to pause between two bursts of traffic, for a machine that is slow
    #[arg(long, default_value_t = 1)]
    pub(crate) slower: u32,
}

/// How long the traffic must have been silent before totals are compared. A lost last segment is sent again after
/// 200 ms.
const STILL: Duration = Duration::from_millis(700);
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the lab to its end.
///
/// Everything it makes goes with it, on Ctrl-C, an error or a panic as well.
pub(crate) fn run(options: &LabOptions) -> Result<()> {
    // First of all: threads inherit the mask that sends signals to this descriptor.
    let mut interrupt = Interrupt::new()?;
    agent::mount_bpffs()?;
    agent::remove_stale()?;
    let scratch = Scratch::new()?;
    let topology = Topology::new()?;
    topology.wait_until_quiet(STILL, PATIENCE)?;

    let mut agents = Vec::new();
    for host in &topology.hosts {
        agents.push(Agent::start(&options.agent, host, &scratch)?);
    }
    for agent in &mut agents {
        agent.wait_until_ready(&mut interrupt)?;
    }
    let mut out = std::io::stdout();
    introduce(&mut out, options, &agents, &topology, &mut interrupt)?;

    let measured = measure(options, &topology, &agents, &mut interrupt);
    // The agents end in the ordinary way even when the measuring failed: their pins are in the host's bpffs.
    let stopped = agents.into_iter().map(Agent::stop).fold(Ok(()), Result::and);
    let audit = measured?;
    write!(out, "\n{audit}")?;
    for (netdev, dropped) in topology.drops()? {
        writeln!(
            out,
            "note: {netdev} dropped {dropped} frames that its egress hook had counted (tx_dropped)"
        )?;
    }
    stopped?;
    if let Some(idle) = audit.idle() {
        bail!("nothing moved at {idle}: its equality means nothing");
    }
    if audit.differences() > 0 {
        bail!("{} of {} meters differ from the independent count", audit.differences(), audit.meters());
    }
    Ok(())
}

/// Lets the traffic run for its time, and compares what was counted.
fn measure(
    options: &LabOptions,
    topology: &Topology,
    agents: &[Agent],
    interrupt: &mut Interrupt,
) -> Result<Audit> {
    let before = settled(topology, agents)?;
    let traffic = topology.start_traffic(options.slower)?;
    let began = Instant::now();
    let mut out = std::io::stdout();

    let port = &topology.hosts[0].ports[0];
    let mut get = agents[0].start_mm_meter(
        &options.mm_meter,
        &["get", "-n", &format!("meters:port:rx:{}", port.uuid), "1", "3"],
    )?;
    while !get.has_ended()? && !interrupt.within(Duration::from_millis(50))? {}
    writeln!(out, "{}", get.transcript()?)?;

    let mut view = View::new(out.is_terminal());
    let left = |now: Instant| options.duration.map(|time| (began + time).saturating_duration_since(now));
    while !interrupt.happened() {
        let now = Instant::now();
        let wait = left(now).map_or(view.interval(), |left| left.min(view.interval()));
        interrupt.within(wait)?;
        let readings = agents.iter().map(Agent::metrics).collect::<Result<Vec<_>>>()?;
        view.show(&mut out, topology, &readings, began.elapsed())?;
        if left(Instant::now()).is_some_and(|left| left.is_zero()) {
            break;
        }
    }
    say("stopping the traffic");
    Load::stop_all(traffic)?;
    let after = settled(topology, agents)?;
    Ok(Audit::new(topology, &before, &after))
}

/// All counts at one quiet moment.
struct Moment {
    /// By host.
    agents: Vec<Exposition>,
    witness: Witness,
}

/// Reads all counts while nothing moves.
fn settled(topology: &Topology, agents: &[Agent]) -> Result<Moment> {
    const ATTEMPTS: usize = 10;
    for _ in 0..ATTEMPTS {
        let witness = topology.wait_until_quiet(STILL, PATIENCE)?;
        let readings = agents.iter().map(Agent::metrics).collect::<Result<Vec<_>>>()?;
        // A frame that came while the agents were read may be in one number and not in the other.
        if topology.witness() == witness {
            return Ok(Moment { agents: readings, witness });
        }
    }
    bail!("the lab's network does not come to rest: something else sends in it")
}

/// Says what there is and where to look, and what the agents' own tools say of it.
fn introduce(
    out: &mut std::io::Stdout,
    options: &LabOptions,
    agents: &[Agent],
    topology: &Topology,
    interrupt: &mut Interrupt,
) -> Result<()> {
    writeln!(out, "Two hosts, and an agent on each:")?;
    for host in &topology.hosts {
        writeln!(out, "  {host}")?;
    }
    for skipped in &topology.skipped {
        writeln!(out, "  (no {skipped}: this kernel has no such netdevs)")?;
    }
    writeln!(out, "Where to look, from any shell of this machine:")?;
    for agent in agents {
        let nsenter = format!("nsenter --net={}", agent.netns_path().display());
        let port = agent.first_port();
        writeln!(out, "  {nsenter} curl -s localhost:{}/metrics", agent::HTTP_PORT)?;
        writeln!(out, "  {nsenter} {} list", shown(&options.mm_meter))?;
        writeln!(out, "  {nsenter} {} get -n meters:port:rx:{port} 1 3", shown(&options.mm_meter))?;
        writeln!(out, "  {nsenter} {} ls --config {}", shown(&options.agent), agent.config().display())?;
    }
    for agent in agents {
        writeln!(out, "{}", agent.check_metrics()?)?;
    }
    let mut list = agents[0].start_mm_meter(&options.mm_meter, &["list"])?;
    while !list.has_ended()? && !interrupt.within(Duration::from_millis(10))? {}
    write!(out, "{}", list.transcript()?)?;
    out.flush().context("write to standard output")
}

/// Returns a path as the user would type it, relative to the current directory where it is below it.
fn shown(path: &Path) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(current).unwrap_or(path).display().to_string()
}
