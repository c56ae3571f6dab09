//! Connections of frames alone, moved on threads of their own.

use bytes::Bytes;
use rpc::{Client, FRAME_BYTES_MAX, Identity, Pipe, SharedIdentity};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::AsyncWriteExt;
use types::NodeId;
use types::cluster::CaSpec;
use types::node::Role;

use crate::wire::{connect, tls};
use crate::{CLUSTER, SERVER, Server, client, identity, manager, now, worker};

/// Waits for the next frame, and sends meanwhile what waits to be sent.
pub(crate) fn next_frame(pipe: &mut Pipe) -> Result<Bytes, String> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        if let Some(frame) = pipe.take_frame().map_err(|error| error.to_string())? {
            return Ok(frame);
        }
        pipe.flush().map_err(|error| error.to_string())?;
        let flags = match pipe.has_unsent() {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        poll(&mut [PollFd::new(&*pipe, flags)], None).expect("polls");
        let filled = pipe.fill(&mut buffer);
        match pipe.take_frame().map_err(|error| error.to_string())? {
            Some(frame) => return Ok(frame),
            None => filled.map_err(|error| error.to_string())?,
        }
    }
}

/// Sends back what comes, until it ends.
pub(crate) fn echo(mut pipe: Pipe) {
    std::thread::spawn(move || {
        while let Ok(frame) = next_frame(&mut pipe) {
            if frame[..] == *b"refuse" {
                return pipe.refuse("as you wish");
            }
            assert!(pipe.send(&frame));
        }
    });
}

async fn opened(server: &Server, shown: &Identity) -> Pipe {
    client(shown).channel(&server.address()).pipe().await.expect("opens")
}

/// What the next frame comes to, without holding up the runtime.
async fn heard(mut pipe: Pipe) -> (Pipe, Result<Bytes, String>) {
    let hearing = tokio::task::spawn_blocking(move || {
        let frame = next_frame(&mut pipe);
        (pipe, frame)
    });
    hearing.await.expect("hears")
}

#[tokio::test]
async fn frames_of_any_size_go_both_ways_whole_and_in_order() {
    let server = Server::start().await;
    let mut pipe = opened(&server, &manager(&server.root, 3)).await;
    assert_eq!(pipe.peer().node, NodeId::from_random(SERVER));
    let sizes = [0, 1, 5, 4_000, 16_384, 100_000, 5 << 20, 3, FRAME_BYTES_MAX];
    for (number, size) in sizes.into_iter().enumerate() {
        let byte = u8::try_from(number).expect("few");
        let frames = if size > 1 << 20 { 1 } else { 20 };
        for _ in 0..frames {
            assert!(pipe.send(&vec![byte; size]));
        }
        for _ in 0..frames {
            let (again, frame) = heard(pipe).await;
            pipe = again;
            let frame = frame.expect("comes back");
            assert!(frame.len() == size && frame.iter().all(|found| *found == byte), "{size}");
        }
    }
}

#[tokio::test]
async fn who_hears_no_more_says_why() {
    let server = Server::start().await;
    let mut pipe = opened(&server, &manager(&server.root, 3)).await;
    assert!(pipe.send(b"refuse"));
    assert_eq!(heard(pipe).await.1, Err("as you wish".to_owned()));
}

#[tokio::test]
async fn a_pipe_is_for_managers() {
    let server = Server::start().await;
    let pipe = opened(&server, &worker(&server.root, 3)).await;
    assert_eq!(heard(pipe).await.1, Err("only managers may ask for this".to_owned()));
    let other = identity(&server.root, CLUSTER + 1, 3, Role::Manager, 3_600);
    let refusal = client(&other).channel(&server.address()).pipe().await.expect_err("is refused");
    assert!(refusal.to_string().contains("its certificate is of another swarm"), "{refusal}");
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_not_waited_for() {
    let server = Server::start().await;
    let mut pipe = opened(&server, &manager(&server.root, 3)).await;
    // What comes back is never read, so at some time nothing more is taken.
    let frame = vec![7; 1 << 20];
    let mut sent = 0;
    while pipe.send(&frame) {
        pipe.flush().expect("is whole");
        sent += 1;
        assert!(sent < 1_000, "{sent} MiB wait somewhere");
    }
    assert!(pipe.has_unsent());
}

#[tokio::test]
async fn a_frame_that_claims_too_much_ends_a_pipe() {
    let server = Server::start().await;
    let mut config = tls(&server, Some(&manager(&server.root, 3)));
    config.alpn_protocols = vec![b"skep-pipe".to_vec()];
    for length in [0x7fff_ffff_u32, 0xffff_ffff] {
        let mut connection = connect(&server, config.clone()).await.expect("connects");
        connection.write_all(&length.to_be_bytes()).await.expect("is taken");
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut connection, &mut rest).await;
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn a_pipe_ends_with_the_root_that_either_side_began_with() {
    for is_server_renewed in [true, false] {
        let server = Server::start().await;
        let own = SharedIdentity::new(&manager(&server.root, 3)).expect("is usable");
        let mut pipe =
            Client::new(own.clone()).channel(&server.address()).pipe().await.expect("opens");
        assert!(pipe.send(b"hello"));
        let (pipe, frame) = heard(pipe).await;
        assert_eq!(frame.expect("comes back"), b"hello"[..]);
        let mut next = server.root.clone();
        let spec = CaSpec { force_rotate: next.forced + 1, ..CaSpec::default() };
        let planned = ca::plan(&next, &spec, now()).expect("plans");
        ca::change(&mut next, planned, &spec);
        ca::finish(&mut next);
        match is_server_renewed {
            true => server.identity.replace(&manager(&next, SERVER)).expect("is usable"),
            false => own.replace(&manager(&next, 3)).expect("is usable"),
        }
        assert!(heard(pipe).await.1.is_err());
    }
}
