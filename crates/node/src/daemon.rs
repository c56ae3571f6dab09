//! Start and stop order of a node's parts.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use apiserver::{ApiState, Server};
use engine::Engine;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::board::Board;
use crate::config::{Config, VERSION};
use crate::membership::Membership;
use crate::name_book::NameBook;

/// Threads that serve requests; containers' work waits on the kernel, not on these.
const WORKER_THREADS_MAX: usize = 4;

/// Runs the daemon until it is told to stop.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_filter).context("log level")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.min(WORKER_THREADS_MAX))
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    for flag in &config.ignored {
        warn!(flag, "this flag has no meaning here and is ignored");
    }
    for directory in [&config.data_root, &config.engine.exec_root] {
        private_directory(directory)?;
    }
    // Before anything is touched: two daemons must not share their state.
    let _lock = lock(&config.data_root)?;
    let engine = Engine::open(config.engine.clone()).await.context("open the engine")?;
    let board = Arc::new(Board::default());
    let names = Arc::new(NameBook::new(board.clone()));
    if let Err(error) = engine.network.set_namer(names.clone()).await {
        warn!(%error, "containers of an earlier daemon get no names");
    }
    let membership = Membership::open(&config, engine.clone(), board, names).await?;
    let state = ApiState { engine: engine.clone(), swarm: membership.clone() };
    let server_config = apiserver::Config { listen: config.listen, version: VERSION.to_owned() };
    let server = Server::bind(server_config, state).await.context("serve the API")?;
    if let Some(path) = &config.pidfile {
        std::fs::write(path, std::process::id().to_string())
            .with_context(|| format!("write {}", path.display()))?;
    }
    info!(addresses = ?server.addresses(), version = VERSION, "skep is ready");
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone()));
    tokio::spawn(crate::idle::keep_small());
    tokio::spawn(crate::whole::keep(engine.clone(), membership.warnings.clone()));
    server.serve(shutdown).await;
    info!("stopping; containers run on");
    membership.close().await;
    engine.close().await;
    if let Some(path) = &config.pidfile {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    // Containers' users must reach what is mounted from beneath, so others may pass but not look.
    builder
        .recursive(true)
        .mode(0o711)
        .create(path)
        .with_context(|| format!("create {}", path.display()))
}

pub(crate) fn lock(data_root: &Path) -> anyhow::Result<std::fs::File> {
    let path = data_root.join("lock");
    let file =
        std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).with_context(
        || format!("{} is in use by another daemon; name another --data-root", data_root.display()),
    )?;
    Ok(file)
}

async fn stop_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        warn!("signals cannot be received; stop the daemon with SIGKILL");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
}

/// An engine shared by everything that runs in this process.
pub(crate) type SharedEngine = Arc<Engine>;
