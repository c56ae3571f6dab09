//! The ways to the other managers: raft's messages, whole states, and requests for the leader.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use consensus::{Consensus, Message, Outgoing, StateTransfer};
use rpc::{Caller, Channel, Client, FrameSender, Frames};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use types::assignment::ManagerPeer;

use crate::control::request::{Request, Response};
use crate::error::{Code, Error};
use crate::methods;

/// Messages waiting for one member. More are lost, which raft mends.
const MESSAGES_PER_MEMBER_MAX: usize = 512;

/// After a failure to reach a member.
const RECONNECT: Duration = Duration::from_millis(100);

/// How long the leader may take: a change of the managers waits for the members.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(25);

/// Bytes of a state in one frame.
const STATE_CHUNK_BYTES: usize = 1 << 20;

/// Chunks of a state waiting to be read.
const STATE_CHUNKS_MAX: usize = 4;

#[derive(Debug)]
pub(crate) struct Links {
    client: Client,
    consensus: Arc<Consensus>,
    /// Where members are that the state does not tell of yet: it may have to come from them.
    hints: Mutex<HashMap<u64, String>>,
}

impl Links {
    pub(crate) fn new(client: Client, consensus: Arc<Consensus>, hints: &[ManagerPeer]) -> Self {
        let hints = hints.iter().map(|peer| (peer.raft_id, peer.address.clone())).collect();
        Self { client, consensus, hints: Mutex::new(hints) }
    }

    /// Where the member `raft_id` is.
    pub(crate) fn address_of(&self, raft_id: u64) -> Option<String> {
        let snapshot = self.consensus.snapshot();
        let seats = snapshot.nodes().filter_map(|node| node.manager.as_ref());
        let mut known = seats.filter(|seat| seat.raft_id == raft_id);
        match known.next() {
            Some(seat) => Some(seat.address.clone()),
            None => self.hints.lock().expect("a map is left whole").get(&raft_id).cloned(),
        }
    }

    fn channel(&self, raft_id: u64) -> Option<Channel> {
        Some(self.client.channel(&self.address_of(raft_id)?))
    }

    /// Has the member `leader` do what `request` asks for.
    ///
    /// # Errors
    /// [`Error::is_not_leader`] when it is certain that nothing was done.
    pub(crate) async fn ask(&self, leader: u64, request: &Request) -> Result<Response, Error> {
        let channel = self.channel(leader).ok_or_else(Error::not_leader)?;
        match channel.call(methods::CONTROL, request, REQUEST_TIMEOUT).await {
            Ok(answer) => answer,
            Err(error) if error.is_before_sending() => Err(Error::not_leader()),
            Err(error) => {
                let desc = format!(
                    "the leader did not answer, the request may have been carried out: {error}"
                );
                Err(Error::new(Code::Unavailable, desc))
            }
        }
    }

    /// Carries raft's messages to the members they are for.
    pub(crate) async fn carry(
        self: Arc<Self>,
        mut outgoing: mpsc::Receiver<Outgoing>,
        stop: CancellationToken,
    ) {
        let mut members: HashMap<u64, mpsc::Sender<Outgoing>> = HashMap::new();
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return,
                message = outgoing.recv() => message,
            };
            let Some(message) = message else { return };
            let to = message.message.to();
            members.retain(|_, member| !member.is_closed());
            let member = members.entry(to).or_insert_with(|| {
                let (sender, receiver) = mpsc::channel(MESSAGES_PER_MEMBER_MAX);
                tokio::spawn(self.clone().carry_to(to, receiver, stop.clone()));
                sender
            });
            if member.try_send(message).is_err() {
                self.consensus.report_unreachable(to);
            }
        }
    }

    /// Carries messages to one member, one stream for all of them.
    async fn carry_to(
        self: Arc<Self>,
        to: u64,
        mut messages: mpsc::Receiver<Outgoing>,
        stop: CancellationToken,
    ) {
        let mut stream: Option<(String, FrameSender)> = None;
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return,
                message = messages.recv() => message,
            };
            let Some(Outgoing { message, state }) = message else { return };
            if let Some(state) = state {
                tokio::spawn(self.clone().send_state(to, message, state));
                continue;
            }
            let Some(address) = self.address_of(to) else { continue };
            if stream.as_ref().is_none_or(|(known, _)| *known != address) {
                stream = self.open(to, &address).await.map(|opened| (address, opened));
            }
            let sent = match &stream {
                Some((_, stream)) => stream.send(Bytes::from(message.encode())).await,
                None => false,
            };
            if !sent {
                self.consensus.report_unreachable(to);
                stream = None;
                // What waited meanwhile is old: raft sends what matters again.
                tokio::time::sleep(RECONNECT).await;
                while messages.try_recv().is_ok() {}
            }
        }
    }

    async fn open(&self, to: u64, address: &str) -> Option<FrameSender> {
        match self.client.channel(address).stream_in(methods::RAFT_MESSAGES).await {
            Ok(stream) => Some(stream),
            Err(error) => {
                debug!(raft_id = to, %error, "manager not reached");
                None
            }
        }
    }

    async fn send_state(self: Arc<Self>, to: u64, message: Message, state: StateTransfer) {
        info!(raft_id = to, "sending the whole state to a manager");
        let sent = self.try_send_state(to, &message, state).await;
        if let Err(reason) = &sent {
            warn!(raft_id = to, reason, "the state did not arrive");
        }
        self.consensus.report_snapshot(to, sent.is_ok());
    }

    async fn try_send_state(
        &self,
        to: u64,
        message: &Message,
        state: StateTransfer,
    ) -> Result<(), String> {
        let channel = self.channel(to).ok_or("its address is not known")?;
        let opened = channel.stream_in(methods::RAFT_STATE).await;
        let stream = opened.map_err(|error| error.to_string())?;
        if !stream.send(Bytes::from(message.encode())).await {
            return Err("the connection broke".into());
        }
        let runtime = tokio::runtime::Handle::current();
        let write = move || {
            let mut writer = FrameWriter { runtime, stream, chunk: Vec::new() };
            let written = state.write_to(&mut writer).and_then(|()| writer.flush());
            written.map(|()| writer.stream)
        };
        let written = tokio::task::spawn_blocking(write).await.map_err(|_| "stopped")?;
        let stream = written.map_err(|error| error.to_string())?;
        stream.finish().await.map_err(|error| error.to_string())
    }

    /// Takes a member's messages as they come.
    pub(crate) async fn receive_messages(
        &self,
        caller: Caller,
        mut frames: Frames,
    ) -> Result<(), String> {
        while let Some(frame) = frames.next().await.map_err(|error| error.to_string())? {
            let message = self.message_of(caller, &frame)?;
            self.consensus.step(message);
        }
        Ok(())
    }

    fn message_of(&self, caller: Caller, frame: &[u8]) -> Result<Message, String> {
        let message = Message::decode(frame).map_err(|error| error.to_string())?;
        let snapshot = self.consensus.snapshot();
        // A stream may be older than the removal of who speaks on it.
        let is_out = |peer: rpc::Peer| {
            snapshot.cluster().is_some_and(|cluster| cluster.is_shut_out(peer.node))
        };
        if caller.peer.is_some_and(is_out) {
            return Err("this node was removed from the swarm".to_owned());
        }
        let sender = snapshot
            .nodes()
            .find(|node| node.manager.as_ref().is_some_and(|seat| seat.raft_id == message.from()));
        // A member that this one has not heard of may be the one that tells of it.
        match (sender, caller.peer) {
            (Some(sender), Some(peer)) if sender.id != peer.node => {
                Err(format!("node {} speaks in the name of node {}", peer.node, sender.id))
            }
            _ => Ok(message),
        }
    }

    /// Takes a whole state from the leader.
    pub(crate) async fn receive_state(
        &self,
        caller: Caller,
        mut frames: Frames,
    ) -> Result<(), String> {
        let first = frames.next().await.map_err(|error| error.to_string())?;
        let message = self.message_of(caller, &first.ok_or("the stream is empty")?)?;
        let (chunks, waiting) = mpsc::channel(STATE_CHUNKS_MAX);
        let read =
            move || StateTransfer::read_from(FrameReader { chunks: waiting, chunk: Bytes::new() });
        let reading = tokio::task::spawn_blocking(read);
        while let Some(chunk) = frames.next().await.map_err(|error| error.to_string())? {
            if chunks.send(chunk).await.is_err() {
                break;
            }
        }
        drop(chunks);
        let state = reading.await.map_err(|_| "stopped")?.map_err(|error| error.to_string())?;
        self.consensus.step_snapshot(message, state);
        Ok(())
    }
}

/// Cuts what is written into frames, on a thread of its own.
struct FrameWriter {
    runtime: tokio::runtime::Handle,
    stream: FrameSender,
    chunk: Vec<u8>,
}

impl Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(STATE_CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == STATE_CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = Bytes::from(std::mem::take(&mut self.chunk));
        match self.runtime.block_on(self.stream.send(chunk)) {
            true => Ok(()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Reads frames as one stream of bytes, on a thread of its own.
struct FrameReader {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for FrameReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.chunk.len());
        into[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
