//! The kernel ring: the real object in this kernel, on real netdevs in namespaces of each test's own.

mod attach;
mod counting;
mod exact;
mod support;
mod verifier;
