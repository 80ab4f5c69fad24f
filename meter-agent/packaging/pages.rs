//! Writes the manual pages and the shell completions of both programs into a directory, from what the programs
//! themselves take: `cargo run --example pages -- DIRECTORY`.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use meter_agent::{cli, command};

fn main() -> Result<()> {
    let directory = env::args_os().nth(1).map(PathBuf::from).context("which directory?")?;
    let programs = [(command::Arguments::command(), "8"), (cli::command(), "1")];
    for (program, section) in programs {
        // Its page would say what the others say.
        let mut program = program.disable_help_subcommand(true);
        program.build();
        write_pages(&program, section, &directory.join("man"))?;
        write_completions(&mut program, &directory)?;
    }
    Ok(())
}

/// Writes the page of a command, and one of each of its own commands.
fn write_pages(command: &Command, section: &str, directory: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let page = Man::new(command.clone())
        .section(section)
        .source(format!("meter-agent {}", env!("CARGO_PKG_VERSION")))
        .manual("meter-agent");
    let mut text = Vec::new();
    page.render(&mut text)?;
    write(directory, &format!("{name}.{section}"), &text)?;
    for command in command.get_subcommands() {
        write_pages(command, section, directory)?;
    }
    Ok(())
}

fn write_completions(program: &mut Command, directory: &Path) -> Result<()> {
    let name = program.get_name().to_owned();
    for (shell, place, file) in [
        (Shell::Bash, "bash", name.clone()),
        (Shell::Zsh, "zsh", format!("_{name}")),
        (Shell::Fish, "fish", format!("{name}.fish")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, program, &name, &mut text);
        write(&directory.join(place), &file, &text)?;
    }
    Ok(())
}

fn write(directory: &Path, name: &str, text: &[u8]) -> Result<()> {
    let written: io::Result<()> =
        fs::create_dir_all(directory).and_then(|()| fs::write(directory.join(name), text));
    written.with_context(|| format!("cannot write {}", directory.join(name).display()))
}
