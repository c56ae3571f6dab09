//! An example service on a swarm of three hosts in one command, and its removal in another.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use clap::Subcommand;

use crate::cluster::{self, Host};
use crate::{dist, host};

const HOSTS: u8 = 3;
/// Where the example answers on each host.
const PORT: u16 = 8080;
const REPLICAS: usize = 6;

/// Questions until every replica should have answered: each host asks its own in turn.
const QUESTIONS_MAX: usize = 60;

/// What the demo does: up, unless told otherwise.
#[derive(Clone, Copy, Debug, Default, Subcommand)]
pub(crate) enum Step {
    /// Build, start, deploy (the default)
    #[default]
    Up,
    /// Take everything down again and leave nothing behind
    Down,
}

pub(crate) fn run(step: Step) -> anyhow::Result<()> {
    host::must_be_root("the demo")?;
    match step {
        Step::Up => up(),
        Step::Down => cluster::down(),
    }
}

fn up() -> anyhow::Result<()> {
    let hosts = cluster::up(HOSTS, HOSTS)?;
    let first = hosts.first().context("a cluster has hosts")?;
    println!("== loading the example's image");
    let whoami = dist::built("whoami");
    for host in &hosts {
        load_image(host, &whoami)?;
    }
    println!("== deploying {REPLICAS} replicas");
    let (replicas, publish) = (REPLICAS.to_string(), format!("{PORT}:80"));
    let create = ["service", "create", "--name", "whoami", "--replicas", &replicas];
    let more = ["--publish", &publish, "--no-resolve-image", "whoami"];
    host::run(&mut first.docker(&[&create[..], &more].concat()))?;
    show_answers(&hosts)?;
    println!("{}", cluster::usage(&hosts)?);
    println!();
    println!("The service answers on every host, each time from another replica:");
    for host in &hosts {
        println!("    curl http://{}:{PORT}/", host.address);
    }
    println!("Then, for example:           docker service scale whoami=9");
    Ok(())
}

/// An image of one static binary: a layer of one file, and the command that runs it.
fn load_image(host: &Host, whoami: &Path) -> anyhow::Result<()> {
    let directory = whoami.parent().context("the binary has a folder")?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(directory).args(["--owner=0", "--group=0", "-cf", "-", "whoami"]);
    let mut archive = tar.stdout(Stdio::piped()).spawn().context("run tar")?;
    let stdout = archive.stdout.take().context("tar's output")?;
    let import = ["import", "--change", "CMD [\"/whoami\"]", "--change", "EXPOSE 80"];
    let mut import = host.docker(&[&import[..], &["-", "whoami:latest"]].concat());
    host::run(import.stdin(stdout).stdout(Stdio::null()))?;
    ensure!(archive.wait()?.success(), "tar failed");
    Ok(())
}

fn show_answers(hosts: &[Host]) -> anyhow::Result<()> {
    println!("== asking");
    let mut names = BTreeSet::new();
    for host in hosts.iter().cycle().take(QUESTIONS_MAX) {
        let url = format!("http://{}:{PORT}/", host.address);
        let output = Command::new("curl").args(["-sS", "-m", "5", &url]).output();
        let output = output.context("run curl")?;
        ensure!(output.status.success(), "no answer: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        let name = text.lines().next().unwrap_or_default().to_owned();
        if names.insert(name.clone()) {
            println!("{url} {name}");
        }
        if names.len() == REPLICAS {
            return Ok(());
        }
    }
    bail!("only {} of {REPLICAS} replicas answered", names.len())
}
