//! What opening and attaching would find, by the same checks, without attaching or pinning anything.

use std::{collections::BTreeSet, io, path::Path};

use aya::programs::{SchedClassifier, TcAttachType};
use meter_ebpf::abi::Direction;

use super::{
    AttachError, Attachment, HookKind, Options, Retry, Target, TcMode, clsact,
    directories::{self, Directories, versions},
    failure::netdev_error,
    hook::XDP_BUSY,
    hooks,
    object::{
        CONNECTION_PROGRAMS, METER_PROGRAMS, OBJECT, Over, TC_PROGRAMS, has_tcx, load_object, load_programs,
        settings,
    },
    open::{OpenError, check_kernel, check_writable, has_bpffs, missing_capabilities},
    pins::running_programs,
    softirq::Softirqs,
    specs,
};

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it has to be.
    Good,
    /// It keeps the agent from counting, or a netdev from being metered, or what it counts from outliving it.
    Bad,
    /// Good to know.
    Note,
    /// It can't be seen from here.
    Unseen,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: &'static str,
    /// What was seen, and what to do about it.
    pub says: String,
}

impl Finding {
    /// Makes a finding.
    pub fn new(verdict: Verdict, subject: &'static str, says: impl Into<String>) -> Self {
        Self { verdict, subject, says: says.into() }
    }

    fn of(subject: &'static str, result: Result<String, OpenError>) -> Self {
        match result {
            Ok(says) => Self::new(Verdict::Good, subject, says),
            Err(error) => Self::new(Verdict::Bad, subject, error.to_string()),
        }
    }
}

/// What is counted beside what any host has.
#[derive(Debug, Clone, Copy, Default)]
pub struct More {
    /// User-defined meters.
    pub meters: bool,
    /// Connections.
    pub connections: bool,
}

/// Looks at everything that opening the kernel half takes, and more where more is counted. Also returns whether the kernel has
/// TCX, where that could be found out.
#[must_use]
pub fn host(options: &Options, more: More) -> (Vec<Finding>, Option<bool>) {
    let kernel = check_kernel().map(|release| format!("Linux {release}"));
    let object = if OBJECT.is_empty() { Err(OpenError::NoObject) } else { Ok("is in this build".to_owned()) };
    let missing = missing_capabilities();
    let may = if missing.is_empty() {
        Ok("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or what stands for them".to_owned())
    } else {
        Err(OpenError::Permission { action: "load programs and attach them".to_owned(), missing })
    };
    let softirqs = Softirqs::of_kernel().warning();
    let can_try = kernel.is_ok() && object.is_ok() && may.is_ok();
    let mut findings = vec![
        Finding::of("kernel", kernel),
        Finding::of("eBPF object", object),
        Finding::of("capabilities", may),
        bpffs(&options.pin_path),
    ];
    findings.extend(pins(options));
    findings.extend(softirqs.map(|says| Finding::new(Verdict::Note, "softirqs", says)));
    if !can_try {
        findings.push(Finding::new(Verdict::Unseen, "verifier", "not tried, for want of the above"));
        return (findings, None);
    }
    let (tcx, taken) = match try_object(options, more) {
        Ok((has_tcx, taken)) => (Some(has_tcx), taken),
        Err(error) => (None, Err(error)),
    };
    findings.push(Finding::of("verifier", taken.map(|()| "takes the programs".to_owned())));
    findings.extend(tcx.map(tcx_finding));
    (findings, tcx)
}

fn tcx_finding(has_tcx: bool) -> Finding {
    let says = if has_tcx { "is there" } else { "is not there (Linux 6.6): clsact does instead" };
    Finding::new(if has_tcx { Verdict::Good } else { Verdict::Note }, "TCX", says)
}

fn bpffs(pin_path: &Path) -> Finding {
    const SUBJECT: &str = "bpffs";
    let path = pin_path.display();
    match has_bpffs(pin_path).and_then(|is_there| check_writable(pin_path).map(|()| is_there)) {
        Ok(true) => Finding::new(Verdict::Good, SUBJECT, format!("{path} is on one")),
        Ok(false) => {
            let says = format!(
                "none is mounted for {path}; an agent with CAP_SYS_ADMIN mounts one, and the counters of another end with it"
            );
            Finding::new(Verdict::Note, SUBJECT, says)
        }
        Err(error) => {
            let says = format!("{error}; an agent counts all the same, but its counters end with it");
            Finding::new(Verdict::Bad, SUBJECT, says)
        }
    }
}

/// Says what an agent would make of pins of another version.
fn pins(options: &Options) -> Option<Finding> {
    const SUBJECT: &str = "pins";
    match directories::find(&options.pin_path, options.version) {
        Ok(found) => found.earlier.map(|version| {
            let says = format!("of version {version} of the maps: an agent takes their totals over");
            Finding::new(Verdict::Note, SUBJECT, says)
        }),
        Err(error) => {
            let is_hidden = matches!(error, OpenError::Permission { .. });
            let verdict = if is_hidden { Verdict::Unseen } else { Verdict::Bad };
            Some(Finding::new(verdict, SUBJECT, error.to_string()))
        }
    }
}

/// Loads the programs over small maps that nobody else sees; returns whether the kernel has TCX, and takes those for more.
fn try_object(options: &Options, more: More) -> Result<(bool, Result<(), OpenError>), OpenError> {
    let small =
        Options { max_ports: 1, max_netdevs: 1, max_tunnels: 1, max_connections: 1, ..options.clone() };
    let (mut ebpf, mut programs) = load_object(&specs::specs(&small), &settings(&small), Over::New)?;
    load_programs(&mut ebpf, TC_PROGRAMS.into_iter().flatten(), &mut programs)?;
    let meters = more.meters.then_some(METER_PROGRAMS);
    let connections = more.connections.then_some(CONNECTION_PROGRAMS);
    let further = meters.into_iter().chain(connections).flatten().flatten();
    let taken = load_programs(&mut ebpf, further, &mut programs);
    Ok((has_tcx(&ebpf), taken))
}

/// Returns how a netdev would be attached; `ours` is what [`ours`] says.
///
/// # Errors
///
/// Why it would not. Whether a driver takes XDP is known only by attaching.
pub fn foresee(
    target: &Target,
    mode: TcMode,
    has_tcx: bool,
    ours: &BTreeSet<u32>,
) -> Result<Attachment, AttachError> {
    let kinds = hooks::kinds(target, mode, has_tcx)?;
    hooks::check_name(target)?;
    let is_busy = || foreign_xdp(target.id.ifindex, ours).is_ok_and(|id| id.is_some());
    if kinds.contains(&HookKind::Xdp) && is_busy() {
        return Err(netdev_error(target, XDP_BUSY, "xdp_busy", Retry::Later));
    }
    if kinds.contains(&HookKind::Clsact) {
        hooks::has_clsact(target)?;
    }
    Ok(Attachment::new(target.clone(), kinds))
}

/// Returns the ids of the programs at the hooks of any agent with these pins, as far as they can be seen.
#[must_use]
pub fn ours(pin_path: &Path) -> BTreeSet<u32> {
    let versions = versions(pin_path).unwrap_or_default().into_iter();
    versions.flat_map(|version| running_programs(&Directories::new(pin_path, version).links)).collect()
}

/// Returns the XDP program of a netdev that is not ours.
fn foreign_xdp(ifindex: u32, ours: &BTreeSet<u32>) -> io::Result<Option<u32>> {
    Ok(clsact::xdp_program(ifindex)?.filter(|id| !ours.contains(id)))
}

/// Returns what others have attached to a netdev, `hook: what` each; what can't be seen says so. `ingress` is the hook that an
/// agent which runs has there, and `ours` what [`ours`] says.
#[must_use]
pub fn foreign(ifindex: u32, netdev: &str, ingress: Option<&str>, ours: &BTreeSet<u32>) -> Vec<String> {
    let mut found = Vec::new();
    for (direction, name, attach_type) in [
        (Direction::Ingress, "ingress", TcAttachType::Ingress),
        (Direction::Egress, "egress", TcAttachType::Egress),
    ] {
        match SchedClassifier::query_tcx(netdev, attach_type) {
            Ok((_, programs)) => found.extend(
                programs
                    .iter()
                    .map(|program| program.name_as_str().unwrap_or("?").to_owned())
                    .filter(|program| {
                        ![TC_PROGRAMS, METER_PROGRAMS, CONNECTION_PROGRAMS]
                            .as_flattened()
                            .as_flattened()
                            .contains(&program.as_str())
                    })
                    .map(|program| format!("TCX {name}: {program}")),
            ),
            Err(error) if super::failure::errno(&error) == Some(libc::EPERM) => {
                found.push(format!("TCX {name}: not seen without CAP_SYS_ADMIN"));
            }
            // Before Linux 6.6 there is none.
            Err(_) => {}
        }
        match clsact::foreign_filters(ifindex, direction) {
            Ok(kinds) => {
                found.extend(kinds.iter().map(|kind| format!("clsact {name}: a filter of kind {kind}")))
            }
            Err(error) => found.push(format!("clsact {name}: not seen: {error}")),
        }
    }
    if ingress != Some(HookKind::Xdp.name()) {
        match foreign_xdp(ifindex, ours) {
            Ok(program) => found.extend(program.map(|id| format!("XDP: program {id}"))),
            Err(error) => found.push(format!("XDP: not seen: {error}")),
        }
    }
    found
}
