//! `meter-agent`: the daemon, and the operator's own subcommands.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or
//! configuration, 3 what starting again does not help: a kernel that is too old, a missing capability, no bpffs. The unit's
//! `RestartPreventExitStatus=` knows 2 and 3.

use std::{
    io::{BufWriter, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use meter_agent::{
    audit,
    command::{Arguments, Command, MeterCommand},
    config::{Config, ConfigError, HostFacts, LogFormat},
    control,
    datapath::kernel,
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
/// What `[[meter]]` is worth in this version.
const NOT_COUNTED: &str = "user-defined meters are checked and explained, but not counted by this version";

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
            if !config.meters.meters.is_empty() {
                eprintln!("warning: {NOT_COUNTED}");
            }
            Ok(())
        }
        None => daemon(&config, web, load),
        Some(Command::Ls { json }) => list(&config, json),
        Some(Command::Audit { json }) => match audit(&config, json) {
            Ok(false) => return ExitCode::FAILURE,
            result => result.map(drop),
        },
        Some(Command::Doctor) => match doctor(&config) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Some(Command::Detach) => detach(&config),
        Some(Command::Meter { command: MeterCommand::Explain { pcap, packet } }) => {
            explain(&config, &packet, pcap.as_deref())
        }
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
    if matches!(error.downcast_ref(), Some(ExplainError::Words(_))) {
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
    let warn = |config: &Config| {
        if !config.meters.meters.is_empty() {
            tracing::warn!(meters = config.meters.meters.len(), "{NOT_COUNTED}");
        }
    };
    warn(config);
    Ok(service::run(config, web, || reload().inspect(warn))?)
}

/// Sends what the agent says of itself to standard error.
fn log(config: &Config) -> Result<()> {
    let filter = EnvFilter::try_new(&config.log.level).context("log.level")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn list(config: &Config, json: bool) -> Result<()> {
    let policy = Policy { bindings: config.bindings.clone(), rules: config.rules.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (witness, netdevs) = runtime.block_on(ls::netdevs(&config.control_socket, &policy))?;
    if witness == Witness::Nobody {
        eprintln!(
            "no agent runs with the socket {}; this is what one would do",
            config.control_socket.display()
        );
    }
    let text = if json { serde_json::to_string_pretty(&netdevs)? + "\n" } else { ls::table(&netdevs) };
    print(&text)
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

fn explain(config: &Config, packet: &[String], pcap: Option<&Path>) -> Result<()> {
    let bindings = &config.bindings.configured;
    let devices = bindings.iter().filter_map(|binding| Some((binding.port?, binding.device?))).collect();
    let mut out = BufWriter::new(std::io::stdout().lock());
    match explain::run(&config.meters, &devices, packet, pcap, &mut out) {
        // Whoever reads has seen enough.
        Err(ExplainError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        explained => Ok(explained?),
    }
}

/// Ends with 1 where something keeps the agent from counting.
fn doctor(config: &Config) -> Result<bool> {
    let policy = Policy { bindings: config.bindings.clone(), rules: config.rules.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(doctor::report(&config.control_socket, &config.datapath, &policy))?;
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
    Ok(())
}
