//! Nothing acknowledged is lost, and nothing needs more than the files to come back.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use consensus::{
    Applied, Arrival, Bell, Config, Consensus, DataKey, DataKeys, Error, Outgoing, Wire,
};
use store::{ChangeSet, Draft, Snapshot, apply};
use types::{Meta, Service, ServiceId, ServiceSpec, Timestamp};

fn config(directory: &Path) -> Config {
    Config { directory: directory.to_owned(), raft_id: 1, keys: DataKey::new([3; 32]).into() }
}

fn open(config: &Config) -> Result<Consensus, Error> {
    Consensus::open(config, Box::new(Nobody::default()))
}

/// Nobody to talk to: what is said may be lost.
#[derive(Debug, Default)]
struct Nobody(Arc<Doorbell>);

#[derive(Debug, Default)]
struct Doorbell {
    has_rung: Mutex<bool>,
    rang: Condvar,
}

impl Bell for Doorbell {
    fn ring(&self) {
        *self.has_rung.lock().expect("a flag") = true;
        self.rang.notify_one();
    }
}

impl Wire for Nobody {
    fn bell(&self) -> Arc<dyn Bell> {
        self.0.clone()
    }

    fn wait(&mut self, patience: Option<Duration>) {
        let silent = self.0.has_rung.lock().expect("a flag");
        let patience = patience.unwrap_or(Duration::MAX);
        let waited = self.0.rang.wait_timeout_while(silent, patience, |has_rung| !*has_rung);
        *waited.expect("a flag").0 = false;
    }

    fn receive(&mut self, _: &mut dyn FnMut(Arrival)) {}

    fn send(&mut self, _: Vec<Outgoing>) {}
}

fn create(snapshot: &Snapshot, number: u128) -> ChangeSet {
    let mut spec = ServiceSpec::default();
    spec.annotations.name = format!("s{number}");
    spec.annotations.labels.insert("padding".into(), "x".repeat(2_000));
    let mut draft = Draft::new(snapshot.clone(), Timestamp(1));
    draft.put(Service {
        id: ServiceId::from_random(number),
        meta: Meta::default(),
        spec: Arc::new(spec),
        template_version: 1,
        previous: None,
        endpoint: types::endpoint::Endpoint::default(),
        update_status: None,
    });
    draft.finish()
}

/// Each set of these tests writes one object, with its own sequence as the version.
fn sequence_of(applied: &Applied) -> u64 {
    applied.events[0].after.as_ref().expect("was written").version()
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let (live, crashed) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    Consensus::bootstrap(&config(live.path()), Snapshot::default()).expect("bootstraps");
    let consensus = open(&config(live.path())).expect("opens");
    for number in 1..=20 {
        let set = create(&consensus.snapshot(), number);
        consensus.propose(set).await.expect("agreed");
    }
    // The files as they are while the member still runs: what a loss of power would leave.
    copy(live.path(), crashed.path());
    let reopened = open(&config(crashed.path())).expect("opens");
    assert_eq!(*reopened.snapshot(), *consensus.snapshot());
    assert_eq!(reopened.snapshot().service_count(), 20);
}

#[tokio::test]
async fn proposals_made_ahead_are_applied_in_their_order() {
    let directory = tempfile::tempdir().expect("dir");
    Consensus::bootstrap(&config(directory.path()), Snapshot::default()).expect("bootstraps");
    let consensus = open(&config(directory.path())).expect("opens");
    let mut head = (*consensus.snapshot()).clone();
    let mut feed = consensus.subscribe();
    let mut proposals = Vec::new();
    for number in 1..=500 {
        let set = create(&head, number);
        head = apply(&head, &set).expect("made from the head").0;
        proposals.push(consensus.propose(set));
    }
    for (number, proposal) in proposals.into_iter().enumerate() {
        proposal.await.expect("agreed");
        assert!(consensus.snapshot().sequence() > number as u64);
    }
    assert_eq!(*consensus.snapshot(), head);
    for sequence in 1..=500 {
        assert_eq!(sequence_of(&feed.recv().await.expect("kept")), sequence);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_of_a_change_finds_it_in_the_state() {
    let directory = tempfile::tempdir().expect("dir");
    Consensus::bootstrap(&config(directory.path()), Snapshot::default()).expect("bootstraps");
    let consensus = Arc::new(open(&config(directory.path())).expect("opens"));
    let (mut feed, reader) = (consensus.subscribe(), consensus.clone());
    let follower = tokio::spawn(async move {
        for _ in 0..300 {
            let told = sequence_of(&feed.recv().await.expect("kept"));
            assert!(reader.snapshot().sequence() >= told);
        }
    });
    for number in 1..=300 {
        let set = create(&consensus.snapshot(), number);
        consensus.propose(set).await.expect("agreed");
    }
    follower.await.expect("always found");
}

#[tokio::test]
async fn a_stale_proposal_is_rejected_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("dir");
    Consensus::bootstrap(&config(directory.path()), Snapshot::default()).expect("bootstraps");
    let consensus = open(&config(directory.path())).expect("opens");
    let set = create(&consensus.snapshot(), 1);
    consensus.propose(set.clone()).await.expect("agreed");
    let error = consensus.propose(set).await.expect_err("the object exists");
    assert!(matches!(error, Error::Rejected(_)), "{error}");
    assert_eq!(consensus.snapshot().sequence(), 1);
}

#[tokio::test]
async fn a_snapshot_takes_the_place_of_the_log_before_it() {
    let directory = tempfile::tempdir().expect("dir");
    Consensus::bootstrap(&config(directory.path()), Snapshot::default()).expect("bootstraps");
    let consensus = open(&config(directory.path())).expect("opens");
    consensus.set_snapshot_interval(50, 0);
    // Several segments of log, and many snapshots.
    for number in 1..=3_000 {
        let set = create(&consensus.snapshot(), number);
        consensus.propose(set).await.expect("agreed");
    }
    let before = (*consensus.snapshot()).clone();
    drop(consensus);
    let names = |suffix: &str| {
        let files = std::fs::read_dir(directory.path()).expect("lists");
        let names =
            files.map(|file| file.expect("lists").file_name().into_string().expect("UTF-8"));
        names.filter(|name| name.ends_with(suffix)).collect::<Vec<_>>()
    };
    assert_eq!(names(".snap").len(), 1, "older snapshots are removed");
    assert!(names(".log").len() <= 2, "older segments are removed: {:?}", names(".log"));
    let reopened = open(&config(directory.path())).expect("opens");
    assert_eq!(*reopened.snapshot(), before);
}

#[test]
fn an_empty_directory_is_no_cluster() {
    let directory = tempfile::tempdir().expect("dir");
    let error = open(&config(directory.path())).expect_err("nothing there");
    assert!(matches!(error, Error::NotBootstrapped { .. }), "{error}");
}

fn config_with(directory: &Path, keys: DataKeys) -> Config {
    Config { keys, ..config(directory) }
}

#[tokio::test]
async fn after_a_change_of_keys_nothing_needs_the_key_of_before() {
    let (live, copied) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    Consensus::bootstrap(&config(live.path()), Snapshot::default()).expect("bootstraps");
    let consensus = open(&config(live.path())).expect("opens");
    // Older snapshots are kept, and sealed with the older key.
    consensus.set_snapshot_interval(5, 3);
    for number in 1..=20 {
        let set = create(&consensus.snapshot(), number);
        consensus.propose(set).await.expect("agreed");
    }
    let before = consensus.propose(create(&consensus.snapshot(), 21));
    consensus.rekey(DataKey::new([4; 32])).await.expect("sealed anew");
    before.await.expect("agreed");
    consensus.propose(create(&consensus.snapshot(), 22)).await.expect("agreed");
    consensus.rekey(DataKey::new([4; 32])).await.expect("is so already");
    copy(live.path(), copied.path());
    let error = open(&config(copied.path())).expect_err("sealed with another key");
    assert!(matches!(error, Error::DamagedSnapshot { .. }), "{error}");
    let new = config_with(copied.path(), DataKey::new([4; 32]).into());
    assert_eq!(*open(&new).expect("opens").snapshot(), *consensus.snapshot());
    assert_eq!(consensus.snapshot().service_count(), 22);
}

#[tokio::test]
async fn a_change_of_keys_that_was_cut_short_goes_on_after_the_start() {
    let directory = tempfile::tempdir().expect("dir");
    Consensus::bootstrap(&config(directory.path()), Snapshot::default()).expect("bootstraps");
    let consensus = open(&config(directory.path())).expect("opens");
    consensus.propose(create(&consensus.snapshot(), 1)).await.expect("agreed");
    drop(consensus);
    // The node remembers both keys before anything is sealed with the new one.
    let (old, new) = (DataKey::new([3; 32]), DataKey::new([4; 32]));
    let both = DataKeys { current: new.clone(), previous: vec![DataKey::new([9; 32]), old] };
    let consensus = open(&config_with(directory.path(), both)).expect("opens");
    consensus.propose(create(&consensus.snapshot(), 2)).await.expect("agreed");
    consensus.rekey(new.clone()).await.expect("sealed anew");
    drop(consensus);
    let reopened = open(&config_with(directory.path(), new.into())).expect("needs one key");
    assert_eq!(reopened.snapshot().service_count(), 2);
}
