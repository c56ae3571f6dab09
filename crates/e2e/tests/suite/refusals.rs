//! Nonsense gets a status and a sentence, and changes nothing.

use e2e::Host;

#[test]
fn bad_service_specs_are_refused_in_dockers_words() {
    let host = Host::in_swarm();
    let base = ["service", "create", "--detach"];
    for (arguments, expected) in [
        (&["--name", "a_", "busybox"][..], "name must be valid as a DNS name component"),
        (&["--name", "bad..name", "busybox"], "name must be valid as a DNS name component"),
        (
            &["--name", "c", "--constraint", "node.id", "busybox"],
            "constraint expected one operator from ==, !=",
        ),
        (&["--name", "m", "--limit-memory", "1M", "busybox"], "Must be at least 4MiB"),
        (
            &["--name", "p", "--publish", "80:80", "--endpoint-mode", "dnsrr", "busybox"],
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
        ),
        (&["--name", "n", "--network", "nowhere", "busybox"], "nowhere"),
    ] {
        let refusal = host.refused(&[&base[..], arguments].concat());
        assert!(refusal.contains(expected), "{arguments:?}: {refusal}");
    }
    assert_eq!(host.ok(&["service", "ls", "-q"]), "");
}

#[test]
fn a_taken_name_is_refused() {
    let host = Host::in_swarm();
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", "0", "busybox"];
    host.ok(&create);
    let refusal = host.refused(&create);
    assert!(refusal.contains("rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists"), "{refusal}");
}

#[test]
fn a_stale_version_is_refused() {
    let host = Host::in_swarm();
    host.ok(&["service", "create", "--detach", "--name", "web", "--replicas", "0", "busybox"]);
    let service = host.get("/v1.41/services/web");
    let spec = service["Spec"].to_string();
    let path = "/v1.41/services/web/update?version=1";
    let (status, answer) = host.curl(&["-H", "Content-Type: application/json", "-d", &spec], path);
    assert_eq!(
        (status, answer.trim()),
        (500, r#"{"message":"rpc error: code = Unknown desc = update out of sequence"}"#)
    );
    let path = "/v1.41/services/web/update?version=x";
    let (status, answer) = host.curl(&["-H", "Content-Type: application/json", "-d", &spec], path);
    assert_eq!(status, 400, "{answer}");
}

#[test]
fn unknown_routes_versions_and_bodies_are_refused() {
    let host = Host::in_swarm();
    let (status, answer) = host.curl(&[], "/v1.41/nothing/here");
    assert_eq!((status, answer.trim()), (404, r#"{"message":"page not found"}"#));
    let (status, answer) = host.curl(&[], "/v9.99/info");
    assert!(status == 400 && answer.contains("is too new"), "{answer}");
    let json = ["-H", "Content-Type: application/json", "-d"];
    for body in
        ["{", "[]", "\"x\"", "{\"Name\":3}", "{\"Mode\":{\"Replicated\":{\"Replicas\":-1}}}"]
    {
        let (status, answer) = host.curl(&[&json[..], &[body]].concat(), "/v1.41/services/create");
        assert_eq!(status, 400, "{body}: {answer}");
    }
    let (status, answer) = host
        .curl(&[], &format!("/v1.41/services?filters={}", e2e::encoded(r#"{"colour":["red"]}"#)));
    assert!(status == 400 && answer.to_lowercase().contains("invalid filter 'colour'"), "{answer}");
    let (status, _) = host.curl(&[], "/v1.41/services/none");
    assert_eq!(status, 404);
    assert_eq!(host.ok(&["service", "ls", "-q"]), "");
}
