//! `/version`, `/info`, `/system/df`: the daemon about itself.

use axum::extract::State;
use axum::routing::get;
use axum::{Json as Answer, Router};
use docker_types::system::{Component, DiskUsage, Info, Platform, Version};
use engine::containers::ListOptions;
use engine::volumes::VolumeFilter;

use crate::error::ApiError;
use crate::query::Query;
use crate::state::ApiState;
use crate::version::ApiVersion;

/// What `skep doctor` shows, one sentence each.
#[derive(Debug, serde::Serialize)]
struct Audit {
    differences: Vec<String>,
}

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/system/df", get(disk_usage))
        .route("/skep/audit", get(audit).post(mend))
}

async fn version(State(state): State<ApiState>) -> Answer<Version> {
    let engine = &state.engine;
    let host = engine.host();
    let details = [
        ("ApiVersion", ApiVersion::NEWEST.to_string()),
        ("MinAPIVersion", ApiVersion::OLDEST.to_string()),
        ("Arch", host.go_arch.clone()),
        ("Os", "linux".to_owned()),
        ("KernelVersion", host.kernel.clone()),
        ("Experimental", "false".to_owned()),
    ];
    let component = Component {
        name: "Engine".to_owned(),
        version: engine.config.version.clone(),
        details: details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    };
    Answer(Version {
        platform: Platform { name: "Skep".to_owned() },
        components: vec![component],
        version: engine.config.version.clone(),
        api_version: ApiVersion::NEWEST.to_string(),
        min_api_version: ApiVersion::OLDEST.to_string(),
        os: "linux".to_owned(),
        arch: host.go_arch,
        kernel_version: host.kernel,
        ..Version::default()
    })
}

async fn info(State(state): State<ApiState>) -> Result<Answer<Info>, ApiError> {
    let mut info = state.engine.info().await?;
    let swarm = state.swarm.info();
    let warnings = info.warnings.get_or_insert_default();
    warnings.extend(swarm.warnings.iter().cloned());
    warnings.extend(state.swarm.warnings());
    info.swarm = serde_json::to_value(swarm)
        .expect("the swarm's description has text keys and no fallible encoders");
    Ok(Answer(info))
}

/// How this node's kernel differs from what it was told. Docker has no such route.
async fn audit(State(state): State<ApiState>) -> Answer<Audit> {
    Answer(differences(&state, false).await)
}

/// The same, and puts right what can be.
async fn mend(State(state): State<ApiState>) -> Answer<Audit> {
    Answer(differences(&state, true).await)
}

async fn differences(state: &ApiState, mends: bool) -> Audit {
    let engine = &state.engine;
    let mut differences = engine.network.audit(mends).await;
    let strange = engine.network.containers().into_iter();
    // One that was removed a moment ago is in neither list when it is looked at again.
    for container in strange.filter(|id| engine.containers.status(id).is_err()) {
        if engine.network.containers().contains(&container) {
            differences.push(format!("the network of container {container} is nobody's"));
        }
    }
    Audit { differences }
}

async fn disk_usage(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<DiskUsage>, ApiError> {
    let types: Vec<&str> = query.all("type").collect();
    let known = ["container", "image", "volume", "build-cache"];
    if let Some(unknown) = types.iter().find(|kind| !known.contains(kind)) {
        return Err(ApiError::bad_request(format!("unknown object type: {unknown}")));
    }
    let wants = |kind: &str| types.is_empty() || types.contains(&kind);
    let engine = &state.engine;
    let mut usage = DiskUsage::default();
    if wants("container") {
        let options = ListOptions { all: true, size: true, ..ListOptions::default() };
        usage.containers = Some(engine.containers.list(&options).await?);
    }
    if wants("volume") {
        let volumes = engine.volumes.clone();
        let described = tokio::task::spawn_blocking(move || {
            let all = volumes.list(&VolumeFilter::default());
            all.iter().map(|volume| volumes.describe(volume, true)).collect()
        });
        usage.volumes = Some(described.await.unwrap_or_default());
    }
    if wants("image") {
        let (images, bytes) = engine.image_usage().await?;
        usage.images = Some(images);
        usage.layers_size = bytes;
    }
    if wants("build-cache") {
        usage.build_cache = Some(Vec::new());
    }
    Ok(Answer(usage))
}
