//! Hosts of different subnets with a router between them, also where a link on the way takes less than their own.

use e2e::{Client, Cluster, Host, Wire, needs_balancing, skep_only};

use crate::sleeper;

/// More than any window of packets: long ones are among them.
const MANY: &str = "/bytes/300000";

fn create(host: &Host, name: &str, more: &[&str]) {
    let create = ["service", "create", "--detach", "--no-resolve-image", "--name", name];
    host.ok(&[&create[..], more, &["whoami"]].concat());
}

/// Two networks of which one is encrypted, with a service and a client on each host, and a published port.
fn populated(cluster: &Cluster, networks: &[(&str, &[&str])]) {
    let first = cluster.host(1);
    for (network, options) in networks {
        first.ok(&[&["network", "create", "-d", "overlay"], *options, &[network]].concat());
        create(first, &format!("web-{network}"), &["--network", network, "--mode", "global"]);
    }
    let joined: Vec<_> = networks.iter().flat_map(|(network, _)| ["--network", network]).collect();
    sleeper(first, "client", &[&joined[..], &["--mode", "global"]].concat());
    create(first, "mesh", &["--publish", "8080:80", "--constraint", "node.hostname==host3"]);
    let hosts = cluster.hosts().len();
    for (network, _) in networks {
        first.until_running(&format!("web-{network}"), hosts);
    }
    first.until_running("client", hosts);
    first.until_running("mesh", 1);
}

/// Runs a script in the client's container.
fn said(host: &Host, script: &str) -> String {
    let container = host.containers("client").remove(0);
    host.docker(&["exec", &container, "sh", "-c", script]).stdout
}

/// How many tasks of the service answer the client whole, when it asks each by its own address.
fn whole(host: &Host, service: &str) -> usize {
    let script = format!(
        "for it in $(nslookup tasks.{service} | awk '/^Name/ {{on=1}} on && /^Address/ {{print $NF}}'); \
         do timeout 5 wget -q -O - http://$it{MANY} | wc -c; done"
    );
    said(host, &script).lines().filter(|line| line.trim() == "300000").count()
}

fn until_whole(cluster: &Cluster, service: &str) {
    let hosts = cluster.hosts().len();
    for host in cluster.hosts() {
        let what = format!("{} has long answers from all of {service}", host.hostname());
        host.until(&what, || whole(host, service) == hosts);
    }
}

/// What a client outside has from a host's published port.
fn is_served(client: &Client, address: &str) -> bool {
    let url = format!("http://{address}:8080{MANY}");
    let answer = client.exec(&["curl", "-sS", "-m", "5", &url]);
    answer.stdout.len() == 300_000
}

/// Until nothing has to be taken apart between the hosts.
fn until_it_fits(cluster: &Cluster, wire: &Wire, service: &str) {
    cluster.host(1).until("all packets fit the way", || {
        let before = wire.parts();
        let hosts = cluster.hosts();
        hosts.iter().all(|host| whole(host, service) == hosts.len()) && wire.parts() == before
    });
}

#[test]
fn a_swarm_works_across_a_router() {
    let cluster = Cluster::routed(3).started();
    let mut networks: Vec<(&str, &[&str])> = vec![("blue", &[])];
    if e2e::is_skep() {
        networks.push(("sealed", &["--opt", "encrypted"]));
    }
    populated(&cluster, &networks);
    let client = cluster.client();
    for (network, _) in networks {
        until_whole(&cluster, &format!("web-{network}"));
        needs_balancing!();
        for host in cluster.hosts() {
            let url = format!("wget -q -O - http://web-{network}/");
            host.until("the virtual address answers", || said(host, &url).contains("Hostname: "));
        }
    }
    for host in cluster.hosts() {
        host.until("its published port answers", || is_served(&client, &host.address));
        let answer = client.ask(&host.address, 8080).expect("it just did");
        if e2e::is_skep() {
            assert!(answer.contains(&format!("RemoteAddr: {}:", client.address)), "{answer}");
        }
    }
    cluster.audit();
}

#[test]
fn networks_fit_a_way_that_takes_less_than_the_hosts_links() {
    skep_only!("stock Docker does not look");
    let cluster = Cluster::routed_with_narrow_way(3, 1_400).started();
    let client = cluster.client();
    let wire = cluster.wire(&[], &[]);
    populated(&cluster, &[("blue", &[]), ("sealed", &["--opt", "encrypted"])]);
    for service in ["web-blue", "web-sealed"] {
        until_it_fits(&cluster, &wire, service);
    }
    for host in cluster.hosts() {
        host.until("its published port answers", || is_served(&client, &host.address));
    }
    let said = cluster.host(1).doctor(&[]);
    let far = &cluster.host(3).address;
    let told = format!("the way to {far} takes packets of 1400 bytes");
    assert!(said.code == 1 && said.stdout.contains(&told), "{said:?}");
    cluster.audit();
}

#[test]
fn networks_fit_a_narrow_way_of_which_no_router_tells() {
    skep_only!("stock Docker does not look");
    let cluster = Cluster::routed_with_narrow_way(3, 1_400).started();
    let client = cluster.client();
    cluster.hush_routers();
    populated(&cluster, &[("blue", &[]), ("sealed", &["--opt", "encrypted"])]);
    for service in ["web-blue", "web-sealed"] {
        until_whole(&cluster, service);
    }
    for host in cluster.hosts() {
        host.until("its published port answers", || is_served(&client, &host.address));
    }
    cluster.audit();
}
