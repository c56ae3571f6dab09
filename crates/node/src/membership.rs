//! A node's place in a swarm: init, join, leave, and what the daemon runs meanwhile.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use apiserver::{Answer, ApiError, NetworkMembers, Swarm};
use consensus::DataKey;
use docker_types::convert;
use docker_types::swarm::{InitRequest, JoinRequest, Peer, SwarmInfo};
use http::StatusCode;
use manager::{Bootstrap, Bootstrapped, Manager};
use rpc::SharedIdentity;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use types::NodeId;
use types::assignment::ManagerPeer;
use types::cluster::{DATA_PATH_PORT, SUBNET_SIZE, UnlockKey};
use types::node::{Availability, NodeState, Reachability, Role};
use types::resources::Generic;

use crate::address::{self, Addresses};
use crate::agent_driver::{self, AgentDriver};
use crate::attachments::Attachments;
use crate::board::Board;
use crate::config::Config;
use crate::daemon::SharedEngine;
use crate::local::Local;
use crate::name_book::NameBook;
use crate::session::{NodeInfo, Upstream};
use crate::state::{Files, State};
use crate::{describe, join, lock, steward, swarm_events, tunnel, whole};

pub(crate) const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
pub(crate) const WORKER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.";
pub(crate) const ALREADY_IN_SWARM: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";
pub(crate) const NOT_IN_SWARM: &str = "This node is not part of a swarm";
const EXPIRED: &str =
    "Swarm certificates have expired. To replace them, leave the swarm and join again.";
const JOIN_TIMEOUT: &str = "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \"docker info\" command to see the current swarm status of your node.";

/// How long `swarm join` waits for the node to have its place.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);

/// How long a leaving node waits for the others to take note.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);

/// The parts that run while the node is in a swarm.
#[derive(Debug)]
struct Active {
    state: State,
    identity: SharedIdentity,
    /// End of the certificate's life, in seconds since 1970.
    valid_until: i64,
    upstream: Arc<Upstream>,
    manager: Option<Arc<Manager>>,
    /// What follows the manager's changes: `docker events`, the lock.
    followers: Vec<JoinHandle<()>>,
    info: watch::Sender<NodeInfo>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) engine: SharedEngine,
    local: Local,
    pub(crate) files: Files,
    labels: Vec<String>,
    generic: BTreeMap<String, Generic>,
    tunnel: tunnel::Settings,
    /// What this host has in the node's way.
    pub(crate) warnings: whole::Warnings,
    active: Mutex<Option<Active>>,
    /// The place that the node cannot take before it is unlocked.
    pub(crate) locked: Mutex<Option<State>>,
    /// One init, join or leave at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// One at a time starts or stops the manager.
    pub(crate) seating: tokio::sync::Mutex<()>,
}

impl Membership {
    /// Goes back into the swarm the node was in.
    ///
    /// # Errors
    /// When the swarm's state cannot be read; the text says where the damage is.
    pub(crate) async fn open(
        config: &Config,
        engine: SharedEngine,
        board: Arc<Board>,
        names: Arc<NameBook>,
    ) -> anyhow::Result<Arc<Self>> {
        let attachments = Arc::new(Attachments::new(engine.clone(), board.clone()));
        let membership = Arc::new(Self {
            engine,
            local: Local { board, names, attachments },
            files: Files::new(&config.data_root),
            labels: config.engine.labels.clone(),
            generic: config.generic_resources.clone(),
            tunnel: config.tunnel,
            warnings: whole::Warnings::default(),
            active: Mutex::new(None),
            locked: Mutex::new(None),
            changing: tokio::sync::Mutex::new(()),
            seating: tokio::sync::Mutex::new(()),
        });
        match membership.files.load()? {
            Some(state) if membership.files.is_locked()? => {
                warn!("{}", lock::LOCKED);
                membership.set_locked(Some(state));
            }
            Some(state) => membership.activate(state, None).await?,
            // A swarm that was left while no daemon ran leaves no tasks behind.
            None => agent_driver::clear(&membership.engine).await,
        }
        // Containers that wait for the swarm find it there from now on.
        membership.engine.set_swarm(membership.local.attachments.clone());
        Ok(membership)
    }

    /// Stops managing; tasks run on.
    pub(crate) async fn close(&self) {
        let active = self.lock().take();
        if let Some(active) = active {
            active.end().await;
        }
    }

    /// Takes the node's place in the swarm that `state` speaks of. A listener may be bound already.
    pub(crate) async fn activate(
        self: &Arc<Self>,
        state: State,
        listener: Option<TcpListener>,
    ) -> anyhow::Result<()> {
        let identity = self.files.load_identity()?;
        let shared = SharedIdentity::new(&identity)?;
        let valid_until = ca::NodeCertificate::from_pem(&identity.certificate)?.not_after;
        let upstream =
            Arc::new(Upstream::new(state.node, shared.clone(), None, state.managers.clone()));
        let info = NodeInfo {
            node: state.node,
            address: state.address.clone(),
            description: self.description(&identity)?,
        };
        let (info, described) = watch::channel(info);
        let (news, heard) = watch::channel(None);
        let stop = CancellationToken::new();
        let driver = AgentDriver::new(
            self.engine.clone(),
            upstream.clone(),
            described,
            news,
            self.files.clone(),
            self.local.clone(),
            self.tunnel,
        );
        self.local.attachments.set_upstream(Some(upstream.clone()));
        let raft_id = state.raft_id;
        *self.lock() = Some(Active {
            state,
            identity: shared,
            valid_until,
            upstream,
            manager: None,
            followers: Vec::new(),
            info,
            stop: stop.clone(),
            tasks: Vec::new(),
        });
        if let Some(raft_id) = raft_id
            && let Err(error) = self.start_manager(raft_id, listener).await
        {
            self.close().await;
            return Err(error);
        }
        let weak = Arc::downgrade(self);
        let tasks = [
            tokio::spawn(driver.run(stop.clone())),
            tokio::spawn(steward::follow(weak, self.files.closed.clone(), heard, stop)),
        ];
        if let Some(active) = self.lock().as_mut() {
            active.tasks.extend(tasks);
        }
        Ok(())
    }

    fn description(&self, identity: &rpc::Identity) -> anyhow::Result<types::node::Description> {
        let tls = ca::node_tls_info(&identity.roots, &identity.certificate)?;
        Ok(describe::describe(&self.labels, &self.generic, tls))
    }

    /// Opens the consensus' state and manages.
    pub(crate) async fn start_manager(
        &self,
        raft_id: u64,
        listener: Option<TcpListener>,
    ) -> anyhow::Result<Arc<Manager>> {
        let (identity, listen, others) = {
            let active = self.lock();
            let active = active.as_ref().ok_or_else(|| anyhow::anyhow!(NOT_IN_SWARM))?;
            let State { listen, managers, .. } = active.state.clone();
            (active.identity.clone(), listen, managers)
        };
        let listener = match listener {
            Some(listener) => listener,
            None => bind(&listen).await?,
        };
        let config = self.files.consensus(raft_id)?;
        let manager = Manager::open(&config, identity, &others).await?;
        manager.serve(listener);
        let events = swarm_events::follow(manager.changes(), self.engine.events.clone());
        let locking = lock::follow(self.files.clone(), manager.clone());
        let mut active = self.lock();
        let active = active.as_mut().ok_or_else(|| anyhow::anyhow!(NOT_IN_SWARM))?;
        active.upstream.set_manager(Some(manager.clone()));
        active.manager = Some(manager.clone());
        active.followers = vec![tokio::spawn(events), tokio::spawn(locking)];
        Ok(manager)
    }

    /// Stops managing and forgets the seat; the node goes on as a worker.
    pub(crate) async fn stop_manager(&self) -> anyhow::Result<()> {
        let followers = {
            let mut active = self.lock();
            let Some(active) = active.as_mut() else { return Ok(()) };
            active.upstream.set_manager(None);
            std::mem::take(&mut active.followers)
        };
        for follower in followers {
            follower.abort();
            // What locks has ended before the lock is taken off.
            let _ = follower.await;
        }
        // A worker is never locked. Only then it forgets its seat: after a crash it comes back as one or the other.
        self.files.set_lock(None)?;
        let manager = {
            let mut active = self.lock();
            let Some(active) = active.as_mut() else { return Ok(()) };
            active.state.raft_id = None;
            self.files.save(&active.state)?;
            active.manager.take()
        };
        if let Some(manager) = manager {
            manager.close().await;
        }
        self.files.remove_seat()
    }

    /// Puts a new certificate into use and tells the managers of it.
    pub(crate) fn use_identity(&self, identity: &rpc::Identity) -> anyhow::Result<()> {
        self.files.save_identity(identity)?;
        let description = self.description(identity)?;
        let valid_until = ca::NodeCertificate::from_pem(&identity.certificate)?.not_after;
        if let Some(active) = self.lock().as_mut() {
            active.identity.replace(identity)?;
            active.valid_until = valid_until;
            active.upstream.reconnect(active.identity.clone());
            active.info.send_modify(|info| info.description = description);
        }
        Ok(())
    }

    /// Remembers what has changed of the node's state.
    pub(crate) fn change_state(&self, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        let mut active = self.lock();
        let Some(active) = active.as_mut() else { return Ok(()) };
        let mut next = active.state.clone();
        change(&mut next);
        if next != active.state {
            self.files.save(&next)?;
            active.upstream.set_managers(next.managers.clone());
            active.state = next;
        }
        Ok(())
    }

    pub(crate) fn upstream(&self) -> Option<Arc<Upstream>> {
        Some(self.lock().as_ref()?.upstream.clone())
    }

    pub(crate) fn state(&self) -> Option<State> {
        Some(self.lock().as_ref()?.state.clone())
    }

    pub(crate) fn running_manager(&self) -> Option<Arc<Manager>> {
        self.lock().as_ref()?.manager.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().expect("membership is left whole")
    }

    pub(crate) fn is_active(&self) -> bool {
        self.lock().is_some()
    }

    async fn init_now(self: &Arc<Self>, request: InitRequest) -> Result<NodeId, ApiError> {
        let _changing = self.changing.lock().await;
        if (self.is_active() || self.is_locked()) && !request.force_new_cluster {
            return Err(unavailable(ALREADY_IN_SWARM));
        }
        if self.is_locked() {
            return Err(unavailable(lock::LOCKED));
        }
        if request.force_new_cluster {
            return self.force_new_cluster().await;
        }
        let (state, bootstrap, key) = self.plan_init(request)?;
        let raft_id = bootstrap.raft_id;
        let unlock_key = bootstrap.unlock_key.clone();
        let make = |config| async move { Manager::bootstrap(&config, bootstrap).await };
        self.begin(state, raft_id, key, unlock_key, make).await
    }

    /// Enters a swarm whose state `make` writes, as its only manager.
    pub(crate) async fn begin<Made>(
        self: &Arc<Self>,
        mut state: State,
        raft_id: u64,
        key: String,
        unlock_key: Option<UnlockKey>,
        make: impl FnOnce(consensus::Config) -> Made,
    ) -> Result<NodeId, ApiError>
    where
        Made: Future<Output = Result<Bootstrapped, manager::Error>>,
    {
        let listener = bind(&state.listen).await.map_err(ApiError::internal)?;
        self.files.remove().map_err(ApiError::internal)?;
        // From the beginning, so that nothing ever lies open.
        self.files.set_lock(unlock_key.as_ref()).map_err(ApiError::internal)?;
        let config = self.files.consensus(raft_id).map_err(ApiError::internal)?;
        let Bootstrapped { certificate, roots } = make(config).await?;
        let identity = rpc::Identity { certificate, key, roots };
        self.files.save_identity(&identity).map_err(ApiError::internal)?;
        state.raft_id = Some(raft_id);
        self.files.save(&state).map_err(ApiError::internal)?;
        let node = state.node;
        self.activate(state, Some(listener)).await.map_err(ApiError::internal)?;
        Ok(node)
    }

    fn plan_init(&self, request: InitRequest) -> Result<(State, Bootstrap, String), ApiError> {
        let bridge = self.engine.network.bridge();
        let addresses = address::resolve(&request.advertise_addr, &request.listen_addr, bridge)?;
        let data_path_port = match request.data_path_port {
            0 => DATA_PATH_PORT.into(),
            port => port,
        };
        if !(1024..=49151).contains(&data_path_port) {
            return Err(ApiError::bad_request(format!(
                "Datapath port number is not in valid range (1024-49151) : {data_path_port}"
            )));
        }
        let mut spec = convert::swarm::spec_from_api(request.spec)?;
        spec.autolock_managers |= request.auto_lock_managers;
        let (default_address_pools, subnet_size) =
            address_pools(request.default_addr_pool, request.subnet_size)?;
        let (key, certificate_request) = ca::new_request().map_err(ApiError::internal)?;
        let Addresses { host, advertised, listen } = addresses;
        let state = State {
            node: NodeId::from_random(rand::random()),
            raft_id: None,
            address: host,
            advertised: advertised.clone(),
            listen,
            managers: Vec::new(),
        };
        let bootstrap = Bootstrap {
            node: state.node,
            raft_id: rand::random_range(1..=u64::MAX),
            address: advertised,
            request: certificate_request,
            availability: availability(&request.availability)?,
            unlock_key: spec.autolock_managers.then(ca::new_unlock_key),
            spec,
            data_path_port: u16::try_from(data_path_port).expect("checked to be within range"),
            default_address_pools,
            subnet_size,
        };
        Ok((state, bootstrap, key))
    }

    async fn join_now(self: &Arc<Self>, request: JoinRequest) -> Result<(), ApiError> {
        let _changing = self.changing.lock().await;
        if self.is_active() || self.is_locked() {
            return Err(unavailable(ALREADY_IN_SWARM));
        }
        let bridge = self.engine.network.bridge();
        let addresses = address::resolve(&request.advertise_addr, &request.listen_addr, bridge)?;
        let availability = availability(&request.availability)?;
        let remotes: Vec<_> =
            request.remote_addrs.iter().map(|remote| address::with_port(remote)).collect();
        let listener = bind(&addresses.listen).await.map_err(ApiError::internal)?;
        let mut refusal = ApiError::bad_request("at least 1 RemoteAddr is required to join");
        for remote in &remotes {
            match join::admit(remote, &request.join_token, availability).await {
                Ok(admission) => return self.enter(admission, addresses, listener).await,
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Takes the place the swarm has given.
    async fn enter(
        self: &Arc<Self>,
        admission: join::Admission,
        addresses: Addresses,
        listener: TcpListener,
    ) -> Result<(), ApiError> {
        let join::Admission { issued, identity } = admission;
        self.files.remove().map_err(ApiError::internal)?;
        self.files.save_identity(&identity).map_err(ApiError::internal)?;
        let Addresses { host, advertised, listen } = addresses;
        let state = State {
            node: issued.node,
            raft_id: None,
            address: host,
            advertised,
            listen,
            managers: issued.managers,
        };
        self.files.save(&state).map_err(ApiError::internal)?;
        let role = ca::NodeCertificate::from_pem(&identity.certificate)
            .map_err(ApiError::internal)?
            .subject
            .role;
        self.activate(state, None).await.map_err(ApiError::internal)?;
        if role == Role::Worker {
            return Ok(());
        }
        let seated = steward::take_seat(self, Some(listener));
        match tokio::time::timeout(JOIN_PATIENCE, seated).await {
            Ok(seated) => seated.map_err(ApiError::internal),
            // The steward goes on trying.
            Err(_) => Err(unavailable(JOIN_TIMEOUT)),
        }
    }

    async fn leave_now(&self, force: bool) -> Result<(), ApiError> {
        let _changing = self.changing.lock().await;
        if self.is_locked() {
            return self.leave_locked(force).await;
        }
        let Some(state) = self.state() else { return Err(unavailable(NOT_IN_SWARM)) };
        let manager = self.running_manager();
        let is_expired = self.lock().as_ref().is_some_and(Active::is_expired);
        if let Some(manager) = manager.as_ref().filter(|_| !force && !is_expired) {
            return Err(unavailable(&leave_warning(manager)));
        }
        let told = self.tell_of_leaving(&state, manager.as_ref());
        if tokio::time::timeout(LEAVE_PATIENCE, told).await.is_err() {
            warn!("the swarm did not take note of this node's leaving in time");
        }
        drop(manager);
        let active = self.lock().take();
        if let Some(active) = active {
            active.end().await;
        }
        self.forget().await
    }

    /// Removes what is left of a swarm on this host.
    pub(crate) async fn forget(&self) -> Result<(), ApiError> {
        self.files.remove().map_err(ApiError::internal)?;
        self.local.attachments.set_upstream(None);
        agent_driver::clear(&self.engine).await;
        self.local.leave_networks(&self.engine).await;
        Ok(())
    }

    /// Lets the others go on without this node, as far as they can.
    async fn tell_of_leaving(&self, state: &State, manager: Option<&Arc<Manager>>) {
        let Some(manager) = manager else {
            for channel in self.upstream().map(|upstream| upstream.channels()).unwrap_or_default() {
                let told: Result<Result<(), manager::Error>, _> =
                    channel.call(manager::methods::LEAVE, &(), LEAVE_PATIENCE).await;
                if matches!(told, Ok(Ok(()))) {
                    return;
                }
            }
            return;
        };
        if manager.peers().voters.len() < 2 {
            return;
        }
        match manager.leave(state.node).await {
            Ok(()) => manager.seat_is_gone().await,
            Err(error) => warn!(%error, "this manager's seat is left to be removed by hand"),
        }
    }
}

impl Active {
    /// Whether the node's certificate is worth nothing any more. Clocks may be set back: it is asked for each time.
    fn is_expired(&self) -> bool {
        manager::now().as_nanos() / 1_000_000_000 > self.valid_until
    }

    async fn end(self) {
        self.stop.cancel();
        for follower in self.followers {
            follower.abort();
            let _ = follower.await;
        }
        if let Some(manager) = self.manager {
            manager.close().await;
        }
        for task in self.tasks {
            if tokio::time::timeout(LEAVE_PATIENCE, task).await.is_err() {
                warn!("a part of the node does not stop in time");
            }
        }
    }
}

impl Swarm for Membership {
    fn networks(&self) -> Vec<Arc<types::Network>> {
        match self.running_manager() {
            Some(manager) => manager.snapshot().networks().cloned().collect(),
            None => self.local.networks(),
        }
    }

    fn network_members(&self, id: types::NetworkId) -> Option<NetworkMembers> {
        let manager = self.running_manager();
        self.local.members(id, manager.as_deref())
    }

    fn manager(&self) -> Result<Arc<Manager>, ApiError> {
        let active = self.lock();
        match active.as_ref() {
            Some(active) if active.is_expired() => Err(unavailable(EXPIRED)),
            Some(Active { manager: Some(manager), .. }) => Ok(manager.clone()),
            Some(_) => Err(unavailable(WORKER)),
            None if self.is_locked() => Err(unavailable(lock::LOCKED)),
            None => Err(unavailable(NOT_A_MANAGER)),
        }
    }

    fn node_id(&self) -> Option<NodeId> {
        self.lock().as_ref().map(|active| active.state.node)
    }

    fn status(&self) -> &'static str {
        match self.lock().as_ref() {
            Some(active) if active.is_expired() => "error",
            Some(Active { manager: Some(_), .. }) => "active/manager",
            Some(_) => "active/worker",
            None if self.is_locked() => "locked",
            None => "inactive",
        }
    }

    fn warnings(&self) -> Vec<String> {
        whole::told(&self.warnings)
    }

    fn info(&self) -> SwarmInfo {
        let active = self.lock();
        let Some(active) = active.as_ref() else {
            return self.info_outside();
        };
        let info = SwarmInfo {
            node_id: active.state.node.to_string(),
            node_addr: active.state.address.clone(),
            local_node_state: "active".into(),
            ..SwarmInfo::default()
        };
        if active.is_expired() {
            let local_node_state = "error".into();
            return SwarmInfo { local_node_state, error: EXPIRED.into(), ..info };
        }
        match &active.manager {
            Some(manager) => manager_info(info, manager),
            None => SwarmInfo { remote_managers: Some(peers(active.upstream.managers())), ..info },
        }
    }

    fn init(self: Arc<Self>, request: InitRequest) -> Answer<'static, NodeId> {
        Box::pin(async move { self.init_now(request).await })
    }

    fn join(self: Arc<Self>, request: JoinRequest) -> Answer<'static, ()> {
        Box::pin(async move { self.join_now(request).await })
    }

    fn restore(
        self: Arc<Self>,
        place: InitRequest,
        key: [u8; 32],
        file: Box<dyn Read + Send>,
    ) -> Answer<'static, NodeId> {
        Box::pin(async move { self.restore_now(place, DataKey::new(key), file).await })
    }

    fn leave(self: Arc<Self>, force: bool) -> Answer<'static, ()> {
        Box::pin(async move { self.leave_now(force).await })
    }

    fn unlock(self: Arc<Self>, key: String) -> Answer<'static, ()> {
        Box::pin(async move { self.unlock_now(&key).await })
    }
}

fn manager_info(info: SwarmInfo, manager: &Manager) -> SwarmInfo {
    let snapshot = manager.snapshot();
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let managers = manager.manager_peers();
    let shown = manager.cluster().ok().and_then(|cluster| {
        let tls = ca::tls_info(&cluster.root_ca).ok()?;
        let mut shown = convert::swarm::swarm_to_api(&cluster, &tls);
        shown.join_tokens = None;
        Some(shown)
    });
    let error = match manager.trouble() {
        Some(trouble) => format!("rpc error: code = Unknown desc = {trouble}"),
        None => String::new(),
    };
    let waiting = manager.rotation_waits_for();
    SwarmInfo {
        control_available: true,
        warnings: rotation_warning(&waiting).into_iter().collect(),
        error,
        nodes: count(snapshot.nodes().count()),
        managers: count(managers.len()),
        remote_managers: Some(peers(managers)),
        cluster: shown,
        ..info
    }
}

/// What keeps a rotation of the root from its end.
fn rotation_warning(waiting: &[Arc<types::Node>]) -> Option<String> {
    let down = waiting.iter().filter(|node| node.status.state != NodeState::Ready);
    let down: Vec<_> =
        down.map(|node| format!("{} {}", node.name(), node.id).trim().to_owned()).collect();
    (!down.is_empty()).then(|| {
        format!(
            "WARNING: the rotation of the swarm's root certificate waits for nodes that are not there: {}. Bring them back, or remove them with \"docker node rm\".",
            down.join(", ")
        )
    })
}

fn peers(managers: Vec<ManagerPeer>) -> Vec<Peer> {
    managers
        .into_iter()
        .map(|peer| Peer { node_id: peer.node.to_string(), addr: peer.address })
        .collect()
}

/// What stands in the way of a manager that leaves without force, in Docker's words.
fn leave_warning(manager: &Manager) -> String {
    let snapshot = manager.snapshot();
    let seats: Vec<_> = snapshot.nodes().filter_map(|node| node.manager.as_ref()).collect();
    let is_reachable =
        |seat: &&&types::node::ManagerStatus| seat.reachability == Reachability::Reachable;
    let reachable = seats.iter().filter(is_reachable).count();
    let mut warning =
        "You are attempting to leave the swarm on a node that is participating as a manager. "
            .to_owned();
    if seats.len() == 1 {
        warning += "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ";
        return warning;
    }
    if reachable.saturating_sub(1) <= seats.len() / 2 {
        warning += &format!(
            "Removing this node leaves {} managers out of {}. Without a Raft quorum your swarm will be inaccessible. ",
            reachable.saturating_sub(1),
            seats.len()
        );
    } else {
        warning += "Doing so may lose the consensus of your cluster. ";
    }
    warning
        + "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message."
}

/// Docker's words for an address that is taken.
async fn bind(listen: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "address already in use".to_owned(),
            std::io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
            _ => error.to_string(),
        };
        anyhow::anyhow!(
            "failed to listen on remote API address: listen tcp {listen}: bind: {reason}"
        )
    })
}

fn address_pools(pools: Vec<String>, size: u32) -> Result<(Vec<String>, u8), ApiError> {
    let pools = if pools.is_empty() { vec!["10.0.0.0/8".to_owned()] } else { pools };
    for pool in &pools {
        pool.parse::<ipnet::Ipv4Net>()
            .map_err(|_| ApiError::bad_request(format!("invalid CIDR address: {pool}")))?;
    }
    match size {
        0 => Ok((pools, SUBNET_SIZE)),
        size @ 8..=29 => Ok((pools, u8::try_from(size).expect("29 and less fit"))),
        size => Err(ApiError::bad_request(format!("invalid subnet size {size}: expected 8 to 29"))),
    }
}

pub(crate) fn availability(text: &str) -> Result<Availability, ApiError> {
    Ok(convert::node::availability(text)?)
}

pub(crate) fn unavailable(message: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
}
