//! A task never runs on two nodes (design, section 4, rule 5).

use std::collections::BTreeMap;

use types::{NodeId, TaskId};

#[derive(Debug, Default)]
pub(crate) struct OneNodePerTask(BTreeMap<TaskId, NodeId>);

impl OneNodePerTask {
    pub(crate) fn started(&mut self, task: TaskId, node: NodeId) -> Result<(), String> {
        match *self.0.entry(task).or_insert(node) {
            known if known == node => Ok(()),
            known => Err(format!("task {task} runs on {known} and on {node}")),
        }
    }
}
