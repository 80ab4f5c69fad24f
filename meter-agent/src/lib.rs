//! Exact traffic meters for virtual networks.
pub mod agent;
pub mod binding;
pub mod config;
pub mod control;
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
pub mod survey;
