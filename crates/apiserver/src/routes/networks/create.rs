//! `POST /networks/create`: which of the two kinds a network is to be, and what is refused before anybody makes it.

use axum::Json as Answer;
use axum::extract::State;
use docker_types::convert::network::spec_from_api;
use docker_types::network::{Ipam, NetworkCreateRequest, NetworkCreateResponse};
use engine::networks::PREDEFINED;
use http::StatusCode;

use super::show;
use crate::error::ApiError;
use crate::json::Json;
use crate::state::ApiState;

const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// The least and the most bytes of a packet in an overlay: what IPv4 asks for, and what a vxlan device takes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

pub(super) async fn create(
    State(state): State<ApiState>,
    Json(mut request): Json<NetworkCreateRequest>,
) -> Result<(StatusCode, Answer<NetworkCreateResponse>), ApiError> {
    if request.name.is_empty() {
        return Err(ApiError::bad_request("network name cannot be empty"));
    }
    let name = request.name.clone();
    if PREDEFINED.contains(&name.as_str()) {
        // The space at the end is Docker's.
        return Err(forbidden(format!("operation is not permitted on predefined {name} network ")));
    }
    if show::all(&state).iter().any(|network| network.name == name) {
        return Err(ApiError::conflict(format!("network with name {name} already exists")));
    }
    let is_of_swarm = decide(&state, &mut request)?;
    let id = if is_of_swarm {
        check(&state, &request)?;
        let manager = state.swarm.manager()?;
        manager.create_network(spec_from_api(request)?).await?.to_string()
    } else {
        state.engine.networks.create(request).await?
    };
    let answer = NetworkCreateResponse { id, warning: String::new() };
    Ok((StatusCode::CREATED, Answer(answer)))
}

/// Whether the network is to be one of the swarm.
fn decide(state: &ApiState, request: &mut NetworkCreateRequest) -> Result<bool, ApiError> {
    let (driver, scope) = (request.driver.as_str(), request.scope.as_str());
    match (driver, scope) {
        ("overlay", "local") => {
            Err(forbidden("cannot downgrade network scope for overlay networks"))
        }
        ("overlay", "" | "swarm" | "global") => Ok(true),
        (_, "swarm") if state.swarm.node_id().is_none() => {
            Err(forbidden("cannot create a swarm scoped network when swarm is not active"))
        }
        ("", "swarm") => {
            "bridge".clone_into(&mut request.driver);
            Ok(true)
        }
        ("bridge" | "host" | "macvlan" | "ipvlan", "swarm") => Ok(true),
        (driver, "swarm") => Err(ApiError::not_found(format!("plugin \"{driver}\" not found"))),
        (_, "" | "local") => Ok(false),
        (_, scope) => Err(ApiError::bad_request(format!("invalid network scope: {scope}"))),
    }
}

/// What a network of the swarm may not ask for, in Docker's words.
fn check(state: &ApiState, request: &NetworkCreateRequest) -> Result<(), ApiError> {
    if request.config_only {
        return Err(forbidden(
            "configuration networks are of one node: make them on each, without a scope",
        ));
    }
    let has_source = request.config_from.as_ref().is_some_and(|from| !from.network.is_empty());
    if request.driver == "bridge" && !has_source {
        return Ok(state.engine.networks.check(request)?);
    }
    if let Some(text) = request.options.as_ref().and_then(|options| options.get(MTU_OPTION)) {
        let reason = match text.parse::<u32>() {
            Ok(mtu) if MTU.contains(&mtu) => None,
            Ok(_) => Some(format!("a packet has {} to {} bytes", MTU.start(), MTU.end())),
            Err(_) => Some(format!("strconv.Atoi: parsing {text:?}: invalid syntax")),
        };
        if let Some(reason) = reason {
            let text = format!("failed to parse {MTU_OPTION} value: {text} ({reason})");
            return Err(ApiError::bad_request(text));
        }
    }
    request.ipam.as_ref().map_or(Ok(()), check_ipam)
}

fn check_ipam(ipam: &Ipam) -> Result<(), ApiError> {
    if !matches!(ipam.driver.as_str(), "" | "default") {
        let driver = &ipam.driver;
        return Err(ApiError::bad_request(format!(
            "rpc error: code = InvalidArgument desc = error during lookup of plugin {driver}"
        )));
    }
    for config in ipam.config.iter().flatten() {
        let subnet = &config.subnet;
        let is_wrong = !subnet.is_empty() && subnet.parse::<ipnet::IpNet>().is_err();
        if is_wrong {
            return Err(ApiError::bad_request(format!(
                "Invalid subnet {subnet} : invalid CIDR address: {subnet}"
            )));
        }
    }
    Ok(())
}

fn forbidden(text: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, text)
}
