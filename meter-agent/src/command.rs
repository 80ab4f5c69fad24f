//! The command line of `meter-agent`, as clap reads it and as the manual pages and completions are made from.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::Flags;

/// What `--help` and the manual page say at their end.
const MORE: &str = "\
Files:
  /etc/meter-agent/meter-agent.toml    the configuration
  /sys/fs/bpf/meter-agent              the totals, until the host reboots
  /run/meter-agent/meter-agent.sock    what meter-agent ls asks

Signals: SIGHUP reads bindings, ports and uplinks again. SIGTERM and SIGINT end the agent; the hooks count on.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 a kernel, a privilege or a bpffs that does not do: starting again \
does not help.";

/// Exact traffic meters for virtual networks. Without a command it runs the daemon.
#[derive(Debug, Parser)]
#[command(name = "meter-agent", version, after_long_help = MORE)]
pub struct Arguments {
    /// What stands above the configuration file.
    #[command(flatten)]
    pub flags: Flags,
    /// Check the configuration, say what is wrong with it, and end
    #[arg(long)]
    pub check_config: bool,
    /// What to do in place of running the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The operator's own commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the netdevs: what each is, its port and device, its hooks, and why not if not
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Hold every meter against the kernel's own statistics; exit code 1 when there is drift that nothing explains
    Audit {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what this kernel and these privileges allow, which hook each netdev gets and why, and what to fix
    Doctor,
    /// Remove every hook, map and pin of this agent, and with them the totals
    Detach,
    /// User-defined meters of the configuration
    Meter {
        /// What to do with them.
        #[command(subcommand)]
        command: MeterCommand,
    },
}

/// What can be done with user-defined meters.
#[derive(Debug, Subcommand)]
pub enum MeterCommand {
    /// Say which meters count a packet, and why; needs no agent
    Explain {
        /// A pcap or pcapng file of Ethernet frames, each of which is explained
        #[arg(long, value_name = "FILE")]
        pcap: Option<PathBuf>,
        /// The packet, as attributes of a rule and their values: src 10.0.0.1 proto 6 dst-port 80 in-ports UUID …,
        /// and fragment none, first or later; with --pcap, what a frame doesn't tell. Devices are those that
        /// the bindings of the configuration give its ports
        #[arg(value_name = "WORD VALUE")]
        packet: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
