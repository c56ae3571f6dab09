//! `skep doctor`: what on this host is in the node's way, what differs from what the node was told, and what to do.
#![expect(clippy::print_stdout, reason = "commands talk to whoever started them")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use ::doctor::{Complaint, Membership};
use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::StreamExt;
use http::Method;
use http_body_util::{BodyExt, Empty};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::backup::{Target, ask, block_on};

/// How long a manager may take to take a connection.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Ways to other nodes that are looked at, and how many at once: each may take seconds where nobody answers.
const WAYS_MAX: usize = 128;
const WAYS_AT_ONCE: usize = 16;

#[derive(Args, Clone, Debug)]
pub(crate) struct Flags {
    #[command(flatten)]
    target: Target,
    /// Have the daemon put right what is not as it was told, instead of at its next look
    #[arg(long)]
    mend: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    complaints: Vec<Complaint>,
    /// How the kernel differs from what the node was told; absent where no daemon answers.
    differences: Option<Vec<String>>,
    /// Why no daemon answers.
    daemon: Option<String>,
}

/// Of `/info`, what matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    swarm: SwarmPart,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SwarmPart {
    node_addr: String,
    local_node_state: String,
    remote_managers: Option<Vec<Manager>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manager {
    addr: String,
}

/// A node, as managers list it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    status: ListedStatus,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedStatus {
    addr: String,
}

#[derive(Debug, Deserialize)]
struct Audit {
    differences: Vec<String>,
}

/// Fails where something is wrong.
pub(crate) fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let report = block_on(examine(flags))?;
    match flags.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Text => print!("{}", text(&report)),
    }
    let is_well =
        report.complaints.is_empty() && report.differences.as_ref().is_none_or(Vec::is_empty);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn examine(flags: &Flags) -> anyhow::Result<Report> {
    let target = &flags.target;
    let info = send::<Info>(target, Method::GET, "/info").await;
    let swarm = info.as_ref().ok().map(|info| &info.swarm);
    let swarm = swarm.filter(|swarm| swarm.local_node_state == "active");
    // A node that is in a swarm holds its ports itself.
    let own_ports = swarm.map(|_| own_ports()).unwrap_or_default();
    let probed = tokio::task::spawn_blocking(move || ::doctor::probe(&own_ports)).await;
    let mut facts = probed.context("look at the host")?;
    if let Some(swarm) = swarm {
        let mut membership = membership(swarm).await;
        membership.narrow = narrow_ways(target, swarm).await;
        facts.membership = Some(membership);
    }
    let (differences, daemon) = match info {
        Ok(_) => {
            let method = if flags.mend { Method::POST } else { Method::GET };
            let audit = send::<Audit>(target, method, "/skep/audit").await?;
            (Some(audit.differences), None)
        }
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    Ok(Report { complaints: ::doctor::judge(&facts), differences, daemon })
}

fn own_ports() -> Vec<String> {
    let udp = network::TUNNEL_PORTS.into_iter().chain([network::DATA_PORT]);
    let udp = udp.map(|port| format!("{port}/udp"));
    udp.chain(["2377/tcp".to_owned()]).collect()
}

async fn membership(swarm: &SwarmPart) -> Membership {
    let managers = swarm.remote_managers.iter().flatten().map(|manager| manager.addr.clone());
    let tries = managers.map(|manager| async move {
        let connected = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(&manager)).await;
        let reason = match connected {
            Ok(Ok(_)) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", CONNECT_MAX.as_secs()),
        };
        Some((manager, reason))
    });
    let unreachable = futures::future::join_all(tries).await.into_iter().flatten().collect();
    Membership { address: swarm.node_addr.clone(), unreachable, narrow: Vec::new() }
}

/// The nodes to which packets of this node's length do not arrive: of all nodes where this one manages, else of managers.
async fn narrow_ways(target: &Target, swarm: &SwarmPart) -> Vec<(String, u32)> {
    let own: Option<IpAddr> = swarm.node_addr.parse().ok();
    let listed = send::<Vec<Listed>>(target, Method::GET, "/nodes").await.unwrap_or_default();
    let managers = swarm.remote_managers.iter().flatten();
    let managers = managers.filter_map(|it| Some(it.addr.parse::<SocketAddr>().ok()?.ip()));
    let nodes: BTreeSet<IpAddr> =
        listed.iter().filter_map(|node| node.status.addr.parse().ok()).chain(managers).collect();
    let others = nodes.into_iter().filter(|node| Some(*node) != own).take(WAYS_MAX);
    let asked = futures::stream::iter(others).map(|node| async move {
        let found = tokio::task::spawn_blocking(move || network::find_path(own, node)).await;
        let way = found.ok()?.ok()??;
        way.is_narrow.then(|| (node.to_string(), way.bytes))
    });
    asked.buffered(WAYS_AT_ONCE).filter_map(std::future::ready).collect().await
}

async fn send<T: for<'de> Deserialize<'de>>(
    target: &Target,
    method: Method,
    path: &str,
) -> anyhow::Result<T> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed();
    let request = hyper::Request::builder().method(method).uri(path).header("Host", "skep");
    let request = request.body(body);
    let body = request.context("make the request")?;
    let answer = ask::<std::io::Error>(target, body).await?;
    let bytes = answer.collect().await.context("read the daemon's answer")?.to_bytes();
    serde_json::from_slice(&bytes).with_context(|| format!("read the answer to {path}"))
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for Complaint { about, problem, fix } in &report.complaints {
        lines.push(format!("{about}: {problem}\n  fix: {fix}"));
    }
    for difference in report.differences.iter().flatten() {
        lines.push(format!("audit: {difference}"));
    }
    if let Some(reason) = &report.daemon {
        lines.push(format!("No daemon was asked: {reason}"));
    }
    if report.complaints.is_empty() && report.differences.as_ref().is_some_and(Vec::is_empty) {
        lines.push("Nothing is in the way, and the kernel has what this node was told.".to_owned());
    } else if lines.len() == usize::from(report.daemon.is_some()) {
        lines.push("Nothing is in the way.".to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(complaints: Vec<Complaint>, differences: Option<Vec<String>>) -> Report {
        Report { complaints, differences, daemon: None }
    }

    #[test]
    fn a_report_says_what_is_wrong_and_what_helps() {
        let about = "settings";
        let complaint =
            Complaint { about, problem: "ip_forward is off".into(), fix: "sysctl".into() };
        let told = text(&report(vec![complaint], Some(vec!["link vx0 is missing".into()])));
        let expected = "settings: ip_forward is off\n  fix: sysctl\naudit: link vx0 is missing\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn a_healthy_host_is_called_so() {
        assert!(
            text(&report(Vec::new(), Some(Vec::new()))).starts_with("Nothing is in the way, and")
        );
        let mut alone = report(Vec::new(), None);
        alone.daemon = Some("no such file".into());
        assert_eq!(text(&alone), "No daemon was asked: no such file\nNothing is in the way.\n");
    }
}
