//! Compares what the kernel has with what it was told, and puts right what somebody has changed.
//!
//! Each part of this node's network says for itself what it expects: the host's table, each network of the swarm, each
//! container's table, the tunnel. A part that is added to `State` has a line in [`Inner::audit`].

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::nft::{self, BaseChain, Heard, Watch};
use crate::{Error, Inner, Network, State, blocking, endpoints, namespaces};

/// How often the watch looks whether it is still wanted.
const WATCH_PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks that have to see the same: longer than anything is on its way.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// `NF_INET_FORWARD`.
const FORWARD_HOOK: u32 = 2;

impl Network {
    /// How the kernel differs from what it was told, one sentence each; nothing where all is well. With `mends`,
    /// differences are put right as far as they can be.
    ///
    /// What is only seen once is something on its way: containers come and go.
    pub async fn audit(&self, mends: bool) -> Vec<String> {
        let first = self.look(false).await;
        if first.is_empty() {
            return first;
        }
        tokio::time::sleep(SECOND_LOOK).await;
        let second = self.look(false).await;
        let lasting: Vec<_> = second.into_iter().filter(|fault| first.contains(fault)).collect();
        if !mends || lasting.is_empty() {
            return lasting;
        }
        // What cannot be put right comes with its reason.
        let mut all = self.look(true).await;
        all.retain(|fault| !lasting.contains(fault));
        [lasting, all].concat()
    }

    async fn look(&self, mends: bool) -> Vec<String> {
        let inner = self.0.clone();
        let audited = blocking(move || Ok(inner.audit(mends))).await;
        audited.unwrap_or_else(|error| vec![error.to_string()])
    }

    /// Chains of others that drop what they do not know of the packets this host passes on. No rule of ours can undo
    /// that.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn foreign_walls(&self) -> Result<Vec<BaseChain>, Error> {
        let own = self.0.table_prefix();
        blocking(move || walls(&own)).await
    }
}

/// Forwarding chains with a policy of drop in tables whose names do not begin with `own`.
///
/// # Errors
/// When the kernel does not list them.
pub fn walls(own: &str) -> Result<Vec<BaseChain>, Error> {
    let chains = nft::base_chains()?.into_iter();
    let is_wall = |chain: &BaseChain| {
        let sees_ip = matches!(chain.family, "ip" | "inet");
        sees_ip && chain.hook == FORWARD_HOOK && chain.drops && !chain.table.starts_with(own)
    };
    Ok(chains.filter(is_wall).collect())
}

impl Inner {
    /// Beginning of the names of all our tables in the host's namespace.
    fn table_prefix(&self) -> String {
        format!("skep-{}", self.config.instance)
    }

    /// Locked anew for each part, so that nobody waits for all of it.
    fn audit(&self, mends: bool) -> Vec<String> {
        let mut faults = self.audit_host(mends);
        let (networks, members) = {
            let state = self.lock();
            let members = state.overlays.members().map(|(container, _)| container.clone());
            (state.overlays.made(), members.collect::<Vec<_>>())
        };
        let run_dir = &self.config.run_dir;
        for network in networks {
            let audited = self.lock().overlays.audit_network(run_dir, &network, mends);
            faults.extend(said(audited, &format!("network {network}")));
        }
        for container in members {
            let audited = self.lock().overlays.audit_member(&container, mends);
            faults.extend(said(audited, &format!("container {container}")));
        }
        let audited = self.lock().mesh.audit(mends);
        faults.extend(said(audited, "routing mesh"));
        let audited = self.lock().relays.audit(mends);
        faults.extend(said(audited, "relays"));
        let audited = self.lock().tunnel.audit(mends);
        faults.extend(said(audited, "tunnel"));
        faults.extend(self.audit_names(mends));
        faults.extend(said(self.leaks(), "leaks"));
        faults
    }

    /// The host's own table.
    fn audit_host(&self, mends: bool) -> Vec<String> {
        let mut state = self.lock();
        if state.is_closed {
            return Vec::new();
        }
        let State { ports, table, .. } = &mut *state;
        let rules = ports.rules();
        let mut faults = table.faults(&rules);
        if mends && !faults.is_empty() {
            let config = &self.config;
            let wires = table.wires();
            let renewed =
                nft::Table::open(&config.instance, &config.bridge, self.bridge.subnet, &wires);
            let filled = renewed.and_then(|mut renewed| {
                renewed.change(&[], &rules)?;
                *table = renewed;
                Ok(())
            });
            faults.extend(filled.err().map(|error| error.to_string()));
        }
        faults.extend(said(state.audit_walls(mends), "networks of this host"));
        faults
    }

    /// What is there and belongs to nobody.
    fn leaks(&self) -> Result<Vec<String>, Error> {
        let state = self.lock();
        let run_dir = self.config.run_dir.as_path();
        let containers: BTreeSet<_> =
            state.endpoints.keys().chain(&state.isolated).cloned().collect();
        let made: BTreeSet<_> = state.overlays.made().into_iter().collect();
        let members = state.overlays.members().map(|(container, _)| container.clone()).collect();
        let places = [
            (names(&namespaces(run_dir))?, &containers, "network namespace"),
            (names(&run_dir.join("overlays"))?, &made, "namespace of network"),
            (names(&run_dir.join("joins"))?, &members, "note of networks of container"),
            (names(&endpoints(run_dir))?, &containers, "note of the address of container"),
        ];
        let mut faults = Vec::new();
        for (found, wanted, what) in places {
            let strange = found.iter().filter(|name| !wanted.contains(*name));
            faults.extend(strange.map(|name| format!("{what} {name} is nobody's")));
        }
        Ok(faults)
    }

    /// Hears when somebody flushes the ruleset, and puts back what is ours at once.
    pub(crate) fn watch(self: &Arc<Self>) -> Result<(), Error> {
        let watch = Watch::open(&self.table_prefix(), WATCH_PATIENCE)
            .map_err(Error::kernel("watch nftables"))?;
        let inner = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("nft-watch".into());
        let started = thread.spawn(move || follow(&watch, &inner));
        started.map(drop).map_err(Error::kernel("start a thread"))
    }
}

impl State {
    /// The tables that keep networks of this host apart and hold containers to their addresses.
    fn audit_walls(&mut self, mends: bool) -> Result<Vec<String>, Error> {
        let chains = nft::base_chains()?;
        let has = |family: &str, table: &str| {
            chains.iter().any(|chain| chain.family == family && chain.table == table)
        };
        let mut faults = Vec::new();
        let gone = self.bridges.tables().filter(|(family, table)| !has(family, table));
        faults
            .extend(gone.map(|(family, table)| format!("nftables table {family} {table} is gone")));
        if mends && !faults.is_empty() {
            self.bridges.fence()?;
        }
        faults.extend(self.guard.audit(mends)?);
        Ok(faults)
    }
}

fn follow(watch: &Watch, inner: &Weak<Inner>) {
    loop {
        let heard = match watch.listen() {
            Ok(heard) => heard,
            Err(error) => {
                tracing::warn!(%error, "nftables is not watched any more");
                return;
            }
        };
        let Some(inner) = inner.upgrade() else { return };
        if inner.lock().is_closed {
            return;
        }
        if heard == Heard::Removal {
            let host = inner.audit_host(true);
            let mesh = inner.lock().mesh.audit(true);
            for fault in [host, said(mesh, "routing mesh")].concat() {
                tracing::warn!(fault, "somebody changed what is ours; it is put back");
            }
        }
    }
}

fn said(audited: Result<Vec<String>, Error>, what: &str) -> Vec<String> {
    audited.unwrap_or_else(|error| vec![format!("{what}: {error}")])
}

fn names(directory: &Path) -> Result<BTreeSet<String>, Error> {
    let listed = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        listed => listed.map_err(Error::file("list", directory))?,
    };
    let names = listed.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| !name.contains('.')).collect())
}
