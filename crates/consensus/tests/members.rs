//! Several members in one thread: they agree, replace their leader, and take in those who were away.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use consensus::{
    DataKey, Error, Folder, Member, MemberConfig, MembershipChange, Offer, Outgoing, Ticket,
};
use store::{ChangeSet, Draft, Snapshot};
use types::{Meta, Service, ServiceId, ServiceSpec, Timestamp};

/// More ticks than any election takes.
const LONG: usize = 60;

struct Cluster {
    directory: tempfile::TempDir,
    members: BTreeMap<u64, Member>,
    network: VecDeque<Outgoing>,
    cut_off: BTreeSet<u64>,
    answers: BTreeMap<(u64, Ticket), Result<(), Error>>,
    next: Ticket,
    states_sent: usize,
    messages_sent: usize,
    /// Whether leaders wait for the next entries before they tell how far the log is agreed to.
    is_patient: bool,
}

fn config(directory: &Path, id: u64) -> MemberConfig {
    let folder = Folder::new(&directory.join(id.to_string())).expect("folder");
    let (disk, keys) = (Arc::new(folder), DataKey::new([3; 32]).into());
    MemberConfig { disk, raft_id: id, keys, seed: id, tells_states: false }
}

fn create(snapshot: &Snapshot, number: u64) -> ChangeSet {
    let mut spec = ServiceSpec::default();
    spec.annotations.name = format!("s{number}");
    let mut draft = Draft::new(snapshot.clone(), Timestamp(1));
    draft.put(Service {
        id: ServiceId::from_random(u128::from(number)),
        meta: Meta::default(),
        spec: Arc::new(spec),
        template_version: 1,
        previous: None,
        endpoint: types::endpoint::Endpoint::default(),
        update_status: None,
    });
    draft.finish()
}

impl Cluster {
    /// A cluster of members 1 to `count`.
    fn new(count: u64) -> Self {
        let directory = tempfile::tempdir().expect("dir");
        Member::bootstrap(&config(directory.path(), 1), Snapshot::default()).expect("bootstraps");
        let mut cluster = Self {
            directory,
            members: BTreeMap::new(),
            network: VecDeque::new(),
            cut_off: BTreeSet::new(),
            answers: BTreeMap::new(),
            next: 0,
            states_sent: 0,
            messages_sent: 0,
            is_patient: false,
        };
        cluster.start(1);
        for id in 2..=count {
            cluster.join(id);
        }
        cluster
    }

    fn start(&mut self, id: u64) {
        let member = Member::open(&config(self.directory.path(), id)).expect("opens");
        self.members.insert(id, member);
        self.run();
        self.members.get_mut(&id).expect("just put").campaign_alone().expect("a voter");
        self.run();
    }

    fn join(&mut self, id: u64) {
        Member::prepare_join(&config(self.directory.path(), id)).expect("prepares");
        self.start(id);
        self.change(MembershipChange::AddLearner(id)).expect("added");
        self.ticks(3);
        self.change(MembershipChange::Promote(id)).expect("promoted");
        self.ticks(3);
    }

    fn leader(&self) -> Option<u64> {
        let leads = |id: &&u64| self.members[id].leadership().is_leader;
        let leaders: Vec<_> =
            self.members.keys().filter(|id| !self.cut_off.contains(id)).filter(leads).collect();
        assert!(leaders.len() <= 1, "{leaders:?}");
        leaders.first().copied().copied()
    }

    /// Lets everything that can happen without time happen.
    fn run(&mut self) {
        loop {
            let mut is_quiet = true;
            for (id, member) in &mut self.members {
                while member.has_work() {
                    is_quiet = false;
                    let output = member.advance(&mut |messages| self.network.extend(messages));
                    let answers = output.expect("writes").answers.into_iter();
                    self.answers.extend(answers.map(|(ticket, answer)| ((*id, ticket), answer)));
                }
                if !self.is_patient {
                    member.tell();
                    is_quiet &= !member.has_work();
                }
                if let Some(job) = member.due_snapshot() {
                    let (index, result) = job.run();
                    member.snapshot_done(index, result).expect("compacts");
                }
            }
            while let Some(outgoing) = self.network.pop_front() {
                is_quiet = false;
                self.deliver(outgoing);
            }
            if is_quiet {
                return;
            }
        }
    }

    fn deliver(&mut self, Outgoing { message, state }: Outgoing) {
        self.messages_sent += 1;
        let (from, to) = (message.from(), message.to());
        let is_lost = [from, to].iter().any(|id| self.cut_off.contains(id));
        match (self.members.get_mut(&to).filter(|_| !is_lost), state) {
            (Some(member), Some(state)) => {
                self.states_sent += 1;
                let mut bytes = Vec::new();
                state.write_to(&mut bytes).expect("writes");
                let state = consensus::StateTransfer::read_from(&bytes[..]).expect("reads");
                member.step_snapshot(message, state);
                if let Some(sender) = self.members.get_mut(&from) {
                    sender.report_snapshot(to, true);
                }
            }
            (Some(member), None) => {
                let bytes = message.encode();
                member.step(consensus::Message::decode(&bytes).expect("decodes"));
            }
            (None, _) => {
                if let Some(sender) = self.members.get_mut(&from) {
                    sender.report_unreachable(to);
                }
            }
        }
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            for member in self.members.values_mut() {
                member.tick();
            }
            self.run();
        }
    }

    fn ask(
        &mut self,
        id: u64,
        request: impl FnOnce(&mut Member, Ticket) -> Result<(), Error>,
    ) -> Option<Result<(), Error>> {
        self.next += 1;
        let ticket = self.next;
        if let Err(error) = request(self.members.get_mut(&id).expect("runs"), ticket) {
            return Some(Err(error));
        }
        self.run();
        self.answers.remove(&(id, ticket))
    }

    fn change(&mut self, change: MembershipChange) -> Result<(), Error> {
        let leader = self.leader().expect("a leader");
        let answer = self.ask(leader, |member, ticket| member.change_membership(ticket, change));
        answer.expect("answered at once")
    }

    fn write(&mut self, number: u64) -> Option<Result<(), Error>> {
        let leader = self.leader().expect("a leader");
        let offer = Offer::new(create(&self.members[&leader].state(), number)).expect("is small");
        self.ask(leader, |member, ticket| member.propose(ticket, offer))
    }

    fn services(&self, id: u64) -> usize {
        self.members[&id].state().service_count()
    }
}

#[test]
fn members_join_as_learners_with_the_whole_state_and_then_vote() {
    let mut cluster = Cluster::new(1);
    cluster.write(1).expect("answered").expect("agreed");
    cluster.join(2);
    cluster.join(3);
    assert_eq!(cluster.services(3), 1);
    cluster.write(2).expect("answered").expect("agreed");
    // Followers learn of the commit with the next message.
    cluster.ticks(3);
    assert_eq!([1, 2, 3].map(|id| cluster.services(id)), [2, 2, 2]);
    assert_eq!(cluster.members[&3].peers().voters, BTreeSet::from([1, 2, 3]));
}

#[test]
fn another_member_leads_when_the_leader_is_gone_and_nothing_is_lost() {
    let mut cluster = Cluster::new(3);
    cluster.write(1).expect("answered").expect("agreed");
    cluster.members.remove(&1);
    cluster.ticks(LONG);
    let leader = cluster.leader().expect("a new leader");
    cluster.write(2).expect("answered").expect("agreed");
    assert_eq!(cluster.services(leader), 2);
    cluster.start(1);
    cluster.ticks(LONG);
    assert_eq!(cluster.services(1), 2);
}

#[test]
fn what_is_agreed_is_told_with_the_next_entries_and_by_itself_where_none_follow() {
    let mut cluster = Cluster::new(3);
    cluster.write(1).expect("answered").expect("agreed");
    (cluster.is_patient, cluster.messages_sent) = (true, 0);
    let count = |number| usize::try_from(number).expect("few");
    for number in 2..=10_u64 {
        cluster.write(number).expect("answered").expect("agreed");
        assert_eq!(
            [1, 2, 3].map(|id| cluster.services(id)),
            [number, number - 1, number - 1].map(count)
        );
    }
    assert_eq!(cluster.messages_sent, 9 * 4, "the entry to either, and the answer of either");
    cluster.is_patient = false;
    cluster.run();
    assert_eq!([1, 2, 3].map(|id| cluster.services(id)), [10; 3]);
    assert_eq!(cluster.messages_sent, 10 * 4);
}

#[test]
fn a_leader_that_is_cut_off_answers_no_write_as_made_and_no_read() {
    let mut cluster = Cluster::new(3);
    cluster.cut_off.insert(1);
    let offer = Offer::new(create(&cluster.members[&1].state(), 1)).expect("is small");
    assert!(cluster.ask(1, |member, ticket| member.propose(ticket, offer)).is_none());
    let read = cluster.ask(1, |member, ticket| {
        member.read_index(ticket);
        Ok(())
    });
    assert!(read.is_none());
    cluster.ticks(LONG);
    let answers: Vec<_> =
        cluster.answers.iter().filter(|((id, _), _)| *id == 1).map(|(_, answer)| answer).collect();
    assert!(
        matches!(answers[..], [Err(Error::LostLeadership), Err(Error::NoLeader)]),
        "{answers:?}"
    );
}

#[test]
fn a_member_that_was_away_for_long_catches_up_by_a_snapshot() {
    let mut cluster = Cluster::new(3);
    cluster.members.remove(&3);
    cluster.members.get_mut(&1).expect("runs").set_snapshot_interval(100, 0);
    for number in 1..=1_200 {
        cluster.write(number).expect("answered").expect("agreed");
    }
    cluster.ticks(3);
    let before = cluster.states_sent;
    cluster.start(3);
    cluster.ticks(10);
    assert_eq!((cluster.services(3), cluster.states_sent), (1_200, before + 1));
    // What it took over is durable.
    cluster.members.remove(&3);
    cluster.cut_off.insert(3);
    cluster.start(3);
    assert_eq!(cluster.services(3), 1_200);
}

#[test]
fn reads_of_a_follower_hold_every_write_that_was_answered() {
    let mut cluster = Cluster::new(3);
    cluster.write(1).expect("answered").expect("agreed");
    let read = cluster.ask(3, |member, ticket| {
        member.read_index(ticket);
        Ok(())
    });
    read.expect("answered").expect("fresh");
    assert_eq!(cluster.services(3), 1);
}

#[test]
fn a_removal_that_would_leave_no_quorum_is_refused() {
    let mut cluster = Cluster::new(3);
    cluster.cut_off.insert(3);
    cluster.ticks(30);
    let refused = cluster.change(MembershipChange::Remove(2));
    assert!(matches!(refused, Err(Error::QuorumLoss)), "{refused:?}");
    cluster.change(MembershipChange::Remove(3)).expect("the lost one may go");
    assert_eq!(cluster.members[&1].peers().voters, BTreeSet::from([1, 2]));
}

#[test]
fn leadership_is_handed_over_on_request() {
    let mut cluster = Cluster::new(3);
    assert!(cluster.members.get_mut(&1).expect("runs").transfer_leadership());
    cluster.ticks(2);
    assert_ne!(cluster.leader().expect("a leader"), 1);
}

#[test]
fn a_survivor_of_a_lost_quorum_goes_on_alone_with_everything_it_knew() {
    let mut cluster = Cluster::new(3);
    for number in 1..=5 {
        cluster.write(number).expect("answered").expect("agreed");
    }
    // A second leader, so that the log holds entries that are nobody's write.
    cluster.members.remove(&1);
    cluster.ticks(LONG);
    cluster.members.clear();
    Member::force_alone(&config(cluster.directory.path(), 2)).expect("forced");
    cluster.start(2);
    assert_eq!((cluster.leader(), cluster.services(2)), (Some(2), 5));
    cluster.write(6).expect("answered").expect("agreed");
    cluster.members.clear();
    cluster.start(2);
    assert_eq!(cluster.services(2), 6);
}

#[test]
fn a_member_that_comes_back_alone_does_not_elect_itself_among_others() {
    let mut cluster = Cluster::new(2);
    cluster.write(1).expect("answered").expect("agreed");
    cluster.members.clear();
    cluster.start(1);
    cluster.ticks(LONG);
    assert_eq!(cluster.leader(), None);
}
