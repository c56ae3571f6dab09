//! What the host asks itself at ::1, for a published port that is served in a container.
//!
//! ```text
//! set looped      { type inet_proto . inet_service }
//! chain loop_out  { ip6 saddr ::1, ip6 daddr ::1, l4proto . dport @looped: ip6 saddr set GATEWAY }
//! chain loop_in   { ct direction reply, ct original ip6 daddr ::1: ip6 daddr set ::1 }
//! ```
//! For 127.0.0.0/8 a masquerade does, with a setting of the bridge. Packets to ::1 that came by a bridge the kernel does not
//! take, and where bridged frames pass the firewall (br_netfilter) it looks after translations are undone. So packets leave
//! loopback under the bridge's address before connections are known, and get their own back after everything else.

use std::net::Ipv6Addr;

use super::expression::{self, Expression};
use super::message::{Batch, Family, Hook};
use super::{INET_PROTO, INET_SERVICE, concatenation};

pub(super) const SET: &str = "looped";

/// Before connections are known (-200).
const BEFORE_CONNECTIONS: i32 = -300;
/// After the sources of answers are put back (100).
const AFTER_SOURCES: i32 = 110;

/// Adds the set and its chains to a table for IPv6. Ports are led to containers where they are members of the set.
pub(super) fn add(batch: &mut Batch, table: &str, gateway: Ipv6Addr) {
    batch.add_set(table, SET, concatenation(&[INET_PROTO, INET_SERVICE]), 8);
    let chain = |hook, priority| Some(Hook { kind: "filter", hook, priority });
    batch.add_chain(table, "loop_out", chain(Hook::OUTPUT, BEFORE_CONNECTIONS));
    batch.add_chain(table, "loop_in", chain(Hook::INPUT, AFTER_SOURCES));
    let (first, loopback) = (expression::FIRST_REGISTER, Family::Ipv6.loopback());
    let leaves = [
        expression::source_in(loopback),
        expression::destination_in(loopback),
        vec![
            Expression::protocol(first),
            Expression::destination_port(first + 1),
            Expression::Member { set: SET, is_member: true },
        ],
        expression::set_source(gateway),
    ];
    batch.add_rule(table, "loop_out", &leaves.concat());
    let comes_back = [
        expression::is_answer(),
        expression::original_destination_is(Ipv6Addr::LOCALHOST),
        expression::set_destination(Ipv6Addr::LOCALHOST),
    ];
    batch.add_rule(table, "loop_in", &comes_back.concat());
}
