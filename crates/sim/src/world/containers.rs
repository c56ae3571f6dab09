//! A node's agent and its containers.

use agent::{Action as Deed, Event as AgentEvent, Exit, Started};
use types::TaskId;
use types::assignment::StatusReport;

use super::{Happening, World};
use crate::host::Container;
use crate::network::{HostId, Wire};

impl World {
    pub(super) fn tell_agent(&mut self, host: HostId, event: AgentEvent) {
        let now = self.hosts[host].clock.read(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let deeds = daemon.agent.handle(event, now);
        let run = self.hosts[host].run;
        for deed in deeds {
            let pause = match &deed {
                Deed::Prepare { .. } => self.random.between(20, 500),
                Deed::Start { .. } | Deed::Remove { .. } => self.random.between(5, 50),
                Deed::Stop { .. } => self.random.between(10, 3_000),
                Deed::Report(reports) => {
                    self.report(host, reports.clone());
                    continue;
                }
                Deed::Connect(_) | Deed::Leave(_) | Deed::Serve { .. } => {
                    self.hear(host, deed);
                    continue;
                }
            };
            self.after(pause, Happening::Deed { host, run, deed });
        }
    }

    /// Takes note of networks.
    fn hear(&mut self, host: HostId, deed: Deed) {
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        match deed {
            Deed::Connect(change) => daemon.told.change(*change),
            Deed::Leave(network) => daemon.told.leave(network),
            _ => {}
        }
    }

    pub(super) fn report(&mut self, host: HostId, reports: Vec<StatusReport>) {
        let link = self.hosts[host].daemon.as_ref().and_then(|daemon| daemon.link.as_ref());
        let open = link.and_then(|link| Some((link.id, link.manager, link.session?)));
        if let Some((id, manager, session)) = open {
            self.send_link(host, id, manager, Wire::Report { session, reports });
        }
    }

    pub(super) fn deed_done(&mut self, host: HostId, deed: Deed) {
        let node = self.hosts[host].node;
        let containers = &mut self.hosts[host].containers;
        let event = match deed {
            Deed::Prepare { task, .. } => {
                containers.entry(task.id).or_insert(Container::Created);
                AgentEvent::Prepared { task: task.id, result: Ok(task.id.to_string()) }
            }
            Deed::Start { task, .. } => {
                containers.insert(task, Container::Running);
                let outcome = self.tasks.started(task, node);
                self.fail("one_node_per_task", outcome);
                AgentEvent::Started { task, result: Ok(Started::default()) }
            }
            Deed::Stop { task, .. } => {
                let exit = Exit { code: 143, message: String::new() };
                containers.insert(task, Container::Exited { code: 143 });
                AgentEvent::Stopped { task, exit }
            }
            Deed::Remove { task, .. } => {
                containers.remove(&task);
                AgentEvent::Removed { task }
            }
            Deed::Report(_) | Deed::Serve { .. } | Deed::Connect(_) | Deed::Leave(_) => return,
        };
        self.tell_agent(host, event);
    }

    pub(super) fn exit_container(&mut self, host: HostId, task: TaskId, code: i32) {
        self.hosts[host].containers.insert(task, Container::Exited { code });
        let exit = Exit { code, message: String::new() };
        self.tell_agent(host, AgentEvent::Exited { task, exit });
    }
}
