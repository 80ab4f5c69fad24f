//! The real daemon on a test's host: its configuration, its process, and what its interfaces say.

use std::{
    ffi::OsStr,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use lab::{
    http::{self, Answer},
    netns::Process,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{Host, WITHIN};

/// Where the daemon serves Prometheus, in its host's namespace.
pub(crate) const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7300);
/// Where it serves Jolokia.
pub(crate) const JOLOKIA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7200);

/// A daemon's place on a host; the daemon itself may come and go.
pub(crate) struct Daemon<'a> {
    host: &'a Host,
    program: PathBuf,
    scratch: TempDir,
    process: Option<Process>,
}

impl<'a> Daemon<'a> {
    /// Writes the configuration: what every test needs, and `more` behind it.
    pub(crate) fn new(host: &'a Host, more: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_meter-agent").into();
        let daemon = Self { host, program, scratch: tempfile::tempdir().unwrap(), process: None };
        daemon.configure(more);
        daemon
    }

    /// Starts a daemon with this configuration, and waits until everything is attached.
    pub(crate) fn started(host: &'a Host, more: &str) -> Self {
        let mut daemon = Self::new(host, more);
        daemon.start();
        daemon.wait_until_ready();
        daemon
    }

    /// Returns its host.
    pub(crate) const fn host(&self) -> &'a Host {
        self.host
    }

    /// Writes another configuration; `more` begins in the table `datapath`.
    pub(crate) fn configure(&self, more: &str) {
        let text = format!(
            "host_id = \"00000000-0000-4000-8000-000000000001\"\n\
             [control]\nsocket = \"{}\"\n\
             [state]\ndirectory = \"{}\"\n\
             [datapath]\npin_path = \"{}\"\nmax_ports = 64\nmax_netdevs = 64\n{more}\n",
            self.control_socket().display(),
            self.scratch.path().display(),
            self.host.pins.display(),
        );
        fs::write(self.config(), text).unwrap();
    }

    /// Adds keys to the table `state` of its configuration.
    pub(crate) fn configure_state(&self, keys: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains("[state]\n"), "{text}");
        fs::write(self.config(), text.replacen("[state]\n", &format!("[state]\n{keys}\n"), 1)).unwrap();
    }

    /// Takes another build of the program from the next start on.
    pub(crate) fn replace_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Makes its directory and its configuration this user's.
    pub(crate) fn give_to(&self, user: u32) {
        for path in [self.scratch.path(), &self.config()] {
            std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
        }
    }

    /// Where its control socket is to be.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.scratch.path().join("control.sock")
    }

    fn config(&self) -> PathBuf {
        self.scratch.path().join("meter-agent.toml")
    }

    /// Prepares the daemon, or another command of the same program, as the last words of `line`.
    pub(crate) fn command(&self, line: &[&str], arguments: &[&str]) -> Command {
        let line = line.iter().map(OsStr::new);
        let words: Vec<&OsStr> = line.chain([self.program.as_os_str()]).collect();
        let mut command = self.host.netns.command(words[0]).unwrap();
        command.args(&words[1..]).args(arguments).arg("--config").arg(self.config());
        command.stdin(Stdio::null());
        command
    }

    /// Starts it.
    pub(crate) fn start(&mut self) {
        self.start_with(&[], |_| {});
    }

    /// Starts it as the last words of `line`, with other streams than the log.
    pub(crate) fn start_with(&mut self, line: &[&str], prepare: impl FnOnce(&mut Command)) {
        self.start_flags(line, &["--log-level", "debug"], prepare);
    }

    /// Starts it with these flags.
    pub(crate) fn start_flags(&mut self, line: &[&str], flags: &[&str], prepare: impl FnOnce(&mut Command)) {
        let log = File::options().create(true).append(true).open(self.scratch.path().join("log")).unwrap();
        let mut command = self.command(line, flags);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        prepare(&mut command);
        self.process = Some(self.host.netns.spawn(command).unwrap());
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }

    /// Waits until a condition holds.
    pub(crate) fn wait(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}: not within {WITHIN:?}\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until everything that should be metered is.
    pub(crate) fn wait_until_ready(&self) {
        self.wait("ready", |daemon| daemon.try_get("/-/ready").is_ok_and(|answer| answer.status == 200));
    }

    /// Asks it over HTTP.
    pub(crate) fn try_get(&self, path: &str) -> lab::Result<Answer> {
        http::get(&self.host.netns, HTTP, path, &[])
    }

    /// Returns the body of an answer with status 200.
    pub(crate) fn get(&self, path: &str) -> String {
        let answer = self.try_get(path).unwrap();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body
    }

    /// Returns one sample of `/metrics`, by its name and labels as they are written; `None` where there is none.
    pub(crate) fn sample(&self, series: &str) -> Option<u64> {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(line.parse().unwrap_or_else(|_| panic!("{series}: {line:?} is no count")))
    }

    /// Returns packets and bytes of a port, rx and tx.
    pub(crate) fn port(&self, uuid: &str) -> Option<[(u64, u64); 2]> {
        let text = self.get("/metrics");
        let count = |direction: &str, what: &str| -> Option<u64> {
            let series = format!("meter_port_{direction}_{what}_total{{port=\"{uuid}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&series)).map(|value| value.parse().unwrap())
        };
        let hook = |direction| Some((count(direction, "packets")?, count(direction, "bytes")?));
        Some([hook("receive")?, hook("transmit")?])
    }

    /// Posts a JSON text to Jolokia and returns the body.
    pub(crate) fn jolokia(&self, body: &str) -> String {
        let request = format!(
            "POST /jolokia/ HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        http::exchange(&self.host.netns, JOLOKIA, request.as_bytes()).unwrap().body
    }

    /// Runs `mm-meter` to its end.
    pub(crate) fn mm_meter(&self, arguments: &[&str]) -> String {
        let mut command = self.host.netns.command(env!("CARGO_BIN_EXE_mm-meter")).unwrap();
        let output = output(command.args(arguments).stdin(Stdio::null()));
        assert!(output.status.success(), "mm-meter {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `meter-agent` with this subcommand to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        output(&mut self.command(&[], arguments))
    }

    /// Returns its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal).unwrap();
    }

    /// Kills it as the kernel does when memory runs out.
    pub(crate) fn kill(&mut self) {
        drop(self.process.take());
    }

    /// Ends it as systemd does.
    pub(crate) fn stop(&mut self) {
        let status = self.process.take().unwrap().terminate(WITHIN).unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

/// Runs a command to its end, which has to come in time.
pub(crate) fn output(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = Pid::from_raw(child.id().try_into().unwrap());
    let (ended, end) = mpsc::channel();
    thread::spawn(move || drop(ended.send(child.wait_with_output())));
    end.recv_timeout(WITHIN).map_or_else(
        |_| {
            kill(id, Signal::SIGKILL).unwrap();
            panic!("{command:?} has not ended within {WITHIN:?}");
        },
        Result::unwrap,
    )
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        } else if self.process.is_some() {
            self.stop();
        }
    }
}
