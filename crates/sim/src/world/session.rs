//! Nodes and their sessions: what goes over the network and who takes it.

use agent::Event as AgentEvent;
use consensus::Outgoing;
use types::NodeId;
use types::assignment::SessionMessage;
use types::node::{Description, Role};

use super::{AGENT, HEARTBEAT_TIMEOUT, Happening, Purpose, SEAT_TIMEOUT, World};
use crate::clock::Millis;
use crate::host::Link;
use crate::leading::{Leading, PERIOD, Stream};
use crate::network::{HostId, LinkId, Parcel, Wire};
use crate::plan::HOSTS;

impl World {
    /// A host that leads and can be reached.
    pub(super) fn leader_for(&self, from: HostId) -> Option<HostId> {
        let leads = |host: &HostId| {
            let known = &self.hosts[*host];
            known.is_leading()
                && known.frozen_until <= self.now
                && self.network.connects(from, *host)
        };
        (0..HOSTS).find(leads)
    }

    pub(super) fn agent_turn(&mut self, host: HostId, run: u64) {
        let pause = self.random.between(AGENT - 20, AGENT + 20);
        self.after(pause, Happening::Agent(host, run));
        self.follow_role(host);
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let Some(link) = &daemon.link else {
            self.open_link(host);
            return;
        };
        let (id, manager, session) = (link.id, link.manager, link.session);
        let is_silent = self.now - link.last_heard > HEARTBEAT_TIMEOUT;
        if is_silent || self.network.is_broken(id) {
            daemon.link = None;
            self.tell_agent(host, AgentEvent::Disconnected);
        } else if let Some(session) = session {
            self.send_link(host, id, manager, Wire::Heartbeat { session });
        }
    }

    /// Does what the node's steward does.
    pub(super) fn follow_role(&mut self, host: HostId) {
        let role = self.roles.get(&host).copied();
        let has_member = self.member(host).is_some();
        let asked = self.hosts[host].seat_asked;
        let waited = asked.map_or(Millis::MAX, |asked| self.now - asked);
        match role {
            Some(Role::Manager) if !has_member && waited > 1_000 => self.take_seat(host),
            Some(Role::Manager)
                if has_member && self.hosts[host].seat.is_none() && waited > SEAT_TIMEOUT =>
            {
                let raft_id = self.member(host).map_or(0, |member| member.raft_id());
                self.unseat(host, raft_id);
            }
            Some(Role::Worker) if has_member => {
                let raft_id = self.member(host).map_or(0, |member| member.raft_id());
                self.unseat(host, raft_id);
                self.hosts[host].seat = None;
                self.hosts[host].disk.wipe();
            }
            _ => {}
        }
    }

    pub(super) fn open_link(&mut self, host: HostId) {
        let managers: Vec<_> = (0..HOSTS)
            .filter(|other| {
                self.hosts[*other].daemon.as_ref().is_some_and(|daemon| daemon.member.is_some())
            })
            .collect();
        if managers.is_empty() {
            return;
        }
        let manager = managers[self.random.index(managers.len())];
        self.hosts[host].links += 1;
        let id = (host, self.hosts[host].links);
        let link = Link { id, manager, session: None, last_heard: self.now };
        if let Some(daemon) = &mut self.hosts[host].daemon {
            daemon.link = Some(link);
        }
        self.send_link(host, id, manager, Wire::Open);
    }

    pub(super) fn send_link(&mut self, from: HostId, link: LinkId, to: HostId, wire: Wire) {
        self.send(from, to, Parcel::Link { link, wire });
    }

    pub(super) fn send_raft(&mut self, from: HostId, outgoing: Outgoing) {
        let Some(to) = self.members.get(&outgoing.message.to()).copied() else { return };
        self.send(from, to, Parcel::Raft(Box::new(outgoing)));
    }

    pub(super) fn send(&mut self, from: HostId, to: HostId, parcel: Parcel) {
        let arrivals = self.network.arrivals(self.now, (from, to), &parcel, &mut self.random);
        if let (Parcel::Raft(outgoing), true) = (&parcel, arrivals.is_empty()) {
            let (id, is_state) = (outgoing.message.to(), outgoing.state.is_some());
            if let Some(member) = self.member(from) {
                match is_state {
                    true => member.report_snapshot(id, false),
                    false => member.report_unreachable(id),
                }
            }
        }
        for at in arrivals {
            self.at(at, Happening::Arrive { from, to, parcel: parcel.clone() });
        }
    }

    pub(super) fn arrive(&mut self, from: HostId, to: HostId, parcel: Parcel) {
        match parcel {
            Parcel::Raft(outgoing) => {
                let Outgoing { message, state } = *outgoing;
                let id = message.to();
                let Some(member) = self.member(to).filter(|member| member.raft_id() == id) else {
                    return;
                };
                match state {
                    None => member.step(message),
                    Some(state) => {
                        member.step_snapshot(message, state);
                        if let Some(sender) = self.member(from) {
                            sender.report_snapshot(id, true);
                        }
                    }
                }
                self.drive(to);
            }
            Parcel::Link { link, wire } => {
                if self.network.is_broken(link) {
                    return;
                }
                let is_answer = matches!(
                    wire,
                    Wire::Opened { .. }
                        | Wire::NotLeader
                        | Wire::Message(_)
                        | Wire::Heard
                        | Wire::Reported(_)
                );
                if is_answer {
                    self.at_node(to, link, wire);
                } else {
                    self.at_manager(to, link, wire);
                }
            }
        }
    }

    pub(super) fn at_node(&mut self, host: HostId, id: LinkId, wire: Wire) {
        let now = self.now;
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let Some(link) = daemon.link.as_mut().filter(|link| link.id == id) else { return };
        link.last_heard = now;
        match wire {
            Wire::Opened { session } => {
                link.session = Some(session);
                self.tell_agent(host, AgentEvent::Connected);
            }
            Wire::NotLeader => {
                daemon.link = None;
                self.tell_agent(host, AgentEvent::Disconnected);
            }
            Wire::Message(message) => match *message {
                SessionMessage::Assignments(set) => {
                    self.tell_agent(host, AgentEvent::Assigned(set));
                }
                SessionMessage::News(news) => drop(self.roles.insert(host, news.role)),
            },
            Wire::Reported(reports) => self.tell_agent(host, AgentEvent::Reported(reports)),
            Wire::Heard | Wire::Open | Wire::Heartbeat { .. } | Wire::Report { .. } => {}
        }
    }

    pub(super) fn at_manager(&mut self, host: HostId, link: LinkId, wire: Wire) {
        let node = self.hosts[link.0].node;
        if !self.hosts[host].is_leading() {
            self.send_link(host, link, link.0, Wire::NotLeader);
            return;
        }
        match wire {
            Wire::Open => self.open_session(host, link, node),
            Wire::Heartbeat { session } => {
                let now = self.hosts[host].clock.read(self.now);
                let leading = self.leading(host);
                let heard = leading.dispatcher.heartbeat(node, session, PERIOD, now);
                let wire = if heard.is_ok() { Wire::Heard } else { Wire::NotLeader };
                self.send_link(host, link, link.0, wire);
            }
            Wire::Report { session, reports } => {
                let is_current = self.leading(host).dispatcher.is_current(node, session);
                if !is_current {
                    self.send_link(host, link, link.0, Wire::NotLeader);
                } else {
                    let kept = reports.clone();
                    self.write(host, Purpose::Report { link, reports: kept }, |draft| {
                        dispatcher::write_reports(draft, node, &reports);
                    });
                }
            }
            _ => {}
        }
    }

    pub(super) fn leading(&mut self, host: HostId) -> &mut Leading {
        let daemon = self.hosts[host].daemon.as_mut().expect("asked only while it runs");
        daemon.leading.as_mut().expect("asked only while it leads")
    }

    pub(super) fn open_session(&mut self, host: HostId, link: LinkId, node: NodeId) {
        let now = self.hosts[host].clock.read(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let (Some(leading), Some(member)) = (&mut daemon.leading, &daemon.member) else { return };
        let (session, first) = leading.dispatcher.register(&member.state(), node, PERIOD, now);
        leading.streams.insert(node, Stream { link, session });
        self.send_link(host, link, link.0, Wire::Opened { session });
        for message in first {
            self.send_link(host, link, link.0, Wire::Message(Box::new(message)));
        }
        self.write(host, Purpose::Ready { link }, |draft| {
            dispatcher::write_ready(draft, node, &Description::default(), "");
        });
    }

    pub(super) fn dispatch(&mut self, host: HostId, events: &[store::Event]) {
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let (Some(leading), Some(member)) = (&mut daemon.leading, &daemon.member) else { return };
        let mut sends = Vec::new();
        for send in leading.dispatcher.changed(&member.state(), events) {
            let stream = leading.streams.get(&send.node);
            if let Some(stream) = stream.filter(|stream| stream.session == send.session) {
                sends.push((stream.link, send.message));
            }
        }
        for (link, message) in sends {
            self.send_link(host, link, link.0, Wire::Message(Box::new(message)));
        }
    }
}
