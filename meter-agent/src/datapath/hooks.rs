//! Both hooks of a netdev: of which kinds they are to be, how they change, and back again when the change is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use meter_ebpf::abi::Direction;

use super::{
    AttachError, Attachment, HookKind, IngressHook, Retry, Target, TcMode, clsact, failure::netdev_error,
    hook::Hook, links::Links, namespaces::Loaded,
};
use crate::meter::PortId;

/// The ids of the loaded TC programs, by name.
pub(super) type ProgramIds = BTreeMap<&'static str, u32>;

/// A change of the hooks did not succeed.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: AttachError,
    /// Whether the hooks from before count.
    pub(super) kept: bool,
}

/// What all hooks have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site<'a> {
    /// Where links are kept.
    pub(super) links: &'a Links,
    /// Whether ports have the programs of user-defined meters.
    pub(super) meters: bool,
    /// Of which ports the netdevs have those that count connections.
    pub(super) captured: &'a BTreeSet<PortId>,
}

/// Returns the hooks of a netdev.
pub(super) fn both<'a>(target: &'a Target, site: Site<'a>) -> [Hook<'a>; 2] {
    let Site { links, meters, captured } = site;
    let captured = captured.contains(&target.port);
    Direction::ALL.map(|direction| Hook { target, direction, links, meters, captured })
}

/// Returns which kinds of hook a netdev is to have: of ingress and of egress.
pub(super) fn kinds(target: &Target, mode: TcMode, has_tcx: bool) -> Result<[HookKind; 2], AttachError> {
    let tc = match (mode, has_tcx) {
        (TcMode::Auto | TcMode::Tcx, true) => HookKind::Tcx,
        (TcMode::Auto, false) | (TcMode::Clsact, _) => HookKind::Clsact,
        (TcMode::Tcx, false) => {
            let why = "TCX is not supported here (it requires Linux 6.6); set datapath.tc = \"clsact\"";
            return Err(netdev_error(target, why, "tcx_unsupported", Retry::Never));
        }
    };
    let xdp = target.ingress == IngressHook::Xdp && target.underlay;
    Ok([if xdp { HookKind::Xdp } else { tc }, tc])
}

/// Refuses a netdev that has another name by now: it may be another netdev.
pub(super) fn check_name(target: &Target) -> Result<(), AttachError> {
    match nix::net::if_::if_nametoindex(target.netdev.as_str()) {
        Ok(ifindex) if ifindex == target.id.ifindex => Ok(()),
        Ok(_) => Err(netdev_error(target, "it was renamed meanwhile", "renamed", Retry::Later)),
        Err(errno) => {
            let why = format!("the netdev is gone ({})", io::Error::from(errno));
            Err(netdev_error(target, &why, "gone", Retry::Gone))
        }
    }
}

/// Returns whether there is a netdev with this number.
pub(super) fn is_netdev(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex).is_ok()
}

/// Returns whether the netdev has a clsact qdisc. Refuses another one at its place: an `ingress` qdisc takes the filter
/// of egress for one of ingress.
pub(super) fn has_clsact(target: &Target) -> Result<bool, AttachError> {
    match clsact::qdisc_kind(target.id.ifindex)
        .map_err(|error| qdisc_error(target, "ask for", &error))?
        .as_deref()
    {
        None => Ok(false),
        Some("clsact") => Ok(true),
        Some(kind) => {
            let why = format!(
                "a qdisc of kind {kind} is at clsact's place and left there; have its owner use clsact, or a kernel \
                 with TCX (6.6)"
            );
            Err(netdev_error(target, &why, "foreign_qdisc", Retry::Later))
        }
    }
}

/// Makes the clsact qdisc; returns whether it is ours, and not another's that came meanwhile.
pub(super) fn add_clsact(target: &Target) -> Result<bool, AttachError> {
    clsact::add_qdisc(target.id.ifindex).map_err(|error| qdisc_error(target, "make", &error))
}

fn qdisc_error(target: &Target, doing: &str, error: &io::Error) -> AttachError {
    if error.raw_os_error() == Some(libc::ENODEV) {
        return netdev_error(target, "the netdev is gone", "gone", Retry::Gone);
    }
    netdev_error(target, &format!("{doing} the clsact qdisc: {error}"), "qdisc", Retry::Later)
}

/// Removes a clsact qdisc of ours, unless somebody's filter hangs on it.
pub(super) fn remove_qdisc(ifindex: u32) {
    if let Err(error) = clsact::remove_empty_qdisc(ifindex) {
        tracing::warn!(ifindex, error = %error, "clsact qdisc left in place");
    }
}

/// Returns which hooks of an attachment are not there any more. What can't be found out is taken to be there.
///
/// With `programs` a filter counts only where it runs this agent's program.
pub(super) fn missing(
    attachment: &Attachment,
    site: Site<'_>,
    programs: Option<&ProgramIds>,
) -> Vec<(Direction, HookKind)> {
    let missing = both(&attachment.target, site).into_iter().filter_map(|hook| {
        let kind = attachment.kind(hook.direction);
        let program = programs.and_then(|programs| programs.get(hook.program_name())).copied();
        let is_there = hook.is_there(kind, program).unwrap_or_else(|error| {
            tracing::debug!(error = %error, "hook not looked at");
            true
        });
        (!is_there).then_some((hook.direction, kind))
    });
    missing.collect()
}

/// Makes the hooks of a target what they should be. When one is refused, those from `before` are made again.
pub(super) fn change(
    loaded: &mut Loaded<'_>,
    site: Site<'_>,
    target: &Target,
    kinds: [HookKind; 2],
    before: Option<&Attachment>,
) -> Result<(), Refused> {
    for (hook, kind) in both(target, site).into_iter().zip(kinds) {
        if let Err(error) = hook.attach(loaded, kind) {
            let kept = before.is_some_and(|before| restore(loaded, site, before, hook.direction));
            return Err(Refused { error, kept });
        }
    }
    Ok(())
}

/// Makes the hooks again that were there before, up to and with the one of this direction; returns whether they are.
fn restore(loaded: &mut Loaded<'_>, site: Site<'_>, before: &Attachment, last: Direction) -> bool {
    let changed = both(&before.target, site).into_iter().filter(|hook| hook.direction <= last);
    for hook in changed {
        let kind = before.kind(hook.direction);
        // The one that was refused may be as it was.
        let is_untouched = hook.direction == last && hook.is_there(kind, None).unwrap_or(false);
        if is_untouched {
            continue;
        }
        if let Err(error) = hook.attach(loaded, kind) {
            tracing::error!(error = %error, "the hook from before could not be made again");
            return false;
        }
    }
    true
}
