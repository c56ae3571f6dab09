//! Counts who comes to a container from outside: connections of TCP that are opened, and flows of datagrams that begin.
//!
//! ```text
//! table inet skep-arrivals {                                           # in the container's namespace
//!   chain arriving { type filter hook prerouting priority -150; iifname "lo" accept;
//!                    tcp flags & (fin|syn|rst|ack) == syn counter; l4proto udp ct state new ct status & confirmed == 0 counter }
//! }
//! ```
//! What a container opens to itself comes by loopback. Connections are told by their first packet, as the kernel may follow
//! those of this namespace only since this table is there; a flow of datagrams that nobody answers is new for ever, and counts once.

use std::path::Path;

use super::expression::{self, Expression};
use super::list;
use super::message::{Hook, NFPROTO_INET};
use super::socket::Socket;
use crate::{Error, namespace};

const TABLE: &str = "skep-arrivals";
const ARRIVING: &str = "arriving";

/// After connections are known (-200).
const PRIORITY: i32 = -150;

/// Who comes to one container, as long as its namespace is there.
#[derive(Debug)]
pub struct Arrivals(Socket);

impl Arrivals {
    /// Counts from now on, in the namespace at `netns`.
    pub(crate) fn within(netns: &Path) -> Result<Self, Error> {
        let opened = namespace::within(netns, || {
            Socket::open().map_err(Error::kernel("open an nftables socket"))
        });
        let mut socket = opened?;
        let mut batch = socket.batch().of_family(NFPROTO_INET);
        batch.remove_table(TABLE);
        batch.add_table(TABLE);
        let hook = Hook { kind: "filter", hook: Hook::PREROUTING, priority: PRIORITY };
        batch.add_chain(TABLE, ARRIVING, Some(hook));
        let from_itself = [expression::input_link("lo"), vec![Expression::Accept]].concat();
        batch.add_rule(TABLE, ARRIVING, &from_itself);
        for begins in [expression::opens_connection(), expression::begins_flow()] {
            batch.add_rule(TABLE, ARRIVING, &[begins, vec![Expression::Counter]].concat());
        }
        socket.commit_to(TABLE, batch)?;
        Ok(Self(socket))
    }

    /// How many have come since the beginning.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn count(&mut self) -> Result<u64, Error> {
        let counted = list::packets(&mut self.0, NFPROTO_INET, TABLE);
        counted.map_err(Error::kernel("count who comes to a container"))
    }
}
