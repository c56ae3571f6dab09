//! What this kernel can, found out by doing it in a network namespace that ends with the trial.
#![allow(unsafe_code, reason = "a thread of our own moves into another network namespace")]

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::netlink::Netlink;
use crate::ports::{Front, Protocol, Rule};
use crate::{Error, nft, tunnel};

/// What the kernel refuses to make, and with which words: `vxlan devices`, `bridges`, `veth devices`, `tunnels`,
/// `nftables`, `sockets known to nftables`, `network namespaces`.
pub fn missing_features() -> BTreeMap<String, String> {
    let trial = std::thread::spawn(|| {
        // SAFETY: the thread is our own and ends here; it shares no namespace-bound state with others.
        let made = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        match made {
            Ok(()) => try_all(),
            Err(errno) => [("network namespaces".to_owned(), errno.to_string())].into(),
        }
    });
    trial.join().unwrap_or_default()
}

fn try_all() -> BTreeMap<String, String> {
    let vxlan = InfoData::Vxlan(vec![InfoVxlan::Id(1), InfoVxlan::Port(crate::DATA_PORT)]);
    let tries = [
        ("bridges", try_link(InfoKind::Bridge, None)),
        ("veth devices", try_link(InfoKind::Veth, None)),
        ("vxlan devices", try_link(InfoKind::Vxlan, Some(vxlan))),
        ("tunnels", tunnel::can_be_made().then_some(()).ok_or("neither WireGuard nor tun".into())),
        ("nftables", try_tables().map_err(|error| text_of(&error))),
        ("sockets known to nftables", try_relays().map_err(|error| text_of(&error))),
    ];
    let failed =
        tries.into_iter().filter_map(|(what, tried)| Some((what.to_owned(), tried.err()?)));
    failed.collect()
}

fn try_link(kind: InfoKind, data: Option<InfoData>) -> Result<(), String> {
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName("trial0".to_owned()), LinkAttribute::LinkInfo(info)];
    let tried = || -> io::Result<()> {
        let netlink = Netlink::open()?;
        netlink.create(RouteNetlinkMessage::NewLink(message))?;
        netlink.remove_link("trial0")
    };
    tried().map_err(|error| error.to_string())
}

/// The very tables that are made later.
fn try_tables() -> Result<(), Error> {
    let subnet = Ipv4Net::new_assert(Ipv4Addr::new(172, 17, 0, 0), 16);
    let mut table =
        nft::Table::open("trial", "trial0", subnet, &std::collections::BTreeSet::new())?;
    let address = Ipv4Addr::UNSPECIFIED.into();
    let front = Front { protocol: Protocol::Tcp, address, port: 80 };
    let backends = vec![(Ipv4Addr::new(172, 17, 0, 2).into(), 80)];
    table.change(&[], &[Rule { front, backends }])
}

fn try_relays() -> Result<(), Error> {
    nft::RelayTable::here()?.set(BTreeMap::new())
}

/// Bytes that each of the host's links takes.
///
/// # Errors
/// When the kernel does not list them.
pub fn link_mtus() -> Result<BTreeMap<String, u32>, Error> {
    let netlink = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let listed = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    let links = listed.map_err(Error::kernel("list links"))?.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return None };
        let (mut name, mut mtu) = (None, None);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::Mtu(bytes) => mtu = Some(bytes),
                _ => {}
            }
        }
        name.zip(mtu)
    });
    Ok(links.collect())
}

/// The error with its cause.
pub(crate) fn text_of(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
