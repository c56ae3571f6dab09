//! Names of registries: the C library's resolver, and a quick answer where no name server can be reached.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::error::Transport;

/// After this long a lookup that still waits is worth a look at the name servers. The C library goes on waiting for
/// servers to which no route leads.
const SUSPICIOUS: Duration = Duration::from_millis(100);

const NAME_SERVER_PORT: u16 = 53;

/// The file that names the name servers.
const RESOLVER: &str = "/etc/resolv.conf";

/// The addresses of a host.
pub(super) async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, Transport> {
    let lookup = tokio::net::lookup_host((host, port));
    let mut lookup = std::pin::pin!(lookup);
    let found = match tokio::time::timeout(SUSPICIOUS, &mut lookup).await {
        Ok(found) => found,
        Err(_) => {
            if let Some((server, source)) = unreachable_server() {
                return Err(Transport::NameServer { host: host.to_owned(), server, source });
            }
            lookup.await
        }
    };
    found.map(Iterator::collect).map_err(|_| Transport::Lookup { host: host.to_owned() })
}

/// The first name server, if none of them can be reached.
fn unreachable_server() -> Option<(SocketAddr, io::Error)> {
    let text = std::fs::read_to_string(RESOLVER).ok()?;
    let mut first = None;
    for server in servers(&text) {
        match reach(server) {
            Ok(()) => return None,
            Err(error) => first = first.or(Some((server, error))),
        }
    }
    first
}

fn servers(text: &str) -> impl Iterator<Item = SocketAddr> + '_ {
    let named = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    let addresses = named.filter_map(|address| address.trim().parse::<IpAddr>().ok());
    addresses.map(|address| SocketAddr::new(address, NAME_SERVER_PORT))
}

/// Whether there is a route; nothing is sent.
fn reach(server: SocketAddr) -> io::Result<()> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))?.connect(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_from_the_resolvers_file() {
        let text = "# servers\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\nnameserver fe80::1%eth0\nsearch example\n";
        let servers: Vec<_> = servers(text).map(|server| server.to_string()).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }

    #[tokio::test]
    async fn names_of_this_host_need_no_name_server() {
        let found = addresses("localhost", 80).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
