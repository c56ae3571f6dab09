//! Daemons, their members of the consensus, and what the leader among them does.

use agent::{Event as AgentEvent, Exit, Found, FoundState, Started};
use consensus::{DataKey, Leadership, Member, MemberConfig, MembershipChange, SnapshotJob};
use planner::managers::{Step, next_step, write_step};
use store::Draft;
use types::node::Role;

use super::{AGENT, Happening, LOOK, Purpose, RETRY, STALL, TICK, World, seat};
use crate::clock::Millis;
use crate::disk::POWER_LOSS;
use crate::host::{Container, Daemon};
use crate::invariants::{check_forward, check_order};
use crate::leading::Leading;
use crate::network::{HostId, Wire};
use crate::plan::Moment;
use crate::told::Told;

impl World {
    pub(super) fn member_config(&self, host: HostId, raft_id: u64) -> MemberConfig {
        MemberConfig {
            disk: std::sync::Arc::new(self.hosts[host].disk.clone()),
            raft_id,
            keys: self.hosts[host].keys.clone(),
            seed: self.seed ^ raft_id ^ self.hosts[host].run,
            tells_states: true,
        }
    }

    pub(super) fn start(&mut self, host: HostId) {
        if self.hosts[host].daemon.is_some() || self.hosts[host].is_away {
            return;
        }
        self.hosts[host].run += 1;
        let run = self.hosts[host].run;
        let (agent, told) = (agent::Agent::default(), Told::default());
        let daemon =
            Daemon { member: None, is_rekeying: false, leading: None, agent, link: None, told };
        self.hosts[host].daemon = Some(daemon);
        if let Some(raft_id) = self.hosts[host].seat {
            self.open_member(host, raft_id);
        }
        let found: Vec<_> = self.hosts[host].containers.iter().map(|(id, c)| (*id, *c)).collect();
        let since = self.hosts[host].clock.read(self.now);
        for (task, container) in found {
            let state = match container {
                Container::Created => FoundState::Created,
                Container::Running => FoundState::Running { started: Started::default(), since },
                Container::Exited { code } => {
                    FoundState::Exited { exit: Exit { code, message: String::new() } }
                }
            };
            let container = Found { container: task.to_string(), state };
            self.tell_agent(host, AgentEvent::Found { task, container });
        }
        let (tick, pause) = (self.random.below(TICK), self.random.below(AGENT));
        self.after(tick, Happening::Tick(host, run));
        self.after(pause, Happening::Agent(host, run));
        let due = self.now + LOOK;
        self.at(due, Happening::Look { host, run, due });
    }

    pub(super) fn open_member(&mut self, host: HostId, raft_id: u64) {
        match Member::open(&self.member_config(host, raft_id)) {
            Ok(member) => {
                if let Some(daemon) = &mut self.hosts[host].daemon {
                    daemon.member = Some(member);
                    daemon.is_rekeying = true;
                }
                self.drive(host);
                if let Some(member) = self.member(host) {
                    member.campaign_alone().expect("a voter may campaign");
                }
                self.drive(host);
            }
            // A disk that is full takes no new segment; the daemon does not start.
            Err(error) if error.is_disk_full() => self.stop(host, Some(2_000)),
            Err(error) if is_power_loss(&error) => self.lose_power_now(host),
            Err(error) => self.fail("acknowledged_writes", Err(format!("host {host}: {error}"))),
        }
    }

    pub(super) fn member(&mut self, host: HostId) -> Option<&mut Member> {
        self.hosts[host].daemon.as_mut()?.member.as_mut()
    }

    pub(super) fn stop(&mut self, host: HostId, back_after: Option<Millis>) {
        let known = &mut self.hosts[host];
        if known.daemon.take().is_none() {
            return;
        }
        known.frozen_until = 0;
        if let Some(pause) = back_after {
            self.after(pause, Happening::Start(host));
        }
    }

    /// Lets the member do everything it can do now, and passes on what comes of it.
    pub(super) fn drive(&mut self, host: HostId) {
        loop {
            let mut sent = Vec::new();
            let Some(member) = self.member(host) else { return };
            if !member.has_work() {
                member.tell();
            }
            if !member.has_work() {
                break;
            }
            let output = member.advance(&mut |messages| sent.extend(messages));
            let has_voted = sent.iter().any(|outgoing| outgoing.message.gives_vote());
            for outgoing in sent {
                self.send_raft(host, outgoing);
            }
            if has_voted && matches!(self.hosts[host].armed, Some((Moment::Vote, _))) {
                self.lose_power_now(host);
                return;
            }
            match output {
                Ok(output) => self.take_output(host, output),
                Err(error) if error.is_disk_full() => return,
                Err(error) if is_power_loss(&error) => {
                    self.lose_power_now(host);
                    return;
                }
                Err(error) => {
                    self.fail("acknowledged_writes", Err(format!("host {host}: {error}")));
                    return;
                }
            }
        }
        if self.hosts[host].is_disk_slow {
            let busy = self.random.between(20, 800);
            let until = self.now + busy;
            self.hosts[host].frozen_until = self.hosts[host].frozen_until.max(until);
        }
        let run = self.hosts[host].run;
        if let Some(job) = self.member(host).and_then(Member::due_snapshot) {
            let pause = self.random.between(1, 500);
            self.after(pause, Happening::Snapshot { host, run, job: Box::new(job) });
        }
        self.forget_older_keys(host);
    }

    /// Changes the key of log and snapshots, as a node does when the swarm begins to lock keys.
    pub(super) fn rekey(&mut self, host: HostId) {
        let known = &mut self.hosts[host];
        let Some(daemon) = &mut known.daemon else { return };
        let Some(member) = &mut daemon.member else { return };
        let key = DataKey::new(std::array::from_fn(|_| self.random.next().to_le_bytes()[0]));
        // First the node remembers both.
        known.keys.previous.push(std::mem::replace(&mut known.keys.current, key.clone()));
        let changed = member.rekey(key);
        daemon.is_rekeying = changed.is_ok();
        match changed {
            Err(error) if is_power_loss(&error) => self.lose_power_now(host),
            _ => self.drive(host),
        }
    }

    fn forget_older_keys(&mut self, host: HostId) {
        let known = &mut self.hosts[host];
        let Some(daemon) = &mut known.daemon else { return };
        if daemon.is_rekeying && daemon.member.as_ref().is_some_and(Member::is_rekeyed) {
            daemon.is_rekeying = false;
            known.keys.previous.clear();
        }
    }

    pub(super) fn take_output(&mut self, host: HostId, output: consensus::Output) {
        for applied in &output.applied {
            let state = applied.state.as_ref().expect("members of simulations tell their states");
            let outcome = self.replicas.note(state);
            self.fail("equal_replicas", outcome);
            self.fail("forward_states", check_forward(&applied.events));
            self.fail("order_of_state", check_order(state));
            self.dispatch(host, &applied.events);
        }
        if let Some(leadership) = output.leadership {
            self.lead(host, leadership);
        }
        for (ticket, answer) in output.answers {
            let run = self.hosts[host].run;
            if let Some(purpose) = self.purposes.remove(&(host, run, ticket)) {
                self.answered(host, purpose, answer);
            }
        }
    }

    pub(super) fn lead(&mut self, host: HostId, leadership: Leadership) {
        let (run, now) = (self.hosts[host].run, self.hosts[host].clock.read(self.now));
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let Some(member) = &daemon.member else { return };
        if !leadership.is_leader {
            daemon.leading = None;
            return;
        }
        let raft_id = member.raft_id();
        if daemon.leading.as_ref().is_none_or(|leading| leading.term != leadership.term) {
            daemon.leading = Some(Leading::new(leadership.term, &member.state(), now));
            let outcome = self.leaders.note(leadership.term, raft_id);
            self.fail("one_leader", outcome);
            self.after(0, Happening::Wake(host, run));
        }
    }

    /// Writes as the leader's writer does; false when this host does not lead or the write was refused.
    pub(super) fn write(
        &mut self,
        host: HostId,
        purpose: Purpose,
        change: impl FnOnce(&mut Draft),
    ) -> bool {
        self.next_ticket += 1;
        let (ticket, run, clock) = (self.next_ticket, self.hosts[host].run, self.hosts[host].clock);
        let now = clock.read(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return false };
        let (Some(leading), Some(member)) = (&mut daemon.leading, &mut daemon.member) else {
            return false;
        };
        let written = leading.write(member, ticket, now, &mut self.random, change);
        if let (Some(at), Ok(_)) = (leading.wake_at, &written) {
            self.at(clock.until(at), Happening::Wake(host, run));
        }
        match written {
            Ok(Some(_)) => drop(self.purposes.insert((host, run, ticket), purpose)),
            Ok(None) => self.answered(host, purpose, Ok(())),
            Err(error) => {
                self.answered(host, purpose, Err(error));
                return false;
            }
        }
        self.drive(host);
        true
    }

    pub(super) fn answered(
        &mut self,
        host: HostId,
        purpose: Purpose,
        answer: Result<(), consensus::Error>,
    ) {
        if answer.is_err()
            && let Some(leading) =
                self.hosts[host].daemon.as_mut().and_then(|daemon| daemon.leading.as_mut())
        {
            leading.fall_back();
            let run = self.hosts[host].run;
            self.after(RETRY, Happening::Wake(host, run));
        }
        match purpose {
            Purpose::Operator(written) if answer.is_ok() => self.written.note(written),
            Purpose::Report { link, reports } => {
                let wire = match answer {
                    Ok(()) => Wire::Reported(reports),
                    Err(_) => Wire::NotLeader,
                };
                self.send_link(host, link, link.0, wire);
            }
            Purpose::Ready { link } if answer.is_err() => {
                self.send_link(host, link, link.0, Wire::NotLeader);
            }
            Purpose::Down { nodes } if answer.is_err() => {
                let again = self.hosts[host].clock.read(self.now + LOOK);
                if self.hosts[host].is_leading() {
                    self.leading(host).dispatcher.expire_again(&nodes, again);
                }
            }
            Purpose::Join(joining) => match answer {
                Ok(()) => self.start(joining),
                Err(_) => self.after(RETRY, Happening::Join(joining)),
            },
            Purpose::Seat { host: joining, raft_id } => match answer {
                Ok(()) => self.add_learner(host, joining, raft_id),
                Err(_) => self.unseat(joining, raft_id),
            },
            Purpose::Seated { host: joining, raft_id } => match answer {
                Ok(()) => {
                    let own = self.member(joining).map(|member| member.raft_id());
                    if own == Some(raft_id) {
                        self.hosts[joining].seat = Some(raft_id);
                    }
                }
                Err(_) => self.unseat(joining, raft_id),
            },
            _ => {}
        }
    }

    pub(super) fn tick(&mut self, host: HostId, run: u64) {
        if let Some(member) = self.member(host)
            && !member.is_alone()
        {
            member.tick();
        }
        self.drive(host);
        // Clocks of hosts run a little fast or slow.
        let skew = self.random.below(7);
        self.after(TICK - 3 + skew, Happening::Tick(host, run));
    }

    pub(super) fn wake(&mut self, host: HostId) {
        let now = self.hosts[host].clock.read(self.now);
        let leading = self.hosts[host].daemon.as_ref().and_then(|daemon| daemon.leading.as_ref());
        let is_due = leading.and_then(|leading| leading.wake_at).is_some_and(|at| at <= now);
        if is_due {
            self.write(host, Purpose::Planning, |_| {});
        }
    }

    pub(super) fn look(&mut self, host: HostId, run: u64, due: Millis) {
        let next = self.now + LOOK;
        self.at(next, Happening::Look { host, run, due: next });
        if !self.hosts[host].is_leading() {
            return;
        }
        let late = self.now - due;
        let now = self.hosts[host].clock.read(self.now);
        let Some(daemon) = &mut self.hosts[host].daemon else { return };
        let (Some(leading), Some(member)) = (&mut daemon.leading, &mut daemon.member) else {
            return;
        };
        if late > STALL {
            leading.dispatcher.postpone(std::time::Duration::from_millis(late));
            return;
        }
        let expired = leading.dispatcher.expire(now);
        for node in &expired {
            leading.streams.remove(node);
        }
        let step = next_step(&member.state(), &member.peers(), member.raft_id());
        if !expired.is_empty() {
            self.write(host, Purpose::Down { nodes: expired.clone() }, |draft| {
                for node in expired {
                    dispatcher::write_down(draft, node, "heartbeat failure");
                }
            });
        }
        if let Some(step) = step {
            self.take_step(host, &step);
        }
    }

    pub(super) fn take_step(&mut self, host: HostId, step: &Step) {
        match step {
            Step::GiveVote(raft_id) => self.change(host, MembershipChange::Promote(*raft_id)),
            Step::Remove(raft_id) => self.change(host, MembershipChange::Remove(*raft_id)),
            Step::HandOver => {
                if let Some(member) = self.member(host) {
                    member.transfer_leadership();
                }
                self.drive(host);
            }
            Step::ClearSeat(_) | Step::WriteReachability(_) => {
                self.write(host, Purpose::Planning, |draft| write_step(draft, step));
            }
        }
    }

    pub(super) fn change(&mut self, host: HostId, change: MembershipChange) {
        self.request_change(host, change, Purpose::Membership);
    }

    pub(super) fn request_change(
        &mut self,
        host: HostId,
        change: MembershipChange,
        purpose: Purpose,
    ) -> bool {
        self.next_ticket += 1;
        let (ticket, run) = (self.next_ticket, self.hosts[host].run);
        let asked = self.member(host).map(|member| member.change_membership(ticket, change));
        let is_asked = matches!(asked, Some(Ok(())));
        if is_asked {
            self.purposes.insert((host, run, ticket), purpose);
        }
        self.drive(host);
        is_asked
    }

    pub(super) fn snapshot_written(&mut self, host: HostId, job: &SnapshotJob) {
        let (index, result) = job.run();
        if result.as_ref().is_err_and(is_power_loss) {
            self.lose_power_now(host);
            return;
        }
        if let Some(member) = self.member(host) {
            // A disk that is full keeps the log; the next snapshot comes later.
            let _ = member.snapshot_done(index, result);
        }
        self.drive(host);
    }

    pub(super) fn take_seat(&mut self, host: HostId) {
        self.hosts[host].seat_asked = Some(self.now);
        let Some(leader) = self.leader_for(host) else { return };
        let raft_id = self.random.next() | 1;
        self.hosts[host].disk.wipe();
        match Member::prepare_join(&self.member_config(host, raft_id)) {
            Ok(()) => {}
            Err(error) if is_power_loss(&error) => {
                self.lose_power_now(host);
                return;
            }
            Err(_) => return,
        }
        self.members.insert(raft_id, host);
        self.open_member(host, raft_id);
        let node = self.hosts[host].node;
        let is_written = self.write(leader, Purpose::Seat { host, raft_id }, |draft| {
            let known = draft.node(node).filter(|node| node.spec.role == Role::Manager).cloned();
            if let Some(known) = known {
                draft.update_node(&known, |node| node.manager = Some(seat(raft_id)));
            }
        });
        if !is_written {
            self.unseat(host, raft_id);
        }
    }

    pub(super) fn add_learner(&mut self, leader: HostId, joining: HostId, raft_id: u64) {
        let purpose = Purpose::Seated { host: joining, raft_id };
        let change = MembershipChange::AddLearner(raft_id);
        if !self.request_change(leader, change, purpose) {
            self.unseat(joining, raft_id);
        }
    }

    /// Gives up a seat that was not given; another one is asked for later.
    pub(super) fn unseat(&mut self, host: HostId, raft_id: u64) {
        let is_own = self.member(host).is_some_and(|member| member.raft_id() == raft_id);
        if is_own && let Some(daemon) = &mut self.hosts[host].daemon {
            daemon.member = None;
            daemon.leading = None;
        }
    }
}

fn is_power_loss(error: &consensus::Error) -> bool {
    matches!(error, consensus::Error::File { source, .. } if source.to_string() == POWER_LOSS)
}
