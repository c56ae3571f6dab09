//! `/services`: create, list, inspect, update, remove, logs.

use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::convert::service::{service_to_api, spec_from_api, status};
use docker_types::service::{Service, ServiceCreateResponse, ServiceSpec, ServiceUpdateResponse};
use engine::networks::{PREDEFINED, predefined_id};
use http::{HeaderMap, StatusCode};
use manager::{RegistryAuthFrom, Update, lookup};
use types::service::{Mode, RestartPolicy, UpdateConfig};

use crate::error::ApiError;
use crate::filters::Filters;
use crate::json::LenientJson;
use crate::pin::PinsImages;
use crate::query::Query;
use crate::state::ApiState;
use crate::swarm_logs;

/// Carries the user's registry credentials, base64 of JSON.
const REGISTRY_AUTH: &str = "x-registry-auth";

pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
        .route("/services/{id}/logs", get(logs))
}

async fn list(
    State(state): State<ApiState>,
    query: Query,
) -> Result<Answer<Vec<Service>>, ApiError> {
    let manager = state.swarm.manager()?;
    let filters = query.filters(&["name", "id", "label", "mode", "runtime"])?;
    let with_status = query.flag("status");
    let snapshot = manager.read().await?;
    let services = snapshot.services().filter(|service| matches(&filters, service));
    let shown = services.map(|service| {
        let mut shown = service_to_api(service);
        shown.service_status = with_status.then(|| status(&snapshot, service));
        shown
    });
    Ok(Answer(shown.collect()))
}

fn matches(filters: &Filters, service: &types::Service) -> bool {
    let mode = match service.spec.mode {
        Mode::Replicated { .. } => "replicated",
        Mode::Global => "global",
        Mode::ReplicatedJob { .. } => "replicated-job",
        Mode::GlobalJob => "global-job",
    };
    super::any_prefix(filters.get("id"), &service.id.to_string())
        && super::any_prefix(filters.get("name"), service.name())
        && super::any_equal(filters.get("mode"), mode)
        && super::any_equal(filters.get("runtime"), "container")
        && super::all_labels(filters.get("label"), &service.spec.annotations.labels)
}

async fn create(
    State(state): State<ApiState>,
    headers: HeaderMap,
    pins: PinsImages,
    LenientJson(spec): LenientJson<ServiceSpec>,
) -> Result<(StatusCode, Answer<ServiceCreateResponse>), ApiError> {
    let manager = state.swarm.manager()?;
    let mut spec = spec_from_api(spec, registry_auth(&headers))?;
    check_networks(&state, &mut spec)?;
    if spec.annotations.name.is_empty() {
        spec.annotations.name = engine::names::invented(0);
    }
    let warnings = pins.pin(&state, &mut spec).await;
    let created = manager.create_service(spec).await?;
    let answer = ServiceCreateResponse { id: created.id.to_string(), warnings };
    Ok((StatusCode::CREATED, Answer(answer)))
}

fn registry_auth(headers: &HeaderMap) -> &str {
    headers.get(REGISTRY_AUTH).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// Services join networks of the swarm, and those that every node has, which stand by their names.
fn check_networks(state: &ApiState, spec: &mut types::ServiceSpec) -> Result<(), ApiError> {
    for network in spec.task.networks.iter_mut().chain(&mut spec.networks) {
        let target = &network.target;
        let named = PREDEFINED.iter().find(|name| *target == predefined_id(name));
        if let Some(name) = named {
            (*name).clone_into(&mut network.target);
        } else if let Ok(Some(local)) = state.engine.networks.find(target)
            && !local.is_of_swarm
            && state.swarm.networks().iter().all(|known| known.name() != target)
        {
            let message = format!(
                "The network {target} cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver."
            );
            return Err(ApiError::new(StatusCode::FORBIDDEN, message));
        }
    }
    Ok(())
}

async fn inspect(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
    query: Query,
) -> Result<Answer<Service>, ApiError> {
    let snapshot = state.swarm.manager()?.read().await?;
    let service = lookup::service(&snapshot, &reference)?;
    if !query.flag("insertDefaults") {
        return Ok(Answer(service_to_api(&service)));
    }
    let mut filled = types::Service::clone(&service);
    filled.spec = std::sync::Arc::new(with_defaults(&filled.spec));
    Ok(Answer(service_to_api(&filled)))
}

/// The spec with every default written out.
fn with_defaults(spec: &types::ServiceSpec) -> types::ServiceSpec {
    let mut spec = spec.clone();
    let update = UpdateConfig { monitor: Some(UpdateConfig::MONITOR), ..UpdateConfig::default() };
    spec.update.get_or_insert(update);
    spec.rollback.get_or_insert(update);
    let restart = spec.task.restart.get_or_insert_default();
    restart.delay.get_or_insert(RestartPolicy::DELAY);
    spec.endpoint.get_or_insert_default();
    let grace = &mut spec.task.container.stop_grace_period;
    grace.get_or_insert(types::limits::STOP_GRACE_PERIOD);
    spec.task.container.dns.get_or_insert_default();
    spec
}

async fn update(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
    query: Query,
    headers: HeaderMap,
    pins: PinsImages,
    LenientJson(spec): LenientJson<ServiceSpec>,
) -> Result<Answer<ServiceUpdateResponse>, ApiError> {
    let version = super::object_version(&query, "service")?;
    let manager = state.swarm.manager()?;
    let service = lookup::service(&*manager.read().await?, &reference)?;
    let is_rollback = match query.text("rollback") {
        "" => false,
        "previous" => true,
        other => {
            return Err(ApiError::bad_request(format!("unrecognized rollback option {other}")));
        }
    };
    let registry_auth_from = match query.text("registryAuthFrom") {
        "" | "spec" => RegistryAuthFrom::Spec,
        "previous-spec" => RegistryAuthFrom::PreviousSpec,
        _ => return Err(ApiError::bad_request("unsupported registryAuthFrom value")),
    };
    let mut spec = match is_rollback {
        true => types::ServiceSpec::default(),
        false => spec_from_api(spec, registry_auth(&headers))?,
    };
    check_networks(&state, &mut spec)?;
    let warnings = pins.pin(&state, &mut spec).await;
    let update = Update { id: service.id, version, spec, is_rollback, registry_auth_from };
    manager.update_service(update).await?;
    Ok(Answer(ServiceUpdateResponse { warnings: (!warnings.is_empty()).then_some(warnings) }))
}

async fn remove(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
) -> Result<StatusCode, ApiError> {
    let manager = state.swarm.manager()?;
    let service = lookup::service(&*manager.read().await?, &reference)?;
    manager.remove_service(service.id).await?;
    Ok(StatusCode::OK)
}

async fn logs(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let manager = state.swarm.manager()?;
    let service = lookup::service(&*manager.read().await?, &reference)?;
    swarm_logs::of_service(&state, &service, &query, &request)
}
