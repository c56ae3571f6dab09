//! Every flag of `docker service create` and `update`: what it leaves in the spec, and what it does in the container.

use e2e::Host;
use serde_json::{Value, json};

/// Keeps a service without containers: only its spec is looked at.
fn created(host: &Host, flags: &[&str], command: &[&str]) -> Value {
    let base = ["service", "create", "--detach", "--no-resolve-image", "--quiet", "--name", "web"];
    host.ok(&[&base[..], flags, &["busybox"], command].concat());
    host.get("/v1.41/services/web")["Spec"].clone()
}

fn updated(host: &Host, flags: &[&str]) -> Value {
    let base = ["service", "update", "--detach", "--no-resolve-image", "--quiet"];
    host.ok(&[&base[..], flags, &["web"]].concat());
    host.get("/v1.41/services/web")["Spec"].clone()
}

#[test]
fn what_create_is_told_of_the_container_is_kept_in_the_spec() {
    let host = Host::in_swarm();
    let file = host.path("env");
    std::fs::write(&file, "FROM=file\n# a comment\nTWO=2\n").expect("writes");
    let file = file.to_str().expect("text");
    let words = "--replicas 0 --cap-add NET_ADMIN --cap-drop CHOWN --container-label k=v --dns 10.1.1.1 \
        --dns-option ndots:2 --dns-search example.org --entrypoint top --env A=b --group 100 --health-cmd true \
        --health-interval 3s --health-retries 4 --health-start-period 5s --health-timeout 6s --host h:10.2.2.2 \
        --hostname name --init --mount type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700 \
        --mount type=bind,source=/etc,target=/e,readonly --mount type=volume,source=v,target=/v,volume-label=a=b \
        --read-only --stop-grace-period 7s --stop-signal SIGINT --sysctl net.ipv4.ip_forward=1 --tty \
        --ulimit nofile=100:200 --user 5:6 --workdir /tmp";
    let mut flags: Vec<_> = words.split_whitespace().collect();
    flags.extend(["--env-file", file]);
    let spec = created(&host, &flags, &["one", "two"]);
    let expected = json!({
        "Image": "busybox:latest",
        "Labels": {"k": "v"},
        "Command": ["top"],
        "Args": ["one", "two"],
        "Hostname": "name",
        "Env": ["FROM=file", "TWO=2", "A=b"],
        "Dir": "/tmp",
        "User": "5:6",
        "Groups": ["100"],
        "TTY": true,
        "ReadOnly": true,
        "Init": true,
        "StopSignal": "SIGINT",
        "StopGracePeriod": 7_000_000_000_u64,
        "Isolation": "default",
        "Hosts": ["10.2.2.2 h"],
        "CapabilityAdd": ["CAP_NET_ADMIN"],
        "CapabilityDrop": ["CAP_CHOWN"],
        "Sysctls": {"net.ipv4.ip_forward": "1"},
        "Ulimits": [{"Name": "nofile", "Hard": 200, "Soft": 100}],
        "DNSConfig": {"Nameservers": ["10.1.1.1"], "Search": ["example.org"], "Options": ["ndots:2"]},
        "Healthcheck": {
            "Test": ["CMD-SHELL", "true"], "Interval": 3_000_000_000_u64, "Timeout": 6_000_000_000_u64,
            "Retries": 4, "StartPeriod": 5_000_000_000_u64
        },
        "Mounts": [
            {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1_048_576, "Mode": 448}},
            {"Type": "bind", "Source": "/etc", "Target": "/e", "ReadOnly": true},
            {"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"Labels": {"a": "b"}, "DriverConfig": {}}},
        ],
    });
    assert_same(&spec["TaskTemplate"]["ContainerSpec"], &expected);
}

#[test]
fn what_create_is_told_of_the_service_is_kept_in_the_spec() {
    let host = Host::in_swarm();
    let words = "--replicas 0 --label l=m --constraint node.role==worker --placement-pref spread=node.labels.rack \
        --replicas-max-per-node 2 --limit-cpu 1.5 --limit-memory 64M --limit-pids 30 --reserve-cpu 0.5 \
        --reserve-memory 32M --generic-resource gpu=2 --log-driver json-file --log-opt max-size=1m \
        --restart-condition on-failure --restart-delay 1s --restart-max-attempts 3 --restart-window 4s \
        --update-delay 1s --update-failure-action rollback --update-max-failure-ratio 0.25 --update-monitor 2s \
        --update-order start-first --update-parallelism 3 --rollback-delay 2s --rollback-failure-action continue \
        --rollback-max-failure-ratio 0.5 --rollback-monitor 3s --rollback-order start-first \
        --rollback-parallelism 0 --endpoint-mode vip --publish 8080:80 \
        --publish mode=host,published=8081,target=81,protocol=udp";
    let spec = created(&host, &words.split_whitespace().collect::<Vec<_>>(), &[]);
    let task = &spec["TaskTemplate"];
    assert_eq!((&spec["Name"], &spec["Labels"]), (&json!("web"), &json!({"l": "m"})));
    assert_eq!(spec["Mode"], json!({"Replicated": {"Replicas": 0}}));
    assert_same(
        &task["Placement"],
        &json!({
            "Constraints": ["node.role==worker"],
            "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.rack"}}],
            "MaxReplicas": 2,
        }),
    );
    assert_same(
        &task["Resources"],
        &json!({
            "Limits": {"NanoCPUs": 1_500_000_000, "MemoryBytes": 67_108_864, "Pids": 30},
            "Reservations": {
                "NanoCPUs": 500_000_000, "MemoryBytes": 33_554_432,
                "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}]
            },
        }),
    );
    assert_eq!(task["LogDriver"], json!({"Name": "json-file", "Options": {"max-size": "1m"}}));
    assert_eq!(
        task["RestartPolicy"],
        json!({"Condition": "on-failure", "Delay": 1_000_000_000, "MaxAttempts": 3, "Window": 4_000_000_000_u64})
    );
    assert_eq!(
        spec["UpdateConfig"],
        json!({
            "Parallelism": 3, "Delay": 1_000_000_000, "FailureAction": "rollback", "Monitor": 2_000_000_000,
            "MaxFailureRatio": 0.25, "Order": "start-first"
        })
    );
    assert_eq!(
        spec["RollbackConfig"],
        json!({
            "Parallelism": 0, "Delay": 2_000_000_000, "FailureAction": "continue", "Monitor": 3_000_000_000_u64,
            "MaxFailureRatio": 0.5, "Order": "start-first"
        })
    );
    assert_eq!(
        spec["EndpointSpec"],
        json!({"Mode": "vip", "Ports": [
            {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
            {"Protocol": "udp", "TargetPort": 81, "PublishedPort": 8081, "PublishMode": "host"},
        ]})
    );
}

#[test]
fn what_create_is_not_told_has_dockers_defaults() {
    let host = Host::in_swarm();
    let spec = created(&host, &["--replicas", "0"], &[]);
    let container = json!({
        "Image": "busybox:latest", "Init": false, "DNSConfig": {}, "Isolation": "default",
        "StopGracePeriod": 10_000_000_000_u64
    });
    let update = json!({
        "Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_u64, "MaxFailureRatio": 0,
        "Order": "stop-first"
    });
    let shown = host.get("/v1.41/services/web?insertDefaults=true")["Spec"].clone();
    assert_same(&shown["TaskTemplate"]["ContainerSpec"], &container);
    assert_same(&shown["UpdateConfig"], &update);
    assert_same(&shown["RollbackConfig"], &update);
    assert_eq!(
        shown["TaskTemplate"]["RestartPolicy"],
        json!({"Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0})
    );
    assert_eq!(spec["TaskTemplate"]["RestartPolicy"], Value::Null, "what was not said is not kept");
    assert_eq!(spec["UpdateConfig"], Value::Null);
}

/// One call of `service update`, a place in the spec, and what stands there afterwards.
const UPDATES: &[(&str, &str, &str)] = &[
    ("--args one", "/TaskTemplate/ContainerSpec/Args", r#"["one"]"#),
    ("--cap-add NET_ADMIN", "/TaskTemplate/ContainerSpec/CapabilityAdd", r#"["CAP_NET_ADMIN"]"#),
    ("--cap-drop NET_ADMIN", "/TaskTemplate/ContainerSpec/CapabilityAdd", "null"),
    (
        "--constraint-add node.role==worker",
        "/TaskTemplate/Placement/Constraints",
        r#"["node.role==worker"]"#,
    ),
    ("--constraint-rm node.role==worker", "/TaskTemplate/Placement/Constraints", "null"),
    ("--container-label-add a=b", "/TaskTemplate/ContainerSpec/Labels", r#"{"a":"b"}"#),
    ("--container-label-rm a", "/TaskTemplate/ContainerSpec/Labels", "null"),
    ("--dns-add 10.1.1.1", "/TaskTemplate/ContainerSpec/DNSConfig/Nameservers", r#"["10.1.1.1"]"#),
    ("--dns-rm 10.1.1.1", "/TaskTemplate/ContainerSpec/DNSConfig", "{}"),
    ("--dns-option-add ndots:3", "/TaskTemplate/ContainerSpec/DNSConfig/Options", r#"["ndots:3"]"#),
    ("--dns-option-rm ndots:3", "/TaskTemplate/ContainerSpec/DNSConfig", "{}"),
    ("--dns-search-add x.org", "/TaskTemplate/ContainerSpec/DNSConfig/Search", r#"["x.org"]"#),
    ("--dns-search-rm x.org", "/TaskTemplate/ContainerSpec/DNSConfig", "{}"),
    ("--entrypoint top", "/TaskTemplate/ContainerSpec/Command", r#"["top"]"#),
    ("--env-add A=1", "/TaskTemplate/ContainerSpec/Env", r#"["A=1"]"#),
    ("--env-rm A", "/TaskTemplate/ContainerSpec/Env", "null"),
    ("--force", "/TaskTemplate/ForceUpdate", "1"),
    ("--group-add 7", "/TaskTemplate/ContainerSpec/Groups", r#"["7"]"#),
    ("--group-rm 7", "/TaskTemplate/ContainerSpec/Groups", "null"),
    (
        "--health-cmd true",
        "/TaskTemplate/ContainerSpec/Healthcheck",
        r#"{"Test":["CMD-SHELL","true"]}"#,
    ),
    ("--no-healthcheck", "/TaskTemplate/ContainerSpec/Healthcheck", r#"{"Test":["NONE"]}"#),
    ("--host-add h:10.2.2.2", "/TaskTemplate/ContainerSpec/Hosts", r#"["10.2.2.2 h"]"#),
    ("--host-rm h:10.2.2.2", "/TaskTemplate/ContainerSpec/Hosts", "null"),
    ("--hostname name", "/TaskTemplate/ContainerSpec/Hostname", r#""name""#),
    ("--image other:v2", "/TaskTemplate/ContainerSpec/Image", r#""other:v2""#),
    ("--init", "/TaskTemplate/ContainerSpec/Init", "true"),
    ("--label-add a=b", "/Labels", r#"{"a":"b"}"#),
    ("--label-rm a", "/Labels", "{}"),
    ("--limit-cpu 2", "/TaskTemplate/Resources/Limits/NanoCPUs", "2000000000"),
    ("--limit-memory 64M", "/TaskTemplate/Resources/Limits/MemoryBytes", "67108864"),
    ("--limit-pids 9", "/TaskTemplate/Resources/Limits/Pids", "9"),
    ("--reserve-cpu 1", "/TaskTemplate/Resources/Reservations/NanoCPUs", "1000000000"),
    ("--reserve-memory 32M", "/TaskTemplate/Resources/Reservations/MemoryBytes", "33554432"),
    (
        "--generic-resource-add gpu=1",
        "/TaskTemplate/Resources/Reservations/GenericResources",
        r#"[{"DiscreteResourceSpec":{"Kind":"gpu","Value":1}}]"#,
    ),
    ("--generic-resource-rm gpu", "/TaskTemplate/Resources/Reservations/GenericResources", "null"),
    ("--log-driver local", "/TaskTemplate/LogDriver", r#"{"Name":"local"}"#),
    (
        "--mount-add type=volume,source=v,target=/v",
        "/TaskTemplate/ContainerSpec/Mounts",
        r#"[{"Source":"v","Target":"/v","Type":"volume"}]"#,
    ),
    ("--mount-rm /v", "/TaskTemplate/ContainerSpec/Mounts", "null"),
    (
        "--placement-pref-add spread=node.id",
        "/TaskTemplate/Placement/Preferences/0/Spread/SpreadDescriptor",
        r#""node.id""#,
    ),
    ("--placement-pref-rm spread=node.id", "/TaskTemplate/Placement/Preferences", "null"),
    (
        "--publish-add 8080:80",
        "/EndpointSpec/Ports",
        r#"[{"Protocol":"tcp","PublishMode":"ingress","PublishedPort":8080,"TargetPort":80}]"#,
    ),
    ("--publish-rm 80", "/EndpointSpec", r#"{"Mode":"vip"}"#),
    ("--endpoint-mode dnsrr", "/EndpointSpec", r#"{"Mode":"dnsrr"}"#),
    ("--read-only", "/TaskTemplate/ContainerSpec/ReadOnly", "true"),
    ("--replicas 0", "/Mode/Replicated/Replicas", "0"),
    ("--replicas-max-per-node 3", "/TaskTemplate/Placement/MaxReplicas", "3"),
    ("--restart-condition none", "/TaskTemplate/RestartPolicy/Condition", r#""none""#),
    ("--restart-delay 2s", "/TaskTemplate/RestartPolicy/Delay", "2000000000"),
    ("--restart-max-attempts 3", "/TaskTemplate/RestartPolicy/MaxAttempts", "3"),
    ("--restart-window 4s", "/TaskTemplate/RestartPolicy/Window", "4000000000"),
    ("--rollback-delay 1s", "/RollbackConfig/Delay", "1000000000"),
    ("--rollback-failure-action continue", "/RollbackConfig/FailureAction", r#""continue""#),
    ("--rollback-max-failure-ratio 0.5", "/RollbackConfig/MaxFailureRatio", "0.5"),
    ("--rollback-monitor 3s", "/RollbackConfig/Monitor", "3000000000"),
    ("--rollback-order start-first", "/RollbackConfig/Order", r#""start-first""#),
    ("--rollback-parallelism 4", "/RollbackConfig/Parallelism", "4"),
    ("--stop-grace-period 3s", "/TaskTemplate/ContainerSpec/StopGracePeriod", "3000000000"),
    ("--stop-signal SIGINT", "/TaskTemplate/ContainerSpec/StopSignal", r#""SIGINT""#),
    (
        "--sysctl-add net.core.somaxconn=99",
        "/TaskTemplate/ContainerSpec/Sysctls",
        r#"{"net.core.somaxconn":"99"}"#,
    ),
    ("--sysctl-rm net.core.somaxconn", "/TaskTemplate/ContainerSpec/Sysctls", "null"),
    ("--tty", "/TaskTemplate/ContainerSpec/TTY", "true"),
    (
        "--ulimit-add nofile=1:2",
        "/TaskTemplate/ContainerSpec/Ulimits",
        r#"[{"Hard":2,"Name":"nofile","Soft":1}]"#,
    ),
    ("--ulimit-rm nofile", "/TaskTemplate/ContainerSpec/Ulimits", "null"),
    ("--update-delay 1s", "/UpdateConfig/Delay", "1000000000"),
    ("--update-failure-action continue", "/UpdateConfig/FailureAction", r#""continue""#),
    ("--update-max-failure-ratio 0.5", "/UpdateConfig/MaxFailureRatio", "0.5"),
    ("--update-monitor 3s", "/UpdateConfig/Monitor", "3000000000"),
    ("--update-order start-first", "/UpdateConfig/Order", r#""start-first""#),
    ("--update-parallelism 4", "/UpdateConfig/Parallelism", "4"),
    ("--user 5", "/TaskTemplate/ContainerSpec/User", r#""5""#),
    ("--workdir /tmp", "/TaskTemplate/ContainerSpec/Dir", r#""/tmp""#),
];

#[test]
fn each_flag_of_update_changes_its_place_in_the_spec() {
    let host = Host::in_swarm();
    created(&host, &["--replicas", "0"], &[]);
    for (flags, place, expected) in UPDATES {
        let spec = updated(&host, &flags.split_whitespace().collect::<Vec<_>>());
        let found = spec.pointer(place).unwrap_or(&Value::Null);
        let expected: Value = serde_json::from_str(expected).expect("the table holds JSON");
        assert_eq!(*found, expected, "{flags}");
    }
}

#[test]
fn the_container_is_what_the_flags_say() {
    let host = Host::in_swarm();
    let words = "--cap-add NET_ADMIN --cap-drop CHOWN --dns 10.1.1.1 --dns-option ndots:2 --dns-search example.org \
        --group 100 --host h:10.2.2.2 --sysctl net.ipv4.ip_unprivileged_port_start=7 --ulimit nofile=100:200 \
        --mount type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700 --mount type=bind,source=/etc,target=/e,readonly \
        --stop-signal SIGKILL --log-driver json-file --log-opt max-size=1m --limit-pids 30 --limit-cpu 0.5 --tty --entrypoint /bin/sh \
        --health-cmd true --health-interval 100ms";
    created(&host, &words.split_whitespace().collect::<Vec<_>>(), &["-c", "sleep 100000"]);
    host.until_running("web", 1);
    let container = host.running("web")[0].clone();
    let inside = |command: &str| host.ok(&["exec", &container, "sh", "-c", command]);
    let resolver = inside("cat /etc/resolv.conf");
    for line in ["nameserver 10.1.1.1", "search example.org", "options ndots:2"] {
        assert!(resolver.contains(line), "{line}: {resolver}");
    }
    assert!(inside("cat /etc/hosts").contains("10.2.2.2\th"));
    assert_eq!(inside("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "7");
    assert_eq!(inside("ulimit -Sn; ulimit -Hn"), "100\n200");
    assert_eq!(inside("stat -c %a /t; grep -c ' /t tmpfs rw.*size=1024k' /proc/mounts"), "700\n1");
    assert!(inside("touch /e/x 2>&1; true").contains("Read-only file system"));
    assert!(inside("grep ^Groups: /proc/1/status").contains("100"));
    let bounding = inside("grep ^CapBnd: /proc/1/status");
    let bounding = u64::from_str_radix(bounding.trim_start_matches("CapBnd:").trim(), 16);
    let bounding = bounding.expect("hexadecimal");
    assert_eq!((bounding & 1, bounding >> 12 & 1), (0, 1), "no CAP_CHOWN, but CAP_NET_ADMIN");
    let shown = "{{.HostConfig.LogConfig.Config}} {{.HostConfig.PidsLimit}} {{.Config.Tty}} {{.HostConfig.NanoCpus}}";
    assert_eq!(
        host.ok(&["inspect", &container, "--format", shown]),
        "map[max-size:1m] 30 true 500000000"
    );
    let health = || host.ok(&["inspect", &container, "--format", "{{.State.Health.Status}}"]);
    host.until("the container is healthy", || health() == "healthy");
}

/// Equality where Docker leaves empty what others write out as nothing.
fn assert_same(found: &Value, expected: &Value) {
    assert_eq!(without_nothing(found), without_nothing(expected));
}

fn without_nothing(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| (key.clone(), without_nothing(value)));
            members.filter(|(_, value)| !value.is_null()).collect()
        }
        value => value.clone(),
    }
}
