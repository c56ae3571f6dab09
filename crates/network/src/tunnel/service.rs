//! What others may ask of the node's tunnel.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::task::Poll;

use super::{Key, Sealer, Tunnel, TunnelKey};
use crate::overlay::link::tunnel_mtu;
use crate::{Error, Network, blocking};

impl Network {
    /// Keys of this node that work, the newest first.
    pub fn tunnel_keys(&self) -> Vec<TunnelKey> {
        self.0.lock().tunnel.keys()
    }

    /// Makes another key, for a node that others reach at an address like `local`. With the first one, the tunnel is
    /// there; nothing is sent by a later one before [`Network::send_by`].
    ///
    /// # Errors
    /// When there are two already, and why this host cannot.
    pub async fn add_tunnel_key(
        &self,
        sealer: Sealer,
        local: Option<IpAddr>,
    ) -> Result<TunnelKey, Error> {
        self.with_tunnel(move |tunnel| tunnel.open(sealer, tunnel_mtu(local))).await
    }

    /// Sends by this key from now on.
    pub async fn send_by(&self, key: Key) -> Result<(), Error> {
        self.with_tunnel(move |tunnel| tunnel.send_by(&key)).await
    }

    /// Says who has which key, and where they are; everybody else is forgotten.
    pub async fn set_tunnel_peers(&self, peers: BTreeMap<Key, SocketAddr>) -> Result<(), Error> {
        self.with_tunnel(move |tunnel| tunnel.set_peers(&peers)).await
    }

    /// Ends a key. What is still sent to it is lost.
    pub async fn drop_tunnel_key(&self, key: Key) -> Result<(), Error> {
        self.with_tunnel(move |tunnel| tunnel.close(&key)).await
    }

    /// Ends the tunnel. Encrypted networks that are still here reach no other node any more.
    pub async fn close_tunnel(&self) -> Result<(), Error> {
        self.with_tunnel(Tunnel::close_all).await
    }

    /// Forgets keys whose devices have ended; true when there were some.
    pub async fn forget_ended_tunnels(&self) -> bool {
        self.with_tunnel(|tunnel| Ok(tunnel.forget_ended())).await.unwrap_or(false)
    }

    /// Returns when a tunnel's process has ended. Kernel devices do not end by themselves.
    pub async fn tunnel_ended(&self) {
        // One may have ended while nobody waited here.
        let Some(lives) = self.0.lock().tunnel.lives() else { return };
        let mut ends: Vec<_> = lives.into_iter().map(|life| Box::pin(ended(life))).collect();
        std::future::poll_fn(|context| {
            let is_over = ends.iter_mut().any(|end| end.as_mut().poll(context).is_ready());
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    async fn with_tunnel<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tunnel) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.0.clone();
        blocking(move || work(&mut inner.lock().tunnel)).await
    }
}

/// On a connection of its own nothing is ever said but the end.
async fn ended(life: UnixStream) {
    match tokio::net::UnixStream::from_std(life) {
        Ok(life) => drop(life.readable().await),
        Err(_) => std::future::pending().await,
    }
}
