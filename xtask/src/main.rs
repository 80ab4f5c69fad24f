//! The project's own commands. `cargo xtask help` lists them.
//!
//! Each subcommand is a file. Everything that xtask says goes to standard error and begins with `xtask:`; standard
//! output belongs to the commands that it starts.

mod apt;
mod bench;
mod binaries;
mod clients;
mod console;
mod dist;
mod ebpf;
mod executable;
mod lab;
mod run;
mod setup;
mod stamp;
mod test;
mod tidy;
mod toolchain;
mod tools;
mod vm;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// Builds, runs and tests meter-agent, and sets up what that takes.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the eBPF object and the release binaries meter-agent and mm-meter
    Build,
    /// Build the eBPF object only; EBPF_OBJECT=PATH names one that is built already
    BuildEbpf {
        /// Build target/meter-log.bpf.o instead: the same programs with logs through aya-log
        #[arg(long)]
        log: bool,
    },
    /// Build, then run the agent on this host with the flags after `--` (needs root)
    Run(run::Options),
    /// Build the packages: target/dist/meter-agent.deb and .rpm
    Dist,
    /// Run every test that this user can run; as root that includes the kernel tests
    Test {
        /// Run the kernel tests, and only those, on Debian's kernels in virtual machines: on each supported one, or on
        /// those of some series, such as --vm=5.10,7; arguments are the test binary's then
        #[arg(long, value_name = "SERIES", num_args = 0.., value_delimiter = ',', require_equals = true)]
        vm: Option<Vec<String>>,
        /// Build the packages and test those, on a Debian with systemd in a virtual machine with Debian's kernel 6.1, or of
        /// another series and its release where that is no older than this system's, such as --system=6.12 for Debian 13
        /// (needs root)
        #[arg(
            long,
            value_name = "SERIES",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = vm::system::SERIES,
            conflicts_with_all = ["vm", "arguments"]
        )]
        system: Option<String>,
        /// Arguments of `cargo test`
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Boot a virtual machine with the agent in it, and run a command or a shell
    Vm {
        #[command(subcommand)]
        command: Vm,
    },
    /// Run the lab with binaries that are there already, as in a virtual machine, where nothing can be built
    #[command(hide = true)]
    Lab(lab::LabOptions),
    /// Measure the programs and a scrape beside their floors (needs root)
    Bench {
        /// Arguments of the bench
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Install what building and testing take, once: compiler, linker and test tools
    Setup,
    /// Check what neither rustc nor clippy does: who imports whom, where unsafe is, left-over notes
    Tidy,
}

#[derive(Subcommand)]
enum Vm {
    /// Boot it
    Run(vm::run::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Build => binaries::run(),
        Command::BuildEbpf { log } => {
            ebpf::run(if log { ebpf::Object::MeterLog } else { ebpf::Object::Meter })
        }
        Command::Run(options) => run::run(&options),
        Command::Dist => dist::run().map(drop),
        Command::Test { system: Some(series), .. } => vm::system::test(&series),
        Command::Test { vm: Some(series), arguments, .. } => vm::test(&series, &arguments),
        Command::Test { arguments, .. } => test::run(&arguments),
        Command::Vm { command: Vm::Run(options) } => vm::run::run(&options),
        Command::Lab(options) => lab::run(&options),
        Command::Bench { arguments } => bench::run(&arguments),
        Command::Setup => setup::run(),
        Command::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Names of the subcommands, for the check that documents name no other.
fn subcommands() -> Vec<String> {
    use clap::CommandFactory as _;
    Arguments::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_after_two_dashes_are_the_agents() {
        let arguments = Arguments::parse_from(["xtask", "run", "--for", "2s", "--", "--config", "a.toml"]);
        let Command::Run(options) = arguments.command else { panic!("not run") };
        assert_eq!(options.flags, ["--config", "a.toml"]);
        assert_eq!(options.duration, Some(std::time::Duration::from_secs(2)));
        assert!(!options.lab);
    }
}
