//! `mm-meter`: MidoNet's tool for meters, option for option and byte for byte, over Jolokia in place of RMI.
//!
//! Exit codes are 0 and 1. What is wrong with the arguments goes to standard output, what goes wrong afterwards to
//! standard error, as it did; where Java's own text would follow, this agent's does. Where the original lost its
//! connection and ended, a call that finds the connection closed is made once more on another.

mod arguments;
mod describe;

use std::{
    ffi::OsString,
    io::{self, BufWriter, IsTerminal as _, Read as _, Write},
    time::Duration,
};

use arguments::{Command, Question, UsageError};
pub use describe::command;

use crate::jolokia::client::{Client, ClientError, FlowStats, PATIENCE};

/// Runs the tool with the arguments after its name; returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<String> =
        arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let outcome = match arguments::parse(&arguments, &read_file) {
        Ok(Command::Help(text)) => io::stdout().write_all(text.as_bytes()).map_err(Failure::Output),
        Ok(Command::Ask { host, port, question }) => ask(&host, port, &question),
        Ok(Command::Nothing) => Err(Failure::NoCommand),
        Err(error) => Err(Failure::Usage(error)),
    };
    match outcome {
        Ok(()) => return 0,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return 0,
        // There is nowhere to report that a report can't be written.
        Err(Failure::Usage(error)) => bad_usage(&error).ok(),
        Err(failure) => writeln!(io::stderr(), "[mm-meter] Failed: {failure}").ok(),
    };
    1
}

/// Why there is nothing, or no more, to print.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Usage(UsageError),
    #[error("[mm-meter] must specify a valid command")]
    NoCommand,
    #[error("[mm-meter] Failed to connect to remote agent: {0}")]
    Connect(ClientError),
    #[error("{0}")]
    Call(#[from] ClientError),
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

fn ask(host: &str, port: i32, question: &Question) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    let outcome = runtime.block_on(async {
        let mut client = Client::connect(host, port, PATIENCE).await.map_err(Failure::Connect)?;
        match question {
            Question::List => list(&mut client).await,
            Question::Get { meter, delay, count } => get(&mut client, meter, *delay, *count).await,
        }
    });
    // A name that is still being looked up must not keep the tool from ending.
    runtime.shutdown_background();
    outcome
}

async fn list(client: &mut Client) -> Result<(), Failure> {
    let meters = client.list_meters().await?;
    let mut out = BufWriter::new(io::stdout().lock());
    for meter in meters {
        writeln!(out, "{meter}")?;
    }
    Ok(out.flush()?)
}

/// Prints the meter's totals, then what is added from report to report.
///
/// The difference is negative where an agent started anew in between. The pause follows each report, the last one
/// included: four reports a minute apart take four minutes.
async fn get(client: &mut Client, meter: &str, delay: i32, count: i32) -> Result<(), Failure> {
    let pause = u64::try_from(delay).ok().filter(|&delay| delay > 0).map(Duration::from_secs);
    let mut left = if pause.is_some() { count } else { 1 };
    // Standard output is buffered by the line, so each report is out before the pause.
    let mut out = io::stdout();
    writeln!(out, "{:>12} {:>12}", "packets", "bytes")?;
    let mut last = FlowStats::default();
    loop {
        let now = client.get_meter(meter).await?;
        let packets = now.packets.wrapping_sub(last.packets);
        let bytes = now.bytes.wrapping_sub(last.bytes);
        writeln!(out, "{packets:>12} {bytes:>12}")?;
        last = now;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        left = left.saturating_sub(1);
        if left <= 0 {
            return Ok(());
        }
    }
}

/// Reports bad usage on standard output, where scallop did, the tool's name in red on a console.
fn bad_usage(error: &UsageError) -> io::Result<()> {
    let console = io::stdin().is_terminal() && io::stdout().is_terminal();
    let name = if console { "\x1b[31mmm-meter\x1b[0m" } else { "mm-meter" };
    writeln!(io::stdout(), "[{name}] Error: {error}")
}

fn read_file(name: Option<&str>) -> Result<String, String> {
    let text = match name {
        Some(name) => std::fs::read_to_string(name),
        None => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map(|_| text)
        }
    };
    text.map_err(|error| error.to_string())
}
