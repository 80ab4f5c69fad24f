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

/// `ENOTSUPP`, which the kernel has for itself: where the JIT is the only way to run a program, it says so for want of memory.
const NOT_COMPILED: i32 = 524;

/// Returns what the verifier did not like of a program; `None` where it has not refused it.
pub(super) fn refusal(name: &str, error: &ProgramError) -> Option<String> {
    // What there was no memory, no time or no descriptor for has not been refused, whatever the verifier said until then.
    let is_over = !matches!(
        errno(error),
        Some(libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE | NOT_COMPILED)
    );
    let ProgramError::LoadError { io_error, verifier_log } = error else { return None };
    let log = verifier_log.to_string();
    if !is_over || log.is_empty() {
        return None;
    }
    tracing::debug!(program = name, log, "the kernel refuses the program");
    Some(format!("the kernel refuses the program {name} ({io_error}): {}", last_words(&log)))
}

/// Lines that end a verifier's log whatever it says.
const STATISTICS: [&str; 3] = ["verification time ", "stack depth ", "processed "];

/// Returns what a verifier's log, which may have megabytes, ends in.
fn last_words(log: &str) -> String {
    let says = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    let mut words: Vec<&str> = log.lines().rev().filter(says).take(4).collect();
    words.reverse();
    words.join("; ")
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

#[cfg(test)]
mod tests {
    use super::last_words;

    #[test]
    fn verifiers_last_words_are_what_it_did_not_like() {
        let log = "func#0 @0\n0: R1=ctx()\n1: (79) r2 = *(u64 *)(r1 +8)\ninvalid bpf_context access off=8 size=8\n\n\
                   verification time 53 usec\nstack depth 0\nprocessed 2 insns (limit 1000000) max_states_per_insn 0\n";
        let expected =
            "func#0 @0; 0: R1=ctx(); 1: (79) r2 = *(u64 *)(r1 +8); invalid bpf_context access off=8 size=8";
        assert_eq!(last_words(log), expected);
        let long = format!("{}BPF program is too large\n", "12: (bf) r6 = r1\n".repeat(100_000));
        assert_eq!(last_words(&long).matches("; ").count(), 3);
    }
}
