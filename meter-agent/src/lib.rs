//! Exact traffic meters for virtual networks.
pub mod binding;
pub mod cli;
pub mod datapath;
pub mod http;
pub mod jolokia;
pub mod meter;
pub mod netdev;
pub mod publish;
pub mod reconcile;
pub mod roles;
pub mod snapshot;
