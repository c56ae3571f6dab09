//! One repository at one address of a registry: requests with authentication and redirects.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;

use super::auth::{self, Authorization, Credentials};
use super::challenge::{self, Challenge};
use super::config::{Config, Endpoint};
use super::error::{Error, Transport};
use super::tls;
use super::transport::{Body, Http, transport_error};

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 10;
/// Largest error body that is read, in bytes.
pub(super) const ERROR_BYTES_MAX: u64 = 64 * 1024;
/// TLS configurations kept, one for each host.
const CLIENTS_MAX: usize = 256;
/// How we introduce ourselves.
const USER_AGENT: &str = concat!("skep/", env!("CARGO_PKG_VERSION"));

/// The registries of the world, as this node is set up to reach them. Cloning shares connections.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    clients: Mutex<HashMap<(String, bool), Http>>,
    /// Authorities that turned out to speak plain HTTP.
    plain: Mutex<BTreeSet<String>>,
}

/// What may be done in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Pull,
    Push,
}

/// A conversation about one repository at one address.
#[derive(Debug)]
pub struct Session {
    pub(super) http: Http,
    pub(super) endpoint: Endpoint,
    /// Path of the repository, such as `library/busybox`.
    pub(super) repository: String,
    credentials: Credentials,
    scopes: Mutex<Vec<String>>,
    authorization: tokio::sync::Mutex<Option<Authorization>>,
}

/// A request that can be made again after a challenge or a redirect.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    /// Makes the body anew for each attempt.
    pub(super) body: &'a (dyn Fn() -> Body + Send + Sync),
}

impl Registry {
    /// Registries reached as `config` says.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Shared {
            config,
            clients: Mutex::new(HashMap::new()),
            plain: Mutex::new(BTreeSet::new()),
        }))
    }

    /// Conversations about `repository` of `domain`, to be tried in turn.
    ///
    /// # Errors
    /// Addresses or certificates that are set up wrongly.
    pub fn sessions(
        &self,
        domain: &str,
        repository: &str,
        access: Access,
        credentials: &Credentials,
    ) -> Result<Vec<Session>, Error> {
        let mut endpoints = match access {
            Access::Pull => self.0.config.pull_endpoints(domain)?,
            Access::Push => self.0.config.push_endpoints(domain),
        };
        let plain = self.0.plain.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Where plain HTTP was spoken last, there is no use in trying TLS first.
        endpoints.sort_by_key(|e| plain.contains(&e.authority) && e.base.starts_with("https://"));
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let scopes = match repository {
            "" => Vec::new(),
            repository => vec![format!("repository:{repository}:{actions}")],
        };
        endpoints
            .into_iter()
            .map(|endpoint| {
                let credentials =
                    if endpoint.is_mirror { Credentials::default() } else { credentials.clone() };
                Ok(Session {
                    http: self.client(&endpoint)?,
                    endpoint,
                    repository: repository.to_owned(),
                    credentials,
                    scopes: Mutex::new(scopes.clone()),
                    authorization: tokio::sync::Mutex::new(None),
                })
            })
            .collect()
    }

    /// Remembers which of an insecure registry's two addresses answered.
    pub fn remember(&self, session: &Session) {
        let endpoint = &session.endpoint;
        if !endpoint.is_insecure || endpoint.is_mirror {
            return;
        }
        let mut plain = self.0.plain.lock().unwrap_or_else(PoisonError::into_inner);
        if endpoint.base.starts_with("https://") {
            plain.remove(&endpoint.authority);
        } else if plain.len() < CLIENTS_MAX {
            plain.insert(endpoint.authority.clone());
        }
    }

    fn client(&self, endpoint: &Endpoint) -> Result<Http, Error> {
        let key = (endpoint.authority.clone(), endpoint.is_insecure);
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let config = tls::client_config(endpoint, self.0.config.certs_dir.as_deref())?;
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        let client = Http::new(config, self.0.config.proxies.clone());
        clients.insert(key, client.clone());
        Ok(client)
    }
}

impl Session {
    /// Whether a failure here says nothing about the registry itself.
    pub fn is_mirror(&self) -> bool {
        self.endpoint.is_mirror
    }

    /// Asks for the right to read another repository too, to mount blobs from it.
    pub(crate) fn add_source(&self, repository: &str) {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        let scope = format!("repository:{repository}:pull");
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }

    /// The address of something within the repository.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/v2/{}/{path}", self.endpoint.base, self.repository)
    }

    /// A request without body whose answer must be a success.
    pub(super) async fn get(
        &self,
        method: Method,
        url: String,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, Error> {
        let call = Call { method, url, headers, body: &no_body };
        let response = self.call(&call).await?;
        if response.status().is_success() { Ok(response) } else { Err(error_of(response).await) }
    }

    /// Makes a request, proving who we are when asked to and following redirects of reads. The
    /// answer may be an error's; only failures to get one are errors here.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Response<Incoming>, Error> {
        let mut url = call.url.clone();
        let mut was_challenged = false;
        for _ in 0..REDIRECTS_MAX {
            let request = self.request(call, &url).await?;
            let response = self.http.send(request).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !was_challenged && self.is_ours(&url) {
                was_challenged = true;
                if self.authorize(response.headers(), &call.method, &url).await? {
                    continue;
                }
            }
            let is_read = matches!(call.method, Method::GET | Method::HEAD);
            if !status.is_redirection() || !is_read {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            let location = location.ok_or(Error::BadAnswer("redirect without location"))?;
            url = join(&url, location)?;
        }
        let (method, source) = (call.method.clone(), Transport::Redirects);
        Err(Error::Transport { method, url: call.url.clone(), source })
    }

    async fn request(&self, call: &Call<'_>, url: &str) -> Result<Request<Body>, Error> {
        let uri: Uri = url.parse().map_err(|_| Error::Address(url.to_owned()))?;
        let mut request = Request::new((call.body)());
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        request.headers_mut().extend(call.headers.clone());
        set_user_agent(&mut request);
        // Elsewhere, such as at the storage behind a registry, nobody needs to know who we are.
        if self.is_ours(url)
            && let Some(value) = self.current().await
        {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    }

    async fn current(&self) -> Option<HeaderValue> {
        let mut authorization = self.authorization.lock().await;
        let is_over = |a: &Authorization| a.expires.is_some_and(|end| Instant::now() >= end);
        if authorization.as_ref().is_some_and(is_over) {
            *authorization = None;
        }
        authorization.as_ref().map(|a| a.header.clone())
    }

    /// Whether there is something new to try with.
    async fn authorize(
        &self,
        headers: &HeaderMap,
        method: &Method,
        url: &str,
    ) -> Result<bool, Error> {
        let challenges = challenges(headers);
        let scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut authorization = self.authorization.lock().await;
        // Basic credentials that were refused once will be refused again.
        if authorization.as_ref().is_some_and(|a| a.expires.is_none()) {
            return Ok(false);
        }
        let answer = auth::answer(
            &self.http,
            &self.endpoint,
            &self.credentials,
            &challenges,
            &scopes,
            (method, url),
        );
        *authorization = answer.await?;
        Ok(authorization.is_some())
    }

    /// Whether `url` is at the registry itself.
    fn is_ours(&self, url: &str) -> bool {
        url.strip_prefix(&self.endpoint.base).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// The error that an answer means.
pub(super) async fn error_of(response: Response<Incoming>) -> Error {
    let status = response.status();
    let bearer_error = challenges(response.headers())
        .into_iter()
        .find(|c| c.scheme == "bearer")
        .and_then(|c| c.get("error").map(str::to_owned));
    // An error whose reason is too long is still that error.
    let body = read_body(response.into_body(), ERROR_BYTES_MAX).await.unwrap_or_default();
    Error::from_answer(status, bearer_error.as_deref(), &body)
}

/// Reads a whole body of at most `max` bytes.
pub(super) async fn read_body(body: Incoming, max: u64) -> Result<Bytes, Error> {
    let limit = usize::try_from(max).unwrap_or(usize::MAX);
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Error::TooLarge { max })
        }
        Err(error) => Err(Error::Transport {
            method: Method::GET,
            url: "body".to_owned(),
            source: transport_error(error),
        }),
    }
}

/// The body of a request that has none.
pub(super) fn no_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub(super) fn set_user_agent<T>(request: &mut Request<T>) {
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// An address relative to another one.
pub(super) fn join(base: &str, location: &str) -> Result<String, Error> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Ok(location.to_owned());
    }
    let bad = || Error::Address(location.to_owned());
    let (scheme, rest) = base.split_once("://").ok_or_else(bad)?;
    if let Some(rest) = location.strip_prefix("//") {
        return Ok(format!("{scheme}://{rest}"));
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if location.starts_with('/') {
        return Ok(format!("{scheme}://{authority}{location}"));
    }
    let path = base.split('?').next().unwrap_or(base);
    let directory = path.rsplit_once('/').map_or(path, |(directory, _)| directory);
    Ok(format!("{directory}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn locations_are_relative_to_what_was_asked() {
        let base = "http://x:5000/v2/a/blobs/uploads/1?s=2";
        for (location, expected) in [
            ("https://y/z", "https://y/z"),
            ("//y/z", "http://y/z"),
            ("/v2/b?c", "http://x:5000/v2/b?c"),
            ("3?d", "http://x:5000/v2/a/blobs/uploads/3?d"),
        ] {
            assert_eq!(join(base, location).unwrap(), expected);
        }
    }
}
