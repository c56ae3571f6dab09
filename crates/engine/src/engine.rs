//! The engine as a whole: opens its parts in order, and lets go of them.

use std::sync::Arc;

use network::Network;

use crate::config::Config;
use crate::containers::{Containers, Parts};
use crate::db::Db;
use crate::error::{Attempt, Error};
use crate::events::Events;
use crate::images;
use crate::images::Images;
use crate::networks::Networks;
use crate::swarm::{SwarmNetworks, SwarmSlot};
use crate::volumes::Volumes;

/// One node's engine.
#[derive(Debug)]
pub struct Engine {
    pub config: Config,
    pub events: Events,
    pub images: Images,
    pub volumes: Volumes,
    pub network: Arc<Network>,
    pub networks: Networks,
    pub(crate) swarm: SwarmSlot,
    pub containers: Containers,
}

impl Engine {
    /// Opens the engine under its data root. Containers that run are taken over before this returns.
    ///
    /// # Errors
    /// A directory or database that cannot be used, or a network that cannot be set up.
    pub async fn open(config: Config) -> Result<Arc<Self>, Error> {
        runtime::cgroup::Layout::detect().check().map_err(Error::Cgroups)?;
        for directory in [&config.data_root, &config.exec_root] {
            std::fs::create_dir_all(directory)
                .attempt(|| format!("create directory {}", directory.display()))?;
        }
        let db = Arc::new(Db::open(&config.data_root.join("engine.redb"))?);
        let events = Events::default();
        let images = Images::open(&config.images, Arc::clone(&db))?;
        let volumes =
            Volumes::open(config.data_root.join("volumes"), Arc::clone(&db), events.clone())?;
        let network = Network::open(config.network.clone())
            .await
            .map_err(|source| Error::NetworkSetup { source })?;
        let network = Arc::new(network);
        let networks = Networks::open(db, events.clone(), Arc::clone(&network)).await?;
        let swarm = SwarmSlot::default();
        let parts = Parts {
            config: config.clone(),
            events: events.clone(),
            images: images.clone(),
            volumes: volumes.clone(),
            network: Arc::clone(&network),
            networks: networks.clone(),
            swarm: swarm.clone(),
        };
        let containers = Containers::open(parts).await?;
        tokio::spawn(forward_image_events(images.subscribe(), events.clone()));
        Ok(Arc::new(Self { config, events, images, volumes, network, networks, swarm, containers }))
    }

    /// From now on containers may be in networks of the swarm.
    pub fn set_swarm(&self, swarm: Arc<dyn SwarmNetworks>) {
        self.swarm.set(swarm);
    }

    /// Lets go of all containers, which go on, and writes what is not on disk yet.
    pub async fn close(&self) {
        self.containers.close().await;
        let images = self.images.clone();
        // A panic of it has been told by then, and leaves no more than a mount behind.
        tokio::task::spawn_blocking(move || images.flush()).await.ok();
    }
}

/// Tells image events among the others.
async fn forward_image_events(
    mut receiver: tokio::sync::broadcast::Receiver<images::event::ImageEvent>,
    events: Events,
) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match receiver.recv().await {
            Ok(event) => {
                events.publish("image", event.action.as_str(), &event.id, event.attributes)
            }
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "image events were not told"),
            Err(RecvError::Closed) => return,
        }
    }
}
