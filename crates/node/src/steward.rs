//! Keeps the node what its swarm wants it to be: its role, its certificate, what it knows of the managers.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use ca::NodeCertificate;
use consensus::Consensus;
use manager::methods::{self, SeatRequest};
use rpc::Identity;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
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

/// Follows what the managers tell, and what is to be done when the node's secrets are locked, until told to stop.
pub(crate) async fn follow(
    membership: Weak<Membership>,
    closed: Arc<Notify>,
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
            () = closed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What is due.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Other roots are to be trusted.
    Trust(String),
    /// Another certificate is to be asked for.
    Renew,
    /// The node is to be a manager and has no seat.
    TakeSeat,
    /// The seat was taken away while the node was gone; it is to have another.
    TakeAnotherSeat,
    /// The node is to be no manager any more.
    LeaveSeat,
    /// Nothing is due by itself before this long.
    Wait(Duration),
}

/// The node's seat among the managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    None,
    Held,
    /// The managers do not tell of it, but it hears a leader: what they told may be older than the seat.
    Doubtful,
    Lost,
}

fn seat_of(membership: &Membership, news: Option<&News>) -> Seat {
    let Some(manager) = membership.running_manager() else { return Seat::None };
    let told = news.zip(membership.state().and_then(|state| state.raft_id));
    match told.is_none_or(|(news, id)| news.managers.iter().any(|peer| peer.raft_id == id)) {
        true => Seat::Held,
        false if manager.leader() != 0 => Seat::Doubtful,
        false => Seat::Lost,
    }
}

/// Decides what is due. `now` is in seconds since 1970; `random` is any number, the same one in one run of the daemon.
fn next_step(
    identity: &Identity,
    news: Option<&News>,
    seat: Seat,
    random: u64,
    now: i64,
) -> anyhow::Result<Step> {
    if let Some(news) = news.filter(|news| identity.roots != *news.trust_root) {
        return Ok(Step::Trust(news.trust_root.to_string()));
    }
    let certificate = NodeCertificate::from_pem(&identity.certificate)?;
    let due = certificate.renew_at(random);
    let role = news.map_or(certificate.subject.role, |news| news.role);
    if role != certificate.subject.role || now >= due || is_of_other_root(identity, news) {
        return Ok(Step::Renew);
    }
    let left = u64::try_from(due - now).unwrap_or(0);
    Ok(match (role, seat) {
        (Role::Manager, Seat::None) => Step::TakeSeat,
        (Role::Manager, Seat::Lost) => Step::TakeAnotherSeat,
        (Role::Manager, Seat::Doubtful) => Step::Wait(RETRY),
        (Role::Worker, Seat::Held | Seat::Doubtful | Seat::Lost) => Step::LeaveSeat,
        _ => Step::Wait(Duration::from_secs(left).min(LOOK_INTERVAL)),
    })
}

/// Whether the swarm wants certificates of another root.
fn is_of_other_root(identity: &Identity, news: Option<&News>) -> bool {
    let issuer = ca::issuer_digest(&identity.roots, &identity.certificate);
    news.is_some_and(|news| issuer.ok().as_deref() != Some(&*news.issuer_digest))
}

/// Does what is due; answers with the time until the next look.
async fn settle(
    membership: &Arc<Membership>,
    news: Option<&News>,
    random: u64,
) -> anyhow::Result<Duration> {
    if let Some(news) = news {
        let managers: Vec<ManagerPeer> = news.managers.to_vec();
        membership.change_state(|state| state.managers = managers)?;
    }
    let decide = || {
        let identity = membership.files.load_identity()?;
        let seat = seat_of(membership, news);
        let now = manager::now().as_nanos() / 1_000_000_000;
        let step = match next_step(&identity, news, seat, random, now)? {
            Step::Wait(_) if membership.files.is_key_outdated()? => Step::Renew,
            step => step,
        };
        anyhow::Ok((identity, step))
    };
    let (identity, step) = decide()?;
    match step {
        Step::Wait(pause) => return Ok(pause),
        Step::Trust(roots) => {
            info!("the swarm's roots have changed");
            membership.use_identity(&Identity { roots, ..identity })?;
        }
        Step::Renew => {
            renew(membership).await?;
            // What was heard last may be older than what the managers know. Newer news come by themselves.
            if decide()?.1 == Step::Renew {
                return Ok(RETRY);
            }
        }
        Step::TakeSeat => take_seat(membership, None).await?,
        Step::TakeAnotherSeat => {
            info!("this manager's seat was taken away while it was gone; it asks for another");
            membership.stop_manager().await?;
            take_seat(membership, None).await?;
        }
        Step::LeaveSeat => {
            info!("this node is no manager any more");
            membership.stop_manager().await?;
        }
    }
    Ok(Duration::ZERO)
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

#[cfg(test)]
mod tests {
    use types::cluster::{CaSpec, RootCa};
    use types::{ClusterId, NodeId};

    use super::*;

    const NOW: i64 = 1_700_000_000;
    const HOUR: i64 = 3_600;

    fn identity(root: &RootCa, role: Role, life: i64) -> Identity {
        let (key, request) = ca::new_request().expect("generates");
        let subject =
            ca::Subject { node: NodeId::from_random(1), role, cluster: ClusterId::from_random(2) };
        let certificate = ca::sign(root.signer(), &request, &subject, life, NOW).expect("signs");
        Identity { certificate, key, roots: root.trust_bundle() }
    }

    fn news(root: &RootCa, role: Role) -> News {
        News {
            role,
            managers: Arc::default(),
            trust_root: root.trust_bundle().into(),
            issuer_digest: root.signer().digest.into(),
            heartbeat_interval: Duration::from_millis(500),
        }
    }

    #[test]
    fn a_certificate_is_renewed_between_half_and_four_fifths_of_its_life_and_not_before() {
        let root = ca::generate(NOW).expect("generates");
        // It is backdated by an hour, which counts as lived.
        let identity = identity(&root, Role::Worker, 9 * HOUR);
        let news = news(&root, Role::Worker);
        for random in (0..1_000).step_by(37) {
            let at =
                |now| next_step(&identity, Some(&news), Seat::None, random, now).expect("decides");
            assert!(matches!(at(NOW), Step::Wait(_)), "{random}");
            assert!(matches!(at(NOW + 4 * HOUR - 1), Step::Wait(_)), "{random}");
            assert_eq!(at(NOW + 7 * HOUR), Step::Renew, "{random}");
            let parsed = NodeCertificate::from_pem(&identity.certificate).expect("parses");
            let due = parsed.renew_at(random);
            assert_eq!(at(due), Step::Renew, "{random}");
            assert_eq!(
                at(due - 60),
                Step::Wait(Duration::from_secs(60)),
                "it looks when it is due"
            );
        }
        let alone = next_step(&identity, None, Seat::None, 0, NOW + 8 * HOUR).expect("decides");
        assert_eq!(alone, Step::Renew, "also without a word from managers");
    }

    #[test]
    fn long_waits_are_cut_into_looks() {
        let root = ca::generate(NOW).expect("generates");
        let identity = identity(&root, Role::Worker, 90 * 24 * HOUR);
        let step = next_step(&identity, None, Seat::None, 7, NOW).expect("decides");
        assert_eq!(step, Step::Wait(LOOK_INTERVAL));
    }

    #[test]
    fn a_node_becomes_what_the_managers_tell_with_a_certificate_first() {
        let root = ca::generate(NOW).expect("generates");
        let worker = identity(&root, Role::Worker, 24 * HOUR);
        let manager = identity(&root, Role::Manager, 24 * HOUR);
        for (identity, role, seat, expected) in [
            (&worker, Role::Manager, Seat::None, Step::Renew),
            (&manager, Role::Manager, Seat::None, Step::TakeSeat),
            (&manager, Role::Manager, Seat::Held, Step::Wait(LOOK_INTERVAL)),
            (&manager, Role::Manager, Seat::Doubtful, Step::Wait(RETRY)),
            (&manager, Role::Manager, Seat::Lost, Step::TakeAnotherSeat),
            (&manager, Role::Worker, Seat::Held, Step::Renew),
            (&worker, Role::Worker, Seat::Held, Step::LeaveSeat),
            (&worker, Role::Worker, Seat::None, Step::Wait(LOOK_INTERVAL)),
        ] {
            let news = news(&root, role);
            let step = next_step(identity, Some(&news), seat, 0, NOW).expect("decides");
            assert_eq!(step, expected, "{role:?}, seat: {seat:?}");
        }
    }

    #[test]
    fn a_rotation_is_followed_roots_first_and_back_again() {
        let first = ca::generate(NOW).expect("generates");
        let old = identity(&first, Role::Worker, 24 * HOUR);
        let mut between = first.clone();
        let spec = CaSpec { force_rotate: 1, ..CaSpec::default() };
        let planned = ca::plan(&between, &spec, NOW).expect("plans");
        ca::change(&mut between, planned, &spec);
        let mut last = between.clone();
        ca::finish(&mut last);
        let step = |identity: &Identity, root: &RootCa| {
            let news = news(root, Role::Worker);
            next_step(identity, Some(&news), Seat::None, 0, NOW).expect("decides")
        };
        let trusting = |identity: &Identity, root: &RootCa| Identity {
            roots: root.trust_bundle(),
            ..identity.clone()
        };
        assert_eq!(step(&old, &between), Step::Trust(between.trust_bundle()));
        assert_eq!(step(&trusting(&old, &between), &between), Step::Renew);
        let new = identity(&between, Role::Worker, 24 * HOUR);
        assert!(matches!(step(&new, &between), Step::Wait(_)));
        // The end: the new root alone.
        assert_eq!(step(&new, &last), Step::Trust(last.trust_bundle()));
        assert!(matches!(step(&trusting(&new, &last), &last), Step::Wait(_)));
        // Or the way back: the first root alone.
        assert_eq!(step(&new, &first), Step::Trust(first.trust_bundle()));
        assert_eq!(step(&trusting(&new, &first), &first), Step::Renew);
    }
}
