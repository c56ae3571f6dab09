//! Who may ask for what, by certificate.

use rpc::{Channel, Identity, Limits};
use types::node::Role;

use crate::{
    ANYONE, CLUSTER, MANAGER, NODE, SERVER, Server, call, client, identity, manager, root, said,
    worker,
};

#[tokio::test]
async fn managers_may_ask_for_all_and_workers_for_what_is_theirs() {
    let server = Server::start().await;
    for (identity, method, expected) in [
        (manager(&server.root, 2), ANYONE, "hello true"),
        (manager(&server.root, 2), NODE, "hello true"),
        (manager(&server.root, 2), MANAGER, "hello true"),
        (worker(&server.root, 3), ANYONE, "hello true"),
        (worker(&server.root, 3), NODE, "hello true"),
        (worker(&server.root, 3), MANAGER, "only managers may ask for this"),
        (worker(&server.root, 3), "test/none", "there is no such method in this version"),
    ] {
        let answer = call(&client(&identity), &server.address(), method).await;
        assert!(answer.contains(expected), "{method}: {answer}");
    }
}

#[tokio::test]
async fn who_has_no_certificate_may_ask_only_for_what_is_for_anyone() {
    let server = Server::start().await;
    for roots in [None, Some(server.root.certificate.as_str())] {
        let channel = Channel::anonymous(&server.address(), roots).expect("is usable");
        for (method, expected) in [
            (ANYONE, "hello false"),
            (NODE, "a certificate of this swarm is needed"),
            (MANAGER, "a certificate of this swarm is needed"),
        ] {
            let answer = said(channel.call(method, &"hello", crate::PATIENCE).await);
            assert!(answer.contains(expected), "{method}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_node_is_who_its_certificate_says_whatever_it_claims() {
    let server = Server::start().await;
    let channel = client(&worker(&server.root, 3));
    let channel = channel.channel(&server.address());
    let answer: Result<Result<(String, Option<types::NodeId>), String>, _> =
        channel.call(NODE, &"I am node 1", crate::PATIENCE).await;
    let (_, node) = answer.expect("answers").expect("is allowed");
    assert_eq!(node, Some(types::NodeId::from_random(3)));
}

#[tokio::test]
async fn certificates_that_are_not_this_swarms_are_refused_in_words_that_say_why() {
    let server = Server::start().await;
    let own = &server.root;
    let stranger = root();
    let with_roots = |identity: Identity| Identity { roots: own.certificate.clone(), ..identity };
    for (identity, expected) in [
        // Another swarm's certificate, which is not signed by this one's root.
        (
            with_roots(manager(&stranger, 2)),
            "it does not accept this node's certificate: it is of another root",
        ),
        // Another swarm whose root is the same one: the operator's own.
        (
            with_roots(crate::identity(own, 12, 2, Role::Manager, 3_600)),
            "its certificate is of another swarm",
        ),
        (
            identity(own, CLUSTER, 2, Role::Worker, -10),
            "it does not accept this node's certificate: it has expired",
        ),
        // The other end is of a root that this node does not know.
        (manager(&stranger, 2), "its certificate is not signed by this swarm"),
    ] {
        let answer = call(&client(&identity), &server.address(), NODE).await;
        assert!(answer.contains(expected), "{expected}: {answer}");
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    let own = root();
    let stolen = Identity { key: worker(&own, 4).key, ..manager(&own, 2) };
    assert!(rpc::SharedIdentity::new(&stolen).is_err());
}

#[tokio::test]
async fn nodes_do_not_talk_to_who_is_no_manager_of_their_swarm() {
    let own = root();
    for (shown, expected) in [
        (worker(&own, SERVER), "its certificate is not one of a manager"),
        (
            identity(&own, CLUSTER, SERVER, Role::Manager, -10),
            "its certificate has expired: check the clocks of both hosts",
        ),
        (identity(&own, 12, SERVER, Role::Manager, 3_600), "of another swarm"),
    ] {
        let server = Server::showing(own.clone(), &shown, Limits::default()).await;
        let answer = call(&client(&worker(&own, 3)), &server.address(), NODE).await;
        assert!(answer.contains(expected), "{expected}: {answer}");
    }
}

#[tokio::test]
async fn a_refusal_of_a_method_is_its_own() {
    let server = Server::start().await;
    let channel = client(&worker(&server.root, 3)).channel(&server.address());
    let answer = said(channel.call(NODE, &"refuse", crate::PATIENCE).await);
    assert_eq!(answer, "as you wish");
}
