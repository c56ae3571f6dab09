//! What a manager refuses on the cluster's port, and to whom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ca::{JoinToken, Subject};
use consensus::DataKey;
use manager::methods::{
    self, HeartbeatRequest, IssueRequest, Issued, RenewRequest, SeatRequest, SessionEvent,
    SessionRefusal, SessionRequest,
};
use manager::{Bootstrap, Error, Manager, now};
use rpc::{Channel, Client, Identity, Pipe, SharedIdentity};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use types::assignment::SessionMessage;
use types::node::{Availability, Description, Role};
use types::{ClusterSpec, NodeId};

const PATIENCE: Duration = Duration::from_secs(30);

struct Swarm {
    manager: Arc<Manager>,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

fn seconds() -> i64 {
    now().as_nanos() / 1_000_000_000
}

impl Swarm {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let (key, request) = ca::new_request().expect("generates");
        let config = consensus::Config {
            directory: directory.path().join("raft"),
            raft_id: 1,
            keys: DataKey::new([7; 32]).into(),
        };
        let first = Bootstrap {
            node: NodeId::from_random(1),
            raft_id: 1,
            address: address.to_string(),
            request,
            availability: Availability::Active,
            spec: ClusterSpec::default(),
            unlock_key: None,
            data_path_port: 4_789,
            default_address_pools: vec!["10.0.0.0/8".into()],
            subnet_size: 24,
        };
        let made = Manager::bootstrap(&config, first).await.expect("made");
        let identity = Identity { certificate: made.certificate, key, roots: made.roots };
        let identity = SharedIdentity::new(&identity).expect("is usable");
        let manager = Manager::open(&config, identity, &[]).await.expect("opens");
        manager.serve(listener);
        manager.read().await.expect("there is a leader");
        Self { manager, address, _directory: directory }
    }

    /// The channel of whoever has a certificate that says this, rightly or not.
    fn channel(&self, node: NodeId, role: Role) -> Channel {
        let cluster = self.manager.cluster().expect("is there");
        let (key, request) = ca::new_request().expect("generates");
        let subject = Subject { node, role, cluster: cluster.id };
        let root = &cluster.root_ca;
        let certificate = ca::sign(root.signer(), &request, &subject, 3_600, seconds());
        let certificate = certificate.expect("signs");
        let identity = Identity { certificate, key, roots: root.trust_bundle() };
        let client = Client::new(SharedIdentity::new(&identity).expect("is usable"));
        client.channel(&self.address.to_string())
    }

    fn stranger(&self) -> Channel {
        let cluster = self.manager.cluster().expect("is there");
        let root = Some(cluster.root_ca.certificate.as_str());
        Channel::anonymous(&self.address.to_string(), root).expect("is usable")
    }

    async fn join(&self, token: &str) -> Result<Issued, String> {
        let (_, request) = ca::new_request().expect("generates");
        let request =
            IssueRequest { token: token.into(), request, availability: Availability::Active };
        ask(&self.stranger(), methods::CA_ISSUE, &request).await
    }

    fn nodes(&self) -> usize {
        self.manager.snapshot().nodes().count()
    }
}

async fn ask<R: DeserializeOwned>(
    channel: &Channel,
    method: &'static str,
    request: &impl Serialize,
) -> Result<R, String> {
    match channel.call::<_, R, Error>(method, request, PATIENCE).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_admit_in_their_role_and_nothing_else_does() {
    let swarm = Swarm::start().await;
    let root = swarm.manager.cluster().expect("is there").root_ca.clone();
    for (token, role) in [(&root.worker_token, Role::Worker), (&root.manager_token, Role::Manager)]
    {
        let issued = swarm.join(token).await.expect("is admitted");
        let certificate = ca::NodeCertificate::from_pem(&issued.certificate).expect("parses");
        assert_eq!((certificate.subject.role, certificate.subject.node), (role, issued.node));
    }
    let nodes = swarm.nodes();
    let guessed = JoinToken::new(&root.digest, &ca::new_secret()).to_string();
    for token in ["", "hello", "SWMTKN-1-a-b", &guessed] {
        let refusal = swarm.join(token).await.expect_err("is refused");
        let words = "A valid join token is necessary to join this cluster";
        assert!(refusal.contains(words), "{token}: {refusal}");
    }
    let no_request = IssueRequest {
        token: root.worker_token.clone(),
        request: "hello".into(),
        availability: Availability::Active,
    };
    let refusal = ask::<Issued>(&swarm.stranger(), methods::CA_ISSUE, &no_request).await;
    assert!(refusal.expect_err("is refused").contains("not a certificate request"));
    assert_eq!(swarm.nodes(), nodes, "a refused join leaves nothing behind");
    swarm.manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_is_sent_twice_makes_two_nodes_and_takes_no_identity_over() {
    let swarm = Swarm::start().await;
    let token = swarm.manager.cluster().expect("is there").root_ca.worker_token.clone();
    let (_, request) = ca::new_request().expect("generates");
    let request = IssueRequest { token, request, availability: Availability::Active };
    let stranger = swarm.stranger();
    let first: Issued = ask(&stranger, methods::CA_ISSUE, &request).await.expect("is admitted");
    let second: Issued = ask(&stranger, methods::CA_ISSUE, &request).await.expect("is admitted");
    assert_ne!(first.node, second.node);
    swarm.manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_get_no_seat_no_log_and_no_say() {
    let swarm = Swarm::start().await;
    let token = swarm.manager.cluster().expect("is there").root_ca.worker_token.clone();
    let node = swarm.join(&token).await.expect("is admitted").node;
    let worker = swarm.channel(node, Role::Worker);
    let seat = SeatRequest { raft_id: 5, address: "127.0.0.1:1".into() };
    let refusal = ask::<Vec<()>>(&worker, methods::TAKE_SEAT, &seat).await;
    assert!(refusal.expect_err("is refused").contains("only managers may ask for this"));
    let pipe = worker.pipe().await.expect("is answered");
    assert!(refusal_of(pipe).await.contains("only managers may ask for this"));
    for method in ["skep.v1/control", "skep.v1/raft/state"] {
        let refusal = ask::<()>(&worker, method, &()).await.expect_err("is refused");
        assert!(refusal.contains("only managers may ask for this"), "{method}: {refusal}");
    }
    // Nor does a certificate of a manager make one of a node that is not to be one.
    let pretender = swarm.channel(node, Role::Manager);
    let refusal = ask::<Vec<()>>(&pretender, methods::TAKE_SEAT, &seat).await;
    assert!(refusal.expect_err("is refused").contains("is not to be a manager"));
    let leave = BTreeMap::from([("Leave", NodeId::from_random(1))]);
    let refusal = ask::<()>(&pretender, "skep.v1/control", &leave).await.expect_err("is refused");
    assert!(refusal.contains("is not a manager of this swarm any more"), "{refusal}");
    swarm.manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_in_anothers_name() {
    let swarm = Swarm::start().await;
    let root = swarm.manager.cluster().expect("is there").root_ca.clone();
    let (one, other) = (
        swarm.join(&root.worker_token).await.expect("is admitted").node,
        swarm.join(&root.worker_token).await.expect("is admitted").node,
    );
    let (one, other) = (swarm.channel(one, Role::Worker), swarm.channel(other, Role::Worker));
    let hello = SessionRequest { description: Description::default(), address: String::new() };
    let opened = one
        .stream_out::<_, SessionEvent, SessionRefusal>(methods::OPEN_SESSION, &hello, PATIENCE)
        .await;
    let mut stream = opened.expect("answers").expect("opens");
    let Some(SessionEvent::Opened(session)) = stream.next().await else { panic!("is opened") };
    let beat = HeartbeatRequest { session, is_last: true };
    let refusal = ask::<Duration>(&other, methods::HEARTBEAT, &beat).await;
    assert!(refusal.expect_err("is refused").contains("is not the current one"));
    let beat = HeartbeatRequest { session, is_last: false };
    ask::<Duration>(&one, methods::HEARTBEAT, &beat).await.expect("is heard");

    // A manager's raft messages count only as its own: here one speaks as the leader, which it is not.
    let issued = swarm.join(&root.manager_token).await.expect("is admitted");
    let impostor = swarm.channel(issued.node, Role::Manager);
    let mut pipe = impostor.pipe().await.expect("opens");
    pipe.send(&message_from(1));
    let refusal = refusal_of(pipe).await;
    assert!(refusal.contains("speaks in the name of node"), "{refusal}");
    assert!(swarm.manager.leads(), "it leads as before");
    swarm.manager.close().await;
}

/// Sends what waits, and hears why the other side ends the pipe.
async fn refusal_of(mut pipe: Pipe) -> String {
    let hear = move || {
        pipe.flush().expect("is whole");
        loop {
            poll(&mut [PollFd::new(&pipe, PollFlags::IN)], None).expect("polls");
            let filled = pipe.fill(&mut [0; 4_096]);
            match (pipe.take_frame(), filled) {
                (Err(refusal), _) | (Ok(None), Err(refusal)) => return refusal.to_string(),
                (Ok(_), _) => {}
            }
        }
    };
    tokio::task::spawn_blocking(hear).await.expect("hears")
}

/// A message of raft's in its encoding (protobuf): a heartbeat of a far later term, from `raft_id` to member 1.
fn message_from(raft_id: u8) -> Vec<u8> {
    vec![0x08, 8, 0x10, 1, 0x18, raft_id, 0x20, 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_gets_no_certificate_and_no_session() {
    let swarm = Swarm::start().await;
    let gone = swarm.channel(NodeId::from_random(77), Role::Worker);
    let (_, request) = ca::new_request().expect("generates");
    let refusal = ask::<Issued>(&gone, methods::CA_RENEW, &RenewRequest { request }).await;
    assert!(refusal.expect_err("is refused").contains("is not in the swarm any more"));
    let hello = SessionRequest { description: Description::default(), address: String::new() };
    let opened = gone
        .stream_out::<_, SessionEvent, SessionRefusal>(methods::OPEN_SESSION, &hello, PATIENCE)
        .await;
    let Ok(Err(SessionRefusal::Other(refusal))) = opened else { panic!("is refused") };
    assert!(refusal.to_string().contains("is not in the cluster"), "{refusal}");
    swarm.manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_hears_nothing_of_what_managers_keep_secret() {
    let swarm = Swarm::start().await;
    let cluster = swarm.manager.cluster().expect("is there");
    let spec = ClusterSpec { autolock_managers: true, ..cluster.spec.clone() };
    let rotation = manager::Rotation::default();
    swarm.manager.update_cluster(cluster.meta.version, spec, rotation).await.expect("is locked");
    let node = swarm.join(&cluster.root_ca.worker_token).await.expect("is admitted").node;
    let worker = swarm.channel(node, Role::Worker);
    let hello = SessionRequest { description: Description::default(), address: String::new() };
    let opened = worker
        .stream_out::<_, SessionEvent, SessionRefusal>(methods::OPEN_SESSION, &hello, PATIENCE)
        .await;
    let mut stream = opened.expect("answers").expect("opens");
    // While it listens the key is changed, which is no news to it.
    let cluster = swarm.manager.cluster().expect("is there");
    let rotation = manager::Rotation { unlock_key: true, ..manager::Rotation::default() };
    let rotated =
        swarm.manager.update_cluster(cluster.meta.version, cluster.spec.clone(), rotation);
    rotated.await.expect("is rotated");
    let after = swarm.manager.cluster().expect("is there");
    let keys = [&cluster, &after].map(|cluster| cluster.unlock_key.clone().expect("is locked"));
    assert!(keys[0] != keys[1]);
    // What ends the listening: the roots, which are news.
    let mut spec = after.spec.clone();
    spec.ca.force_rotate += 1;
    let rotation = manager::Rotation::default();
    swarm.manager.update_cluster(after.meta.version, spec, rotation).await.expect("begins");
    let roots = swarm.manager.cluster().expect("is there").root_ca.trust_bundle();
    let mut heard = Vec::new();
    loop {
        let event = stream.next().await.expect("goes on");
        heard.extend(rmp_serde::to_vec_named(&event).expect("encodes"));
        match event {
            SessionEvent::Message(SessionMessage::News(news)) if *news.trust_root == *roots => {
                break;
            }
            _ => {}
        }
    }
    let has = |secret: &[u8]| heard.windows(secret.len()).any(|window| window == secret);
    assert!(has(roots.as_bytes()));
    let root = &after.root_ca;
    for secret in [
        &keys[0].as_bytes()[..],
        keys[1].as_bytes(),
        root.key.as_bytes(),
        root.worker_token.as_bytes(),
        root.manager_token.as_bytes(),
    ] {
        assert!(!has(secret));
    }
    swarm.manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_removed_nodes_open_nothing_whatever_they_say() {
    let swarm = Swarm::start().await;
    let root = swarm.manager.cluster().expect("is there").root_ca.clone();
    let node = swarm.join(&root.worker_token).await.expect("is admitted").node;
    let channels = [swarm.channel(node, Role::Worker), swarm.channel(node, Role::Manager)];
    let mut pipe = channels[1].pipe().await.expect("opens");
    let seat = SeatRequest { raft_id: 5, address: "127.0.0.1:1".into() };
    let refusal = ask::<Vec<()>>(&channels[1], methods::TAKE_SEAT, &seat).await;
    assert!(refusal.expect_err("is refused").contains("is not to be a manager"));
    swarm.manager.remove_node(node, false).await.expect("is removed");
    for method in [methods::TAKE_SEAT, "skep.v1/control", "skep.v1/raft/state"] {
        let refusal = ask::<Vec<()>>(&channels[1], method, &seat).await.expect_err("is refused");
        assert!(refusal.contains("this node was removed from the swarm"), "{method}: {refusal}");
    }
    for channel in &channels {
        let (_, request) = ca::new_request().expect("generates");
        let refusal = ask::<Issued>(channel, methods::CA_RENEW, &RenewRequest { request }).await;
        assert!(refusal.expect_err("is refused").contains("is not in the swarm any more"));
    }
    pipe.send(&message_from(99));
    let refusal = refusal_of(pipe).await;
    assert!(refusal.contains("this node was removed from the swarm"), "{refusal}");
    swarm.manager.close().await;
}
