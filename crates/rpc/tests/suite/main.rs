//! Nodes that talk, and others that only try to. One binary: what it costs to link is paid once.

mod outsiders;
mod pipes;
mod refusals;
mod renewal;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ca::Subject;
use rpc::{Access, Client, Frames, Identity, Limits, Router, SharedIdentity};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use types::cluster::RootCa;
use types::node::Role;
use types::{ClusterId, NodeId};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const ANYONE: &str = "test/anyone";
pub(crate) const NODE: &str = "test/node";
pub(crate) const MANAGER: &str = "test/manager";
/// Counts up as fast as it is read.
pub(crate) const COUNT: &str = "test/count";
/// Answers a little later.
pub(crate) const LINGER: &str = "test/linger";
/// Says how the frames that came ended.
pub(crate) const FRAMES: &str = "test/frames";

pub(crate) const CLUSTER: u128 = 11;
pub(crate) const SERVER: u128 = 1;

pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("fits")
}

pub(crate) fn root() -> RootCa {
    ca::generate(now()).expect("generates")
}

/// A node's identity that ends `life` seconds from now.
pub(crate) fn identity(
    root: &RootCa,
    cluster: u128,
    node: u128,
    role: Role,
    life: i64,
) -> Identity {
    let (key, request) = ca::new_request().expect("generates");
    let subject =
        Subject { node: NodeId::from_random(node), role, cluster: ClusterId::from_random(cluster) };
    let certificate = ca::sign(root.signer(), &request, &subject, life, now()).expect("signs");
    Identity { certificate, key, roots: root.trust_bundle() }
}

pub(crate) fn manager(root: &RootCa, node: u128) -> Identity {
    identity(root, CLUSTER, node, Role::Manager, 3_600)
}

pub(crate) fn worker(root: &RootCa, node: u128) -> Identity {
    identity(root, CLUSTER, node, Role::Worker, 3_600)
}

/// A manager that serves until it is dropped.
pub(crate) struct Server {
    pub(crate) root: RootCa,
    pub(crate) identity: SharedIdentity,
    pub(crate) address: SocketAddr,
    /// How streams of frames have ended.
    pub(crate) ends: mpsc::Receiver<String>,
    /// How many calls lingered at most at a time.
    pub(crate) most: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let root = root();
        let shown = manager(&root, SERVER);
        Self::showing(root, &shown, limits).await
    }

    pub(crate) async fn showing(root: RootCa, shown: &Identity, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let identity = SharedIdentity::new(shown).expect("is usable");
        let (mut router, ends) = router();
        let most = add_linger(&mut router);
        let stop = CancellationToken::new();
        let serving =
            rpc::serve(listener, identity.clone(), Arc::new(router), limits, stop.clone());
        tokio::spawn(serving);
        Self { root, identity, address, ends, most, stop }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

/// What a caller is told of itself.
fn router() -> (Router, mpsc::Receiver<String>) {
    let mut router = Router::default();
    for (method, access) in
        [(ANYONE, Access::Anyone), (NODE, Access::AnyNode), (MANAGER, Access::Manager)]
    {
        router.unary(method, access, |caller, text: String| async move {
            let node = caller.peer.map(|peer| peer.node);
            match text.as_str() {
                "refuse" => Err("as you wish".to_owned()),
                text => Ok((text.to_owned(), node)),
            }
        });
    }
    router.stream_out(COUNT, Access::AnyNode, |_, from: u64| async move {
        let (values, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut value = from;
            while values.send(value).await.is_ok() {
                value += 1;
            }
        });
        Ok::<_, String>(stream)
    });
    router.pipes(pipes::echo);
    let (told, ends) = mpsc::channel(16);
    router.stream_in(FRAMES, Access::AnyNode, move |_, mut frames: Frames| {
        let told = told.clone();
        async move {
            let mut count = 0;
            let end = loop {
                match frames.next().await {
                    Ok(Some(frame)) => {
                        count += 1;
                        if frame[..] == *b"begun" {
                            let _ = told.send("begun".to_owned()).await;
                        }
                    }
                    Ok(None) => break format!("{count} frames"),
                    Err(error) => break error.to_string(),
                }
            };
            let _ = told.send(end.clone()).await;
            if end.ends_with(" frames") { Ok(()) } else { Err(end) }
        }
    });
    (router, ends)
}

fn add_linger(router: &mut Router) -> Arc<AtomicUsize> {
    let (most, here) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let most_ever = most.clone();
    router.unary(LINGER, Access::AnyNode, move |_, (): ()| {
        let (most, here) = (most.clone(), here.clone());
        async move {
            most.fetch_max(here.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            here.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, String>(())
        }
    });
    most_ever
}

/// What a call came to, in words.
pub(crate) async fn call(client: &Client, address: &str, method: &'static str) -> String {
    said(client.channel(address).call(method, &"hello", PATIENCE).await)
}

pub(crate) fn said(answer: Result<Result<(String, Option<NodeId>), String>, rpc::Error>) -> String {
    match answer {
        Ok(Ok((text, node))) => format!("{text} {}", node.is_some()),
        Ok(Err(refusal)) => refusal,
        Err(error) => error.to_string(),
    }
}

pub(crate) fn client(identity: &Identity) -> Client {
    Client::new(SharedIdentity::new(identity).expect("is usable"))
}
