//! Hosts on one switch or router, and the swarm that they make.

use std::path::Path;
use std::process::Stdio;

use testbed::{Router, Switch};

use crate::host::next_name;
use crate::middle::{Middle, Narrow};
use crate::{Client, Host, Printed, Wire, images, printed};

/// Audits until what is on its way has to be there. Each takes the daemon a second look where it finds something.
const AUDITS_MAX: usize = 10;

/// Hosts with a cable to one switch or router. Dropping them removes all.
#[derive(Debug)]
pub struct Cluster {
    /// Before what joins them, which goes last.
    hosts: Vec<Host>,
    middle: Option<Middle>,
}

/// What `docker node ls` says of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub hostname: String,
    pub status: String,
    pub availability: String,
    /// `Leader`, `Reachable`, `Unreachable`, or nothing for a worker.
    pub manager: String,
}

impl Cluster {
    /// Hosts whose daemons run, in no swarm.
    pub fn of(count: u8) -> Self {
        let mut cluster = Self::without_daemons(count);
        cluster.all(Host::start);
        cluster
    }

    /// Hosts on which nothing runs yet.
    pub fn without_daemons(count: u8) -> Self {
        Self::around(Middle::Switch(Switch::named(&next_name())), count)
    }

    /// Hosts with a subnet each and a router between them, on which nothing runs yet.
    pub fn routed(count: u8) -> Self {
        Self::around(Middle::Router { router: Router::named(&next_name()), narrow: None }, count)
    }

    /// [`Cluster::routed`], but the way to the last host takes no packets of more than `bytes`, which nobody sees on his own
    /// links.
    pub fn routed_with_narrow_way(count: u8, bytes: u16) -> Self {
        let narrow = Some(Narrow { number: count, bytes });
        Self::around(Middle::Router { router: Router::named(&next_name()), narrow }, count)
    }

    fn around(middle: Middle, count: u8) -> Self {
        middle.create().expect("what joins the hosts is made");
        let hosts = (1..=count).map(|number| Host::on(&middle, number)).collect();
        Self { hosts, middle: Some(middle) }
    }

    /// Starts the daemons and makes a swarm with one manager. All have the images `busybox` and `whoami`.
    pub fn started(mut self) -> Self {
        self.all(Host::start);
        in_parallel(&mut self.hosts, |host| images::load(host));
        self.host(1).init();
        self.join_all(1);
        self
    }

    /// A swarm with one manager. Each host has its own flags for its daemon, and the images `busybox` and `whoami`.
    pub fn swarm_with_flags(flags: &[&[&str]]) -> Self {
        let mut cluster = Self::without_daemons(u8::try_from(flags.len()).expect("few"));
        for (host, flags) in cluster.hosts.iter_mut().zip(flags) {
            host.start_with(flags);
        }
        in_parallel(&mut cluster.hosts, |host| images::load(host));
        cluster.host(1).init();
        cluster.join_all(1);
        cluster
    }

    /// A swarm: the first hosts are managers, the others workers. All have the images `busybox` and `whoami`.
    pub fn swarm(managers: usize, workers: usize) -> Self {
        let count = u8::try_from(managers + workers).expect("few");
        let mut cluster = Self::of(count);
        in_parallel(&mut cluster.hosts, |host| images::load(host));
        cluster.host(1).init();
        cluster.join_all(managers);
        cluster
    }

    /// Lets all but the first join, all at once, so many in all as managers.
    pub fn join_all(&self, managers: usize) {
        let first = self.host(1);
        let (manager, worker) = (first.token("manager"), first.token("worker"));
        let joining: Vec<_> = (2..=self.hosts.len())
            .map(|number| {
                let token = if number <= managers { &manager } else { &worker };
                let mut join = self.join_command(number, token);
                join.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("docker runs")
            })
            .collect();
        for join in joining {
            let joined = printed(join.wait_with_output().expect("docker ends"));
            assert_eq!(joined.code, 0, "{joined:?}");
        }
        first.until("all are ready", || {
            let rows = nodes(first);
            let seats = rows.iter().filter(|row| !row.manager.is_empty()).count();
            rows.iter().all(|row| row.status == "Ready" && row.manager != "Unreachable")
                && (rows.len(), seats) == (self.hosts.len(), managers)
        });
    }

    /// A host by its number, from 1.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// A host by its number, from 1.
    pub fn host_mut(&mut self, number: usize) -> &mut Host {
        &mut self.hosts[number - 1]
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A machine on the same switch or router that runs nothing.
    pub fn client(&self) -> Client {
        Client::on(self.middle(), 200)
    }

    /// Has a host ask the first one to be taken in.
    pub fn join(&self, number: usize, token: &str) -> Printed {
        printed(self.join_command(number, token).output().expect("docker runs"))
    }

    fn join_command(&self, number: usize, token: &str) -> std::process::Command {
        let (host, first) = (self.host(number), format!("{}:2377", self.host(1).address));
        let (join, advertise) = (["swarm", "join", "--token", token], host.address.as_str());
        host.command(&[&join[..], &["--advertise-addr", advertise, &first]].concat())
    }

    /// The number of the host that leads, by the word of host `asked`. Waits until there is one.
    pub fn leader(&self, asked: usize) -> usize {
        let host = self.host(asked);
        let leader = || nodes(host).into_iter().find(|row| row.manager == "Leader");
        host.until("somebody leads", || leader().is_some());
        let hostname = leader().expect("leads").hostname;
        let found = self.hosts.iter().position(|host| host.hostname() == hostname);
        found.expect("it is one of the hosts") + 1
    }

    /// Looks at what passes between the hosts: frames in which one of the words is readable, datagrams of the UDP ports.
    pub fn wire(&self, words: &[&str], ports: &[u16]) -> Wire {
        Wire::look(&Path::new("/run/netns").join(self.middle().namespace()), words, ports)
    }

    /// Asks every host whether its kernel comes to have what its daemon was told, and nothing else. Ours only. The kernel takes
    /// down links of namespaces that have ended in its own time.
    pub fn audit(&self) {
        for host in self.hosts.iter().filter(|_| crate::is_skep()) {
            let mut differences = host.differences();
            for _ in 0..AUDITS_MAX {
                if differences.is_empty() {
                    break;
                }
                differences = host.differences();
            }
            assert!(differences.is_empty(), "{}: {differences:#?}", host.hostname());
        }
    }

    /// Cuts a host off from the others.
    pub fn cut(&self, number: usize) {
        self.middle().cut(self.host(number).hostname()).expect("the port is there");
    }

    /// Connects a host again.
    pub fn heal(&self, number: usize) {
        self.middle().heal(self.host(number).hostname()).expect("the port is there");
    }

    /// Has the routers on the narrow way tell nobody of packets that are too long for it, and pass on no parts of packets.
    pub fn hush_routers(&self) {
        self.middle().hush().expect("the routers are there");
    }

    /// Takes the power from a host and starts it again, with its daemon.
    pub fn reboot(&mut self, number: usize) {
        let middle = self.middle.as_ref().expect("it goes last");
        let host = &mut self.hosts[number - 1];
        host.reboot(middle, u8::try_from(number).expect("few"));
        host.start();
    }

    /// Runs `step` for all hosts at once.
    pub fn all(&mut self, step: impl Fn(&mut Host) + Sync) {
        in_parallel(&mut self.hosts, step);
    }

    fn middle(&self) -> &Middle {
        self.middle.as_ref().expect("it goes last")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let hosts = std::mem::take(&mut self.hosts);
        std::thread::scope(|scope| {
            for host in hosts {
                scope.spawn(move || drop(host));
            }
        });
        if let Some(middle) = self.middle.take() {
            let _ = middle.remove();
        }
    }
}

fn in_parallel(hosts: &mut [Host], step: impl Fn(&mut Host) + Sync) {
    std::thread::scope(|scope| {
        for host in hosts {
            scope.spawn(|| step(host));
        }
    });
}

/// What `docker node ls` on a host says, by hostname; nothing where it fails.
pub fn nodes(host: &Host) -> Vec<Row> {
    let format = "{{.Hostname}}|{{.Status}}|{{.Availability}}|{{.ManagerStatus}}";
    let listed = host.docker(&["node", "ls", "--format", format]);
    let mut rows: Vec<_> = listed.stdout.lines().filter_map(row).collect();
    rows.sort_by(|one, other| one.hostname.cmp(&other.hostname));
    rows
}

fn row(line: &str) -> Option<Row> {
    let mut parts = line.split('|').map(str::to_owned);
    Some(Row {
        hostname: parts.next()?,
        status: parts.next()?,
        availability: parts.next()?,
        manager: parts.next()?,
    })
}
