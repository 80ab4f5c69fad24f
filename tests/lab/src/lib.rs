//! Hosts, guests and wires made of network namespaces.
//!
//! What the lab (`cargo xtask run --lab`) and the kernel tests stand on. Nothing here knows how the meter counts:
//! the counts of [`wire::Wire`] and [`guest::Guest`] come from a header parser of their own, so that an error in
//! one of the two shows as a difference.
//!
//! | module | owns |
//! |---|---|
//! | [`netns`] | a network namespace of our own, and the processes in it |
//! | [`netdev`] | netdevs, addresses, neighbours and statistics in it |
//! | [`tap`] | a tap and the frames that go through its file descriptor |
//! | [`wire`] | a cable between two namespaces that counts each frame |
//! | [`guest`] | a guest behind a tap or a veth, as a virtual machine would be |
//! | [`traffic`] | transfers of a known size, each with a deadline |
//! | [`http`] | asking a server in a namespace |
//! | [`mod@amount`] | how much of something a test does |
//! | [`load`] | traffic that runs until it is told to stop |
//! | [`require`] | what a test needs, and what happens where that is missing |
//!
//! Everything is dropped whole: a namespace takes its netdevs and processes with it, a tap its netdev, a wire its
//! threads. Nothing outlives the process that made it but the name of a namespace, when that process is killed
//! before it could drop it; [`netns::remove_stale`] removes those.

pub mod amount;
pub mod count;
pub mod error;
mod frame;
pub mod guest;
pub mod http;
pub mod load;
pub mod mac;
pub mod netdev;
pub mod netns;
mod relay;
pub mod require;
pub mod tap;
pub mod traffic;
pub mod wire;

pub use amount::{amount, slower};
pub use error::{Error, Result};
