//! The addresses a node listens on and is known by.

use std::net::IpAddr;

use apiserver::ApiError;

/// Port of the cluster service where none is named.
pub(crate) const CLUSTER_PORT: u16 = 2377;

/// Where a node takes calls of other nodes, and where they find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// The address others know the node by, without a port.
    pub(crate) host: String,
    /// Host and port of the cluster service, as others reach it.
    pub(crate) advertised: String,
    /// Host and port to listen on.
    pub(crate) listen: String,
}

/// What `--advertise-addr` and `--listen-addr` come to on this host, whose own bridge is `bridge`.
///
/// # Errors
/// In Docker's words, when an address is not one of this host's, or none can be chosen.
pub(crate) fn resolve(advertise: &str, listen: &str, bridge: &str) -> Result<Addresses, ApiError> {
    let addresses = network::host_addresses().map_err(ApiError::internal)?;
    let addresses: Vec<_> =
        addresses.into_iter().map(|(link, address)| (link, IpAddr::V4(address))).collect();
    let host = advertised(advertise, listen, &addresses, bridge)?;
    let port = port_of(advertise).or_else(|| port_of(listen)).unwrap_or(CLUSTER_PORT);
    let advertised = format!("{}:{port}", bracketed(&host));
    let listen = listened(listen, &addresses)?;
    Ok(Addresses { host, advertised, listen })
}

/// The address named by the request, by an interface it names, or the host's only one.
fn advertised(
    advertise: &str,
    listen: &str,
    addresses: &[(String, IpAddr)],
    bridge: &str,
) -> Result<String, ApiError> {
    let named = host_of(advertise);
    if !named.is_empty() {
        if named.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified()) {
            return Ok(named);
        }
        let found = addresses.iter().find(|(link, _)| *link == named);
        return found.map(|(_, address)| address.to_string()).ok_or_else(|| {
            ApiError::bad_request(format!("advertise address must be a non-zero IP address or network interface (with optional port number): {named}"))
        });
    }
    let listen = host_of(listen);
    if listen.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified()) {
        return Ok(listen);
    }
    if let Some((_, address)) = addresses.iter().find(|(link, _)| *link == listen) {
        return Ok(address.to_string());
    }
    let virtual_link = |link: &str| {
        link == "lo"
            || link == bridge
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
                false => {
                    format!("on different interfaces ({first} on {one} and {second} on {other})")
                }
            };
            Err(ApiError::bad_request(format!(
                "could not choose an IP address to advertise since this system has multiple addresses {place} - specify one with --advertise-addr"
            )))
        }
    }
}

/// The address to listen on: all of the host's where none is named.
fn listened(listen: &str, addresses: &[(String, IpAddr)]) -> Result<String, ApiError> {
    let port = port_of(listen).unwrap_or(CLUSTER_PORT);
    let host = host_of(listen);
    if host.is_empty() {
        return Ok(format!("0.0.0.0:{port}"));
    }
    if host.parse::<IpAddr>().is_ok() {
        return Ok(format!("{}:{port}", bracketed(&host)));
    }
    let found = addresses.iter().find(|(link, _)| *link == host);
    found.map(|(_, address)| format!("{address}:{port}")).ok_or_else(|| {
        ApiError::bad_request(format!("listen address must be an IP address or network interface (with optional port number): {host}"))
    })
}

/// A manager's address as `host:port`; the port may be left out.
pub(crate) fn with_port(address: &str) -> String {
    let port = port_of(address).unwrap_or(CLUSTER_PORT);
    format!("{}:{port}", bracketed(&host_of(address)))
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

fn port_of(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    let is_address = !host.contains(':') || host.ends_with(']');
    port.parse().ok().filter(|_| is_address)
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Vec<(String, IpAddr)> {
        let links = [("lo", "127.0.0.1"), ("eth0", "10.9.0.1"), ("br0", "172.17.0.1")];
        links.map(|(link, address)| (link.to_owned(), address.parse().expect("address"))).to_vec()
    }

    #[test]
    fn addresses_are_taken_apart() {
        for (text, host, port) in [
            ("10.0.0.1", "10.0.0.1", None),
            ("10.0.0.1:4000", "10.0.0.1", Some(4000)),
            ("eth0", "eth0", None),
            ("eth0:4000", "eth0", Some(4000)),
            ("[fd00::1]:4000", "fd00::1", Some(4000)),
            ("fd00::1", "fd00::1", None),
            ("", "", None),
        ] {
            assert_eq!((host_of(text).as_str(), port_of(text)), (host, port), "{text}");
        }
    }

    #[test]
    fn the_advertised_address_is_the_named_one_or_the_only_one() {
        for (advertise, listen, expected) in [
            ("", "0.0.0.0:2377", Some("10.9.0.1")),
            ("10.9.0.7", "", Some("10.9.0.7")),
            ("eth0:4000", "", Some("10.9.0.1")),
            ("", "10.9.0.8:2377", Some("10.9.0.8")),
            ("", "eth0:2377", Some("10.9.0.1")),
            ("0.0.0.0", "", None),
            ("eth7", "", None),
        ] {
            let chosen = advertised(advertise, listen, &host(), "br0").ok();
            assert_eq!(chosen.as_deref(), expected, "{advertise} {listen}");
        }
    }

    #[test]
    fn all_addresses_are_listened_on_unless_one_is_named() {
        for (listen, expected) in [
            ("", Some("0.0.0.0:2377")),
            ("0.0.0.0:4000", Some("0.0.0.0:4000")),
            ("eth0", Some("10.9.0.1:2377")),
            ("[fd00::1]:4000", Some("[fd00::1]:4000")),
            ("eth7", None),
        ] {
            assert_eq!(listened(listen, &host()).ok().as_deref(), expected, "{listen}");
        }
    }
}
