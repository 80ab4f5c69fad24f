//! What a client and an operator see: the servers on sockets and the binaries as processes. Needs no root.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod bytes;
mod clients;
mod jolokia;
mod meter_agent;
mod meters;
mod mm_meter;
mod names;
mod prometheus;
mod rules;
mod served;
mod units;
mod web;
