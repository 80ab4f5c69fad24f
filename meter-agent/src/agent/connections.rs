//! Of which ports connections are counted: told to the datapath at each look at what should be.

use std::collections::BTreeSet;

use super::Agent;
use crate::{
    datapath::{Capture, Datapath},
    meter::PortId,
};

/// Ticks before what was refused is tried again.
const WAIT: u32 = 10;

/// What was refused.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// Why; `None` where nothing was.
    why: Option<String>,
    /// What was.
    capture: Capture,
    /// Ticks until it is tried again.
    wait: u32,
}

impl<D: Datapath> Agent<D> {
    /// Has the connections of those ports counted that are selected. Of a port in a namespace that is not looked at yet it is
    /// not known.
    pub(super) fn capture(&mut self) {
        let attached = self.datapath.attached().iter();
        let undecided: BTreeSet<PortId> = attached
            .filter(|(id, _)| !self.namespaces.is_known(id.namespace) && !self.gone.contains(id))
            .map(|(_, attachment)| attachment.target.port)
            .collect();
        let captured = self.survey.captured.clone();
        let underlay =
            self.survey.desired.values().any(|target| target.underlay && captured.contains(&target.port));
        let capture = Capture { underlay, ..self.policy.connections.of(captured, undecided) };
        if self.capture_refusal.wait > 0 && self.capture_refusal.capture == capture {
            // Each change of a netdev comes here, and the verifier takes its time.
            return;
        }
        match self.datapath.set_capture(&capture) {
            Ok(()) => {
                if std::mem::take(&mut self.capture_refusal).why.is_some() {
                    tracing::info!("connections are counted as configured again");
                }
            }
            Err(error) => {
                *self.health.attach_failures.entry("connections").or_default() += 1;
                let why = error.to_string();
                if self.capture_refusal.why.as_ref() != Some(&why) {
                    tracing::error!(
                        error = why,
                        "connections are not counted as configured, those that are known go on; will retry"
                    );
                }
                self.capture_refusal = Refusal { why: Some(why), capture, wait: WAIT };
            }
        }
    }

    /// Lets a second pass: what was refused is tried again after some.
    pub(super) fn tick_capture(&mut self) {
        if self.capture_refusal.why.is_some() {
            self.capture_refusal.wait = self.capture_refusal.wait.saturating_sub(1);
            self.stale |= self.capture_refusal.wait == 0;
        } else {
            self.stale |= !self.datapath.capture_in_force();
        }
    }
}
