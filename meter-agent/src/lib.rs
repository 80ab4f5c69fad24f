//! Exact traffic meters for virtual networks: from eBPF to Prometheus, Jolokia and the shell.
//!
//! This page is the architecture. The kernel half is [`meter_ebpf`]: its library holds what crosses the kernel boundary.
//!
//! # The way of a packet
//!
//! ```text
//! frame ─► meter_in | meter_out | meter_up_in | meter_up_out | meter_up_xdp    meter-ebpf/src/main.rs
//!       ─► ARRAY[ifindex] ─► slot ─► this CPU's counters of the slot           meter-ebpf/src/maps.rs
//!       ─► at an uplink: the outer headers ─► tunnel, or a bucket with a reason  meter-ebpf/src/packet.rs
//! ⋯ when somebody asks ⋯
//! GET /metrics, exec listMeters, mm-meter get …
//!       ─► publish::SnapshotReader::fresh ─► agent::Event::Refresh
//!       ─► datapath::Datapath::read: every map, summed over CPUs                datapath/kernel.rs
//!       ─► snapshot::Snapshot: immutable; whoever waits gets the same one       agent/compose.rs
//! ```
//!
//! The totals are in the kernel's maps, which are pinned wherever that can be. The agent adds nothing up over time, so an agent that is
//! killed loses nothing, and reading changes nothing.
//!
//! # The way of a netdev
//!
//! ```text
//! RTM_NEWLINK, RTM_DELLINK, … ─► netdev::monitor ─► agent::Event::Netdev
//! SIGHUP ─► config ─► agent::Event::Configured
//!                ▼
//! survey::Survey: binding (which port?) ─► roles (port, uplink, tunnel?) ─► reconcile::desired
//!                ▼
//! reconcile::plan(desired, attached) ─► Step::Attach: slot and map entry, then TCX | clsact | XDP
//!                                    ─► Step::Detach: hooks, then the entry; the port keeps its total
//! ```
//!
//! The programs of ports are loaded at the start, and so are those that netdevs which count already are to run: where the kernel
//! refuses one, the agent doesn't start. Others are loaded with the first netdev that takes them.
//!
//! Where namespaces are followed, [`netdev::namespaces`] does for each of them what the monitor does for the host's, and the
//! datapath enters a netdev's namespace on a thread that ends with it. A netdev is known by its namespace and its ifindex
//! ([`netdev::NetdevId`]); its programs are the object loaded once more, with the namespace's number in it.
//!
//! Level-triggered: the plan compares what is with what should be, so a lost event, a failed attach and a start are one
//! case.
//!
//! # The way of a rule
//!
//! ```text
//! [[meter]] ─► config ─► rules::MeterSet ─► rules::matches: what a meter counts, plain and slow
//!                                        ─► explain: which meters count a packet, and why
//! SIGHUP ─► agent::Event::Configured ┐
//! meter-agent meter add ─► control ─► agent::Event::Change
//!                ▼                   ▼
//! definitions::Definitions: all that are wanted ─► definitions::state: kept ─► datapath::Datapath::set_meters
//! ```
//!
//! # The way of an audit
//!
//! ```text
//! every audit.interval, meter-agent audit ─► service: kernel's statistics, our counters twice, statistics again
//!                ▼
//! audit::Auditor::judge ─► audit::Report ─► agent::Event::Audited ─► the snapshot
//! ```
//!
//! # Invariants
//!
//! 1. The programs decide nothing and write to no packet; they return "next".
//! 2. We remove only what we made: a clsact qdisc that was there stays, another's XDP program is left and reported.
//! 3. One hook per netdev and direction: XDP or TC, never both.
//! 4. A netdev's map entry exists before its hook, and its totals are on its port before the entry goes.
//! 5. One thread owns all mutable state ([`agent`]); everybody else sees snapshots. Rates are kept beside it
//!    ([`jmx::activity`]), for beans only.
//! 6. Every frame that is not attributed is counted with a reason ([`meter_ebpf::abi::Bucket`]).
//! 7. One netdev, one server, one reader that fails costs the others nothing.
//! 8. [`audit`], [`binding`], [`connections`], [`connector`], [`definitions`] but for their file, most of [`jmx`], [`meter`], [`netdev`], [`reconcile`], [`roles`], [`rules`], [`snapshot`],
//!    [`survey`] and [`totals`] do no I/O and know no clock. `aya` is known to [`datapath`] only, netlink to [`netdev::monitor`] and the clsact code, the
//!    HTTP library to [`http`], [`control`] and the client of [`jolokia`]. `unsafe` is in
//!    `datapath/mapped.rs` and below `datapath/sys.rs`.
//!
//! `cargo xtask tidy` holds the tree to the last one, and to who may import whom.

pub mod agent;
pub mod aside;
pub mod audit;
pub mod binding;
pub mod cli;
mod columns;
pub mod command;
pub mod config;
pub mod connections;
pub mod connector;
pub mod control;
pub mod datapath;
pub mod definitions;
pub mod doctor;
pub mod explain;
pub mod http;
pub mod jmx;
pub mod jolokia;
pub mod ls;
pub mod meter;
pub mod netdev;
pub mod process;
pub mod publish;
pub mod reconcile;
pub mod roles;
pub mod rules;
pub mod service;
pub mod snapshot;
pub mod survey;
pub mod totals;
mod yaml;
