//! What to say of what failed: errors of aya and of full tables in an operator's words.

use aya::programs::ProgramError;

use super::{AttachError, Retry, Target, ledger::Full};

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
pub(super) fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        _ => None,
    }
}

/// Makes the error of a netdev that can't be attached, or not as it should be.
pub(super) fn netdev_error(target: &Target, why: &str, reason: &'static str, retry: Retry) -> AttachError {
    AttachError { message: format!("attach {}: {why}", target.describe()), reason, retry }
}

/// Makes the error of a port that can't get its counters.
pub(super) fn bind_error(target: &Target, why: &str, reason: &'static str) -> AttachError {
    AttachError {
        message: format!("bind {} to port {}: {why}", target.describe(), target.port),
        reason,
        retry: Retry::Later,
    }
}

/// Says what has run out, and what that costs.
pub(super) fn full_error(target: &Target, full: Full) -> AttachError {
    let (why, reason) = match full {
        Full::Slots => (
            "every slot is in use; raise datapath.max_netdevs and `meter-agent detach`, which ends all totals",
            "slots_full",
        ),
        Full::Ports => (
            "no room for another port; raise datapath.max_ports and `meter-agent detach`, which ends all totals",
            "ports_full",
        ),
        Full::Members => (
            "it counts, but not for its device: no room for another port of a device; raise datapath.max_ports and \
             `meter-agent detach`, which ends all totals",
            "members_full",
        ),
        Full::Uplinks => (
            "it counts, but not its tunnels: 63 netdevs are or were uplinks; name fewer in uplinks.netdevs and \
             `meter-agent detach`, which ends all totals",
            "uplinks_full",
        ),
    };
    bind_error(target, why, reason)
}
