//! Credentials, and the tokens that they are changed for.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bytes::Bytes;
use docker_types::image::AuthConfig;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use serde::Deserialize;

use super::challenge::Challenge;
use super::config::Endpoint;
use super::error::Error;
use super::session::{read_body, set_user_agent};
use super::transport::{Body, Http};

/// Largest answer of a token server, in bytes. Tokens have a few KiB.
const TOKEN_BYTES_MAX: u64 = 1024 * 1024;
/// Largest `X-Registry-Auth` header, in bytes before decoding.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// How long a token holds when the server does not say, by the token specification.
const TOKEN_PERIOD_DEFAULT: Duration = Duration::from_secs(60);
/// A token is renewed this long before it ends, for requests on their way.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
/// Clients write base64 for URLs, with or without padding.
const HEADER_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Who asks, as far as the registry is to know.
#[derive(Clone, Debug, Default)]
pub struct Credentials(AuthConfig);

/// What goes into `Authorization`.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    /// When it is of no use any more.
    pub(super) expires: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    /// In seconds.
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Credentials {
    /// Those of a request's body or of a decoded header.
    pub fn new(config: AuthConfig) -> Self {
        Self(config)
    }

    /// Reads the header `X-Registry-Auth`. An empty one means nobody.
    ///
    /// # Errors
    /// [`Error::Credentials`].
    pub fn from_header(header: &str) -> Result<Self, Error> {
        if header.is_empty() {
            return Ok(Self::default());
        }
        if header.len() > HEADER_BYTES_MAX {
            return Err(Error::Credentials("X-Registry-Auth header is too long"));
        }
        let text = header.replace('+', "-").replace('/', "_");
        let json = HEADER_BASE64
            .decode(text.trim())
            .map_err(|_| Error::Credentials("X-Registry-Auth header is not base64"))?;
        serde_json::from_slice(&json)
            .map(Self)
            .map_err(|_| Error::Credentials("X-Registry-Auth header is not JSON"))
    }

    /// The registry that they are for, as the client wrote it.
    pub fn server(&self) -> &str {
        &self.0.serveraddress
    }

    /// `user:password` in base64.
    fn basic(&self) -> Option<HeaderValue> {
        let encoded = if self.0.username.is_empty() {
            Some(self.0.auth.clone()).filter(|auth| !auth.is_empty())?
        } else {
            STANDARD.encode(format!("{}:{}", self.0.username, self.0.password))
        };
        sensitive(&format!("Basic {encoded}"))
    }
}

/// Answers the registry's challenges.
///
/// # Errors
/// [`Error::NoCredentials`] when it wants a password and there is none; [`Error::Token`] when the
/// token server refuses. `None` when there is no challenge that we know.
pub(super) async fn answer(
    http: &Http,
    endpoint: &Endpoint,
    credentials: &Credentials,
    challenges: &[Challenge],
    scopes: &[String],
    asked: (&Method, &str),
) -> Result<Option<Authorization>, Error> {
    let of_scheme = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
    if let Some(challenge) = of_scheme("bearer") {
        if !credentials.0.registrytoken.is_empty() {
            let header = sensitive(&format!("Bearer {}", credentials.0.registrytoken));
            return Ok(header.map(|header| Authorization { header, expires: None }));
        }
        return match token(http, endpoint, credentials, challenge, scopes).await {
            Ok(authorization) => Ok(Some(authorization)),
            Err(source @ Error::Transport { .. }) => Err(source),
            Err(source) => Err(Error::Token {
                method: asked.0.clone(),
                url: asked.1.to_owned(),
                source: Box::new(source),
            }),
        };
    }
    if of_scheme("basic").is_some() {
        let no_credentials =
            || Error::NoCredentials { method: asked.0.clone(), url: asked.1.to_owned() };
        let header = credentials.basic().ok_or_else(no_credentials)?;
        return Ok(Some(Authorization { header, expires: None }));
    }
    Ok(None)
}

async fn token(
    http: &Http,
    endpoint: &Endpoint,
    credentials: &Credentials,
    challenge: &Challenge,
    scopes: &[String],
) -> Result<Authorization, Error> {
    let realm = challenge.get("realm").ok_or(Error::BadAnswer("challenge without realm"))?;
    if !realm.starts_with("https://") && !realm.starts_with("http://") {
        return Err(Error::BadAnswer("realm is no address"));
    }
    // A registry that was reached safely must not make us send a password in the clear.
    if realm.starts_with("http://")
        && !endpoint.is_insecure
        && !endpoint.base.starts_with("http://")
    {
        return Err(Error::BadAnswer("realm would have credentials sent unencrypted"));
    }
    let service = challenge.get("service").unwrap_or_default();
    let scopes: Vec<&str> = match scopes {
        [] => challenge.get("scope").into_iter().collect(),
        scopes => scopes.iter().map(String::as_str).collect(),
    };
    let request = if credentials.0.identitytoken.is_empty() {
        password_request(realm, service, &scopes, credentials)
    } else {
        refresh_request(realm, service, &scopes, credentials)
    };
    let mut request = request?;
    set_user_agent(&mut request);
    let response = http.send(request).await?;
    let status = response.status();
    let body = read_body(response.into_body(), TOKEN_BYTES_MAX).await?;
    if status != StatusCode::OK {
        return Err(Error::from_answer(status, None, &body));
    }
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|_| Error::BadAnswer("token server's answer is not JSON"))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(Error::BadAnswer(
            "authorization server did not include a token in the response",
        ));
    }
    let header = sensitive(&format!("Bearer {token}"))
        .ok_or(Error::BadAnswer("token has odd characters"))?;
    let period = answer.expires_in.map_or(TOKEN_PERIOD_DEFAULT, Duration::from_secs);
    let expires = Instant::now().checked_add(period.saturating_sub(TOKEN_MARGIN));
    Ok(Authorization { header, expires })
}

/// The token specification's form: a GET with basic authentication, or without for anybody.
fn password_request(
    realm: &str,
    service: &str,
    scopes: &[&str],
    credentials: &Credentials,
) -> Result<Request<Body>, Error> {
    let mut pairs = Vec::new();
    if !credentials.0.username.is_empty() {
        pairs.push(("account", credentials.0.username.as_str()));
    }
    if !service.is_empty() {
        pairs.push(("service", service));
    }
    pairs.extend(scopes.iter().map(|scope| ("scope", *scope)));
    let separator = if realm.contains('?') { '&' } else { '?' };
    let mut request = Request::get(format!("{realm}{separator}{}", form(&pairs)));
    if let Some(basic) = credentials.basic() {
        request = request.header(header::AUTHORIZATION, basic);
    }
    let body = Empty::new().map_err(|never| match never {}).boxed();
    request.body(body).map_err(|_| Error::BadAnswer("realm is no address"))
}

/// OAuth 2's form, for clients that hold a refresh token instead of a password.
fn refresh_request(
    realm: &str,
    service: &str,
    scopes: &[&str],
    credentials: &Credentials,
) -> Result<Request<Body>, Error> {
    let scope = scopes.join(" ");
    let body = form(&[
        ("grant_type", "refresh_token"),
        ("service", service),
        ("client_id", "skep"),
        ("scope", &scope),
        ("refresh_token", &credentials.0.identitytoken),
    ]);
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
    Request::post(realm)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body)
        .map_err(|_| Error::BadAnswer("realm is no address"))
}

/// Percent-encodes pairs for a query or a form.
pub(super) fn form(pairs: &[(&str, &str)]) -> String {
    let encode = |text: &str| -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        text.bytes()
            .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect()
    };
    let pairs: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
    pairs.join("&")
}

/// A header that is not printed by anything that prints headers.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_in_all_the_forms_that_clients_write() {
        let json = r#"{"username":"user","password":"pa?s>","serveraddress":"x"}"#;
        for text in [
            base64::engine::general_purpose::URL_SAFE.encode(json),
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json),
            STANDARD.encode(json),
        ] {
            let credentials = Credentials::from_header(&text).unwrap();
            let basic = credentials.basic().unwrap();
            assert_eq!(basic.to_str().unwrap(), format!("Basic {}", STANDARD.encode("user:pa?s>")));
            assert_eq!(credentials.server(), "x");
        }
        for text in ["", "e30="] {
            assert!(Credentials::from_header(text).unwrap().basic().is_none());
        }
        for (text, message) in [
            ("!!", "invalid credentials: X-Registry-Auth header is not base64"),
            ("eHg", "invalid credentials: X-Registry-Auth header is not JSON"),
        ] {
            assert_eq!(Credentials::from_header(text).unwrap_err().to_string(), message);
        }
        let old = AuthConfig { auth: "dTpw".to_owned(), ..AuthConfig::default() };
        assert_eq!(Credentials::new(old).basic().unwrap().to_str().unwrap(), "Basic dTpw");
    }

    #[test]
    fn forms_are_percent_encoded() {
        assert_eq!(
            form(&[("scope", "repository:a/b:pull,push"), ("x", "é &")]),
            "scope=repository%3Aa%2Fb%3Apull%2Cpush&x=%C3%A9%20%26"
        );
    }
}
