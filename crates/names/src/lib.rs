//! Names of services and tasks, answered at 127.0.0.11 in each container.
//!
//! [`Names`] decides what a question means and touches no socket; [`Server`] asks it, and the world where it does not
//! know. Datagrams are answered by the one thread of [`Answerer`].

mod answers;
mod asking;
mod datagrams;
mod message;
mod server;
mod zone;

pub use asking::{addresses_in, question};
pub use datagrams::Answerer;
pub use message::Transport;
pub use server::{Server, host_resolvers};
pub use zone::{Host, Names, Reply, SharedZone, Zone};
