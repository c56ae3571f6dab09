//! What a request for a network of this host comes to: checks it, and completes it. Decides only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use docker_types::network::{Ipam, IpamConfig, NetworkCreateRequest};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use network::LocalNetwork;
use serde::{Deserialize, Serialize};

use super::{Refusal, ipv6};

const OPTION_MTU: &str = "com.docker.network.driver.mtu";
const OPTION_LINK: &str = "com.docker.network.bridge.name";
const OPTION_SHARED: &str = "com.docker.network.bridge.enable_icc";
const OPTION_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const OPTION_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";

/// Longest name of a link, in bytes (IFNAMSIZ without its zero).
const LINK_BYTES_MAX: usize = 15;

/// Bytes of a packet that IPv4 asks every link for (RFC 791).
const MTU_MIN: u32 = 68;

/// A network as it is remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub name: String,
    pub created: Timestamp,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub is_internal: bool,
    pub is_attachable: bool,
    pub ipam: Ipam,
    /// What configuration network it was made from.
    pub config_from: String,
    /// What the kernel has of it; one that only holds a configuration for others has nothing.
    pub local: Option<LocalNetwork>,
    /// Whether the user named its subnet: only then addresses in it may be asked for.
    pub has_own_subnet: bool,
    /// Where published ports answer that name no address.
    pub binding: Option<IpAddr>,
    /// Whether the network is one of the swarm that each node has for itself: managers say who may be in it.
    #[serde(default)]
    pub is_of_swarm: bool,
}

/// What a plan needs of the world.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) id: String,
    pub(crate) now: Timestamp,
    pub(crate) known: &'a BTreeMap<String, std::sync::Arc<Record>>,
    /// The default network's.
    pub(crate) default_subnet: Ipv4Net,
    /// The next one of the pools that nothing on this host overlaps.
    pub(crate) free_subnet: Option<Ipv4Net>,
}

/// # Errors
/// What is wrong with the request.
pub(crate) fn plan(
    request: NetworkCreateRequest,
    around: &Surroundings<'_>,
) -> Result<Record, Refusal> {
    check_driver(&request)?;
    if request.config_only {
        return configuration(request, around);
    }
    let request = inherit(request, around)?;
    let options = request.options.clone().unwrap_or_default();
    let ipam = request.ipam.clone().unwrap_or_default();
    check_ipam_driver(&ipam)?;
    let (of_ipv6, of_ipv4): (Vec<_>, Vec<_>) = { ipam.config.clone().unwrap_or_default() }
        .into_iter()
        .partition(|config| config.subnet.contains(':'));
    let addresses = addresses(&of_ipv4, around)?;
    let ipv6 = ipv6::addresses(&of_ipv6, request.enable_ipv6 == Some(true), around)?;
    let mut config = Vec::new();
    let local = LocalNetwork {
        id: around.id.clone(),
        name: request.name.clone(),
        link: link(&options, around)?,
        subnet: addresses.subnet,
        range: addresses.range,
        gateway: addresses.gateway,
        ipv6,
        reserved: addresses.reserved,
        mtu: mtu(&options)?,
        is_internal: request.internal,
        is_masqueraded: flag(&options, OPTION_MASQUERADE)?,
        is_shared: flag(&options, OPTION_SHARED)?,
    };
    config.push(shown(&addresses.asked, &local));
    config.extend(ipv6.map(|ipv6| ipv6::shown(of_ipv6.first(), ipv6)));
    let config_from = request.config_from.map(|from| from.network).unwrap_or_default();
    Ok(Record {
        id: around.id.clone(),
        name: request.name,
        created: around.now,
        binding: binding(&options),
        options,
        labels: request.labels.unwrap_or_default(),
        is_internal: request.internal,
        is_attachable: request.attachable,
        ipam: Ipam { driver: "default".to_owned(), options: ipam.options, config: Some(config) },
        config_from,
        has_own_subnet: !addresses.asked.subnet.is_empty() || !of_ipv6.is_empty(),
        local: Some(local),
        is_of_swarm: false,
    })
}

fn check_driver(request: &NetworkCreateRequest) -> Result<(), Refusal> {
    match request.driver.as_str() {
        "" | "bridge" => {}
        driver @ ("host" | "null") => return Err(Refusal::OnlyOne { driver: driver.to_owned() }),
        driver => return Err(Refusal::Driver { driver: driver.to_owned() }),
    }
    if request.ingress {
        return Err(Refusal::LocalIngress);
    }
    if request.enable_ipv4 == Some(false) {
        return Err(Refusal::NoFamily);
    }
    Ok(())
}

fn check_ipam_driver(ipam: &Ipam) -> Result<(), Refusal> {
    match ipam.driver.as_str() {
        "" | "default" => Ok(()),
        driver => Err(Refusal::Driver { driver: driver.to_owned() }),
    }
}

/// One that is no network, but what others may be made from.
fn configuration(
    request: NetworkCreateRequest,
    around: &Surroundings<'_>,
) -> Result<Record, Refusal> {
    let has_source = request.config_from.is_some_and(|from| !from.network.is_empty());
    if has_source || !matches!(request.driver.as_str(), "" | "bridge" | "null") {
        return Err(Refusal::ConfigOnly);
    }
    let ipam = request.ipam.unwrap_or_default();
    check_ipam_driver(&ipam)?;
    Ok(Record {
        id: around.id.clone(),
        name: request.name,
        created: around.now,
        options: request.options.unwrap_or_default(),
        labels: request.labels.unwrap_or_default(),
        is_internal: request.internal,
        is_attachable: request.attachable,
        ipam: Ipam { driver: "default".to_owned(), ..ipam },
        config_from: String::new(),
        local: None,
        has_own_subnet: false,
        binding: None,
        is_of_swarm: false,
    })
}

/// Fills in what the configuration network holds, where one is named.
fn inherit(
    request: NetworkCreateRequest,
    around: &Surroundings<'_>,
) -> Result<NetworkCreateRequest, Refusal> {
    let Some(from) = request.config_from.as_ref().filter(|from| !from.network.is_empty()) else {
        return Ok(request);
    };
    let has_own = request.ipam.as_ref().is_some_and(|ipam| {
        ipam.config.as_ref().is_some_and(|config| !config.is_empty())
            || ipam.options.as_ref().is_some_and(|options| !options.is_empty())
    });
    let has_own = has_own
        || request.internal
        || request.options.as_ref().is_some_and(|options| !options.is_empty());
    if has_own {
        return Err(Refusal::ConfigFromAndOwn);
    }
    let source = around.known.values().find(|known| {
        known.local.is_none() && (known.name == from.network || known.id == from.network)
    });
    let source = source.ok_or_else(|| Refusal::NoConfigFrom { name: from.network.clone() })?;
    let mut labels = source.labels.clone();
    labels.extend(request.labels.clone().unwrap_or_default());
    Ok(NetworkCreateRequest {
        ipam: Some(source.ipam.clone()),
        options: Some(source.options.clone()),
        internal: source.is_internal,
        labels: Some(labels),
        ..request
    })
}

/// A network's addresses, and what was asked for.
struct Addresses {
    asked: IpamConfig,
    subnet: Ipv4Net,
    range: Option<Ipv4Net>,
    gateway: Ipv4Addr,
    reserved: BTreeSet<Ipv4Addr>,
}

fn addresses(asked: &[IpamConfig], around: &Surroundings<'_>) -> Result<Addresses, Refusal> {
    let asked = match asked {
        [] => {
            let subnet = around.free_subnet.ok_or(Refusal::PoolsUsedUp)?;
            let gateway = gateway("", subnet)?;
            let asked = IpamConfig::default();
            return Ok(Addresses {
                asked,
                subnet,
                range: None,
                gateway,
                reserved: BTreeSet::new(),
            });
        }
        [asked] => asked.clone(),
        _ => return Err(Refusal::ManySubnets),
    };
    let Ok(subnet) = asked.subnet.parse::<Ipv4Net>() else {
        return Err(Refusal::Subnet { text: asked.subnet });
    };
    let subnet = subnet.trunc();
    let taken = around.known.values().filter_map(|known| Some(known.local.as_ref()?.subnet));
    let overlaps = |other: Ipv4Net| subnet.contains(&other) || other.contains(&subnet);
    if taken.chain([around.default_subnet]).any(overlaps) {
        return Err(Refusal::Overlap);
    }
    let gateway = gateway(&asked.gateway, subnet)?;
    let range = range(&asked.ip_range, subnet)?;
    let reserved = auxiliary(&asked.auxiliary_addresses, subnet)?;
    Ok(Addresses { asked, subnet, range, gateway, reserved })
}

fn gateway(text: &str, subnet: Ipv4Net) -> Result<Ipv4Addr, Refusal> {
    let refused = |reason| Refusal::Gateway { text: text.to_owned(), reason };
    if subnet.prefix_len() > 30 {
        return Err(refused("No available addresses on this pool"));
    }
    if text.is_empty() {
        return Ok(Ipv4Addr::from_bits(subnet.network().to_bits() + 1));
    }
    let gateway: Ipv4Addr = text.parse().map_err(|_| refused("invalid address"))?;
    let is_host = gateway != subnet.network() && gateway != subnet.broadcast();
    match subnet.contains(&gateway) && is_host {
        true => Ok(gateway),
        false => Err(refused("Requested address is out of range")),
    }
}

fn range(text: &str, subnet: Ipv4Net) -> Result<Option<Ipv4Net>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let refused = |reason| Refusal::Range { text: text.to_owned(), reason };
    let range: Ipv4Net = text.parse().map_err(|_| refused("invalid CIDR address".to_owned()))?;
    match subnet.contains(&range) {
        true => Ok(Some(range.trunc())),
        false => Err(refused(format!("it is not in subnet {subnet}"))),
    }
}

fn auxiliary(
    named: &BTreeMap<String, String>,
    subnet: Ipv4Net,
) -> Result<BTreeSet<Ipv4Addr>, Refusal> {
    let read = |(name, text): (&String, &String)| {
        let address: Option<Ipv4Addr> = text.parse().ok().filter(|it| subnet.contains(it));
        address.ok_or_else(|| Refusal::Auxiliary {
            name: name.clone(),
            text: text.clone(),
            subnet: subnet.into(),
        })
    };
    named.iter().map(read).collect()
}

/// As `inspect` shows it: what was asked for, and what was chosen where nothing was.
fn shown(asked: &IpamConfig, local: &LocalNetwork) -> IpamConfig {
    IpamConfig {
        subnet: local.subnet.to_string(),
        gateway: local.gateway.to_string(),
        ..asked.clone()
    }
}

fn link(options: &BTreeMap<String, String>, around: &Surroundings<'_>) -> Result<String, Refusal> {
    let Some(link) = options.get(OPTION_LINK).filter(|link| !link.is_empty()) else {
        return Ok(format!("br-{}", crate::names::short(&around.id)));
    };
    let link = link.clone();
    if link.len() > LINK_BYTES_MAX || link.contains(['/', ' ']) || link.starts_with('.') {
        return Err(Refusal::LinkName { link });
    }
    let has_it = |known: &&std::sync::Arc<Record>| {
        known.local.as_ref().is_some_and(|local| local.link == link)
    };
    match around.known.values().find(has_it) {
        Some(other) => {
            Err(Refusal::LinkTaken { id: around.id.clone(), link, other: other.id.clone() })
        }
        None => Ok(link),
    }
}

fn mtu(options: &BTreeMap<String, String>) -> Result<Option<u32>, Refusal> {
    let Some(text) = options.get(OPTION_MTU) else { return Ok(None) };
    match text.parse::<u32>() {
        Ok(0) => Ok(None),
        Ok(mtu) if mtu >= MTU_MIN => Ok(Some(mtu)),
        parsed => Err(Refusal::Option {
            option: OPTION_MTU.to_owned(),
            value: text.clone(),
            reason: match parsed {
                Ok(_) => format!("a packet has {MTU_MIN} bytes at least"),
                Err(_) => format!("strconv.Atoi: parsing {text:?}: invalid syntax"),
            },
        }),
    }
}

/// Options that are on unless they are switched off.
fn flag(options: &BTreeMap<String, String>, option: &str) -> Result<bool, Refusal> {
    match options.get(option).map(String::as_str) {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(text) => Err(Refusal::Option {
            option: option.to_owned(),
            value: text.to_owned(),
            reason: format!("strconv.ParseBool: parsing {text:?}: invalid syntax"),
        }),
    }
}

fn binding(options: &BTreeMap<String, String>) -> Option<IpAddr> {
    let address: IpAddr = options.get(OPTION_BINDING)?.parse().ok()?;
    Some(address).filter(|address| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use docker_types::network::NetworkCreateRequest;
    use jiff::Timestamp;

    use super::{Record, Surroundings, plan};

    fn planned(body: &str, known: &[&str]) -> Result<Record, String> {
        let mut records = BTreeMap::new();
        for (number, body) in known.iter().enumerate() {
            let record = decide(body, &records, number).expect("fits");
            records.insert(record.id.clone(), Arc::new(record));
        }
        decide(body, &records, known.len())
    }

    fn decide(
        body: &str,
        known: &BTreeMap<String, Arc<Record>>,
        number: usize,
    ) -> Result<Record, String> {
        let request: NetworkCreateRequest = serde_json::from_str(body).expect("a request");
        let around = Surroundings {
            id: format!("{number:064x}"),
            now: Timestamp::UNIX_EPOCH,
            known,
            default_subnet: "172.17.0.0/16".parse().expect("a subnet"),
            free_subnet: Some("172.18.0.0/16".parse().expect("a subnet")),
        };
        plan(request, &around).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn what_is_not_asked_for_is_chosen() {
        let record = planned(r#"{"Name":"blue"}"#, &[]).expect("fits");
        let local = record.local.expect("is one");
        assert_eq!((local.link.as_str(), local.mtu), ("br-000000000000", None));
        assert_eq!(local.gateway.to_string(), "172.18.0.1");
        assert!(local.is_shared && local.is_masqueraded && !record.has_own_subnet);
        let config = record.ipam.config.expect("is shown").remove(0);
        assert_eq!(
            (config.subnet.as_str(), config.gateway.as_str()),
            ("172.18.0.0/16", "172.18.0.1")
        );
    }

    #[test]
    fn what_is_asked_for_is_kept() {
        let body = r#"{"Name":"blue","Internal":true,"Labels":{"a":"b"},"Options":{
            "com.docker.network.bridge.name":"mine","com.docker.network.driver.mtu":"1400",
            "com.docker.network.bridge.enable_icc":"false","com.docker.network.bridge.host_binding_ipv4":"127.0.0.1"},
            "IPAM":{"Config":[{"Subnet":"10.1.0.7/16","IPRange":"10.1.5.0/24","Gateway":"10.1.5.254",
            "AuxiliaryAddresses":{"router":"10.1.5.1"}}]}}"#;
        let record = planned(body, &[]).expect("fits");
        let local = record.local.clone().expect("is one");
        assert_eq!((local.link.as_str(), local.mtu), ("mine", Some(1400)));
        assert_eq!(local.subnet.to_string(), "10.1.0.0/16");
        assert_eq!(local.range.expect("is kept").to_string(), "10.1.5.0/24");
        assert_eq!(local.reserved.len(), 1);
        assert!(!local.is_shared && local.is_internal && record.has_own_subnet);
        assert_eq!(record.binding, Some("127.0.0.1".parse().expect("an address")));
        assert_eq!(
            record.ipam.config.expect("is shown")[0].auxiliary_addresses["router"],
            "10.1.5.1"
        );
    }

    #[test]
    fn a_network_is_made_from_a_configuration() {
        let configuration = r#"{"Name":"conf","ConfigOnly":true,"Labels":{"a":"b"},
            "IPAM":{"Config":[{"Subnet":"10.1.0.0/24"}]}}"#;
        let from = r#"{"Name":"blue","ConfigFrom":{"Network":"conf"}}"#;
        let record = planned(from, &[configuration]).expect("fits");
        assert_eq!(record.local.expect("is one").subnet.to_string(), "10.1.0.0/24");
        assert_eq!((record.config_from.as_str(), record.labels.len()), ("conf", 1));
        for (body, text) in [
            (
                r#"{"Name":"b","ConfigFrom":{"Network":"nope"}}"#,
                "configuration network \"nope\" not found",
            ),
            (
                r#"{"Name":"b","Internal":true,"ConfigFrom":{"Network":"conf"}}"#,
                "user-specified configurations are not supported if the network depends on a configuration network",
            ),
        ] {
            assert_eq!(planned(body, &[configuration]).unwrap_err(), text);
        }
    }

    #[test]
    fn wrong_requests_are_refused_in_dockers_words() {
        let subnet = |config: &str| format!(r#"{{"Name":"b","IPAM":{{"Config":[{config}]}}}}"#);
        let option = |name: &str, value: &str| {
            format!(r#"{{"Name":"b","Options":{{"com.docker.network.{name}":"{value}"}}}}"#)
        };
        let taken = [r#"{"Name":"a","Options":{"com.docker.network.bridge.name":"mine"},
                "IPAM":{"Config":[{"Subnet":"10.7.0.0/24"}]}}"#];
        let conflict = format!(
            "cannot create network {:064x} (mine): conflicts with network {:064x} (mine): networks have same bridge name",
            1, 0
        );
        for (body, text) in [
            (r#"{"Name":"b","Driver":"foo"}"#.to_owned(), "plugin \"foo\" not found"),
            (
                r#"{"Name":"b","Driver":"host"}"#.to_owned(),
                "only one instance of \"host\" network is allowed",
            ),
            (
                r#"{"Name":"b","Ingress":true}"#.to_owned(),
                "Ingress network can only be global scope network",
            ),
            (r#"{"Name":"b","IPAM":{"Driver":"foo"}}"#.to_owned(), "plugin \"foo\" not found"),
            (
                subnet(r#"{"Subnet":"10.0.0"}"#),
                "Invalid subnet 10.0.0 : invalid CIDR address: 10.0.0",
            ),
            (subnet(r#"{"Gateway":"10.0.0.1"}"#), "Invalid subnet  : invalid CIDR address: "),
            (
                subnet(r#"{"Subnet":"10.9.0.0/24","Gateway":"10.8.0.1"}"#),
                "failed to allocate gateway (10.8.0.1): Requested address is out of range",
            ),
            (
                subnet(r#"{"Subnet":"10.9.0.0/31"}"#),
                "failed to allocate gateway (): No available addresses on this pool",
            ),
            (
                subnet(r#"{"Subnet":"10.9.0.0/24","IPRange":"10.8.0.0/25"}"#),
                "invalid ip-range 10.8.0.0/25: it is not in subnet 10.9.0.0/24",
            ),
            (
                subnet(r#"{"Subnet":"172.17.5.0/24"}"#),
                "Pool overlaps with other one on this address space",
            ),
            (
                subnet(r#"{"Subnet":"10.0.0.0/8"}"#),
                "Pool overlaps with other one on this address space",
            ),
            (
                subnet(r#"{"Subnet":"10.9.0.0/24"},{"Subnet":"10.8.0.0/24"}"#),
                "bridge driver doesn't support multiple subnets",
            ),
            (
                option("driver.mtu", "x"),
                "failed to parse com.docker.network.driver.mtu value: x (strconv.Atoi: parsing \"x\": invalid syntax)",
            ),
            (
                option("bridge.enable_icc", "maybe"),
                "failed to parse com.docker.network.bridge.enable_icc value: maybe (strconv.ParseBool: parsing \"maybe\": invalid syntax)",
            ),
            (option("bridge.name", "mine"), &conflict),
        ] {
            assert_eq!(planned(&body, &taken).unwrap_err(), text, "{body}");
        }
    }
}
