//! What a container has of the network, and the file that remembers it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::nft::Tenant;
use crate::{Error, address, ipv6, namespace, state_file};

/// One container's attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// File that names the container's network namespace.
    pub netns: PathBuf,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    pub mac: String,
    /// Whether it is a way to the world and nothing else: no other container on the bridge is reached, or reaches it.
    #[serde(default)]
    pub is_alone: bool,
}

impl Endpoint {
    /// Who is behind the container's port.
    pub(crate) fn tenant(&self) -> Tenant {
        let addresses = vec![self.address.into(), ipv6::of_container(self.address).into()];
        Tenant { mac: self.hardware_address(), addresses, is_alone: self.is_alone }
    }

    pub(crate) fn hardware_address(&self) -> [u8; 6] {
        address::parse_mac(&self.mac).unwrap_or_else(|| address::mac(self.address))
    }
}

pub(crate) fn save(run_dir: &Path, container: &str, endpoint: &Endpoint) -> Result<(), Error> {
    state_file::write(&path(run_dir, container), endpoint)
}

pub(crate) fn forget(run_dir: &Path, container: &str) -> Result<(), Error> {
    state_file::remove(&path(run_dir, container))
}

/// The endpoints whose namespaces are still there; files of others are removed.
pub(crate) fn load(run_dir: &Path) -> Result<BTreeMap<String, Endpoint>, Error> {
    let directory = crate::endpoints(run_dir);
    let mut endpoints = BTreeMap::new();
    for entry in std::fs::read_dir(&directory).map_err(Error::file("list", &directory))? {
        let entry = entry.map_err(Error::file("list", &directory))?;
        let Ok(container) = entry.file_name().into_string() else { continue };
        match state_file::read::<Endpoint>(&entry.path()) {
            Some(endpoint) if namespace::exists(&endpoint.netns) => {
                endpoints.insert(container, endpoint);
            }
            _ => state_file::remove(&entry.path())?,
        }
    }
    Ok(endpoints)
}

fn path(run_dir: &Path, container: &str) -> PathBuf {
    crate::endpoints(run_dir).join(container)
}
