//! The ways to the other managers: raft's messages, whole states, and requests for the leader.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use consensus::{Consensus, Message, Outgoing, StateTransfer};
use rpc::{Caller, Channel, Client, FrameSender, Frames, Peer, Pipe};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use types::Node;
use types::assignment::ManagerPeer;

use crate::control::request::{Request, Response};
use crate::error::{Code, Error};
use crate::methods;
use crate::wire::{Exchange, Wish};

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
    exchange: Arc<Exchange>,
    /// Where members are that the state does not tell of yet: it may have to come from them.
    hints: Mutex<HashMap<u64, String>>,
}

impl Links {
    pub(crate) fn new(
        client: Client,
        consensus: Arc<Consensus>,
        exchange: Arc<Exchange>,
        hints: &[ManagerPeer],
    ) -> Arc<Self> {
        let hints = hints.iter().map(|peer| (peer.raft_id, peer.address.clone())).collect();
        let frame = consensus.frame();
        let links = Self { client, consensus, exchange, hints: Mutex::new(hints) };
        let links = Arc::new(links);
        // Weak: the thread that asks belongs to the consensus.
        let judge = Arc::downgrade(&links);
        let judge = move |peer, raft_id| match judge.upgrade() {
            Some(links) => links.judge(peer, raft_id),
            None => Err("this manager stops".to_owned()),
        };
        links.exchange.judge_by(Box::new(judge), frame);
        links
    }

    /// Takes a pipe that another manager opened.
    pub(crate) fn called(&self, pipe: Pipe) {
        self.exchange.called(pipe);
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

    /// Does what the consensus' thread wishes for, and says who may speak as whom.
    pub(crate) async fn grant(
        self: Arc<Self>,
        mut wishes: mpsc::Receiver<Wish>,
        stop: CancellationToken,
    ) {
        loop {
            let wish = tokio::select! {
                () = stop.cancelled() => return,
                wish = wishes.recv() => wish,
            };
            match wish {
                None => return,
                Some(Wish::Pipe(to)) => drop(tokio::spawn(self.clone().open(to))),
                Some(Wish::State(outgoing)) => {
                    let Outgoing { message, state } = *outgoing;
                    let Some(state) = state else { continue };
                    tokio::spawn(self.clone().send_state(message.to(), message, state));
                }
            }
        }
    }

    async fn open(self: Arc<Self>, to: u64) {
        let opened = match self.channel(to) {
            Some(channel) => channel.pipe().await,
            None => return self.exchange.opened(to, None),
        };
        if let Err(error) = &opened {
            debug!(raft_id = to, %error, "manager not reached");
        }
        self.exchange.opened(to, opened.ok());
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

    /// Whether the node may speak as the member `raft_id`.
    fn judge(&self, peer: Peer, raft_id: u64) -> Result<(), String> {
        let snapshot = self.consensus.snapshot();
        // A pipe may be older than the removal of who speaks on it.
        if snapshot.cluster().is_some_and(|cluster| cluster.is_shut_out(peer.node)) {
            return Err("this node was removed from the swarm".to_owned());
        }
        let is_seat =
            |node: &&Arc<Node>| node.manager.as_ref().is_some_and(|seat| seat.raft_id == raft_id);
        match snapshot.nodes().find(is_seat) {
            Some(sender) if sender.id != peer.node => {
                Err(format!("node {} speaks in the name of node {}", peer.node, sender.id))
            }
            // A member that this one has not heard of may be the one that tells of it.
            _ => Ok(()),
        }
    }

    fn message_of(&self, caller: Caller, frame: &[u8]) -> Result<Message, String> {
        let message = Message::decode(frame).map_err(|error| error.to_string())?;
        if let Some(peer) = caller.peer {
            self.judge(peer, message.from())?;
        }
        Ok(message)
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
