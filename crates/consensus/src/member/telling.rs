//! When the others hear how far the log is agreed to.

use raft::StateRole;
use raft::eraftpb::{self, MessageType};

use super::Member;

impl Member {
    /// Whether this member leads and the others do not know yet how far the log is agreed to. The next entries tell
    /// them, so it pays to wait for these a little: it saves a message, a wake-up and an answer of each.
    pub fn has_untold(&self) -> bool {
        let raft = &self.node.raft;
        raft.state == StateRole::Leader && self.told < raft.raft_log.committed && !self.is_stuck()
    }

    /// Tells the others how far the log is agreed to. [`Member::advance`] sends it.
    pub fn tell(&mut self) {
        if self.has_untold() {
            self.told = self.node.raft.raft_log.committed;
            self.node.raft.bcast_append();
        }
    }

    pub(super) fn note_told(&mut self, messages: &[eraftpb::Message]) {
        let committed = self.node.raft.raft_log.committed;
        let tells = |message: &&eraftpb::Message| {
            message.get_msg_type() == MessageType::MsgAppend && message.commit == committed
        };
        // Each of the others gets one at most.
        if messages.iter().filter(tells).count() + 1 >= self.node.raft.prs().iter().count() {
            self.told = committed;
        }
    }
}
