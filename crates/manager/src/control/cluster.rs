//! The cluster object: its birth, its settings, its tokens.

use std::sync::Arc;

use ca::{JoinToken, new_secret};
use consensus::Consensus;
use store::{Draft, Object};
use types::cluster::RootCa;
use types::limits::{CERTIFICATE_EXPIRY_MIN, HEARTBEAT_PERIOD_MIN};
use types::node::{Availability, ManagerStatus, NodeSpec, NodeStatus, Role};
use types::{Cluster, ClusterId, ClusterSpec, Meta, Node, NodeId};

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
    pub availability: Availability,
    pub spec: ClusterSpec,
    pub data_path_port: u16,
    pub default_address_pools: Vec<String>,
    pub subnet_size: u8,
}

/// Which secrets `swarm update` and `join-token --rotate` replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    pub worker_token: bool,
    pub manager_token: bool,
}

/// Writes a new cluster's log with the cluster and its first node in it.
pub(crate) fn bootstrap(config: &consensus::Config, request: Bootstrap) -> Result<(), Error> {
    validate(&request.spec)?;
    let root_ca = ca::generate(now().as_nanos() / 1_000_000_000)?;
    Consensus::bootstrap(config)?;
    let consensus = Consensus::open(config)?;
    let mut draft = Draft::new((*consensus.snapshot()).clone(), now());
    draft.put(Cluster {
        id: ClusterId::from_random(rand::random()),
        meta: Meta::default(),
        spec: request.spec,
        root_ca,
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
        manager: Some(ManagerStatus { raft_id: request.raft_id, address: request.address }),
    });
    let proposal = consensus.propose(&draft.finish());
    Ok(block_on(proposal)?)
}

/// Waits on a thread that is not part of the async runtime.
fn block_on(proposal: consensus::Proposal) -> Result<(), consensus::Error> {
    tokio::runtime::Handle::current().block_on(proposal)
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
        let interval = spec.raft.snapshot_interval;
        let writer: &Writer = &self.writer;
        writer.write(|draft| write_update(draft, version, spec, rotation)).await?;
        writer.consensus().set_snapshot_interval(interval, 0);
        Ok(())
    }
}

fn write_update(
    draft: &mut Draft,
    version: u64,
    spec: ClusterSpec,
    rotation: Rotation,
) -> Result<(), Error> {
    let Some(Object::Cluster(cluster)) = draft.get(store::Key::Cluster) else {
        return Err(Error::new(Code::NotFound, "cluster not found"));
    };
    if cluster.meta.version != version {
        return Err(Error::out_of_sequence());
    }
    draft.update_cluster(&cluster, |cluster| {
        cluster.spec = spec;
        rotate(&mut cluster.root_ca, rotation);
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
