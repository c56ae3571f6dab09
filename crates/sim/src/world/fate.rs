//! What operators and fate do.

use std::collections::BTreeSet;

use planner::managers::Step;
use store::Draft;
use types::NodeId;
use types::node::{Availability, Role};
use types::service::Mode;

use super::{Happening, Purpose, RETRY, World};
use crate::clock::Millis;
use crate::host::Container;
use crate::invariants::Written;
use crate::network::HostId;
use crate::operator::{self, Wanted};
use crate::plan::{HOSTS, Moment, Shape, What};

impl World {
    pub(super) fn act(&mut self, what: &What) {
        match *what {
            What::Service { number, replicas, shape } => {
                self.write_service(number, Mode::Replicated { replicas }, shape);
            }
            What::Global { number } => {
                self.write_service(number, Mode::Global, Shape::default());
            }
            What::RemoveService { number } => self.remove_service(number),
            What::Availability { host, word } => {
                let word = match word {
                    0 => Availability::Active,
                    1 => Availability::Pause,
                    _ => Availability::Drain,
                };
                self.set_availability(host, word);
            }
            What::Promote { host } => self.set_role(host, Role::Manager),
            What::Demote { host } => self.set_role(host, Role::Worker),
            What::Leave { host, back_after } => self.leave(host, back_after),
            What::RemoveNodes => self.remove_nodes(),
            What::Kill { host, back_after } => self.stop(host, Some(back_after)),
            What::PowerLoss { host, back_after } => self.lose_power(host, back_after),
            What::PowerLossAt { host, moment, back_after } => {
                self.hosts[host].armed = Some((moment, back_after));
                self.hosts[host].disk.fail_in_flush(moment == Moment::Flush);
            }
            What::VoteStorm { back_after, duration } => self.storm(back_after, duration),
            What::Freeze { host, duration } => {
                self.hosts[host].frozen_until = self.now + duration;
            }
            What::Partition { mask, duration } => {
                let side = |bit: u64| -> BTreeSet<HostId> {
                    (0..HOSTS).filter(|host| (mask >> host) & 1 == bit).collect()
                };
                self.network.partition(vec![side(0), side(1)]);
                self.after(duration, Happening::HealNetwork);
            }
            What::Unreliable { loss, delay, duration } => {
                (self.network.loss, self.network.delay) = (loss, delay);
                self.after(duration, Happening::HealNetwork);
            }
            What::FullDisk { host, duration } => {
                self.hosts[host].disk.set_full(true);
                self.after(duration, Happening::DiskHasRoom(host));
            }
            What::SlowDisk { host, duration } => {
                self.hosts[host].is_disk_slow = true;
                self.after(duration, Happening::DiskIsFast(host));
            }
            What::Crash { host } => {
                let running = self.hosts[host].containers.iter();
                let running: Vec<_> = running
                    .filter(|(_, container)| **container == Container::Running)
                    .map(|(task, _)| *task)
                    .collect();
                if !running.is_empty() {
                    let task = running[self.random.index(running.len())];
                    self.exit_container(host, task, 1);
                }
            }
            What::Rekey { host } => self.rekey(host),
            What::HandOver => {
                if let Some(leader) = self.leader_for(0) {
                    self.take_step(leader, &Step::HandOver);
                }
            }
        }
    }

    fn storm(&mut self, back_after: Millis, duration: Millis) {
        let Some(leader) = self.leader_for(0) else { return };
        let others: BTreeSet<_> = (0..HOSTS).filter(|host| *host != leader).collect();
        for host in &others {
            self.hosts[*host].armed = Some((Moment::Vote, back_after));
        }
        self.network.partition(vec![BTreeSet::from([leader]), others]);
        self.after(duration, Happening::HealNetwork);
    }

    /// The leader, found by way of a host that happens to be asked.
    pub(super) fn asked_leader(&mut self) -> Option<HostId> {
        let asked = self.random.index(HOSTS);
        self.leader_for(asked)
    }

    pub(super) fn write_service(&mut self, number: u64, mode: Mode, shape: Shape) {
        let Some(leader) = self.asked_leader() else { return };
        self.next_write += 1;
        let write = self.next_write;
        let wanted = Wanted { name: format!("s{number}"), mode, shape, write };
        let new_id = self.random.id();
        let head = self.member(leader).map(|member| member.state());
        let known = head.and_then(|state| Some(state.service_by_name(&wanted.name)?.id));
        let id = known.unwrap_or_else(|| types::ServiceId::from_random(new_id));
        // The head may know of a service that the agreed state does not; such a write is not judged.
        let purpose = Purpose::Operator(Written::Service { id, write });
        let mut found = id;
        self.write_judged(leader, purpose, |draft| {
            found = operator::write_service(draft, &wanted, new_id);
            found == id
        });
    }

    /// Writes; what turns out to speak of another object than its purpose says is not judged.
    pub(super) fn write_judged(
        &mut self,
        leader: HostId,
        purpose: Purpose,
        change: impl FnOnce(&mut Draft) -> bool,
    ) {
        let mut fits = true;
        let before = self.next_ticket + 1;
        self.write(leader, purpose, |draft| fits = change(draft));
        if !fits {
            let run = self.hosts[leader].run;
            self.purposes.remove(&(leader, run, before));
        }
    }

    pub(super) fn remove_service(&mut self, number: u64) {
        let Some(leader) = self.asked_leader() else { return };
        let name = format!("s{number}");
        let state = self.member(leader).map(|member| member.state());
        let Some(id) = state.and_then(|state| Some(state.service_by_name(&name)?.id)) else {
            return;
        };
        self.next_write += 1;
        let write = self.next_write;
        self.written.removal_asked(id);
        let purpose = Purpose::Operator(Written::Removed { id, write });
        self.write_judged(leader, purpose, |draft| {
            operator::remove_service(draft, &name) == Some(id)
        });
    }

    pub(super) fn set_availability(&mut self, host: HostId, availability: Availability) {
        let Some(leader) = self.asked_leader() else { return };
        let node = self.hosts[host].node;
        self.write(leader, Purpose::Planning, |draft| {
            operator::set_availability(draft, node, availability);
        });
    }

    pub(super) fn set_role(&mut self, host: HostId, role: Role) {
        let Some(leader) = self.asked_leader() else { return };
        let node = self.hosts[host].node;
        let peers = self.member(leader).map(|member| member.peers()).unwrap_or_default();
        self.write(leader, Purpose::Planning, |draft| {
            operator::set_role(draft, node, role, |seat| peers.can_spare(seat));
        });
    }

    /// The moment has come that [`What::PowerLossAt`] waited for.
    pub(super) fn lose_power_now(&mut self, host: HostId) {
        if let Some((_, back_after)) = self.hosts[host].armed {
            self.lose_power(host, back_after);
        }
    }

    fn lose_power(&mut self, host: HostId, back_after: Millis) {
        self.hosts[host].armed = None;
        self.hosts[host].disk.fail_in_flush(false);
        self.stop(host, Some(back_after));
        let disk = self.hosts[host].disk.clone();
        disk.lose_power(&mut self.random);
        for container in self.hosts[host].containers.values_mut() {
            if *container == Container::Running {
                *container = Container::Exited { code: 137 };
            }
        }
    }

    /// A worker's state is wiped; what joins later is a new node on the same machine.
    fn leave(&mut self, host: HostId, back_after: Millis) {
        let is_worker = self.member(host).is_none() && self.hosts[host].seat.is_none();
        if !is_worker || self.hosts[host].daemon.is_none() {
            return;
        }
        self.stop(host, None);
        self.left.push(self.hosts[host].node);
        let node = NodeId::from_random(self.random.id());
        let known = &mut self.hosts[host];
        (known.node, known.is_away) = (node, true);
        known.containers.clear();
        known.disk.wipe();
        self.roles.remove(&host);
        self.after(back_after, Happening::Join(host));
    }

    pub(super) fn join(&mut self, host: HostId) {
        self.hosts[host].is_away = false;
        let Some(leader) = self.leader_for(host) else {
            self.after(RETRY, Happening::Join(host));
            return;
        };
        let node = self.hosts[host].node;
        self.write(leader, Purpose::Join(host), |draft| operator::join(draft, node, Role::Worker));
    }

    fn remove_nodes(&mut self) {
        let Some(leader) = self.asked_leader() else { return };
        let left = self.left.clone();
        self.write(leader, Purpose::Planning, |draft| operator::remove_nodes(draft, &left));
    }

    /// The end of all faults.
    pub(super) fn settle(&mut self) {
        self.network.heal();
        for host in 0..HOSTS {
            self.hosts[host].disk.set_full(false);
            self.hosts[host].disk.fail_in_flush(false);
            self.hosts[host].armed = None;
            self.hosts[host].is_disk_slow = false;
            self.hosts[host].frozen_until = 0;
            self.start(host);
        }
        for pause in [5_000, 10_000, 20_000] {
            self.after(pause, Happening::Activate);
        }
    }

    pub(super) fn activate(&mut self) {
        for host in 0..HOSTS {
            self.set_availability(host, Availability::Active);
        }
        self.remove_nodes();
    }
}
