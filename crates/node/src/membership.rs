//! This node's place in its swarm: none, or a manager that also runs tasks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use apiserver::{Answer, ApiError, Swarm};
use docker_types::convert;
use docker_types::swarm::{InitRequest, JoinRequest, Peer, SwarmInfo};
use http::StatusCode;
use manager::{Bootstrap, Manager};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use types::NodeId;
use types::node::{Availability, Role};
use types::resources::Generic;

use crate::agent_driver::{self, AgentDriver};
use crate::config::Config;
use crate::daemon::SharedEngine;
use crate::state::{Files, State};
use crate::{describe, swarm_events};

const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
const ALREADY_IN_SWARM: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";
const NOT_IN_SWARM: &str = "This node is not part of a swarm";
const LAST_MANAGER: &str = "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ";

/// Port of the cluster service where none is named.
const CLUSTER_PORT: u16 = 2377;
/// UDP port of the overlay where none is named.
const DATA_PATH_PORT: u32 = 4789;

/// The parts that run while the node is in a swarm.
#[derive(Debug)]
struct Active {
    state: State,
    manager: Arc<Manager>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Membership {
    engine: SharedEngine,
    files: Files,
    labels: Vec<String>,
    generic: BTreeMap<String, Generic>,
    active: Mutex<Option<Active>>,
    /// One init, join or leave at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Membership {
    /// Goes back into the swarm the node was in.
    ///
    /// # Errors
    /// When the swarm's state cannot be read; the text says where the damage is.
    pub(crate) async fn open(config: &Config, engine: SharedEngine) -> anyhow::Result<Arc<Self>> {
        let membership = Arc::new(Self {
            engine,
            files: Files::new(&config.data_root),
            labels: config.engine.labels.clone(),
            generic: config.generic_resources.clone(),
            active: Mutex::new(None),
            changing: tokio::sync::Mutex::new(()),
        });
        match membership.files.load()? {
            Some(state) => membership.activate(state).await?,
            // A swarm that was left while no daemon ran leaves no tasks behind.
            None => agent_driver::clear(&membership.engine).await,
        }
        Ok(membership)
    }

    /// Stops managing; tasks run on.
    pub(crate) async fn close(&self) {
        let active = self.lock().take();
        if let Some(active) = active {
            active.end().await;
        }
    }

    async fn activate(&self, state: State) -> anyhow::Result<()> {
        let config = self.files.consensus(state.raft_id)?;
        let manager = Arc::new(Manager::open(&config).await?);
        let tls = ca::tls_info(&manager.cluster()?.root_ca)?;
        let description = describe::describe(&self.labels, &self.generic, tls);
        let stop = CancellationToken::new();
        let driver = AgentDriver::new(
            self.engine.clone(),
            manager.clone(),
            agent_driver::Identity {
                node: state.node,
                address: state.address.clone(),
                description,
            },
        );
        let tasks = vec![
            tokio::spawn(driver.run(stop.clone())),
            tokio::spawn(swarm_events::follow(manager.changes(), self.engine.events.clone())),
        ];
        *self.lock() = Some(Active { state, manager, stop, tasks });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().expect("membership is left whole")
    }

    fn is_active(&self) -> bool {
        self.lock().is_some()
    }

    async fn init_now(&self, request: InitRequest) -> Result<NodeId, ApiError> {
        let _changing = self.changing.lock().await;
        if self.is_active() && !request.force_new_cluster {
            return Err(unavailable(ALREADY_IN_SWARM));
        }
        if request.force_new_cluster {
            return self.force_new_cluster();
        }
        let (state, bootstrap) = self.plan_init(request)?;
        self.files.remove().map_err(internal)?;
        let config = self.files.consensus(state.raft_id).map_err(internal)?;
        Manager::bootstrap(&config, bootstrap).await?;
        self.files.save(&state).map_err(internal)?;
        let node = state.node;
        self.activate(state).await.map_err(internal)?;
        Ok(node)
    }

    /// A single manager is the whole quorum already, so there is nothing to be forced.
    fn force_new_cluster(&self) -> Result<NodeId, ApiError> {
        self.node_id().ok_or_else(|| unavailable(NOT_IN_SWARM))
    }

    fn plan_init(&self, request: InitRequest) -> Result<(State, Bootstrap), ApiError> {
        let address = self.advertised(&request)?;
        let data_path_port = match request.data_path_port {
            0 => DATA_PATH_PORT,
            port => port,
        };
        if !(1024..=49151).contains(&data_path_port) {
            return Err(ApiError::bad_request(format!(
                "Datapath port number is not in valid range (1024-49151) : {data_path_port}"
            )));
        }
        let mut spec = convert::swarm::spec_from_api(request.spec)?;
        spec.autolock_managers |= request.auto_lock_managers;
        if spec.autolock_managers {
            return Err(ApiError::not_implemented(
                "autolock is not supported yet: initialize without --autolock",
            ));
        }
        let pools = match request.default_addr_pool.is_empty() {
            true => vec!["10.0.0.0/8".to_owned()],
            false => request.default_addr_pool,
        };
        for pool in &pools {
            pool.parse::<ipnet::Ipv4Net>()
                .map_err(|_| ApiError::bad_request(format!("invalid CIDR address: {pool}")))?;
        }
        let subnet_size = match request.subnet_size {
            0 => 24,
            size @ 8..=29 => u8::try_from(size).expect("29 and less fit"),
            size => {
                return Err(ApiError::bad_request(format!(
                    "invalid subnet size {size}: expected 8 to 29"
                )));
            }
        };
        let state = State {
            node: NodeId::from_random(rand::random()),
            raft_id: rand::random_range(1..=u64::MAX),
            address,
        };
        let bootstrap = Bootstrap {
            node: state.node,
            raft_id: state.raft_id,
            address: format!(
                "{}:{}",
                bracketed(&state.address),
                port_of(&request.advertise_addr, &request.listen_addr)
            ),
            availability: availability(&request.availability)?,
            spec,
            data_path_port: u16::try_from(data_path_port).expect("checked to be within range"),
            default_address_pools: pools,
            subnet_size,
        };
        Ok((state, bootstrap))
    }

    /// The address named by the request, by an interface it names, or the host's only one.
    fn advertised(&self, request: &InitRequest) -> Result<String, ApiError> {
        let named = host_of(&request.advertise_addr);
        let addresses = network::host_addresses().map_err(|error| internal(error.into()))?;
        if !named.is_empty() {
            if named.parse::<IpAddr>().is_ok() {
                return Ok(named);
            }
            let found = addresses.iter().find(|(link, _)| *link == named);
            return found.map(|(_, address)| address.to_string()).ok_or_else(|| {
                ApiError::bad_request(format!("advertise address must be a non-zero IP address or network interface (with optional port number): {named}"))
            });
        }
        let listen = host_of(&request.listen_addr);
        if listen.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified()) {
            return Ok(listen);
        }
        let own = self.engine.network.bridge();
        let virtual_link = |link: &str| {
            link == "lo"
                || link == own
                || link.starts_with("docker")
                || link.starts_with("br-")
                || link.starts_with("sk")
        };
        let candidates: Vec<_> = addresses.iter().filter(|(link, _)| !virtual_link(link)).collect();
        match candidates[..] {
            [(_, address)] => Ok(address.to_string()),
            [] => Err(ApiError::bad_request(
                "could not find the system's IP address - specify one with --advertise-addr",
            )),
            [(one, first), (other, second), ..] => {
                let place = match one == other {
                    true => format!("on interface {one} ({first} and {second})"),
                    false => format!(
                        "on different interfaces ({first} on {one} and {second} on {other})"
                    ),
                };
                Err(ApiError::bad_request(format!(
                    "could not choose an IP address to advertise since this system has multiple addresses {place} - specify one with --advertise-addr"
                )))
            }
        }
    }

    async fn leave_now(&self, force: bool) -> Result<(), ApiError> {
        let _changing = self.changing.lock().await;
        if !self.is_active() {
            return Err(unavailable(NOT_IN_SWARM));
        }
        if !force {
            return Err(unavailable(LAST_MANAGER));
        }
        let active = self.lock().take();
        if let Some(active) = active {
            active.end().await;
        }
        self.files.remove().map_err(internal)?;
        agent_driver::clear(&self.engine).await;
        Ok(())
    }
}

impl Active {
    async fn end(self) {
        self.stop.cancel();
        // The events' follower ends with the manager, which others may still hold for a request.
        for task in self.tasks.into_iter().rev() {
            task.abort();
            let _ = task.await;
        }
        match Arc::try_unwrap(self.manager) {
            Ok(manager) => manager.close().await,
            Err(_) => warn!("a request still holds the manager; it closes with it"),
        }
    }
}

impl Swarm for Membership {
    fn manager(&self) -> Result<Arc<Manager>, ApiError> {
        let active = self.lock();
        active
            .as_ref()
            .map(|active| active.manager.clone())
            .ok_or_else(|| unavailable(NOT_A_MANAGER))
    }

    fn node_id(&self) -> Option<NodeId> {
        self.lock().as_ref().map(|active| active.state.node)
    }

    fn status(&self) -> &'static str {
        if self.is_active() { "active/manager" } else { "inactive" }
    }

    fn info(&self) -> SwarmInfo {
        let active = self.lock();
        let Some(active) = active.as_ref() else {
            return SwarmInfo { local_node_state: "inactive".into(), ..SwarmInfo::default() };
        };
        let snapshot = active.manager.snapshot();
        let managers = snapshot.nodes().filter(|node| node.spec.role == Role::Manager);
        let peers = managers.filter_map(|node| {
            let address = node.manager.as_ref()?.address.clone();
            Some(Peer { node_id: node.id.to_string(), addr: address })
        });
        let peers: Vec<_> = peers.collect();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let cluster = active.manager.cluster().ok();
        let shown = cluster.and_then(|cluster| {
            let tls = ca::tls_info(&cluster.root_ca).ok()?;
            let mut shown = convert::swarm::swarm_to_api(&cluster, &tls);
            shown.join_tokens = None;
            Some(shown)
        });
        SwarmInfo {
            node_id: active.state.node.to_string(),
            node_addr: active.state.address.clone(),
            local_node_state: "active".into(),
            control_available: true,
            error: String::new(),
            nodes: count(snapshot.nodes().count()),
            managers: count(peers.len()),
            remote_managers: Some(peers),
            cluster: shown,
            warnings: Vec::new(),
        }
    }

    fn init(&self, request: InitRequest) -> Answer<'_, NodeId> {
        Box::pin(self.init_now(request))
    }

    fn join(&self, request: JoinRequest) -> Answer<'_, ()> {
        Box::pin(async move {
            if self.is_active() {
                return Err(unavailable(ALREADY_IN_SWARM));
            }
            request
                .join_token
                .parse::<ca::JoinToken>()
                .map_err(|error| ApiError::bad_request(error.to_string()))?;
            Err(ApiError::not_implemented(
                "joining other nodes is not supported yet: use \"docker swarm init\"",
            ))
        })
    }

    fn leave(&self, force: bool) -> Answer<'_, ()> {
        Box::pin(self.leave_now(force))
    }
}

fn availability(text: &str) -> Result<Availability, ApiError> {
    Ok(convert::node::availability(text)?)
}

fn unavailable(message: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

fn internal(error: anyhow::Error) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
}

/// The host of `host`, `host:port` or `[host]:port`.
fn host_of(address: &str) -> String {
    if let Some((host, _)) = address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return host.to_owned();
    }
    match address.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') => host.to_owned(),
        _ => address.to_owned(),
    }
}

/// The port of the first address that names one.
fn port_of(advertised: &str, listened: &str) -> u16 {
    let port = |address: &str| {
        let (host, port) = address.rsplit_once(':')?;
        let is_address = !host.contains(':') || host.ends_with(']');
        port.parse().ok().filter(|_| is_address)
    };
    port(advertised).or_else(|| port(listened)).unwrap_or(CLUSTER_PORT)
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (text, host, port) in [
            ("10.0.0.1", "10.0.0.1", 2377),
            ("10.0.0.1:4000", "10.0.0.1", 4000),
            ("eth0", "eth0", 2377),
            ("eth0:4000", "eth0", 4000),
            ("[fd00::1]:4000", "fd00::1", 4000),
            ("fd00::1", "fd00::1", 2377),
            ("", "", 2377),
        ] {
            assert_eq!((host_of(text).as_str(), port_of(text, "")), (host, port), "{text}");
        }
    }
}
