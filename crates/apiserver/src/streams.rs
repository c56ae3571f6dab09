//! Moves bytes between a hijacked connection and the streams of a process.

use engine::containers::attach::{Attached, DetachKeys};
use engine::containers::exec::ExecStreams;
use engine::logs::{LogSource, LogStream};
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::hijack::{Duplex, Framing};
use crate::logs::{LineForm, stream_number};

/// Bytes moved at once; also the largest frame's payload.
const CHUNK_BYTES: usize = 32 * 1024;
/// Bytes of a frame's header.
const HEADER_BYTES: usize = 8;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The process has closed its outputs, or the client has gone.
    Over,
    /// The client has typed the detach keys.
    Detached,
}

/// Serves a client at a container's streams until either side ends.
pub(crate) async fn attach(duplex: Duplex, attached: Attached) -> SessionEnd {
    let Duplex { reader, mut writer } = duplex;
    let framing = Framing::of_tty(attached.tty);
    let Attached { stdin, stdout, stderr, detach_keys, logs, .. } = attached;
    if let Some(logs) = logs
        && write_logs(logs, framing, &mut writer).await.is_err()
    {
        return SessionEnd::Over;
    }
    let input = feed(reader, stdin, DetachKeys::new(detach_keys));
    let output = async {
        let has_output = stdout.is_some() || stderr.is_some();
        let copied = copy_outputs(stdout, stderr, framing, &mut writer).await;
        (copied.is_ok() && !has_output).then_some(())
    };
    let end = session(input, output).await;
    let _ = writer.shutdown().await;
    end
}

/// Serves a client at an exec's streams until either side ends.
pub(crate) async fn exec(duplex: Duplex, streams: ExecStreams) {
    let Duplex { reader, mut writer } = duplex;
    match streams {
        ExecStreams::Detached => {}
        ExecStreams::Pipes { stdin, stdout, stderr } => {
            let input = feed(reader, stdin, DetachKeys::new(Vec::new()));
            let output = async {
                let has_output = stdout.is_some() || stderr.is_some();
                let copied = copy_outputs(stdout, stderr, Framing::Multiplexed, &mut writer).await;
                (copied.is_ok() && !has_output).then_some(())
            };
            session(input, output).await;
        }
        ExecStreams::Terminal { terminal, stdin, detach_keys } => {
            let (from_terminal, to_terminal) = tokio::io::split(terminal);
            let to_terminal = stdin.then_some(to_terminal);
            let input = feed(reader, to_terminal, DetachKeys::new(detach_keys));
            let output = async {
                let _ = copy_raw(from_terminal, &mut writer).await;
                None
            };
            session(input, output).await;
        }
    }
    let _ = writer.shutdown().await;
}

/// Runs both directions. The output's end ends the session; the input's does not, because a client may
/// close its half and go on reading. An output that says `Some` never had anything to say: then the input's
/// end is the session's.
async fn session(
    input: impl Future<Output = SessionEnd>,
    output: impl Future<Output = Option<()>>,
) -> SessionEnd {
    let mut input = std::pin::pin!(input);
    let mut output = std::pin::pin!(output);
    let mut input_is_over = false;
    let mut output_is_idle = false;
    loop {
        tokio::select! {
            end = &mut input, if !input_is_over => {
                input_is_over = true;
                if end == SessionEnd::Detached || output_is_idle {
                    return end;
                }
            }
            said = &mut output, if !output_is_idle => {
                if said.is_none() || input_is_over {
                    return SessionEnd::Over;
                }
                output_is_idle = true;
            }
        }
    }
}

/// Passes on what the client types, until it closes its half, the process does not read any more, or the
/// detach keys come.
async fn feed<W: AsyncWrite + Unpin>(
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
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

async fn copy_outputs(
    mut stdout: Option<pipe::Receiver>,
    mut stderr: Option<pipe::Receiver>,
    framing: Framing,
    writer: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    if framing == Framing::Raw {
        if let Some(stdout) = stdout {
            copy_raw(stdout, writer).await?;
        }
        return Ok(());
    }
    let (mut first, mut second) =
        (frame_buffer(LogSource::Stdout), frame_buffer(LogSource::Stderr));
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = read_some(stdout.as_mut(), &mut first) => match read? {
                0 => stdout = None,
                read => write_frame(&mut first, read, writer).await?,
            },
            read = read_some(stderr.as_mut(), &mut second) => match read? {
                0 => stderr = None,
                read => write_frame(&mut second, read, writer).await?,
            },
        }
    }
    Ok(())
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
