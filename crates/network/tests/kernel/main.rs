//! Sentences about what the kernel does for us, each on hosts of its own. Needs root, iproute2 and nft.

mod bridges;
mod hosts;
mod ingress;
mod overlay;
mod path;
mod ports;
mod sctp;
