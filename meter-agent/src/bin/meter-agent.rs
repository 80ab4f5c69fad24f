//! `meter-agent`: the daemon, and the operator's own subcommands.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or
//! configuration.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use meter_agent::{
    audit,
    config::{Config, ConfigError, Flags, HostFacts, LogFormat},
    control,
    datapath::kernel,
    http::web::{Web, WebError},
    ls::{self, Witness},
    service,
    survey::Policy,
};
use tracing_subscriber::EnvFilter;

/// Exact traffic meters for virtual networks. Without a command it runs the daemon.
#[derive(Parser)]
#[command(name = "meter-agent", version)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Check the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// List the netdevs: what each is, its port and device, its hooks, and why not if not
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Hold every meter against the kernel's own statistics; exit code 1 when there is drift that nothing explains
    Audit {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove every hook, map and pin of this agent, and with them the totals
    Detach,
}

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
            return ExitCode::from(2);
        }
    };
    let web = match web(&config, &arguments) {
        Ok(web) => web,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
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
        Some(Command::Detach) => detach(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meter-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
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
