//! Moves bytes between a hijacked connection and the streams of a process.

use std::time::Duration;

use engine::containers::attach::{Attached, DetachKeys};
use engine::containers::exec::{ExecStreams, Terminal};
use engine::logs::{LogSource, LogStream};
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};
use tokio::net::unix::pipe;

use crate::hijack::{Duplex, Framing};
use crate::logs::{LineForm, stream_number};

/// Bytes moved at once; also the largest frame's payload.
const CHUNK_BYTES: usize = 32 * 1024;
/// Bytes of a frame's header.
const HEADER_BYTES: usize = 8;
/// How long the outputs of a process that has ended are read on while others hold them.
const LAST_OUTPUT_PERIOD: Duration = Duration::from_secs(2);
/// How long a client may take to close its half once all was said.
const PARTING_PERIOD: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The process has closed its outputs, or the client has gone.
    Over,
    /// The client has typed the detach keys.
    Detached,
}

/// How the client's side of the output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutputEnd {
    /// The process has closed its outputs.
    Over,
    /// The client wants none, or reads no more.
    Unread,
}

/// Serves a client at a container's streams until either side ends.
pub(crate) async fn attach(duplex: Duplex, attached: Attached) -> SessionEnd {
    let Duplex { mut reader, mut writer, gone } = duplex;
    let framing = Framing::of_tty(attached.tty);
    let Attached { stdin, stdout, stderr, detach_keys, logs, tty, .. } = attached;
    if let Some(logs) = logs
        && write_logs(logs, framing, &mut writer).await.is_err()
    {
        return SessionEnd::Over;
    }
    let is_typed_into = tty && stdin.is_some();
    let input = feed(&mut reader, stdin, DetachKeys::new(detach_keys));
    let output = async {
        // What nobody reads is closed at once: the container would wait for us.
        let (mut stdout, mut stderr) = (stdout, stderr);
        let copied = copy_outputs(&mut stdout, &mut stderr, framing, &mut writer);
        until_gone(copied, gone).await
    };
    let end = session(input, output, is_typed_into).await;
    part(reader, writer).await;
    end
}

/// What an exec's process says.
enum ExecOutput {
    Pipes { stdout: Option<pipe::Receiver>, stderr: Option<pipe::Receiver> },
    Terminal(ReadHalf<Terminal>),
}

impl ExecOutput {
    async fn copy(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<OutputEnd> {
        match self {
            Self::Pipes { stdout, stderr } => {
                copy_outputs(stdout, stderr, Framing::Multiplexed, writer).await
            }
            Self::Terminal(terminal) => copy_raw(terminal, writer).await.map(|()| OutputEnd::Over),
        }
    }
}

/// Serves a client at an exec's streams until either side ends, then reads what nobody reads: the process goes
/// on without its client, as under Docker. A client that stays to the end can ask for the exit code then.
pub(crate) async fn exec(
    duplex: Duplex,
    streams: ExecStreams,
    exited: impl Future<Output = i64> + Send,
) {
    let Duplex { mut reader, mut writer, gone } = duplex;
    let (stdin, mut output, detach_keys, is_typed_into) = match streams {
        ExecStreams::Detached => return,
        ExecStreams::Pipes { stdin, stdout, stderr } => {
            let stdin = stdin.map(|stdin| Box::new(stdin) as Box<dyn AsyncWrite + Send + Unpin>);
            (stdin, ExecOutput::Pipes { stdout, stderr }, Vec::new(), false)
        }
        ExecStreams::Terminal { terminal, stdin, detach_keys } => {
            let (from, to) = tokio::io::split(terminal);
            let to = stdin.then(|| Box::new(to) as Box<dyn AsyncWrite + Send + Unpin>);
            (to, ExecOutput::Terminal(from), detach_keys, stdin)
        }
    };
    let (gone, exited) = (gone.shared(), exited.shared());
    let input = feed(&mut reader, stdin, DetachKeys::new(detach_keys));
    let copied = async {
        match until_gone(output.copy(&mut writer), gone.clone()).await {
            OutputEnd::Unread => output.copy(&mut tokio::io::sink()).await,
            OutputEnd::Over => Ok(OutputEnd::Over),
        }
    };
    let said = async {
        tokio::select! {
            end = copied => end.unwrap_or(OutputEnd::Over),
            // Processes it has left behind may hold its outputs for ever.
            () = exited.clone().then(|_| tokio::time::sleep(LAST_OUTPUT_PERIOD)) => OutputEnd::Over,
        }
    };
    if session(input, said, is_typed_into).await == SessionEnd::Over {
        tokio::select! {
            _ = exited => {}
            () = gone => {}
        }
    }
    part(reader, writer).await;
    let _ = output.copy(&mut tokio::io::sink()).await;
}

/// Tells the client that all was said, and hears it out: what it has sent and nobody read would look like a
/// broken connection to it.
async fn part(
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
) {
    let _ = writer.shutdown().await;
    let mut nobody = tokio::io::sink();
    let heard_out = tokio::io::copy(&mut reader, &mut nobody);
    let _ = tokio::time::timeout(PARTING_PERIOD, heard_out).await;
}

/// Copies until the process has said all or the client reads no more.
async fn until_gone(
    copied: impl Future<Output = std::io::Result<OutputEnd>>,
    gone: impl Future<Output = ()>,
) -> OutputEnd {
    tokio::select! {
        end = copied => end.unwrap_or(OutputEnd::Unread),
        () = gone => OutputEnd::Unread,
    }
}

/// Runs both directions. The output's end ends the session. The input's does not, because a client may close
/// its half and go on reading, unless nothing is read or the client types into a terminal, which has one end.
async fn session(
    input: impl Future<Output = SessionEnd>,
    output: impl Future<Output = OutputEnd>,
    is_typed_into: bool,
) -> SessionEnd {
    let mut input = std::pin::pin!(input);
    let mut output = std::pin::pin!(output);
    let mut input_is_over = false;
    let mut output_is_over = false;
    loop {
        tokio::select! {
            end = &mut input, if !input_is_over => {
                input_is_over = true;
                if end == SessionEnd::Detached || is_typed_into || output_is_over {
                    return end;
                }
            }
            end = &mut output, if !output_is_over => {
                output_is_over = true;
                if end == OutputEnd::Over || input_is_over {
                    return SessionEnd::Over;
                }
            }
        }
    }
}

/// Passes on what the client types, until it closes its half, the process does not read any more, or the
/// detach keys come.
async fn feed<W: AsyncWrite + Unpin>(
    reader: &mut (impl AsyncRead + Unpin),
    mut stdin: Option<W>,
    mut keys: DetachKeys,
) -> SessionEnd {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match reader.read(&mut chunk).await {
            Ok(0) | Err(_) => return SessionEnd::Over,
            Ok(read) => read,
        };
        let (passed, is_detached) = keys.filter(&chunk[..read]);
        if let Some(open) = &mut stdin
            && open.write_all(&passed).await.is_err()
        {
            // The process has closed its input; what the client still types goes nowhere.
            stdin = None;
        }
        if is_detached {
            return SessionEnd::Detached;
        }
    }
}

/// Copies until both outputs have ended, which leaves none of them.
async fn copy_outputs(
    stdout: &mut Option<pipe::Receiver>,
    stderr: &mut Option<pipe::Receiver>,
    framing: Framing,
    writer: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<OutputEnd> {
    if stdout.is_none() && stderr.is_none() {
        return Ok(OutputEnd::Unread);
    }
    if framing == Framing::Raw {
        if let Some(open) = stdout {
            copy_raw(open, writer).await?;
        }
        *stdout = None;
        return Ok(OutputEnd::Over);
    }
    let (mut first, mut second) =
        (frame_buffer(LogSource::Stdout), frame_buffer(LogSource::Stderr));
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = read_some(stdout.as_mut(), &mut first) => match read? {
                0 => *stdout = None,
                read => write_frame(&mut first, read, writer).await?,
            },
            read = read_some(stderr.as_mut(), &mut second) => match read? {
                0 => *stderr = None,
                read => write_frame(&mut second, read, writer).await?,
            },
        }
    }
    Ok(OutputEnd::Over)
}

/// Reads behind the place of the header; a stream that has ended is never ready.
async fn read_some(
    stream: Option<&mut pipe::Receiver>,
    buffer: &mut [u8],
) -> std::io::Result<usize> {
    match stream {
        Some(stream) => stream.read(&mut buffer[HEADER_BYTES..]).await,
        None => std::future::pending().await,
    }
}

/// Sends a text as output, and nothing else.
pub(crate) async fn say(duplex: Duplex, framing: Framing, text: &str) {
    let mut writer = duplex.writer;
    let mut buffer = frame_buffer(LogSource::Stdout);
    let text = &text.as_bytes()[..text.len().min(CHUNK_BYTES)];
    buffer[HEADER_BYTES..HEADER_BYTES + text.len()].copy_from_slice(text);
    let said = match framing {
        Framing::Raw => writer.write_all(text).await,
        Framing::Multiplexed => write_frame(&mut buffer, text.len(), &mut writer).await,
    };
    // A client that has gone reads no reasons.
    if said.is_ok() {
        let _ = writer.shutdown().await;
    }
}

fn frame_buffer(source: LogSource) -> Vec<u8> {
    let mut buffer = vec![0; HEADER_BYTES + CHUNK_BYTES];
    buffer[0] = stream_number(source);
    buffer
}

async fn write_frame(
    buffer: &mut [u8],
    length: usize,
    writer: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let bytes = u32::try_from(length).expect("a chunk is far below 4 GiB").to_be_bytes();
    buffer[4..HEADER_BYTES].copy_from_slice(&bytes);
    writer.write_all(&buffer[..HEADER_BYTES + length]).await?;
    writer.flush().await
}

async fn copy_raw(
    mut from: impl AsyncRead + Unpin,
    writer: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk).await? {
            0 => return Ok(()),
            read => {
                writer.write_all(&chunk[..read]).await?;
                writer.flush().await?;
            }
        }
    }
}

async fn write_logs(
    mut logs: LogStream,
    framing: Framing,
    writer: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let form = LineForm { framing, timestamps: false };
    while let Some(record) = logs.next().await {
        let Ok(record) = record else { break };
        writer.write_all(&form.encode(&record, "")).await?;
    }
    writer.flush().await
}
