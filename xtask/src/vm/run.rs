//! `cargo xtask vm run`: the agent on one of Debian's kernels, with the lab around it, for a look.

use std::ffi::OsString;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{
    archive::Archive,
    guest::{Guest, Processor},
    kernel::Kernel,
    programs, set_up,
};
use crate::{binaries, executable};

/// Boot a guest with the agent and the lab in it, and run a command or a shell on one of the lab's hosts
#[derive(Args)]
pub(crate) struct Options {
    /// The kernel's series, such as 5.10 or 6.12; of 7 the newest
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Without the lab: nothing runs in the guest but the command
    #[arg(long)]
    bare: bool,
    /// What to run in the guest; without it a shell
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Starts the lab, and says where to look once its agents count and its traffic runs.
const LAB: &str = "echo 'the lab starts (a minute without hardware virtualization)'
: >/tmp/lab.log
xtask lab --slower $slower --agent /usr/bin/meter-agent --mm-meter /usr/bin/mm-meter >>/tmp/lab.log 2>&1 &
lab=$!
while kill -0 $lab 2>/dev/null && ! grep -q 'ports rx' /tmp/lab.log; do sleep 1; done
cat /tmp/lab.log
on_host() { nsenter --net=/run/netns/meter-lab-$lab-a \"$@\"; }
exec_shell() { echo 'This is the lab host a; its log is /tmp/lab.log, and exit ends all.'; on_host setsid cttyhack sh; }
";

/// Ends the lab, which compares its totals, and fails where the command or the lab did.
const LAB_END: &str = "
code=$?
kill -TERM $lab
wait $lab || [ $code != 0 ] || code=$?
grep -A 100 '^host meter' /tmp/lab.log || cat /tmp/lab.log
(exit $code)";

/// Boots one guest, with the agent's release binaries on its `PATH`.
///
/// # Errors
///
/// What is missing, or how the command or the lab ended.
pub(crate) fn run(options: &Options) -> Result<()> {
    set_up()?;
    let kernel = Kernel::fetch(&options.kernel)?;
    let built = binaries::build()?;
    let processor = Processor::of_this_machine(&kernel)?;
    let mut archive = Archive::new();
    programs::add_common(&mut archive, &kernel)?;
    programs::add(&mut archive, &built.agent, "/usr/bin/meter-agent")?;
    programs::add(&mut archive, &built.mm_meter, "/usr/bin/mm-meter")?;
    let command = options.command.iter().map(executable::quoted).collect::<Vec<_>>().join(" ");
    let line = if options.bare {
        if command.is_empty() { "exec_shell".to_owned() } else { command }
    } else {
        let own = std::env::current_exe().context("cannot tell where xtask itself is")?;
        programs::add_stripped(&mut archive, &own, "/usr/bin/xtask")?;
        let on_host = if command.is_empty() { "exec_shell".to_owned() } else { format!("on_host {command}") };
        let slower = processor.slower();
        format!("slower={slower}\n{LAB}{on_host}{LAB_END}")
    };
    let code = Guest::new(&kernel, archive, &line)?.attached(processor)?;
    if code != 0 {
        bail!("what ran in the guest ended with {code}");
    }
    Ok(())
}
