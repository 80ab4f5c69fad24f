//! One hook of one netdev: attach, replace, detach. Owns what it made, and removes only that.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
        xdp::{XdpError, XdpLink},
    },
};
use meter_ebpf::abi::Direction;

use super::{AttachError, HookKind, Retry, Target, TcMode, clsact, sys};

/// Preference of our clsact filters: ingress early and egress late, so that they see the frames of the wire.
const PRIORITY: [u16; 2] = [2, 65_000];
/// Handle of our filters; with the preference it names them, whoever asks.
const HANDLE: TcHandle = TcHandle::new(0x4d41, 0x4752);

/// Attempts to load a program.
const LOAD_ATTEMPTS: usize = 10;

/// A hook and where its link is pinned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook<'a> {
    pub(super) target: &'a Target,
    pub(super) direction: Direction,
    pub(super) links: &'a Path,
}

/// What attaching did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) kind: HookKind,
    /// Whether the clsact qdisc was not there before.
    pub(super) clsact: bool,
}

impl Hook<'_> {
    /// Attaches, or replaces the program of what an earlier agent attached.
    pub(super) fn attach(&self, ebpf: &mut Ebpf, mode: TcMode, xdp: bool) -> Result<Made, AttachError> {
        self.check_name()?;
        let made = if xdp { self.attach_xdp(ebpf) } else { self.attach_tc(ebpf, mode) }?;
        // Programs attach by name. A netdev that was renamed meanwhile would be metered under another's name.
        self.check_name()?;
        Ok(made)
    }

    fn attach_tc(&self, ebpf: &mut Ebpf, mode: TcMode) -> Result<Made, AttachError> {
        let name = self.program_name();
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| self.error("the object lacks the program", "object", Retry::Never))?;
        // Never both: with a hook of another kind beside it each frame would count twice.
        if mode != TcMode::Clsact {
            if self.has_tcx() {
                self.detach_clsact()?;
            }
            match self.attach_tcx(program) {
                Ok(()) => return Ok(Made { kind: HookKind::Tcx, clsact: false }),
                Err(error) if mode == TcMode::Auto && error.reason == "tcx_unsupported" => {}
                Err(error) => return Err(error),
            }
        }
        self.unpin()?;
        Ok(Made { kind: HookKind::Clsact, clsact: self.attach_clsact(program)? })
    }

    /// Returns whether the kernel has TCX here.
    fn has_tcx(&self) -> bool {
        match SchedClassifier::query_tcx(&self.target.netdev, self.attach_type()) {
            Ok(_) => true,
            // The kernel has told their numbers. What programs they are it tells only with CAP_SYS_ADMIN.
            Err(error) => errno(&error) == Some(libc::EPERM),
        }
    }

    fn attach_tcx(&self, program: &mut SchedClassifier) -> Result<(), AttachError> {
        let path = self.link_path();
        if let Some(link) = self.pinned()? {
            let link: Result<SchedClassifierLink, LinkError> = link.try_into();
            match link.map(|link| program.attach_to_link(link)) {
                Ok(Ok(id)) => {
                    // The pin holds the link; our descriptor is not needed.
                    program.take_link(id).map(drop).map_err(|error| self.program_error(&error))?;
                    return Ok(());
                }
                // ENOLINK: the netdev that it hung on is gone, and the number came back.
                Ok(Err(error)) if errno(&error) == Some(libc::ENOLINK) => self.unpin()?,
                Ok(Err(error)) => return Err(self.program_error(&error)),
                // XDP's.
                Err(_) => self.unpin()?,
            }
        }
        let order = match self.direction {
            Direction::Ingress => LinkOrder::first(),
            Direction::Egress => LinkOrder::last(),
        };
        let id = program
            .attach_with_options(&self.target.netdev, self.attach_type(), TcAttachOptions::TcxOrder(order))
            .map_err(|error| match errno(&error) {
                Some(libc::EINVAL) => self.error(
                    "TCX is not supported here (it requires Linux 6.6); set datapath.tc = \"clsact\"",
                    "tcx_unsupported",
                    Retry::Never,
                ),
                _ => self.program_error(&error),
            })?;
        let link: FdLink = program
            .take_link(id)
            .map_err(|error| self.program_error(&error))?
            .try_into()
            .map_err(|error: LinkError| self.link_error(&error))?;
        link.pin(&path).map(drop).map_err(|error| {
            self.error(&format!("pin the link at {}: {error}", path.display()), "pin", Retry::Later)
        })
    }

    /// Returns whether the qdisc is new.
    fn attach_clsact(&self, program: &mut SchedClassifier) -> Result<bool, AttachError> {
        let ours = match qdisc_add_clsact(&self.target.netdev) {
            Ok(()) => true,
            Err(TcError::AlreadyAttached) => false,
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => false,
            Err(error) => return Err(self.program_error(&error.into())),
        };
        if !ours {
            self.check_qdisc()?;
        }
        match self.attach_filter(program) {
            Ok(()) => Ok(ours),
            Err(error) => {
                if ours {
                    remove_qdisc(self.target.ifindex);
                }
                Err(error)
            }
        }
    }

    /// Refuses the qdisc of another if it is not clsact: an `ingress` qdisc takes the filter of egress for one of ingress.
    fn check_qdisc(&self) -> Result<(), AttachError> {
        let io_error = |error: io::Error| {
            self.error(&format!("ask for the qdisc that is there: {error}"), "qdisc", Retry::Later)
        };
        match clsact::qdisc_kind(self.target.ifindex).map_err(io_error)?.as_deref() {
            Some("clsact") => Ok(()),
            kind => {
                let kind = kind.unwrap_or("unknown");
                let why = format!(
                    "a qdisc of kind {kind} is at clsact's place and left there; have its owner use clsact, or a \
                     kernel with TCX (6.6)"
                );
                Err(self.error(&why, "foreign_qdisc", Retry::Later))
            }
        }
    }

    fn attach_filter(&self, program: &mut SchedClassifier) -> Result<(), AttachError> {
        let link = self.clsact_link()?;
        let id = match program.attach_to_link(link) {
            Ok(id) => id,
            // Nothing to replace: the filter is new.
            Err(error) if errno(&error) == Some(libc::ENOENT) => program
                .attach_with_options(
                    &self.target.netdev,
                    self.attach_type(),
                    TcAttachOptions::Netlink(NlOptions {
                        priority: PRIORITY[self.direction as usize],
                        handle: HANDLE,
                        ..NlOptions::default()
                    }),
                )
                .map_err(|error| self.program_error(&error))?,
            Err(error) => return Err(self.program_error(&error)),
        };
        let link = program.take_link(id).map_err(|error| self.program_error(&error))?;
        // Dropping it would remove the filter, which is to outlive the agent.
        std::mem::forget(link);
        Ok(())
    }

    fn attach_xdp(&self, ebpf: &mut Ebpf) -> Result<Made, AttachError> {
        let mut failure = None;
        // Jumbo frames need the program for several buffers, which kernels before 5.18 do not load.
        for name in ["meter_up_xdpf", "meter_up_xdp"] {
            let Some(program) = ebpf.program_mut(name) else { continue };
            let program: &mut Xdp = program
                .try_into()
                .map_err(|_| self.error("the object lacks the program", "object", Retry::Never))?;
            match load(|| program.load()) {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
                Err(error) => {
                    failure = Some(self.program_error(&error));
                    continue;
                }
            }
            match self.attach_xdp_program(program) {
                Ok(()) => return Ok(Made { kind: HookKind::Xdp, clsact: false }),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| self.error("the object has no XDP program", "object", Retry::Never)))
    }

    fn attach_xdp_program(&self, program: &mut Xdp) -> Result<(), AttachError> {
        let path = self.link_path();
        if let Some(link) = self.pinned()? {
            let link: Result<XdpLink, LinkError> = link.try_into();
            match link {
                Ok(link) => match program.attach_to_link(link) {
                    Ok(id) => {
                        program.take_link(id).map(drop).map_err(|error| self.program_error(&error))?;
                        return Ok(());
                    }
                    Err(_) => self.unpin()?,
                },
                Err(_) => self.unpin()?,
            }
        }
        let id = program.attach_to_if_index(self.target.ifindex, XdpMode::Driver).map_err(
            |error| match errno(&error) {
                Some(libc::EBUSY | libc::EEXIST) => self.error(
                    "another XDP program is attached; left in place; set uplinks.ingress = \"tc\"",
                    "xdp_busy",
                    Retry::Later,
                ),
                Some(libc::EOPNOTSUPP) => self.error(
                    "its driver has no native XDP; set uplinks.ingress = \"tc\"",
                    "xdp_unsupported",
                    Retry::Never,
                ),
                Some(libc::ERANGE | libc::EINVAL) => self.error(
                    "its driver refuses XDP, as most do with this MTU; lower it, or set uplinks.ingress = \"tc\"",
                    "xdp_mtu",
                    Retry::Later,
                ),
                _ => self.program_error(&error),
            },
        )?;
        let link: FdLink = program
            .take_link(id)
            .map_err(|error| self.program_error(&error))?
            .try_into()
            .map_err(|error: LinkError| self.link_error(&error))?;
        link.pin(&path).map(drop).map_err(|error| {
            self.error(&format!("pin the link at {}: {error}", path.display()), "pin", Retry::Later)
        })
    }

    /// Detaches whatever this agent or an earlier one attached here. Nothing there is no error.
    pub(super) fn detach(&self) -> Result<(), AttachError> {
        self.unpin()?;
        self.detach_clsact()
    }

    /// Removes our filter, if it is there.
    pub(super) fn detach_clsact(&self) -> Result<(), AttachError> {
        clsact::remove_filter(
            self.target.ifindex,
            self.direction,
            PRIORITY[self.direction as usize],
            HANDLE.into(),
        )
        .map_err(|error| self.error(&format!("remove the clsact filter: {error}"), "detach", Retry::Later))
    }

    /// Removes the pin and with it the link.
    fn unpin(&self) -> Result<(), AttachError> {
        let path = self.link_path();
        match remove_link(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(self.error(&format!("remove {}: {error}", path.display()), "unpin", Retry::Later))
            }
        }
    }

    fn pinned(&self) -> Result<Option<FdLink>, AttachError> {
        let path = self.link_path();
        if !path.exists() {
            return Ok(None);
        }
        match PinnedLink::from_pin(&path) {
            Ok(link) => Ok(Some(link.into())),
            Err(error) => Err(self.error(
                &format!("{} is not a link of ours ({error}); remove it", path.display()),
                "foreign_pin",
                Retry::Later,
            )),
        }
    }

    fn clsact_link(&self) -> Result<SchedClassifierLink, AttachError> {
        SchedClassifierLink::attached(
            &self.target.netdev,
            self.attach_type(),
            PRIORITY[self.direction as usize],
            HANDLE,
            None,
        )
        .map_err(|error| self.gone(&error))
    }

    fn link_path(&self) -> PathBuf {
        self.links.join(link_name(self.target.ifindex, self.direction))
    }

    fn program_name(&self) -> &'static str {
        match (self.target.underlay, self.direction) {
            (false, Direction::Ingress) => "meter_in",
            (false, Direction::Egress) => "meter_out",
            (true, Direction::Ingress) => "meter_up_in",
            (true, Direction::Egress) => "meter_up_out",
        }
    }

    fn attach_type(&self) -> TcAttachType {
        match self.direction {
            Direction::Ingress => TcAttachType::Ingress,
            Direction::Egress => TcAttachType::Egress,
        }
    }

    fn check_name(&self) -> Result<(), AttachError> {
        match nix::net::if_::if_nametoindex(self.target.netdev.as_str()) {
            Ok(ifindex) if ifindex == self.target.ifindex => Ok(()),
            Ok(_) => Err(self.error("it was renamed meanwhile", "renamed", Retry::Later)),
            Err(errno) => Err(self.gone(&errno.into())),
        }
    }

    fn gone(&self, error: &io::Error) -> AttachError {
        self.error(&format!("the netdev is gone ({error})"), "gone", Retry::Gone)
    }

    fn link_error(&self, error: &LinkError) -> AttachError {
        self.error(&error.to_string(), "link", Retry::Later)
    }

    fn program_error(&self, error: &ProgramError) -> AttachError {
        if let ProgramError::LoadError { io_error, verifier_log } = error
            && !verifier_log.to_string().is_empty()
        {
            // The verifier says EACCES as well; its last words tell what it did not like.
            let log = verifier_log.to_string();
            let words = log.lines().rev().filter(|line| !line.is_empty()).take(4).collect::<Vec<_>>();
            let words = words.into_iter().rev().collect::<Vec<_>>().join("; ");
            let why = format!("the kernel refuses the program ({io_error}): {words}");
            return self.error(&why, "verifier", Retry::Never);
        }
        match errno(error) {
            Some(libc::ENODEV | libc::ENXIO) => self.error("the netdev is gone", "gone", Retry::Gone),
            Some(libc::EPERM | libc::EACCES) => self.error(
                "not permitted; the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root",
                "permission",
                Retry::Later,
            ),
            Some(libc::EBUSY) => self.error(&describe(error), "busy", Retry::Later),
            Some(libc::ENOMEM | libc::ENOSPC | libc::E2BIG) => {
                self.error(&describe(error), "memory", Retry::Later)
            }
            _ => self.error(&describe(error), "kernel", Retry::Later),
        }
    }

    fn error(&self, why: &str, reason: &'static str, retry: Retry) -> AttachError {
        let direction = match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        let Target { netdev, ifindex, .. } = self.target;
        AttachError {
            message: format!("attach {direction} of {netdev} (ifindex {ifindex}): {why}"),
            reason,
            retry,
        }
    }
}

/// Removes a clsact qdisc of ours, unless somebody's filter hangs on it.
pub(super) fn remove_qdisc(ifindex: u32) {
    if let Err(error) = clsact::remove_empty_qdisc(ifindex) {
        tracing::warn!(ifindex, error = %error, "clsact qdisc left in place");
    }
}

/// Detaches a pinned link and removes the pin.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    if let Err(error) = sys::detach_link(path) {
        // It goes with its pin then.
        tracing::debug!(path = %path.display(), error = %error, "link not detached");
    }
    fs::remove_file(path)
}

/// Returns the name under which a link is pinned. bpffs refuses dots.
pub(super) fn link_name(ifindex: u32, direction: Direction) -> String {
    match direction {
        Direction::Ingress => format!("{ifindex}_in"),
        Direction::Egress => format!("{ifindex}_out"),
    }
}

/// Loads a program by `load`.
///
/// The verifier gives up with `EAGAIN` when a signal comes meanwhile, and has to be asked again.
pub(super) fn load(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 1..LOAD_ATTEMPTS {
        match load() {
            Err(error) if errno(&error) == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
    load()
}

/// Writes an error with its causes, which aya's `Display` leaves out.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Returns the number of the system error behind an error of aya.
fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::TcError(TcError::NetlinkError(error)) => error.raw_os_error(),
        ProgramError::TcError(TcError::IoError(error)) => error.raw_os_error(),
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        _ => None,
    }
}
