//! `mm-meter`: lists and reads the meters of an agent, as MidoNet's tool of this name did.

use std::process::ExitCode;

fn main() -> ExitCode {
    meter_agent::cli::run(std::env::args_os().skip(1)).into()
}
