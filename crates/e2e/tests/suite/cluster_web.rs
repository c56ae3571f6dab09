//! What most people run first: nginx before something that counts in redis, as their tutorials have it.

use std::collections::BTreeSet;

use e2e::{Cluster, Host};

/// nginx on every host, published; redis somewhere; a service that counts in it, and one that nginx has answers from.
fn deploy(first: &Host) {
    let create =
        ["service", "create", "--detach", "--no-resolve-image", "--network", "app", "--name"];
    first.ok(&["network", "create", "-d", "overlay", "app"]);
    first.ok(&[&create[..], &["web", "--mode", "global", "-p", "8080:80", "nginx"]].concat());
    let place = ["--constraint", "node.hostname==host2"];
    first.ok(&[&create[..], &["redis"], &place, &["redis"]].concat());
    first.ok(&[&create[..], &["api", "--replicas", "2", "whoami"]].concat());
    let count = "while :; do redis-cli -h redis incr hits; sleep 0.1; done";
    let count = ["counter", "--replicas", "3", "redis", "sh", "-c", count];
    first.ok(&[&create[..], &count].concat());
    for (service, tasks) in [("web", 3), ("redis", 1), ("api", 2), ("counter", 3)] {
        first.until_running(service, tasks);
    }
}

fn hits(host: &Host) -> u64 {
    let Some(container) = host.containers("redis").pop() else { return 0 };
    let said = host.docker(&["exec", &container, "redis-cli", "get", "hits"]).stdout;
    said.trim().parse().unwrap_or(0)
}

#[test]
fn nginx_and_redis_find_what_they_need_and_see_who_asks() {
    e2e::needs_balancing!();
    let cluster = Cluster::routed(3).started();
    for host in cluster.hosts() {
        host.load_web_images();
    }
    let (first, second, client) = (cluster.host(1), cluster.host(2), cluster.client());
    deploy(first);
    for host in cluster.hosts() {
        host.until("nginx answers", || {
            client.ask(&host.address, 8080).is_some_and(|said| said.starts_with("nginx on "))
        });
        let by_name = || {
            client.exec(&["curl", "-sS", "-m", "5", &format!("http://{}:8080/api/", host.address)])
        };
        host.until("nginx passes on to a service by its name", || {
            by_name().stdout.starts_with("Hostname: ")
        });
    }
    let backends: BTreeSet<_> = (0..20)
        .map(|_| client.exec(&["curl", "-sS", &format!("http://{}:8080/api/", first.address)]))
        .filter_map(|said| said.stdout.lines().next().map(str::to_owned))
        .collect();
    assert_eq!(backends.len(), 2, "both replicas have their turn: {backends:?}");
    second.until("it is counted", || hits(second) > 20);
    first.ok(&["service", "update", "--detach", "--force", "redis"]);
    second.until("it is counted from the beginning", || (1..20).contains(&hits(second)));
    second.until("and on", || hits(second) > 20);
    let logged = || first.docker(&["service", "logs", "--raw", "web"]).stdout;
    first.until("requests are logged", || logged().contains("GET /api/ HTTP/1.1"));
    if e2e::is_skep() {
        let asked = logged();
        let others = asked.lines().filter(|line| line.contains("curl/"));
        let others = others.filter(|line| !line.starts_with(&format!("{} - ", client.address)));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<&str>::new(), "all came from the client");
    }
    cluster.audit();
}
