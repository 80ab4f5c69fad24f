//! `meter-agent meter explain`: which user-defined meters count a packet, and why.
//!
//! Needs no agent: it asks the plain matcher of [`rules`], with the meters of a set.

mod capture;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use self::capture::Capture;
pub use self::capture::CaptureError;
use crate::{
    meter::{DeviceId, FlowStats, PortId},
    rules::{self, Flows, MeterSet, Packet},
};

/// There is nothing to explain, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The words of the packet are wrong.
    #[error("{0}")]
    Words(String),
    /// There is no meter.
    #[error("the configuration has no [[meter]]: no user-defined meter counts anything")]
    NoMeters,
    /// The file of packets can't be read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// What was found can't be written.
    #[error("write what was found")]
    Write(#[from] io::Error),
}

/// Explains the packet of some words, or each frame of a capture file; words then say what a frame doesn't tell, such as
/// its port. `devices` are those that ports are known to belong to, which a packet has then come through.
///
/// # Errors
///
/// What is wrong with the words or the file. What was explained before has been written.
pub fn run(
    set: &MeterSet,
    devices: &BTreeMap<PortId, DeviceId>,
    words: &[String],
    capture: Option<&Path>,
    out: &mut impl Write,
) -> Result<(), ExplainError> {
    if words.is_empty() && capture.is_none() {
        let what = "say which packet: words such as \"src 10.0.0.1 proto 6 dst-port 80\", or --pcap FILE";
        return Err(ExplainError::Words(what.to_owned()));
    }
    // They are read before the file, so that what is wrong with them is said at once.
    let packet = with_words(set, Packet::default(), words, devices)?;
    if set.meters.is_empty() {
        return Err(ExplainError::NoMeters);
    }
    let Some(path) = capture else {
        write!(out, "packet: {packet}\n{}", rules::explain(set, &packet))?;
        return Ok(out.flush()?);
    };
    let mut totals: BTreeMap<&str, FlowStats> = BTreeMap::new();
    let mut capture = Capture::open(path)?;
    let mut flows = Flows::default();
    let mut number = 0_u64;
    while let Some(frame) = capture.next_frame()? {
        number += 1;
        let bytes = frame.length;
        let mut packet = rules::fields(frame.bytes);
        packet.flow = flows.note(None, &packet, rules::tcp_flags(frame.bytes));
        let packet = with_words(set, packet, words, devices)?;
        writeln!(out, "frame {number}, {bytes} bytes: {packet}\n{}", rules::explain(set, &packet))?;
        for meter in set.counting(&packet) {
            *totals.entry(&meter.name).or_default() += FlowStats { packets: 1, bytes: bytes.into() };
        }
    }
    writeln!(out, "of {number} frames:")?;
    for meter in &set.meters {
        let FlowStats { packets, bytes } = totals.get(meter.name.as_str()).copied().unwrap_or_default();
        writeln!(out, "{}: {packets} packets, {bytes} bytes", meter.name)?;
    }
    Ok(out.flush()?)
}

fn with_words(
    set: &MeterSet,
    mut packet: Packet,
    words: &[String],
    devices: &BTreeMap<PortId, DeviceId>,
) -> Result<Packet, ExplainError> {
    packet.set_words(words.iter().map(String::as_str)).map_err(ExplainError::Words)?;
    let ports = packet.in_port.into_iter().chain(packet.out_port);
    packet.traversed.extend(ports.filter_map(|port| devices.get(&port)).map(|device| device.0));
    set.meet_routers(&mut packet, |port| devices.get(&port).copied());
    Ok(packet)
}

#[cfg(test)]
mod tests;
