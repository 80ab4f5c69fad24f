//! One agent of the lab: its configuration, its process, its HTTP, and what it leaves in the kernel.

use std::{
    fmt::Write as _,
    fs::{self, DirBuilder, File},
    io::{self, PipeReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::netns::{self, Netns, Process};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{exposition::Exposition, interrupt::Interrupt, topology::Host};
use crate::{console::say, tools};

/// Where each agent serves Prometheus, in its host's namespace.
pub(super) const HTTP_PORT: u16 = 7300;
const JOLOKIA_PORT: u16 = 7200;

const BPFFS: &str = "/sys/fs/bpf";
const PIN_PREFIX: &str = "meter-agent-lab-";
const DIRECTORY_PREFIX: &str = "meter-agent-lab-";

/// A verifier on a slow machine needs some seconds.
const READY: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(15);

/// Mounts bpffs, where agents pin what outlives them, unless it is there.
pub(super) fn mount_bpffs() -> Result<()> {
    if statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    say(format_args!("mounting bpffs on {BPFFS}"));
    let status = Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).status().context("start mount")?;
    ensure!(status.success(), "mount -t bpf bpf {BPFFS}: {status}");
    Ok(())
}

/// Removes what a lab left whose process was killed before it could do so itself.
pub(super) fn remove_stale() -> Result<()> {
    for name in netns::remove_stale()? {
        say(format_args!("removed namespace {name}, left by a lab that was killed"));
    }
    for (directory, prefix) in [(Path::new(BPFFS), PIN_PREFIX), (&std::env::temp_dir(), DIRECTORY_PREFIX)] {
        let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|rest| {
                rest.split('-').next().filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()))
            });
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let path = entry.path();
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
                say(format_args!("removed {}, left by a lab that was killed", path.display()));
            }
        }
    }
    Ok(())
}

/// A directory for configurations, sockets and logs; dropping it removes it.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{DIRECTORY_PREFIX}{}", std::process::id()));
        // Not recursive: a directory that another user made in advance is an error.
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            say(format_args!("remove {}: {error}", self.path.display()));
        }
    }
}

/// An agent on one host. Dropping it kills the process and removes its pins.
#[derive(Debug)]
pub(super) struct Agent<'a> {
    program: PathBuf,
    host: &'a Host,
    config: PathBuf,
    log: PathBuf,
    pins: PathBuf,
    process: Option<Process>,
}

impl<'a> Agent<'a> {
    /// Writes the configuration and starts the agent in its host's namespace.
    pub(super) fn start(program: &Path, host: &'a Host, scratch: &Scratch) -> Result<Self> {
        let pins = Path::new(BPFFS).join(format!("{PIN_PREFIX}{}-{}", std::process::id(), host.name));
        let config = scratch.path.join(format!("{}.toml", host.name));
        let log = scratch.path.join(format!("{}.log", host.name));
        let socket = scratch.path.join(format!("{}.sock", host.name));
        let state = scratch.path.join(format!("{}.state", host.name));
        fs::create_dir(&state).with_context(|| format!("make {}", state.display()))?;
        let text = configuration(host, &pins, &socket, &state)?;
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let mut agent = Self { program: program.to_owned(), host, config, log, pins, process: None };
        let output = File::create(&agent.log).with_context(|| format!("make {}", agent.log.display()))?;
        let errors = output.try_clone().context("duplicate a descriptor")?;
        let mut command = agent.command(&[])?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        agent.process = Some(host.netns.spawn(command)?);
        Ok(agent)
    }

    fn command(&self, subcommand: &[&str]) -> Result<Command> {
        let mut command = self.host.netns.command(&self.program)?;
        command.args(subcommand).arg("--config").arg(&self.config);
        Ok(command)
    }

    /// Waits until everything that should be metered is.
    pub(super) fn wait_until_ready(&mut self, interrupt: &mut Interrupt) -> Result<()> {
        let deadline = Instant::now() + READY;
        let mut last = String::new();
        while Instant::now() < deadline {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                bail!("the agent of {} ended with {status}:\n{}", self.host.netns.name(), self.log_tail());
            }
            match self.get("/-/ready") {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => last = format!("{status}: {}", body.trim()),
                Err(error) => last = format!("{error:#}"),
            }
            if interrupt.within(Duration::from_millis(50))? {
                bail!("interrupted");
            }
        }
        bail!(
            "the agent of {} is not ready after {READY:?} (/-/ready: {last}):\n{}",
            self.host.netns.name(),
            self.log_tail()
        )
    }

    /// The end of what the agent logged.
    fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Reads the agent's counts.
    pub(super) fn metrics(&self) -> Result<Exposition> {
        Exposition::parse(&self.scrape()?)
    }

    fn scrape(&self) -> Result<String> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics of {} answers {status}: {}", self.host.netns.name(), body.trim());
        Ok(body)
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT));
        let answer = lab::http::get(&self.host.netns, server, path, &["Accept: text/plain"])?;
        Ok((answer.status, answer.body))
    }

    /// Gives the exposition to `promtool check metrics` where there is one, and says what it found.
    pub(super) fn check_metrics(&self) -> Result<String> {
        let name = self.host.netns.name();
        let spawned = Command::new("promtool")
            .env("PATH", tools::path()?)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut promtool) = spawned else {
            return Ok(format!("{name} /metrics: not checked, there is no promtool"));
        };
        let text = self.scrape()?;
        if let Some(mut pipe) = promtool.stdin.take() {
            pipe.write_all(text.as_bytes()).context("write to promtool")?;
        }
        let output = promtool.wait_with_output().context("wait for promtool")?;
        if output.status.success() && output.stderr.is_empty() {
            return Ok(format!(
                "{name} /metrics: {} lines, promtool check metrics: clean",
                text.lines().count()
            ));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Ok(format!("{name} /metrics: promtool check metrics is not content:\n{}", said.trim_end()))
    }

    /// Starts `mm-meter` in the host's namespace.
    pub(super) fn start_mm_meter(&self, program: &Path, args: &[&str]) -> Result<Tool> {
        Tool::start(&self.host.netns, program, args)
    }

    /// The path to the configuration.
    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    /// The path to hand to `nsenter --net=`.
    pub(super) fn netns_path(&self) -> PathBuf {
        self.host.netns.path()
    }

    /// The UUID of the host's first port.
    pub(super) fn first_port(&self) -> &str {
        &self.host.ports[0].uuid
    }

    /// Ends the agent in the ordinary way and removes what it left in the kernel.
    pub(super) fn stop(mut self) -> Result<()> {
        let name = self.host.netns.name();
        if let Some(process) = self.process.take() {
            let status = process.terminate(END)?;
            ensure!(status.success(), "the agent of {name} ended with {status}:\n{}", self.log_tail());
        }
        let output = self.command(&["detach"])?.stdin(Stdio::null()).output().context("start detach")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "meter-agent detach on {name}: {}", said.trim());
        ensure!(!self.pins.exists(), "meter-agent detach on {name} left {}", self.pins.display());
        Ok(())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        drop(self.process.take());
        // What holds the programs is pinned; without the pins the kernel lets go of them.
        if self.pins.exists()
            && let Err(error) = fs::remove_dir_all(&self.pins)
        {
            say(format_args!("remove {}: {error}", self.pins.display()));
        }
    }
}

fn configuration(host: &Host, pins: &Path, socket: &Path, state: &Path) -> Result<String> {
    let mut text = format!(
        "host_id = \"{:08x}-1ab0-4000-8000-000000000000\"\n\n\
         [http]\nlisten = [\"0.0.0.0:{HTTP_PORT}\"]\n\n\
         [jolokia]\nlisten = [\"127.0.0.1:{JOLOKIA_PORT}\"]\n\n\
         [datapath]\npin_path = \"{}\"\n\n\
         [control]\nsocket = \"{}\"\n\n\
         [state]\ndirectory = \"{}\"\n",
        host.name.bytes().next().unwrap_or_default(),
        pins.display(),
        socket.display(),
        state.display(),
    );
    for port in &host.ports {
        write!(
            text,
            "\n[[binding]]\nnetdev = \"{}\"\nport = \"{}\"\ndevice = \"{}\"\n",
            port.netdev,
            port.uuid,
            port.overlay.device(),
        )?;
    }
    Ok(text)
}

/// A command of the operator's that runs on a host and prints a few lines.
#[derive(Debug)]
pub(super) struct Tool {
    line: String,
    output: PipeReader,
    process: Process,
    status: Option<ExitStatus>,
}

impl Tool {
    fn start(netns: &Netns, program: &Path, args: &[&str]) -> Result<Self> {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        let line = format!("nsenter --net={} {name} {}", netns.path().display(), args.join(" "));
        let (output, errors) = io::pipe().context("make a pipe")?;
        let mut command = netns.command(program)?;
        command.args(args).stdin(Stdio::null());
        command.stdout(errors.try_clone().context("duplicate a descriptor")?).stderr(errors);
        Ok(Self { line, output, process: netns.spawn(command)?, status: None })
    }

    /// Returns whether it is over.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        if self.status.is_none() {
            self.status = self.process.try_wait()?;
        }
        Ok(self.status.is_some())
    }

    /// Returns the command line and what it has printed, as a shell would show it; ends the command where it runs.
    pub(super) fn transcript(mut self) -> Result<String> {
        let mut text = String::new();
        drop(self.process);
        self.output.read_to_string(&mut text).context("read the output of a command")?;
        let status = self.status.filter(|status| !status.success());
        let status = status.map_or_else(String::new, |status| format!("({status})\n"));
        Ok(format!("$ {}\n{text}{status}", self.line))
    }
}
