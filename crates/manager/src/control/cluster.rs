//! The cluster object: its birth, its settings, its tokens.

use std::future::Future;
use std::sync::Arc;

use ca::{JoinToken, new_secret};
use consensus::Consensus;
use serde::{Deserialize, Serialize};
use store::{Draft, Object};
use types::cluster::{RootCa, UnlockKey};
use types::limits::{CERTIFICATE_EXPIRY_MIN, HEARTBEAT_PERIOD_MIN};
use types::node::{Availability, ManagerStatus, NodeSpec, NodeStatus, Reachability, Role};
use types::{Cluster, ClusterId, ClusterSpec, Meta, Node, NodeId};

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

/// Writes a new cluster's log with the cluster and its first node in it.
pub(crate) fn bootstrap(
    config: &consensus::Config,
    request: Bootstrap,
) -> Result<Bootstrapped, Error> {
    validate(&request.spec)?;
    let seconds = now().as_nanos() / 1_000_000_000;
    let root_ca = first_root(&request.spec, seconds)?;
    let id = ClusterId::from_random(rand::random());
    let subject = ca::Subject { node: request.node, role: Role::Manager, cluster: id };
    let signing = authority::sign(&root_ca, &request.spec, None, &request.request, &subject);
    let certificate = block_on(signing)?;
    let roots = root_ca.trust_bundle();
    Consensus::bootstrap(config)?;
    // Nobody listens yet: a member that is alone has nothing to say to others.
    let (outgoing, _) = tokio::sync::mpsc::channel(1);
    let consensus = Consensus::open(config, outgoing)?;
    let mut draft = Draft::new((*consensus.snapshot()).clone(), now());
    draft.put(Cluster {
        id,
        meta: Meta::default(),
        spec: request.spec,
        root_ca,
        unlock_key: request.unlock_key,
        data_path_port: request.data_path_port,
        default_address_pools: request.default_address_pools,
        subnet_size: request.subnet_size,
    });
    draft.put(Node {
        id: request.node,
        meta: Meta::default(),
        spec: NodeSpec {
            role: Role::Manager,
            availability: request.availability,
            ..NodeSpec::default()
        },
        description: types::node::Description::default(),
        status: NodeStatus::default(),
        manager: Some(ManagerStatus {
            raft_id: request.raft_id,
            address: request.address,
            reachability: Reachability::Reachable,
        }),
    });
    let proposal = consensus.propose(&draft.finish());
    block_on(proposal)?;
    Ok(Bootstrapped { certificate, roots })
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
