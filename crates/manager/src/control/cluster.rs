//! The cluster object: its birth, its settings, its tokens.

use std::future::Future;
use std::sync::Arc;

use ca::{JoinToken, new_secret};
use consensus::Consensus;
use serde::{Deserialize, Serialize};
use store::{Draft, Object, Snapshot, apply};
use types::cluster::{RootCa, UnlockKey};
use types::limits::{CERTIFICATE_EXPIRY_MIN, HEARTBEAT_PERIOD_MIN};
use types::node::{Availability, ManagerStatus, NodeSpec, NodeStatus, Reachability, Role};
use types::{Cluster, ClusterId, ClusterSpec, Meta, Node, NodeId};

use super::network;
use super::request::Request;
use crate::authority;
use crate::clock::now;
use crate::error::{Code, Error};
use crate::{Manager, writer::Writer};

/// What `swarm init` says about the new cluster and its first node.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    pub node: NodeId,
    pub raft_id: u64,
    /// Host and port where other nodes reach the cluster service.
    pub address: String,
    /// PEM of the request for the first node's certificate.
    pub request: String,
    pub availability: Availability,
    pub spec: ClusterSpec,
    /// What managers are locked with from the beginning.
    pub unlock_key: Option<UnlockKey>,
    pub data_path_port: u16,
    pub default_address_pools: Vec<String>,
    pub subnet_size: u8,
}

/// The first node's identity; all PEM.
#[derive(Clone, Debug)]
pub struct Bootstrapped {
    pub certificate: String,
    pub roots: String,
}

/// Which secrets `swarm update` and `join-token --rotate` replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    pub worker_token: bool,
    pub manager_token: bool,
    pub unlock_key: bool,
}

/// What a host says that brings a lost swarm back from its state.
#[derive(Clone, Debug)]
pub struct Restore {
    pub node: NodeId,
    pub raft_id: u64,
    /// Host and port where other nodes reach the cluster service.
    pub address: String,
    /// PEM of the request for the node's certificate.
    pub request: String,
    pub availability: Availability,
}

/// Writes a new cluster's log with the cluster and its first node in it.
pub(crate) fn bootstrap(
    config: &consensus::Config,
    request: Bootstrap,
) -> Result<Bootstrapped, Error> {
    validate(&request.spec)?;
    let seconds = now().as_nanos() / 1_000_000_000;
    let cluster = Cluster {
        root_ca: first_root(&request.spec, seconds)?,
        spec: request.spec,
        unlock_key: request.unlock_key,
        data_path_port: request.data_path_port,
        default_address_pools: request.default_address_pools,
        subnet_size: request.subnet_size,
        ..Cluster::new(ClusterId::from_random(rand::random()))
    };
    let first = Restore {
        node: request.node,
        raft_id: request.raft_id,
        address: request.address,
        request: request.request,
        availability: request.availability,
    };
    let mut draft = Draft::new(Snapshot::default(), now());
    draft.put(cluster.clone());
    network::write_ingress(&mut draft)?;
    begin(config, Snapshot::default(), draft, &cluster, first)
}

/// Writes a log that begins with a state from elsewhere, and with this node as the only manager. The others are lost:
/// those that come back do so as workers.
pub(crate) fn restore(
    config: &consensus::Config,
    state: Snapshot,
    request: Restore,
) -> Result<Bootstrapped, Error> {
    let cluster = state
        .cluster()
        .cloned()
        .ok_or_else(|| Error::new(Code::InvalidArgument, "the backup holds no swarm".to_owned()))?;
    let mut draft = Draft::new(state.clone(), now());
    dismiss_others(&mut draft, request.node, "restored from a backup");
    let nodes: Vec<_> = state.nodes().map(|node| node.id).collect();
    for node in nodes {
        dispatcher::write_down(&mut draft, node, "restored from a backup");
    }
    begin(config, state, draft, &cluster, request)
}

/// Takes the seats of all managers but `node` away.
pub(crate) fn dismiss_others(draft: &mut Draft, node: NodeId, why: &str) {
    let is_other = |other: &&Arc<Node>| other.id != node && other.manager.is_some();
    let others: Vec<_> = draft.nodes().filter(is_other).map(|other| other.id).collect();
    for other in others {
        dispatcher::write_down(draft, other, why);
        let Some(other) = draft.node(other).cloned() else { continue };
        draft.update_node(&other, |other| {
            other.manager = None;
            other.spec.role = Role::Worker;
        });
    }
}

fn begin(
    config: &consensus::Config,
    state: Snapshot,
    mut draft: Draft,
    cluster: &Cluster,
    first: Restore,
) -> Result<Bootstrapped, Error> {
    let subject = ca::Subject { node: first.node, role: Role::Manager, cluster: cluster.id };
    let signing = authority::sign(&cluster.root_ca, &cluster.spec, None, &first.request, &subject);
    let certificate = block_on(signing)?;
    draft.put(Node {
        id: first.node,
        meta: Meta::default(),
        spec: NodeSpec {
            role: Role::Manager,
            availability: first.availability,
            ..NodeSpec::default()
        },
        description: types::node::Description::default(),
        status: NodeStatus::default(),
        manager: Some(ManagerStatus {
            raft_id: first.raft_id,
            address: first.address,
            reachability: Reachability::Reachable,
        }),
    });
    let (state, _) = apply(&state, &draft.finish()).expect("the draft was made from this state");
    Consensus::bootstrap(config, state)?;
    Ok(Bootstrapped { certificate, roots: cluster.root_ca.trust_bundle() })
}

/// The root of a new swarm: its own, or the one whose key an external authority has.
fn first_root(spec: &ClusterSpec, now: i64) -> Result<RootCa, Error> {
    let Some(external) = spec.ca.external.first() else { return Ok(ca::generate(now)?) };
    if external.ca_cert.trim().is_empty() {
        return Err(Error::invalid(
            "a swarm that begins with an external CA needs its root certificate: add cacert=FILE to --external-ca",
        ));
    }
    let root = ca::of_external(&external.ca_cert, now);
    root.map_err(|error| Error::invalid(error.to_string()))
}

/// Waits on a thread that is not part of the async runtime.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Handle::current().block_on(future)
}

/// # Errors
/// The first setting that is out of bounds, in Docker's words.
fn validate(spec: &ClusterSpec) -> Result<(), Error> {
    if spec.annotations.name != "default" {
        return Err(Error::invalid("swarm spec must be named \"default\""));
    }
    if spec.ca.node_cert_expiry < CERTIFICATE_EXPIRY_MIN {
        return Err(Error::invalid("minimum certificate expiry time is: 1h0m0s"));
    }
    for external in &spec.ca.external {
        if external.protocol != "cfssl" {
            let protocol = &external.protocol;
            return Err(Error::invalid(format!("unknown external CA protocol: {protocol}")));
        }
        if !external.url.starts_with("https://") {
            let url = &external.url;
            return Err(Error::invalid(format!(
                "the URL of an external CA begins with https://, not {url}"
            )));
        }
    }
    if spec.heartbeat_period < HEARTBEAT_PERIOD_MIN {
        return Err(Error::invalid(
            "invalid dispatcher config: heartbeat period is too short: it must be at least 100ms",
        ));
    }
    Ok(())
}

impl Manager {
    /// The cluster object.
    ///
    /// # Errors
    /// When the first entry of the log is not there, which only a damaged state shows.
    pub fn cluster(&self) -> Result<Arc<Cluster>, Error> {
        let missing = || Error::new(Code::Internal, "the state has no cluster object");
        self.snapshot().cluster().cloned().ok_or_else(missing)
    }

    /// Replaces the settings, and the tokens that `rotation` names.
    pub async fn update_cluster(
        &self,
        version: u64,
        spec: ClusterSpec,
        rotation: Rotation,
    ) -> Result<(), Error> {
        validate(&spec)?;
        self.tell(Request::UpdateCluster { version, spec: Box::new(spec), rotation }).await
    }
}

pub(super) async fn update(
    writer: &Writer,
    version: u64,
    spec: ClusterSpec,
    rotation: Rotation,
) -> Result<(), Error> {
    validate(&spec)?;
    writer.write(|draft| write_update(draft, version, spec, rotation)).await
}

fn write_update(
    draft: &mut Draft,
    version: u64,
    mut spec: ClusterSpec,
    rotation: Rotation,
) -> Result<(), Error> {
    let Some(Object::Cluster(cluster)) = draft.get(store::Key::Cluster) else {
        return Err(Error::new(Code::NotFound, "cluster not found"));
    };
    if cluster.meta.version != version {
        return Err(Error::out_of_sequence());
    }
    let seconds = draft.now().as_nanos() / 1_000_000_000;
    let planned = ca::plan(&cluster.root_ca, &spec.ca, seconds);
    let planned = planned.map_err(|error| Error::invalid(error.to_string()))?;
    // From here on it stands with the root only.
    spec.ca.signing_key.clear();
    draft.update_cluster(&cluster, |cluster| {
        cluster.spec = spec;
        ca::change(&mut cluster.root_ca, planned, &cluster.spec.ca);
        rotate(&mut cluster.root_ca, rotation);
        cluster.unlock_key = match (cluster.spec.autolock_managers, cluster.unlock_key.take()) {
            (false, _) => None,
            (true, Some(key)) if !rotation.unlock_key => Some(key),
            (true, _) => Some(ca::new_unlock_key()),
        };
    });
    Ok(())
}

fn rotate(root: &mut RootCa, rotation: Rotation) {
    let token = || JoinToken::new(&root.digest, &new_secret()).to_string();
    let (worker, manager) = (token(), token());
    if rotation.worker_token {
        root.worker_token = worker;
    }
    if rotation.manager_token {
        root.manager_token = manager;
    }
}
