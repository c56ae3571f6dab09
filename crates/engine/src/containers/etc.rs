//! The files a container finds as `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::record::Record;
use super::validate::parse_extra_host;

/// Who answers where the host has none but local name servers, which a container cannot reach.
const FALLBACK_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
/// Where names are answered for containers that are in networks with names.
const NAMES_SERVER: &str = "127.0.0.11";
/// The file systemd-resolved writes with the real servers behind its local stub.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";

/// Where the three files are on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EtcFiles {
    pub(crate) hostname: PathBuf,
    pub(crate) hosts: PathBuf,
    pub(crate) resolv_conf: PathBuf,
}

/// What the container's network makes of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host's own network.
    Host,
    /// A network of its own without anybody else in it.
    Isolated,
    /// Networks in which it has addresses.
    Attached(Attachments),
}

/// What a container has of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachments {
    pub(crate) addresses: Vec<IpAddr>,
    /// How the host is reached, and the world.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Whether names are answered at 127.0.0.11.
    pub(crate) has_names: bool,
    /// Other containers it is linked with, and what it calls each.
    pub(crate) links: Vec<(IpAddr, String)>,
}

impl Place {
    fn attachments(&self) -> Option<&Attachments> {
        match self {
            Self::Attached(attachments) => Some(attachments),
            Self::Host | Self::Isolated => None,
        }
    }
}

impl EtcFiles {
    /// Where a container's directory has them.
    pub(crate) fn within(directory: &Path) -> Self {
        Self {
            hostname: directory.join("hostname"),
            hosts: directory.join("hosts"),
            resolv_conf: directory.join("resolv.conf"),
        }
    }

    /// Writes all three.
    pub(crate) fn write(&self, record: &Record, place: &Place) -> io::Result<()> {
        let host_file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        fs::write(&self.hostname, format!("{}\n", record.config.hostname))?;
        let base = if *place == Place::Host { host_file("/etc/hosts") } else { String::new() };
        fs::write(&self.hosts, hosts(record, place, &base))?;
        let mut resolver = host_file("/etc/resolv.conf");
        if has_only_local_servers(&resolver) && Path::new(RESOLVED_FILE).exists() {
            resolver = host_file(RESOLVED_FILE);
        }
        fs::write(&self.resolv_conf, resolv_conf(record, place, &resolver))
    }
}

fn hosts(record: &Record, place: &Place, base: &str) -> String {
    let mut text = if *place == Place::Host {
        base.to_owned()
    } else {
        concat!(
            "127.0.0.1\tlocalhost\n",
            "::1\tlocalhost ip6-localhost ip6-loopback\n",
            "fe00::\tip6-localnet\n",
            "ff00::\tip6-mcastprefix\n",
            "ff02::1\tip6-allnodes\n",
            "ff02::2\tip6-allrouters\n",
        )
        .to_owned()
    };
    let gateway = place.attachments().and_then(|attachments| attachments.gateway);
    let gateway = gateway.unwrap_or(Ipv4Addr::LOCALHOST).to_string();
    for entry in record.host.extra_hosts.iter().flatten() {
        if let Ok((name, address)) = parse_extra_host(entry) {
            let address = if address == "host-gateway" { &gateway } else { address };
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    let links = place.attachments().map_or(&[][..], |attachments| &attachments.links);
    for (address, names) in links {
        text.push_str(&format!("{address}\t{names}\n"));
    }
    let addresses = place.attachments().map_or(&[][..], |attachments| &attachments.addresses);
    for address in addresses {
        let (name, domain) = (&record.config.hostname, &record.config.domainname);
        match domain.as_str() {
            "" => text.push_str(&format!("{address}\t{name}\n")),
            domain => text.push_str(&format!("{address}\t{name}.{domain} {name}\n")),
        }
    }
    text
}

fn resolv_conf(record: &Record, place: &Place, base: &str) -> String {
    let host = &record.host;
    let given = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let (servers, search, options) =
        (given(&host.dns), given(&host.dns_search), given(&host.dns_options));
    let is_host = *place == Place::Host;
    if is_host && servers.is_empty() && search.is_empty() && options.is_empty() {
        return base.to_owned();
    }
    let lines = |key: &str| {
        let values = base.lines().filter_map(move |line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(key)).then(|| words.collect::<Vec<_>>())
        });
        values.collect::<Vec<_>>()
    };
    let has_names = place.attachments().is_some_and(|attachments| attachments.has_names);
    let mut servers = servers;
    if has_names {
        // Names are answered there, those of its networks and those of the world.
        servers = vec![NAMES_SERVER.to_owned()];
    }
    if servers.is_empty() {
        let reachable = |server: &&str| is_host || !is_loopback(server);
        servers =
            lines("nameserver").concat().into_iter().filter(reachable).map(str::to_owned).collect();
    }
    if servers.is_empty() && *place != Place::Isolated {
        servers = FALLBACK_SERVERS.map(str::to_owned).to_vec();
    }
    let or_inherited = |own: Vec<String>, key: &str| {
        if own.is_empty() {
            lines(key).concat().into_iter().map(str::to_owned).collect()
        } else {
            own
        }
    };
    let search = or_inherited(search, "search");
    let mut options = or_inherited(options, "options");
    // A name of one word is one of a network's names: it is asked for as it stands.
    if has_names && !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut text = String::new();
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    // `--dns-search .` asks for none.
    if !search.is_empty() && search != ["."] {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

fn has_only_local_servers(text: &str) -> bool {
    text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).all(is_loopback)
}

fn is_loopback(server: &str) -> bool {
    server.trim().parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{Attachments, Place, hosts, resolv_conf};
    use crate::containers::record::Record;

    fn record(host: &str) -> Record {
        let json = format!(
            r#"{{"id":"1","name":"n","created":"2026-01-01T00:00:00Z","image_id":"","path":"","args":[],
                "config":{{"Hostname":"web"}},"host":{host},"networks":{{}},"mounts":[]}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn bridge(has_names: bool) -> Place {
        Place::Attached(Attachments {
            addresses: vec![Ipv4Addr::new(172, 17, 0, 2).into()],
            gateway: Some(Ipv4Addr::new(172, 17, 0, 1)),
            has_names,
            links: Vec::new(),
        })
    }

    #[test]
    fn hosts_name_the_container_and_what_was_added() {
        let record = record(r#"{"ExtraHosts":["db:10.0.0.5","host:host-gateway"]}"#);
        let text = hosts(&record, &bridge(false), "");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.0.0.5\tdb\n172.17.0.1\thost\n172.17.0.2\tweb\n"), "{text}");
        let shared = hosts(&record, &Place::Host, "127.0.0.1 me\n");
        assert_eq!(shared, "127.0.0.1 me\n10.0.0.5\tdb\n127.0.0.1\thost\n");
    }

    #[test]
    fn local_name_servers_are_left_out_where_they_cannot_be_reached() {
        let base = "# comment\nnameserver 127.0.0.53\nnameserver 10.1.1.1\nsearch example.org\noptions ndots:2\n";
        assert_eq!(
            resolv_conf(&record("{}"), &bridge(false), base),
            "nameserver 10.1.1.1\nsearch example.org\noptions ndots:2\n"
        );
        assert_eq!(resolv_conf(&record("{}"), &Place::Host, base), base);
        assert_eq!(
            resolv_conf(&record("{}"), &bridge(false), "nameserver 127.0.0.1\n"),
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"
        );
        let own = record(r#"{"Dns":["1.1.1.1"],"DnsSearch":["."],"DnsOptions":["rotate"]}"#);
        assert_eq!(resolv_conf(&own, &bridge(false), base), "nameserver 1.1.1.1\noptions rotate\n");
    }

    #[test]
    fn in_networks_with_names_the_world_is_asked_for_by_way_of_us() {
        let base = "nameserver 10.1.1.1\nsearch example.org\n";
        assert_eq!(
            resolv_conf(&record("{}"), &bridge(true), base),
            "nameserver 127.0.0.11\nsearch example.org\noptions ndots:0\n"
        );
        let own = record(r#"{"Dns":["1.1.1.1"],"DnsSearch":["x.org"],"DnsOptions":["ndots:2"]}"#);
        assert_eq!(
            resolv_conf(&own, &bridge(true), base),
            "nameserver 127.0.0.11\nsearch x.org\noptions ndots:2\n"
        );
    }
}
