//! One hook of one netdev: attach, replace, detach, and look whether it is there. Owns what it made, and removes only
//! that.
//!
//! Everything goes by ifindex: a name may be another netdev's by the time that the kernel reads it.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use aya::{
    Ebpf,
    programs::{ProgramError, Xdp},
};
use meter_ebpf::abi::Direction;

use super::{
    AttachError, Class, HookKind, Retry, Target, clsact,
    failure::{describe, errno, refusal},
    links::Links,
    namespaces::{Loaded, NAMESPACE_CONNECTION_PROGRAMS, NAMESPACE_METER_PROGRAMS, NAMESPACE_PROGRAMS},
    sys::{self, LinkPlace},
};
use crate::netdev::{NamespaceId, NetdevId};

/// Attempts to load a program.
const LOAD_ATTEMPTS: usize = 10;
/// Attempts to make a link while an old one goes, and the time between them. After that it is tried again later, as
/// everything that failed.
const LINK_ATTEMPTS: usize = 20;
const LINK_REST: Duration = Duration::from_millis(10);
/// The programs of XDP, and whether they take frames of several buffers: jumbo frames need it, and kernels before 5.18
/// do not load it.
const XDP_PROGRAMS: [(&str, bool); 2] = [("meter_up_xdpf", true), ("meter_up_xdp", false)];

/// Why XDP is not attached beside another's.
pub(super) const XDP_BUSY: &str =
    "another XDP program is attached; left in place; set uplinks.ingress = \"tc\"";

/// A hook and where its link is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook<'a> {
    pub(super) target: &'a Target,
    pub(super) direction: Direction,
    pub(super) links: &'a Links,
    /// Whether ports have the programs of user-defined meters.
    pub(super) meters: bool,
    /// Whether connections are counted here.
    pub(super) captured: bool,
}

impl Hook<'_> {
    /// Lets our program count here by a hook of this kind; for clsact the qdisc is there already.
    ///
    /// A hook of the same kind gets the program atomically. One of another kind is gone before the new one counts, so
    /// that no frame counts twice; for XDP it goes only once the driver has taken a program.
    ///
    /// # Errors
    ///
    /// What was here may be gone.
    pub(super) fn attach(&self, loaded: &mut Loaded<'_>, kind: HookKind) -> Result<(), AttachError> {
        match kind {
            HookKind::Tcx => self.attach_tcx(self.tc_program(loaded)?),
            HookKind::Clsact => {
                let program = self.tc_program(loaded)?;
                self.unlink()?;
                let name = self.links.filter_name(self.target.id, self.program_name());
                clsact::set_filter(self.target.id.ifindex, self.direction, program, &name)
                    .map_err(|error| self.kernel_error(&error))
            }
            HookKind::Xdp => match loaded {
                Loaded::Host(ebpf, _) => self.attach_xdp(ebpf),
                Loaded::Namespace(_) => Err(self.no_program("meter_up_xdp")),
            },
        }
    }

    /// Detaches whatever this agent or an earlier one attached here. Nothing there is no error.
    pub(super) fn detach(&self) -> Result<(), AttachError> {
        self.unlink()?;
        self.remove_filter()
    }

    /// Returns whether a hook of ours of this kind is here: the link still hangs on this netdev, or our filter
    /// still runs a program, and this one where it has to be a certain one (by its id).
    pub(super) fn is_there(&self, kind: HookKind, program: Option<u32>) -> Result<bool, AttachError> {
        let place = match kind {
            HookKind::Tcx => self.tcx_place(),
            HookKind::Xdp => LinkPlace::Xdp,
            HookKind::Clsact => {
                let found = clsact::filter_program(self.target.id.ifindex, self.direction)
                    .map_err(|error| self.kernel_error(&error))?;
                return Ok(found.is_some_and(|found| program.is_none_or(|program| program == found)));
            }
        };
        Ok(self.link(place)?.is_some())
    }

    fn attach_tcx(&self, program: BorrowedFd<'_>) -> Result<(), AttachError> {
        self.remove_filter()?;
        let place = self.tcx_place();
        if let Some(link) = self.link(place)? {
            return sys::update_link(link.as_fd(), program).map_err(|error| self.kernel_error(&error));
        }
        // XDP's, or one that hangs on nothing since its netdev has gone and the number came back.
        self.unlink()?;
        let link = self.create_tcx(program, place).map_err(|error| self.kernel_error(&error))?;
        self.keep(&link)
    }

    /// Makes a link. Where somebody removed the pin of the last one, the kernel lets go of that link a little later, and
    /// takes no program twice.
    fn create_tcx(&self, program: BorrowedFd<'_>, place: LinkPlace) -> io::Result<OwnedFd> {
        for _ in 1..LINK_ATTEMPTS {
            match sys::create_link(program, self.target.id.ifindex, place) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => thread::sleep(LINK_REST),
                other => return other,
            }
        }
        sys::create_link(program, self.target.id.ifindex, place)
    }

    fn attach_xdp(&self, ebpf: &mut Ebpf) -> Result<(), AttachError> {
        let mut failure = None;
        for (name, fragments) in XDP_PROGRAMS {
            let Some(program) = ebpf.program_mut(name) else { continue };
            let program: &mut Xdp = program.try_into().map_err(|_| self.no_program(name))?;
            match load(|| program.load()) {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
                Err(error) => {
                    failure = Some(self.program_error(name, &error));
                    continue;
                }
            }
            let program = program.fd().map_err(|error| self.program_error(name, &error))?.as_fd();
            match self.attach_xdp_program(program, fragments) {
                Ok(()) => return Ok(()),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| self.no_program("meter_up_xdp")))
    }

    fn attach_xdp_program(&self, program: BorrowedFd<'_>, fragments: bool) -> Result<(), AttachError> {
        if let Some(link) = self.link(LinkPlace::Xdp)? {
            self.remove_filter()?;
            return sys::update_link(link.as_fd(), program).map_err(|error| self.xdp_error(&error));
        }
        // Whether the driver takes XDP is known only by trying. A program that counts nothing tries it beside the hook
        // of TC, which goes on counting if it doesn't.
        let pass = sys::load_xdp_pass(fragments).map_err(|error| self.kernel_error(&error))?;
        let link = sys::create_link(pass.as_fd(), self.target.id.ifindex, LinkPlace::Xdp)
            .map_err(|error| self.xdp_error(&error))?;
        let counts = self
            .detach()
            .and_then(|()| self.keep(&link))
            .and_then(|()| sys::update_link(link.as_fd(), program).map_err(|error| self.xdp_error(&error)));
        if counts.is_err() {
            // Where it is not kept it goes with our descriptor.
            self.unlink()?;
        }
        counts
    }

    /// Removes our filter, if it is there.
    fn remove_filter(&self) -> Result<(), AttachError> {
        clsact::remove_filter(self.target.id.ifindex, self.direction).map(drop).map_err(|error| {
            self.error(&format!("remove the clsact filter: {error}"), "detach", Retry::Later)
        })
    }

    fn keep(&self, link: &OwnedFd) -> Result<(), AttachError> {
        let name = self.link_name();
        self.links.keep(&name, link).map_err(|error| {
            self.error(&format!("pin the link at {}: {error}", self.links.place(&name)), "pin", Retry::Later)
        })
    }

    /// Removes the link, and its pin where it has one.
    pub(super) fn unlink(&self) -> Result<(), AttachError> {
        let name = self.link_name();
        match self.links.remove(&name) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                let why = format!("remove {}: {error}", self.links.place(&name));
                Err(self.error(&why, "unpin", Retry::Later))
            }
        }
    }

    /// Returns the link that is kept if it hangs in this place on this netdev.
    fn link(&self, place: LinkPlace) -> Result<Option<OwnedFd>, AttachError> {
        let found = self.links.open(&self.link_name());
        let Some(link) =
            found.map_err(|error| self.error(&error.to_string(), "foreign_pin", Retry::Later))?
        else {
            return Ok(None);
        };
        let netdev = sys::link_netdev(link.as_fd(), place).map_err(|error| self.kernel_error(&error))?;
        Ok((netdev == Some(self.target.id.ifindex)).then_some(link))
    }

    fn link_name(&self) -> String {
        link_name(self.target.id, self.direction)
    }

    /// Returns the name of the TC program for this hook.
    pub(super) fn program_name(&self) -> &'static str {
        let meters = self.meters && self.target.class != Class::Uplink;
        if self.target.id.namespace != NamespaceId::HOST {
            let [ingress, egress] = match (self.captured, meters) {
                (true, _) => NAMESPACE_CONNECTION_PROGRAMS,
                (false, true) => NAMESPACE_METER_PROGRAMS,
                (false, false) => NAMESPACE_PROGRAMS,
            };
            return if self.direction == Direction::Ingress { ingress } else { egress };
        }
        if self.captured {
            return match (self.target.underlay, self.direction) {
                (false, Direction::Ingress) => "meter_conn_in",
                (false, Direction::Egress) => "meter_conn_out",
                (true, Direction::Ingress) => "meter_conn_uin",
                (true, Direction::Egress) => "meter_conn_uout",
            };
        }
        match (meters, self.target.underlay, self.direction) {
            (false, false, Direction::Ingress) => "meter_in",
            (false, false, Direction::Egress) => "meter_out",
            (false, true, Direction::Ingress) => "meter_up_in",
            (false, true, Direction::Egress) => "meter_up_out",
            (true, false, Direction::Ingress) => "meter_user_in",
            (true, false, Direction::Egress) => "meter_user_out",
            (true, true, Direction::Ingress) => "meter_user_uin",
            (true, true, Direction::Egress) => "meter_user_uout",
        }
    }

    /// Has the program that [`Hook::attach`] takes loaded, so that it doesn't wait for the verifier with one hook changed.
    ///
    /// # Errors
    ///
    /// The program is refused. XDP's are tried with the driver.
    pub(super) fn provide(&self, loaded: &mut Loaded<'_>, kind: HookKind) -> Result<(), AttachError> {
        match kind {
            HookKind::Tcx | HookKind::Clsact => self.tc_program(loaded).map(|_| ()),
            HookKind::Xdp => Ok(()),
        }
    }

    fn tc_program<'a>(&self, loaded: &'a mut Loaded<'_>) -> Result<BorrowedFd<'a>, AttachError> {
        let name = self.program_name();
        let program = loaded.tc_program(name).map_err(|error| self.program_error(name, &error))?;
        program.ok_or_else(|| self.no_program(name))
    }

    const fn tcx_place(&self) -> LinkPlace {
        match self.direction {
            Direction::Ingress => LinkPlace::TcxIngress,
            Direction::Egress => LinkPlace::TcxEgress,
        }
    }

    fn no_program(&self, name: &str) -> AttachError {
        self.error(&format!("the object lacks the program {name}"), "object", Retry::Never)
    }

    fn program_error(&self, name: &str, error: &ProgramError) -> AttachError {
        // The verifier says EACCES as well.
        match refusal(name, error) {
            Some(why) => self.error(&why, "verifier", Retry::Never),
            None => self.system_error(errno(error), &describe(error)),
        }
    }

    fn xdp_error(&self, error: &io::Error) -> AttachError {
        match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => self.error(XDP_BUSY, "xdp_busy", Retry::Later),
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
            _ => self.kernel_error(error),
        }
    }

    fn kernel_error(&self, error: &io::Error) -> AttachError {
        self.system_error(error.raw_os_error(), &error.to_string())
    }

    fn system_error(&self, errno: Option<i32>, text: &str) -> AttachError {
        match errno {
            Some(libc::ENODEV | libc::ENXIO) => self.error("the netdev is gone", "gone", Retry::Gone),
            Some(libc::EPERM | libc::EACCES) => self.error(
                "not permitted; the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root",
                "permission",
                Retry::Later,
            ),
            Some(libc::EBUSY | libc::EEXIST) => self.error(text, "busy", Retry::Later),
            Some(libc::ENOMEM | libc::ENOSPC | libc::E2BIG) => self.error(text, "memory", Retry::Later),
            _ => self.error(text, "kernel", Retry::Later),
        }
    }

    fn error(&self, why: &str, reason: &'static str, retry: Retry) -> AttachError {
        let direction = match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        AttachError {
            message: format!("attach {direction} of {}: {why}", self.target.describe()),
            reason,
            retry,
        }
    }
}

/// Returns the name under which a link is kept. bpffs refuses dots.
pub(super) fn link_name(NetdevId { namespace, ifindex }: NetdevId, direction: Direction) -> String {
    let direction = match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    };
    match namespace {
        NamespaceId::HOST => format!("{ifindex}_{direction}"),
        NamespaceId(number) => format!("n{number}_{ifindex}_{direction}"),
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
