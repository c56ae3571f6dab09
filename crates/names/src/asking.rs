//! Questions as containers put them, and what the answers say: for those who look whether names are answered. By the
//! library, so that what is written by hand for speed is judged by somebody else.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, RecordType};

/// A question for the IPv4 addresses behind a name, as it is sent.
pub fn question(name: &str) -> Option<Vec<u8>> {
    let mut message = Message::query();
    let name = Name::from_ascii(format!("{name}.")).ok()?;
    message.queries.push(Query::query(name, RecordType::A));
    message.to_vec().ok()
}

/// The IPv4 addresses of an answer; nothing where it is none.
pub fn addresses_in(answer: &[u8]) -> Option<BTreeSet<IpAddr>> {
    let message = Message::from_vec(answer).ok()?;
    let is_answer = message.metadata.message_type == MessageType::Response
        && message.metadata.response_code == ResponseCode::NoError;
    let addresses = message.answers.iter().filter_map(|record| match record.data {
        RData::A(A(address)) => Some(IpAddr::V4(address)),
        _ => None,
    });
    is_answer.then(|| addresses.collect())
}
