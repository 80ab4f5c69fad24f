//! `meter-agent`: the daemon, and the operator's own subcommands.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or
//! configuration, 3 what starting again does not help: a kernel that is too old, a missing capability, a security module, a
//! memory limit, pins of another version. The unit's `RestartPreventExitStatus=` knows 2 and 3.

use std::{
    io::{BufWriter, IsTerminal as _, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use meter_agent::{
    aside::set_aside,
    audit,
    command::{self, Arguments, Command, MeterCommand},
    config::{Config, ConfigError, HostFacts, LogFormat},
    connections::list::{Question, table},
    connector,
    control::{self, AskError, meters},
    datapath::kernel,
    definitions::{self, Origin},
    doctor,
    explain::{self, ExplainError},
    http::web::{Web, WebError},
    ls::{self, Witness},
    service::{self, ServiceError},
    survey::Policy,
};
use tracing_subscriber::EnvFilter;

/// Wrong usage, as clap has it, or a wrong configuration.
const WRONG: u8 = 2;
/// What starting again does not help.
const LASTING: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let load = {
        let flags = arguments.flags.clone();
        move || Config::load(&flags, &HostFacts::read())
    };
    let config = match load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(WRONG);
        }
    };
    let web = match web(&config, &arguments) {
        Ok(web) => web,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(WRONG);
        }
    };
    let result = match arguments.command {
        _ if arguments.check_config => {
            eprintln!("the configuration is right");
            Ok(())
        }
        None => daemon(&config, web, load),
        Some(Command::Ls { json }) => list(&config, json),
        Some(Command::Audit { json }) => match audit(&config, json) {
            Ok(false) => return ExitCode::FAILURE,
            result => result.map(drop),
        },
        Some(Command::Connections { json, sort, limit, port, protocol, address, number }) => {
            let question = Question { order: sort, most: Some(limit), port, protocol, address, number };
            connections(&config, json, &question)
        }
        Some(Command::ConvertConnector { file }) => convert(&file),
        Some(Command::Doctor) => match doctor(&config) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Some(Command::Detach) => detach(&config),
        Some(Command::Meter { command }) => meter(&config, command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meter-agent: {error:#}");
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let is_wrong = error.is::<UsageError>()
        || matches!(error.downcast_ref(), Some(ExplainError::Words(_)))
        || matches!(error.downcast_ref(), Some(AskError::Wrong(_)));
    if is_wrong {
        return ExitCode::from(WRONG);
    }
    let lasts = error.downcast_ref().is_some_and(ServiceError::lasts);
    if lasts { ExitCode::from(LASTING) } else { ExitCode::FAILURE }
}

/// Reads the web configuration for what needs it.
fn web(config: &Config, arguments: &Arguments) -> Result<Option<Web>, WebError> {
    let is_needed = arguments.check_config || arguments.command.is_none();
    config.web_config.as_deref().filter(|_| is_needed).map(Web::load).transpose()
}

fn daemon(config: &Config, web: Option<Web>, reload: impl Fn() -> Result<Config, ConfigError>) -> Result<()> {
    log(config)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), host = %config.host_name, "starting");
    Ok(service::run(config, web, reload)?)
}

/// Sends what the agent says of itself to standard error.
fn log(config: &Config) -> Result<()> {
    let filter = EnvFilter::try_new(config.log.directives()).context("log.level")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn list(config: &Config, json: bool) -> Result<()> {
    let policy = Policy {
        bindings: config.bindings.clone(),
        rules: config.rules.clone(),
        connections: config.connections.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (witness, netdevs) =
        runtime.block_on(ls::netdevs(&config.control_socket, &policy, &config.namespaces))?;
    if witness == Witness::Nobody {
        eprintln!(
            "no agent runs with the socket {}; this is what one would do",
            config.control_socket.display()
        );
    }
    for notice in runtime.block_on(ls::notices(&config.control_socket)) {
        eprintln!("{notice}");
    }
    let text = if json { serde_json::to_string_pretty(&netdevs)? + "\n" } else { ls::table(&netdevs) };
    print(&text)
}

fn connections(config: &Config, json: bool, question: &Question) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(control::connections(&config.control_socket, question))?;
    let text = if json { serde_json::to_string_pretty(&found)? + "\n" } else { table(&found) };
    print(&text)
}

/// Prints what a file of the Skydive-Prometheus connector says.
fn convert(file: &Path) -> Result<()> {
    const LONGEST: u64 = 1 << 20;
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
    let length = read.with_context(|| format!("read {}", file.display()))?;
    if u64::try_from(length).unwrap_or(u64::MAX) > LONGEST {
        bail!("{}: is longer than {LONGEST} bytes, which no configuration is", file.display());
    }
    let name = file.display();
    let converted = connector::convert(&text)
        .map_err(|mistakes| UsageError(mistakes.iter().map(|what| format!("{name}:{what}")).collect()))?;
    for ignored in &converted.ignored {
        eprintln!("{name}:{ignored}: ignored, it means nothing here");
    }
    print(&converted.toml)
}

/// Asks for an audit and prints it; returns whether everything is explained.
fn audit(config: &Config, json: bool) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(control::audit(&config.control_socket))?;
    let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { audit::table(&report) };
    print(&text)?;
    Ok(report.is_explained())
}

/// Writes data to standard output.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}

/// The words of a command are wrong: a line for each mistake.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\nmeter-agent: "))]
struct UsageError(Vec<String>);

fn meter(config: &Config, command: MeterCommand) -> Result<()> {
    let socket = &config.control_socket;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        MeterCommand::Add { name, rules, replace } => {
            let lines = command::rule_lines(&rules).map_err(UsageError)?;
            // What is wrong is said also where no agent runs.
            definitions::meter(&name, &lines).map_err(UsageError)?;
            runtime.block_on(meters::add(socket, &name, lines, replace))?;
        }
        MeterCommand::Remove { name } => runtime.block_on(meters::remove(socket, &name))?,
        MeterCommand::List { json } => {
            let list = runtime.block_on(meters::meters(socket))?;
            let text = if json { serde_json::to_string_pretty(&list)? + "\n" } else { meters::table(&list) };
            print(&text)?;
        }
        MeterCommand::Explain { pcap, packet } => {
            let added = runtime.block_on(meters::meters(socket));
            explain(config, added, &packet, pcap.as_deref())?;
        }
    }
    Ok(())
}

fn explain(
    config: &Config,
    added: Result<Vec<meters::MeterStatus>, AskError>,
    packet: &[String],
    pcap: Option<&Path>,
) -> Result<()> {
    let mut set = config.meters.clone();
    match added {
        Ok(list) => {
            let is_new = |name: &str| !config.meters.meters.iter().any(|meter| meter.name == name);
            let added = list.iter().filter(|meter| meter.origin == Origin::RunTime && is_new(&meter.name));
            set.meters.extend(added.filter_map(|meter| definitions::meter(&meter.name, &meter.rules).ok()));
        }
        Err(AskError::NoAgent(_)) => {}
        Err(error) => eprintln!("meters that were added at run time are not explained: {error}"),
    }
    let bindings = &config.bindings.configured;
    let devices = bindings.iter().filter_map(|binding| Some((binding.port?, binding.device?))).collect();
    let mut out = BufWriter::new(std::io::stdout().lock());
    match explain::run(&set, &devices, packet, pcap, &mut out) {
        // Whoever reads has seen enough.
        Err(ExplainError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        explained => Ok(explained?),
    }
}

/// Ends with 1 where something keeps the agent from counting.
fn doctor(config: &Config) -> Result<bool> {
    let policy = Policy {
        bindings: config.bindings.clone(),
        rules: config.rules.clone(),
        connections: config.connections.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(doctor::report(
        &config.control_socket,
        &config.datapath,
        &policy,
        &config.namespaces,
        config.meters.rules() > 0,
    ))?;
    print(&report.text())?;
    Ok(report.is_well())
}

fn detach(config: &Config) -> Result<()> {
    let removed = kernel::remove_all(&config.datapath.pin_path)?;
    eprintln!(
        "removed {} hooks and {} maps below {}",
        removed.hooks,
        removed.maps,
        config.datapath.pin_path.display()
    );
    // Or the next boot would bring back what has ended.
    if let Some(file) = config.state_file.as_deref().filter(|file| file.exists()) {
        let aside = set_aside(file, ".detached").with_context(|| format!("set aside {}", file.display()))?;
        eprintln!("moved the totals for the next boot to {}", aside.display());
    }
    Ok(())
}
