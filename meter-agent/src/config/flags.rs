//! What the command line says of the configuration.

use std::path::PathBuf;

use clap::Args;

/// Flags that override keys of the file, spelled like them.
///
/// To be flattened into the top-level parser; they may also follow a subcommand. Values are checked with the file's, so
/// that one run shows every mistake.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Configuration")]
pub struct Flags {
    /// The configuration file [default: /etc/meter-agent/meter-agent.toml, which need not exist]
    #[arg(long, value_name = "PATH", global = true)]
    pub config: Option<PathBuf>,
    /// Where to serve /metrics; may be given more than once
    #[arg(long = "web.listen-address", value_name = "ADDR:PORT", global = true)]
    pub http_listen: Vec<String>,
    /// The web configuration of /metrics: TLS, users and headers, in the format of Prometheus' exporters
    #[arg(long = "web.config.file", value_name = "PATH", global = true)]
    pub web_config: Option<String>,
    /// Where to serve Jolokia; may be given more than once
    #[arg(long, value_name = "ADDR:PORT", global = true)]
    pub jolokia_listen: Vec<String>,
    /// The Unix socket of local control
    #[arg(long, value_name = "PATH", global = true)]
    pub control_socket: Option<String>,
    /// Directory for the meters that are added at run time
    #[arg(long, value_name = "PATH", global = true)]
    pub state_directory: Option<String>,
    /// Directory on a bpffs for what outlives the agent
    #[arg(long, value_name = "PATH", global = true)]
    pub datapath_pin_path: Option<String>,
    /// How to attach TC programs: auto, tcx or clsact
    #[arg(long, value_name = "HOW", global = true)]
    pub datapath_tc: Option<String>,
    /// Which hook counts the ingress of uplinks: tc or xdp
    #[arg(long, value_name = "HOOK", global = true)]
    pub uplinks_ingress: Option<String>,
    /// Let /metrics have the families of the Skydive-Prometheus connector too
    #[arg(long = "compat.skydive", global = true)]
    pub compat_skydive: bool,
    /// What to log: error, warn, info, debug, trace, or directives such as info,aya=debug for a library
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
    /// How to log: text or json
    #[arg(long, value_name = "FORMAT", global = true)]
    pub log_format: Option<String>,
}
