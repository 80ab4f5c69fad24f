//! The command line of `meter-agent`, as clap reads it and as the manual pages and completions are made from.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{
    config::{Flags, rule_table},
    connections::list::{self, Order},
    meter::PortId,
    rules::{Prefix, prefix},
};

/// What `--help` and the manual page say at their end.
const MORE: &str = "\
Files:
  /etc/meter-agent/meter-agent.toml    the configuration
  /sys/fs/bpf/meter-agent              the totals, until the host reboots
  /run/meter-agent/meter-agent.sock    what meter-agent ls asks
  /var/lib/meter-agent/meters.json     the meters that were added at run time

Signals: SIGHUP reads bindings, meters, ports, uplinks and which connections are counted again. SIGTERM and SIGINT end the agent; the hooks count on where they are pinned.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 a kernel, a privilege, a memory limit or pins that do not do: \
starting again does not help.";

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
    /// List the connections that are counted: who began them, what each end has sent, the round trip
    Connections {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// In which order: bytes, packets or rtt (the largest first), age or idle
        #[arg(long, value_name = "ORDER", default_value = "bytes")]
        sort: Order,
        /// List so many at most
        #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
        limit: usize,
        /// Only those of this port
        #[arg(long, value_name = "UUID", value_parser = |text: &str| text.parse().map(PortId))]
        port: Option<PortId>,
        /// Only those of this protocol: tcp, udp, sctp, icmp or icmpv6
        #[arg(long, value_name = "NAME", value_parser = list::protocol)]
        protocol: Option<String>,
        /// Only those of which an end has this address, or one of this network
        #[arg(long, value_name = "ADDRESS", value_parser = prefix)]
        address: Option<Prefix>,
        /// Only those of which an end has this port of TCP, UDP or SCTP
        #[arg(long, value_name = "NUMBER")]
        number: Option<u16>,
    },
    /// Print what a prom_sky_con.yml of the Skydive-Prometheus connector says as keys of this agent's configuration, and say
    /// which of its keys mean nothing here
    ConvertConnector {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Say what this kernel and these privileges allow, which hook each netdev gets and why, and what to fix
    Doctor,
    /// Remove every hook, map and pin of this agent, and with them the totals
    Detach,
    /// User-defined meters: add, remove and list them, and explain what they count
    Meter {
        /// What to do with them.
        #[command(subcommand)]
        command: MeterCommand,
    },
}

/// What can be done with user-defined meters.
#[derive(Debug, Subcommand)]
pub enum MeterCommand {
    /// Let the agent count one more meter from now on, also after a restart
    Add {
        /// Give a meter that was added before these rules in place of its own; it keeps its totals
        #[arg(long)]
        replace: bool,
        /// What it is called: meters:user:NAME. Names of the configuration are the configuration's
        name: String,
        /// The rules, each in quotes: a line as midonet-cli prints it ('proto 6 dst-port 80'), or a table as in the
        /// configuration ('{proto = 6, dst_port = "80-90"}'). Words without quotes are one rule
        #[arg(value_name = "RULE", required = true)]
        rules: Vec<String>,
    },
    /// Let the agent count a meter no more that was added at run time; one of its name that is added later goes on from its
    /// totals
    Remove {
        /// What it is called
        name: String,
    },
    /// List the meters with their rules, where they come from, and their totals
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say which meters count a packet, and why; needs no agent, without one it knows those of the configuration
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

/// Returns the rule lines of what stands behind a meter's name on the command line. What is wrong with a line stays so.
///
/// # Errors
///
/// Everything that is wrong with rules that are tables.
pub fn rule_lines(words: &[String]) -> Result<Vec<String>, Vec<String>> {
    let is_table = |word: &str| word.trim_start().starts_with('{');
    if !words.iter().any(|word| is_table(word) || word.contains(char::is_whitespace)) {
        return Ok(vec![words.join(" ")]);
    }
    let mut lines = Vec::new();
    let mut mistakes = Vec::new();
    for (number, word) in (1..).zip(words) {
        if !is_table(word) {
            lines.push(word.clone());
            continue;
        }
        match rule_table(word.trim()) {
            Ok(condition) => lines.push(condition.to_string()),
            Err(wrong) => mistakes.extend(wrong.into_iter().map(|what| format!("rule {number}: {what}"))),
        }
    }
    if mistakes.is_empty() { Ok(lines) } else { Err(mistakes) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{Arguments, rule_lines};

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn words_are_one_rule_and_what_is_quoted_is_a_rule_each() {
        let read = |words: &[&str]| rule_lines(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        let lines = |lines: &[&str]| Ok(lines.iter().map(ToString::to_string).collect());
        assert_eq!(read(&["proto", "6", "dst-port", "80"]), lines(&["proto 6 dst-port 80"]));
        assert_eq!(read(&["proto 6 dst-port 80"]), lines(&["proto 6 dst-port 80"]));
        assert_eq!(read(&["proto 6", "proto 17", "inverted"]), lines(&["proto 6", "proto 17", "inverted"]));
        assert_eq!(
            read(&["proto 6", r#" {proto = 17, dst_port = "!53", src = "2001:db8::/32"}"#]),
            lines(&["proto 6", "src 2001:db8::/32 proto 17 dst-port !53 fragment-policy header"])
        );
        assert_eq!(read(&["{}"]), lines(&["fragment-policy any"]));
        let wrong = [
            r#"{proto = 300, dst_port = "9-8", nope = 1}"#,
            "{proto = }",
            "{proto = 6} junk",
            r#"{dst_port = 80, fragment_policy = "any"}"#,
        ];
        let mistakes = read(&wrong).unwrap_err();
        let expected = [
            "rule 1: column 2: proto: \"300\" is out of range (0 to 255)",
            "rule 1: column 15: dst_port: \"9-8\" is upside down; expected 8-9",
            "rule 1: column 33: unknown key \"nope\"; known are: hw_src, ",
            "rule 2: column 10: not TOML: ",
            "rule 3: column 12: not TOML: unexpected content, expected nothing",
            "rule 4: column 17: fragment_policy: any is not possible with src-port or dst-port, which later fragments have \
             not; expected header or unfragmented",
        ];
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:?}");
        for (mistake, expected) in mistakes.iter().zip(expected) {
            assert!(mistake.starts_with(expected), "{mistake}");
        }
    }
}
