//! `/distribution`: what a registry has under a name, and `/auth`: whether it knows a user.

use axum::extract::{FromRef, Path, State};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use docker_types::image::{
    AuthConfig, AuthResponse, DistributionInspect, ImageDescriptor, ImagePlatform,
};
use engine::images::platform::Platform;
use engine::images::reference::{AnyReference, Reference};
use engine::images::{Error, Images};
use engine::registry::auth::Credentials;
use http::HeaderMap;

use super::images::ImageState;
use super::images::credentials;
use crate::error::ApiError;
use crate::json::LenientJson;

pub(crate) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ImageState: FromRef<S>,
{
    Router::new().route("/distribution/{*name}", get(inspect)).route("/auth", post(login))
}

async fn inspect(
    State(state): State<ImageState>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Answer<DistributionInspect>, ApiError> {
    let name = path.strip_suffix("/json").ok_or_else(ApiError::page_not_found)?;
    let reference = named(name)?;
    let credentials = credentials(&headers).unwrap_or_default();
    let images: Images = state.images;
    let resolved = images.resolve(&reference, &credentials).await?;
    Ok(Answer(DistributionInspect {
        descriptor: ImageDescriptor {
            media_type: resolved.media_type,
            digest: resolved.digest.to_string(),
            size: resolved.size,
        },
        platforms: resolved.platforms.into_iter().map(platform).collect(),
    }))
}

/// A registry knows repositories, not the ids of images.
fn named(name: &str) -> Result<Reference, ApiError> {
    match AnyReference::parse(name).map_err(Error::from)? {
        AnyReference::Named(reference) => Ok(reference),
        AnyReference::Digest(_) => {
            Err(ApiError::bad_request(format!("unknown image reference format: {name}")))
        }
    }
}

fn platform(platform: Platform) -> ImagePlatform {
    ImagePlatform {
        architecture: platform.architecture,
        os: platform.os,
        os_version: platform.os_version.unwrap_or_default(),
        variant: platform.variant.unwrap_or_default(),
    }
}

async fn login(
    State(state): State<ImageState>,
    LenientJson(auth): LenientJson<AuthConfig>,
) -> Result<Answer<AuthResponse>, ApiError> {
    state.images.login(&Credentials::new(auth)).await?;
    let status = "Login Succeeded".to_owned();
    Ok(Answer(AuthResponse { status, identity_token: String::new() }))
}
