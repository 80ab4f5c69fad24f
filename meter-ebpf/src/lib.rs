//! What crosses the kernel boundary: the maps' keys and values ([`abi`]), the header walk ([`packet`]), the rules of
//! user-defined meters ([`rules`]) and the course of connections ([`connection`]).
//!
//! The library builds for every target. The programs (`main.rs` and its modules, which are not in this list)
//! build only for `bpfel-unknown-none` and are thin: each reads a few fields of its context and calls this library, which is
//! tested on byte slices without root.
//!
//! # Rules for changing the ABI
//!
//! Maps outlive the agent: they stay pinned across restarts and upgrades. A change of a key, a value, the meaning of
//! a field or the numbering of a reason is a new [`abi::VERSION`], which is part of the pin path. Adding a map or
//! a reason at the end of the list is not.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod connection;
pub mod packet;
pub mod register;
pub mod rules;
