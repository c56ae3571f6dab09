//! Networks of the swarm that each node has for itself: other drivers than overlay, with `--scope swarm`.

use std::collections::BTreeSet;

use e2e::{Cluster, Host, skep_only};

use crate::{answerer, idle, reaches, sleeper};

const CREATE: [&str; 6] =
    ["service", "create", "--detach", "--no-resolve-image", "--mode", "global"];

fn networks(host: &Host) -> BTreeSet<String> {
    let format = "{{.Name}} {{.Driver}} {{.Scope}}";
    host.ok(&["network", "ls", "--format", format]).lines().map(str::to_owned).collect()
}

#[test]
fn tasks_of_one_node_share_a_bridge_of_the_swarm_and_those_of_others_have_their_own() {
    let cluster = Cluster::swarm(1, 2);
    let first = cluster.host(1);
    let own = ["--driver", "bridge", "--attachable", "--subnet", "10.77.0.0/24"];
    first.ok(&[&["network", "create", "--scope", "swarm"], &own[..], &["rack"]].concat());
    assert!(networks(first).contains("rack bridge swarm"));
    let network = ["--network", "rack"];
    let web = ["--publish", "8080:80", "--network", "rack", "--name", "web", "whoami"];
    first.ok(&[&CREATE[..], &web].concat());
    sleeper(first, "client", &["--mode", "global", "--network", "rack"]);
    first.until_running("web", 3);
    first.until_running("client", 3);
    for host in cluster.hosts() {
        let (web, client) = (host.containers("web").remove(0), host.containers("client").remove(0));
        let format = "{{(index .NetworkSettings.Networks \"rack\").IPAddress}}";
        let address = host.ok(&["inspect", &web, "--format", format]);
        assert!(address.starts_with("10.77.0."), "{address}");
        assert!(reaches(host, &client, &format!("http://{address}/")));
        if e2e::is_skep() {
            let wget = ["exec", &client, "wget", "-q", "-O", "-", "http://web/"];
            let answer = host.ok(&wget);
            assert!(answer.contains(&web[..12]), "its own node's task answers: {answer}");
            host.until("the published port is answered", || host.ask("127.0.0.1", 8080).is_some());
        }
        let shown = host.ok(&["network", "inspect", "rack", "--format", "{{len .Containers}}"]);
        assert_eq!(shown, "2", "the containers of this host");
        answerer(host, "plain", &network);
        assert!(reaches(host, &client, "http://plain/"), "a container in it is found");
    }
    cluster.audit();
    let refused = first.refused(&["network", "rm", "rack"]);
    assert!(refused.contains("is in use by"), "{refused}");
    first.ok(&["service", "rm", "web", "client"]);
    let worker = cluster.host(2);
    worker.until("its tasks are gone", || worker.containers("client").is_empty());
    assert!(networks(worker).contains("rack bridge swarm"), "a container is in it still");
    for host in cluster.hosts() {
        host.ok(&["rm", "-f", "plain"]);
    }
    worker.until("nobody needs it", || !networks(worker).contains("rack bridge swarm"));
    first.until("it is nobody's", || first.docker(&["network", "rm", "rack"]).code == 0);
    worker
        .until("its bridge is gone", || !worker.exec(&["ip", "addr"]).stdout.contains("10.77.0."));
    cluster.audit();
}

#[test]
fn each_node_says_by_a_configuration_network_what_its_own_is_like() {
    let cluster = Cluster::swarm(1, 1);
    let (first, second) = (cluster.host(1), cluster.host(2));
    let configure = |host: &Host, subnet: &str| {
        host.ok(&["network", "create", "--config-only", "--subnet", subnet, "rack-config"]);
    };
    configure(first, "10.77.1.0/24");
    let own = ["--scope", "swarm", "--config-from", "rack-config", "--driver", "bridge", "rack"];
    first.ok(&[&["network", "create"], &own[..]].concat());
    sleeper(first, "idle", &["--mode", "global", "--network", "rack", "--restart-delay", "1s"]);
    first.until("the other node says what it lacks", || {
        let errors = first.ok(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "idle"]);
        errors.contains("rack-config")
    });
    configure(second, "10.77.2.0/24");
    first.until_running("idle", 2);
    for (host, expected) in [(first, "10.77.1."), (second, "10.77.2.")] {
        host.until("it runs", || host.containers("idle").len() == 1);
        let container = host.containers("idle").remove(0);
        let shown = host.ok(&["exec", &container, "ip", "addr"]);
        assert!(shown.contains(expected), "{shown}");
    }
    cluster.audit();
}

#[test]
fn tasks_in_networks_of_the_host_have_the_hosts_addresses() {
    let cluster = Cluster::swarm(1, 1);
    let first = cluster.host(1);
    first.ok(&["network", "create", "--scope", "swarm", "--driver", "host", "metal"]);
    // Stock Docker has one network of the host only.
    let names = if e2e::is_skep() { &["host", "metal"][..] } else { &["host"] };
    for name in names {
        first.ok(&[&CREATE[..], &["--network", name, "--name", "web", "whoami"]].concat());
        first.until_running("web", 2);
        for host in cluster.hosts() {
            host.until("it answers", || host.ask(&host.address, 80).is_some());
        }
        first.ok(&["service", "rm", "web"]);
        for host in cluster.hosts() {
            host.until("it has ended", || host.docker(&["ps", "-aq"]).stdout.is_empty());
        }
    }
    first.ok(&["network", "rm", "metal"]);
    cluster.audit();
}

#[test]
fn what_a_network_of_each_node_cannot_be_is_told_at_once() {
    skep_only!("stock Docker lets tasks fail");
    let host = Host::in_swarm();
    host.ok(&["network", "create", "mine"]);
    let spec = r#"{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"busybox"},
        "Networks":[{"Target":"mine"}]}}"#;
    let (status, body) = host.post(spec, "/services/create");
    assert!(status == 403 && body.contains("Only networks scoped to the swarm"), "{body}");
    let subnets = ["--subnet", "10.1.0.0/24", "--subnet", "10.2.0.0/24"];
    for (options, reason) in [
        (&["--driver", "macvlan"][..], "driver macvlan is not there"),
        (&["--driver", "ipvlan"], "driver ipvlan is not there"),
        (&["--driver", "null"], "plugin \"null\" not found"),
        (&["--driver", "host", "--attachable"], "--network host"),
        (&["--driver", "bridge", "--ingress"], "Ingress network can only be"),
        (&["--driver", "bridge", "--config-only"], "make them on each"),
        (&["--driver", "overlay", "--config-from", "x"], "the same on all of them"),
        (&[&["--driver", "bridge"], &subnets[..]].concat(), "subnet"),
        (&["--driver", "bridge", "--opt", "com.docker.network.driver.mtu=x"], "invalid syntax"),
    ] {
        let create = [&["network", "create", "--scope", "swarm"], options, &["x"]].concat();
        let refused = host.refused(&create);
        assert!(refused.contains(reason), "{options:?}: {refused}");
    }
    host.ok(&["network", "create", "--scope", "swarm", "--driver", "bridge", "closed"]);
    let refused = host.refused(&["run", "--network", "closed", "busybox", "true"]);
    assert!(refused.contains("not manually attachable"), "{refused}");
    idle(&host, "plain", &[]);
    host.refused(&["network", "connect", "closed", "plain"]);
}
