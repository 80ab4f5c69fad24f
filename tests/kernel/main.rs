//! Against the running kernel: needs root, network namespaces and netdevs of its own.

mod monitor;
