//! Who takes part in the managers' consensus.

use std::collections::BTreeSet;

/// Members by their raft identifiers. What is reachable and caught up only the leader knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    pub voters: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
    /// Those heard of lately.
    pub reachable: BTreeSet<u64>,
    /// Learners that could vote at once.
    pub caught_up: BTreeSet<u64>,
}

impl Peers {
    pub fn contains(&self, raft_id: u64) -> bool {
        self.voters.contains(&raft_id) || self.learners.contains(&raft_id)
    }

    /// Whether those left could agree without `raft_id`: more than half of them have to be reachable.
    pub fn can_spare(&self, raft_id: u64) -> bool {
        let left = self.voters.iter().filter(|voter| **voter != raft_id);
        let reachable = left.clone().filter(|voter| self.reachable.contains(voter)).count();
        !self.voters.contains(&raft_id) || reachable > left.count() / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_can_be_spared_while_the_others_can_agree() {
        for (voters, reachable, id, expected) in [
            (&[1][..], &[1][..], 1, false),
            (&[1, 2], &[1, 2], 2, true),
            (&[1, 2, 3], &[1, 2, 3], 3, true),
            (&[1, 2, 3], &[1, 2], 2, false),
            (&[1, 2, 3], &[1, 2], 3, true),
            (&[1, 2, 3, 4, 5], &[1, 2, 3], 3, false),
            (&[1, 2, 3, 4, 5], &[1, 2, 3], 5, true),
            (&[1, 2, 3], &[1], 9, true),
        ] {
            let peers = Peers {
                voters: voters.iter().copied().collect(),
                reachable: reachable.iter().copied().collect(),
                ..Peers::default()
            };
            assert_eq!(peers.can_spare(id), expected, "{voters:?} {reachable:?} without {id}");
        }
    }
}
