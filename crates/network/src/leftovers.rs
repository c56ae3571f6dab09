//! Links of namespaces that do not end with their containers.
//!
//! A namespace lives on as long as a socket in it does, also one that its process has left with something unsent: where nobody
//! acknowledges that any more, for minutes. The container's links would stay with it, and be nobody's.

use std::sync::Arc;
use std::time::Duration;

use crate::{Inner, blocking};

/// How long the kernel may take to end a namespace. It then takes the links with it, many at a time.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Removes the links of a container that has left these networks, if they are there by then.
pub(crate) async fn remove(inner: Arc<Inner>, container: String, overlays: Vec<String>) {
    tokio::time::sleep(ENDS_WITHIN).await;
    let remove = {
        let container = container.clone();
        move || inner.lock().overlays.remove_leftovers(&container, &overlays)
    };
    if let Err(error) = blocking(remove).await {
        tracing::warn!(container.id = container, %error, "links of a container that is gone are left");
    }
}
