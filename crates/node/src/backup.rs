//! `skep backup` and `skep restore`: the swarm's state in one sealed file, through the daemon's API.
#![expect(clippy::print_stdout, reason = "commands talk to whoever started them")]

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use consensus::DataKey;
use futures::TryStreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::io::ReaderStream;

use crate::config;

const KEY_HEADER: &str = "x-skep-backup-key";

/// Bytes of an error's text that are shown.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Where a daemon is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// The daemon: unix://PATH or tcp://HOST:PORT. Without it, DOCKER_HOST, then unix:///run/skep/docker.sock
    #[arg(short = 'H', long = "host", value_name = "ADDRESS")]
    host: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Backup {
    #[command(flatten)]
    target: Target,
    /// A file that holds the key to seal with; without it a new key is made and printed
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The file to write; it must not be there yet
    file: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Restore {
    #[command(flatten)]
    target: Target,
    /// A file that holds the key the backup was sealed with
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// The address other nodes reach this one by, as for `docker swarm init`
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    advertise_addr: String,
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    listen_addr: String,
    /// active, pause or drain
    #[arg(long, default_value = "active")]
    availability: String,
    /// The backup
    file: PathBuf,
}

pub(crate) fn backup(flags: Backup) -> anyhow::Result<()> {
    block_on(async move {
        let key = match &flags.key_file {
            Some(path) => read_key(path)?,
            None => ca::new_backup_key(),
        };
        let text = ca::backup_key_text(&key);
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&flags.file);
        let file = file.with_context(|| format!("make {}", flags.file.display()))?;
        let taken = take(&flags, &text, file).await.and_then(|()| verify(&flags.file, key));
        if let Err(error) = taken {
            let _ = std::fs::remove_file(&flags.file);
            return Err(error);
        }
        println!("The swarm's state is in {}.", flags.file.display());
        if flags.key_file.is_none() {
            println!(
                "\nTo restore it you need this key. Keep it somewhere else than the file:\n\n    {text}\n"
            );
        }
        Ok(())
    })
}

async fn take(flags: &Backup, key: &str, mut file: std::fs::File) -> anyhow::Result<()> {
    let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
    let mut answer = post(&flags.target, "/skep/backup", key, body).await?;
    while let Some(frame) = answer.frame().await {
        let frame = frame.context("the daemon broke off the backup")?;
        if let Some(bytes) = frame.data_ref() {
            file.write_all(bytes).with_context(|| format!("write {}", flags.file.display()))?;
        }
    }
    file.sync_all().with_context(|| format!("write {}", flags.file.display()))
}

/// A backup that cannot be read is worse than none.
fn verify(path: &Path, key: [u8; 32]) -> anyhow::Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("read {}", path.display()))?;
    consensus::read_backup(std::io::BufReader::new(file), &DataKey::new(key))
        .with_context(|| format!("{} cannot be read back", path.display()))?;
    Ok(())
}

pub(crate) fn restore(flags: Restore) -> anyhow::Result<()> {
    block_on(async move {
        let key = ca::backup_key_text(&read_key(&flags.key_file)?);
        let file = tokio::fs::File::open(&flags.file).await;
        let file = file.with_context(|| format!("read {}", flags.file.display()))?;
        let body = StreamBody::new(ReaderStream::new(file).map_ok(Frame::data)).boxed();
        let path = format!(
            "/skep/restore?advertiseAddr={}&listenAddr={}&availability={}",
            escaped(&flags.advertise_addr),
            escaped(&flags.listen_addr),
            escaped(&flags.availability),
        );
        let answer = post(&flags.target, &path, &key, body).await?;
        let node = answer.collect().await.context("read the daemon's answer")?.to_bytes();
        let node = String::from_utf8_lossy(&node).into_owned();
        println!("Swarm restored: current node ({node}) is now its only manager.");
        println!("Nodes of before are shown as down until they come back; join managers anew.");
        Ok(())
    })
}

pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().context("start the async runtime")?.block_on(work)
}

fn read_key(path: &Path) -> anyhow::Result<[u8; 32]> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("read {}", path.display()))?;
    ca::backup_key_from_text(&text).with_context(|| format!("read {}", path.display()))
}

/// Addresses and words have few characters that mean something in a query.
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:-_".contains(&byte);
    text.bytes()
        .map(|byte| match is_plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

async fn post<E>(
    target: &Target,
    path: &str,
    key: &str,
    body: BoxBody<Bytes, E>,
) -> anyhow::Result<Incoming>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let request = hyper::Request::post(path).header("Host", "skep").header(KEY_HEADER, key);
    ask(target, request.body(body).context("make the request")?).await
}

/// What the daemon answers; a refusal is an error in its words.
pub(crate) async fn ask<E>(
    target: &Target,
    request: hyper::Request<BoxBody<Bytes, E>>,
) -> anyhow::Result<Incoming>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let host = target.host.clone().unwrap_or_else(config::docker_host);
    let stream = connect(&host).await.with_context(|| format!("connect to {host}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let answer = sender.send_request(request).await.context("talk to the daemon")?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let status = answer.status();
        let refusal = answer.into_body().collect().await.context("read the refusal")?.to_bytes();
        let refusal = &refusal[..refusal.len().min(REFUSAL_BYTES_MAX)];
        let message: Option<serde_json::Value> = serde_json::from_slice(refusal).ok();
        match message.as_ref().and_then(|message| message["message"].as_str()) {
            Some(message) => bail!("{message}"),
            None => bail!("{host} answered {status}: {}", String::from_utf8_lossy(refusal)),
        }
    };
    tokio::pin!(exchange);
    let mut connection = Box::pin(connection);
    tokio::select! {
        // The body is still to be read after this: the connection goes on beside it.
        answer = &mut exchange => {
            tokio::spawn(connection);
            answer
        }
        ended = &mut connection => {
            ended.context("talk to the daemon")?;
            exchange.await
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(host: &str) -> anyhow::Result<Box<dyn Stream>> {
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let address = host.strip_prefix("tcp://");
    ensure!(address.is_some(), "expected unix://PATH or tcp://HOST:PORT");
    Ok(Box::new(TcpStream::connect(address.unwrap_or_default()).await?))
}
