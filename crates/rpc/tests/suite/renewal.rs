//! Certificates change while nodes talk.

use rpc::{Client, Items, SharedIdentity};
use types::cluster::{CaSpec, RootCa};
use types::node::Role;

use crate::{CLUSTER, COUNT, NODE, SERVER, Server, call, client, identity, manager, now, worker};

async fn count(client: &Client, server: &Server) -> Items<u64> {
    let channel = client.channel(&server.address());
    let stream = channel.stream_out::<_, u64, String>(COUNT, &0_u64, crate::PATIENCE).await;
    stream.expect("opens").expect("is allowed")
}

/// The root on its way to another one.
fn rotating(root: &RootCa) -> RootCa {
    let mut root = root.clone();
    let spec = CaSpec { force_rotate: root.forced + 1, ..CaSpec::default() };
    let planned = ca::plan(&root, &spec, now()).expect("plans");
    ca::change(&mut root, planned, &spec);
    root
}

#[tokio::test]
async fn streams_go_on_while_both_sides_renew() {
    let server = Server::start().await;
    let own = SharedIdentity::new(&worker(&server.root, 3)).expect("is usable");
    let client = Client::new(own.clone());
    let mut stream = count(&client, &server).await;
    for round in 0..20 {
        own.replace(&worker(&server.root, 3)).expect("is usable");
        server.identity.replace(&manager(&server.root, SERVER)).expect("is usable");
        for value in round * 100..(round + 1) * 100 {
            assert_eq!(stream.next().await, Some(value));
        }
    }
    assert_eq!(call(&client, &server.address(), NODE).await, "hello true");
}

#[tokio::test]
async fn an_identity_that_cannot_be_used_leaves_the_present_one() {
    let server = Server::start().await;
    let broken = rpc::Identity { key: String::new(), ..manager(&server.root, SERVER) };
    assert!(server.identity.replace(&broken).is_err());
    let client = client(&worker(&server.root, 3));
    assert_eq!(call(&client, &server.address(), NODE).await, "hello true");
}

#[tokio::test]
async fn while_roots_change_old_and_new_nodes_believe_each_other() {
    let server = Server::start().await;
    let old = server.root.clone();
    let between = rotating(&old);
    let mut new = between.clone();
    ca::finish(&mut new);
    // Old nodes know the old root alone; those on their way know both and have certificates of the new one.
    let of = |root: &RootCa, node| identity(root, CLUSTER, node, Role::Worker, 3_600);
    for (shown, believed) in [
        (manager(&old, SERVER), [true, true, false]),
        (manager(&between, SERVER), [true, true, true]),
    ] {
        server.identity.replace(&shown).expect("is usable");
        for (caller, expected) in [of(&old, 3), of(&between, 4), of(&new, 5)].iter().zip(believed) {
            let answer = call(&client(caller), &server.address(), NODE).await;
            assert_eq!(answer == "hello true", expected, "{answer}");
        }
    }
    // At the end the old root is given up.
    let certificate = manager(&between, SERVER);
    let ended = rpc::Identity { roots: new.trust_bundle(), ..certificate };
    server.identity.replace(&ended).expect("is usable");
    for (caller, expected) in [(of(&old, 3), false), (of(&between, 4), true), (of(&new, 5), true)] {
        let answer = call(&client(&caller), &server.address(), NODE).await;
        assert_eq!(answer == "hello true", expected, "{answer}");
    }
}

#[tokio::test]
async fn connections_end_with_the_root_they_began_with() {
    let server = Server::start().await;
    let old = client(&worker(&server.root, 3));
    let mut stream = count(&old, &server).await;
    assert_eq!(stream.next().await, Some(0));
    let mut next = rotating(&server.root);
    ca::finish(&mut next);
    server.identity.replace(&manager(&next, SERVER)).expect("is usable");
    while stream.next().await.is_some() {}
    let answer = call(&old, &server.address(), NODE).await;
    assert!(answer.contains("its certificate is not signed by this swarm"), "{answer}");
}

#[tokio::test]
async fn connections_end_with_the_root_their_other_end_began_with() {
    let server = Server::start().await;
    let own = SharedIdentity::new(&worker(&server.root, 3)).expect("is usable");
    let client = Client::new(own.clone());
    let mut stream = count(&client, &server).await;
    assert_eq!(stream.next().await, Some(0));
    let mut next = rotating(&server.root);
    ca::finish(&mut next);
    own.replace(&worker(&next, 3)).expect("is usable");
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn connections_end_with_the_certificate_they_began_with() {
    let server = Server::start().await;
    let short = client(&identity(&server.root, CLUSTER, 3, Role::Worker, 2));
    let mut stream = count(&short, &server).await;
    assert_eq!(stream.next().await, Some(0));
    // Nobody says a word, and the stream ends.
    while stream.next().await.is_some() {}
    let answer = call(&short, &server.address(), NODE).await;
    assert!(answer.contains("it has expired"), "{answer}");
}
