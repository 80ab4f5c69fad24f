//! A network namespace of our own, and the processes in it.

use std::{
    fs::File,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
    },
    unistd::Pid,
};

use crate::error::{Doing as _, Error, Result};

const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "meter-lab-";

/// What keeps IPv6 from saying anything by itself.
const SILENT: [(&str, &str); 10] = [
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    // No link-local address, so nothing is sent from one; our own addresses are all there are.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    // An address still joins its solicited-node group: once, at once, and not again a second later.
    ("net/ipv6/conf/default/mldv2_unsolicited_report_interval", "1"),
    ("net/ipv6/conf/default/mldv1_unsolicited_report_interval", "1"),
    ("net/ipv6/conf/lo/disable_ipv6", "0"),
];

/// Two that make the directory at once make two mounts.
static ADDING: Mutex<()> = Mutex::new(());

/// A network namespace with a name in `/run/netns`, so that `nsenter --net=/run/netns/<name>` gets in.
///
/// Silent: a netdev speaks IPv6 only after [`Netns::address`] gave it such an address, and then without duplicate
/// address detection or router solicitations; what is left are two multicast listener reports in the first instant.
/// Dropping it removes the name; the namespace ends with the last process, socket or tap in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace named `meter-lab-<pid>-<label>`, or with `.<n>` at the end where this process has that one.
    ///
    /// # Errors
    ///
    /// Without root or without iproute2.
    pub fn new(label: &str) -> Result<Self> {
        let netns = Self::named(label, || unshare(CloneFlags::CLONE_NEWNET))?;
        netns.make_silent()?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Names the namespace that this process is in, in the same way. What is added to it from now on is silent too; what
    /// is there stays as it is, also when this is dropped.
    ///
    /// For a machine that is the caller's own.
    ///
    /// # Errors
    ///
    /// Without root or without iproute2.
    pub fn of_this_process(label: &str) -> Result<Self> {
        let netns = Self::named(label, || Ok(()))?;
        netns.make_silent()?;
        Ok(netns)
    }

    /// Gives a name that is free to the namespace that a thread is in after `enter`.
    ///
    /// As `ip netns add` does it, and without a process for each: tests make many.
    fn named(label: &str, enter: impl FnOnce() -> nix::Result<()> + Send) -> Result<Self> {
        let base = format!("{PREFIX}{}-{label}", std::process::id());
        let (name, path) = {
            let _adding = ADDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            provide_directory()?;
            let names = std::iter::once(base.clone()).chain((2_u32..).map(|n| format!("{base}.{n}")));
            let mut free = names.map(|name| (Path::new(DIRECTORY).join(&name), name));
            let (path, name) = free
                .find(|(path, _)| !path.exists())
                .unwrap_or_else(|| (Path::new(DIRECTORY).join(&base), base.clone()));
            File::create_new(&path).doing(|| format!("make {}", path.display()))?;
            (name, path)
        };
        let bind = || {
            enter()?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        };
        let bound = thread::scope(|scope| scope.spawn(bind).join());
        let bound = bound.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(io::Error::from);
        match bound.and_then(|()| File::open(&path)) {
            Ok(file) => Ok(Self { name, file }),
            Err(source) => {
                remove(&name)?;
                Err(Error::Io { doing: format!("name a namespace {}", path.display()), source })
            }
        }
    }

    fn make_silent(&self) -> Result<()> {
        self.run_in(|| {
            if sysctl_path("net/ipv6/conf/default/disable_ipv6").exists() {
                SILENT.iter().try_for_each(|(key, value)| write_sysctl(key, value))?;
            }
            // A tap drops what its reader does not fetch in time. A window of 1 MiB keeps a stream within its queue.
            write_sysctl("net/ipv4/tcp_rmem", "4096 131072 1048576")
        })?
        .doing(|| format!("set up {}", self.name))
    }

    /// The name in `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path to hand to `nsenter --net=`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs `work` on a thread of its own that is in this namespace, and returns what it returned.
    ///
    /// Sockets stay in the namespace in which they were made: make them here and use them anywhere. The mount
    /// namespace is the caller's, so `/sys/fs/bpf` is the host's (`ip netns exec` would hide it).
    ///
    /// # Errors
    ///
    /// When the namespace can't be entered.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .doing(|| format!("enter namespace {}", self.name))?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Prepares a command that will run in this namespace, in a process group of its own.
    ///
    /// A Ctrl-C at the terminal does not reach it, its signal mask is empty whatever the caller's is, and the kernel
    /// kills it when the thread that started it ends.
    ///
    /// # Errors
    ///
    /// When this process is out of file descriptors.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let file = self.file.try_clone().doing(|| format!("duplicate the descriptor of {}", self.name))?;
        let mut command = Command::new(program);
        command.process_group(0);
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed. It makes
        // three system calls and allocates nothing: an `Errno` becomes an `io::Error` without allocation. It owns
        // `file`, so the descriptor is open for as long as `command` can spawn.
        unsafe {
            command.pre_exec(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                SigSet::empty().thread_set_mask()?;
                Ok(())
            });
        }
        Ok(command)
    }

    /// Runs a command in this namespace to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// When it can't be started or ends with another status than 0.
    pub fn run<S: AsRef<std::ffi::OsStr> + Sync>(&self, program: &str, args: &[S]) -> Result<String> {
        // Started by a thread that is there: where the new process has to enter it, this one's memory is copied first.
        self.run_in(|| output(Command::new(program).args(args).process_group(0)))?
    }

    /// Starts a command in this namespace; it is killed when the result is dropped, or when the calling thread ends.
    ///
    /// # Errors
    ///
    /// When it can't be started.
    pub fn spawn(&self, mut command: Command) -> Result<Process> {
        let line = format!("{command:?}");
        let child = command.spawn().doing(|| format!("start {line} in {}", self.name))?;
        Ok(Process { child, line })
    }

    /// Writes a value below `/proc/sys` of this namespace; `key` has slashes: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// When there is no such key or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run_in(|| write_sysctl(key, value))?.doing(|| format!("set up {}", self.name))
    }

    /// Returns whether this kernel has the key.
    #[must_use]
    pub fn has_sysctl(&self, key: &str) -> bool {
        self.run_in(|| sysctl_path(key).exists()).unwrap_or(false)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("{error}");
        }
    }
}

/// Removes the namespaces whose process was killed before it could do so itself, and returns their names.
///
/// # Errors
///
/// When one can't be removed.
pub fn remove_stale() -> Result<Vec<String>> {
    let stale: Vec<String> = names()
        .into_iter()
        .filter(|name| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
        .collect();
    for name in &stale {
        remove(name)?;
    }
    Ok(stale)
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Returns the process id in `meter-lab-<pid>-<label>`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Makes the directory as iproute2 does: a mount whose names are seen in every mount namespace, and go from all of them.
fn provide_directory() -> Result<()> {
    let doing = || format!("make {DIRECTORY}");
    std::fs::create_dir_all(DIRECTORY).doing(doing)?;
    let no = None::<&str>;
    let share = || mount(no, DIRECTORY, no, MsFlags::MS_SHARED | MsFlags::MS_REC, no);
    let made = share().or_else(|errno| match errno {
        // It is no mount yet.
        Errno::EINVAL => mount(Some(DIRECTORY), DIRECTORY, no, MsFlags::MS_BIND | MsFlags::MS_REC, no)
            .and_then(|()| share()),
        errno => Err(errno),
    });
    made.doing(doing)
}

fn remove(name: &str) -> Result<()> {
    let path = Path::new(DIRECTORY).join(name);
    let unmounted = match umount2(&path, MntFlags::MNT_DETACH) {
        // Nothing was named by it yet.
        Err(Errno::EINVAL) => Ok(()),
        unmounted => unmounted.map_err(io::Error::from),
    };
    unmounted.and_then(|()| std::fs::remove_file(&path)).doing(|| format!("remove {}", path.display()))
}

fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}

fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    std::fs::write(sysctl_path(key), value)
        .map_err(|error| io::Error::new(error.kind(), format!("write {value:?} to {key}: {error}")))
}

/// A process in a namespace; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    line: String,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives access to its pipes.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Returns its status, or `None` while it runs.
    ///
    /// # Errors
    ///
    /// When the kernel does not know it.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().doing(|| format!("wait for {}", self.line))
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(self.child.id()), signal).doing(|| format!("send {signal} to {}", self.line))
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    ///
    /// When it still runs after `within`; it is killed then.
    pub fn terminate(mut self, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(Error::Deadline { what: format!("the end of {}", self.line), after: within });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Its whole group: a shell's children go with it.
        let killed = nix::sys::signal::killpg(pid(self.child.id()), Signal::SIGKILL);
        if let Err(error) = killed.map_err(io::Error::from).and_then(|()| self.child.wait().map(drop)) {
            eprintln!("kill {}: {error}", self.line);
        }
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed())
}

/// Runs a command to its end and returns what it wrote to its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .doing(|| format!("start {line} (is it installed? apt-get install iproute2)"))?;
    if !output.status.success() {
        return Err(failure(line, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn failure(command: String, output: &std::process::Output) -> Error {
    let said = String::from_utf8_lossy(&output.stderr);
    let message = match said.trim() {
        "" => output.status.to_string(),
        said => said.to_owned(),
    };
    Error::Command { command, message }
}
