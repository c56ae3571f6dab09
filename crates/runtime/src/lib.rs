//! Runs one container from an OCI runtime specification.
//!
//! [`native`] is built in; [`external`] drives any OCI runtime binary (runc, crun, runsc). Both take
//! the same [`spec::Spec`], so that the binaries of a distribution are the oracle the built-in
//! runtime is tested against. Nothing here waits, logs or keeps state between calls: the caller
//! (the shim) owns the processes. Callers of [`native`] must be single-threaded, because the child
//! goes on in a copy of their memory.

pub mod capability;
pub mod cgroup;
pub mod defaults;
mod error;
pub mod external;
pub mod native;
pub mod process;
pub mod seccomp;
pub mod spec;

pub use error::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_NOT_STARTED, Error, errno_text};
