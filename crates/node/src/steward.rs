//! Keeps the node what its swarm wants it to be: its role, its certificate, what it knows of the managers.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use ca::NodeCertificate;
use consensus::Consensus;
use manager::methods::{self, SeatRequest};
use rpc::Identity;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use types::assignment::{ManagerPeer, News};
use types::node::Role;

use crate::lock;
use crate::membership::Membership;

/// After a step that did not succeed, and again after each that does not: doubled up to the longest pause.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How long the managers may take to give a seat.
const SEAT_TIMEOUT: Duration = Duration::from_secs(25);

/// Between two looks at whether the seat has its vote.
const SEAT_LOOK: Duration = Duration::from_millis(10);

/// Longest sleep before the next look at the certificate: clocks are set and hosts sleep.
const LOOK_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Follows what the managers tell, until told to stop.
pub(crate) async fn follow(
    membership: Weak<Membership>,
    mut heard: watch::Receiver<Option<News>>,
    stop: CancellationToken,
) {
    // One number for this run, so that a renewal that is put off falls on the same moment again.
    let random = rand::random();
    let mut retry = RETRY;
    loop {
        let news = heard.borrow_and_update().clone();
        let pause = match membership.upgrade() {
            None => return,
            Some(membership) => match settle(&membership, news.as_ref(), random).await {
                Ok(pause) => {
                    retry = RETRY;
                    pause
                }
                Err(error) => {
                    warn!("{error:#}");
                    let pause = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    pause
                }
            },
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = heard.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Does what is due; answers with the time until something is due by itself.
async fn settle(
    membership: &Arc<Membership>,
    news: Option<&News>,
    random: u64,
) -> anyhow::Result<Duration> {
    let mut identity = membership.files.load_identity()?;
    if let Some(news) = news {
        let managers: Vec<ManagerPeer> = news.managers.to_vec();
        membership.change_state(|state| state.managers = managers)?;
        if identity.roots != *news.trust_root {
            info!("the swarm's roots have changed");
            identity.roots = news.trust_root.to_string();
            membership.use_identity(&identity)?;
        }
    }
    let certificate = NodeCertificate::from_pem(&identity.certificate)?;
    let now = manager::now().as_nanos() / 1_000_000_000;
    let due = certificate.renew_at(random);
    let role = news.map_or(certificate.subject.role, |news| news.role);
    let is_other_role = role != certificate.subject.role;
    if is_other_role || now >= due || is_of_other_root(&identity, news) {
        renew(membership).await?;
        return Ok(Duration::ZERO);
    }
    match (role, membership.running_manager()) {
        (Role::Manager, None) => take_seat(membership, None).await?,
        (Role::Worker, Some(_)) => {
            info!("this node is no manager any more");
            membership.stop_manager().await?;
        }
        (Role::Manager, Some(manager)) if !is_seated(membership, news) => {
            // It may be that the news is older than the seat; a manager that hears a leader has one.
            if manager.leader() != 0 {
                return Ok(RETRY);
            }
            info!("this manager's seat was taken away while it was gone; it asks for another");
            membership.stop_manager().await?;
            take_seat(membership, None).await?;
        }
        _ => {}
    }
    let left = u64::try_from(due - now).unwrap_or(0);
    Ok(Duration::from_secs(left).min(LOOK_INTERVAL))
}

/// Whether the swarm knows of the seat that this manager has.
fn is_seated(membership: &Membership, news: Option<&News>) -> bool {
    let Some((news, seat)) = news.zip(membership.state().and_then(|state| state.raft_id)) else {
        return true;
    };
    news.managers.iter().any(|peer| peer.raft_id == seat)
}

/// Whether the swarm wants certificates of another root.
fn is_of_other_root(identity: &Identity, news: Option<&News>) -> bool {
    let issuer = ca::issuer_digest(&identity.roots, &identity.certificate);
    news.is_some_and(|news| issuer.ok().as_deref() != Some(&*news.issuer_digest))
}

/// Gets the next certificate, in the role the swarm has given this node.
async fn renew(membership: &Arc<Membership>) -> anyhow::Result<()> {
    let upstream = membership.upstream().context("the node has left")?;
    let (key, request) = ca::new_request()?;
    let issued = upstream.renew(request).await;
    let issued = issued.map_err(|reason| anyhow::anyhow!("certificate not renewed: {reason}"))?;
    let role = NodeCertificate::from_pem(&issued.certificate)?.subject.role;
    info!(?role, "certificate renewed");
    let identity = Identity { certificate: issued.certificate, key, roots: issued.roots };
    membership.use_identity(&identity)
}

/// Becomes a manager: starts with nothing, asks for a seat, and waits until it has its vote.
pub(crate) async fn take_seat(
    membership: &Arc<Membership>,
    listener: Option<TcpListener>,
) -> anyhow::Result<()> {
    let _seating = membership.seating.lock().await;
    if membership.running_manager().is_some() {
        return Ok(());
    }
    let upstream = membership.upstream().context("the node has left")?;
    let state = membership.state().context("the node has left")?;
    let raft_id: u64 = rand::random_range(1..=u64::MAX);
    membership.files.remove_seat()?;
    let config = membership.files.consensus(raft_id)?;
    tokio::task::spawn_blocking(move || Consensus::prepare_join(&config)).await??;
    let manager = membership.start_manager(raft_id, listener).await?;
    let mut refusal = "no manager is known".to_owned();
    for channel in upstream.channels() {
        let request = SeatRequest { raft_id, address: state.advertised.clone() };
        let seated: Result<Result<Vec<ManagerPeer>, manager::Error>, _> =
            channel.call(methods::TAKE_SEAT, &request, SEAT_TIMEOUT).await;
        match seated {
            Ok(Ok(managers)) => {
                membership.change_state(|state| {
                    state.raft_id = Some(raft_id);
                    state.managers = managers;
                })?;
                while !manager.peers().voters.contains(&raft_id) {
                    tokio::time::sleep(SEAT_LOOK).await;
                }
                lock::settle(&membership.files, &manager).await?;
                info!("this node is a manager");
                return Ok(());
            }
            Ok(Err(error)) => refusal = error.to_string(),
            Err(error) => refusal = error.to_string(),
        }
    }
    membership.stop_manager().await?;
    anyhow::bail!("no seat among the managers: {refusal}")
}
