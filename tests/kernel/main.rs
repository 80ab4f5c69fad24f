//! The kernel ring: the real object in this kernel, on real netdevs in namespaces of each test's own.

mod attach;
mod counting;
mod daemon;
mod exact;
mod monitor;
mod support;
mod verifier;
