//! The kernel ring: the real object in this kernel, on real netdevs in namespaces of each test's own.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod attach;
mod connections;
mod counting;
mod daemon;
mod exact;
mod guest;
mod meters;
mod monitor;
mod support;
mod verifier;
