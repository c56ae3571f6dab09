//! At most one leader in a term (Ongaro and Ousterhout, "In search of an understandable consensus algorithm",
//! figure 3, election safety).

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct OneLeader(BTreeMap<u64, u64>);

impl OneLeader {
    pub(crate) fn note(&mut self, term: u64, raft_id: u64) -> Result<(), String> {
        match *self.0.entry(term).or_insert(raft_id) {
            known if known == raft_id => Ok(()),
            known => Err(format!("{known:x} and {raft_id:x} both lead term {term}")),
        }
    }
}
