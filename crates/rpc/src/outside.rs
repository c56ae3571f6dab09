//! Calls to who is no node of the swarm: HTTPS, one request for each connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Error;
use crate::client::chain;
use crate::identity::{self, SharedIdentity};

/// Bytes of an answer: a certificate and some words.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Posts JSON to an https URL and answers with the body of a success.
///
/// The server is believed when its certificate is of one of `roots` (PEM) or of a public authority. It is shown this
/// node's certificate, if it asks for one.
///
/// # Errors
/// [`Error::Outside`] in all cases.
pub async fn post_json(
    url: &str,
    roots: &[&str],
    identity: Option<&SharedIdentity>,
    body: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>, Error> {
    let failed = |reason: String| Error::Outside { url: url.to_owned(), reason };
    let config = identity::outside(roots, identity).map_err(|error| failed(error.to_string()))?;
    let posted = tokio::time::timeout(timeout, post(url, config, body)).await;
    let posted = posted.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
    posted.map_err(failed)
}

/// Whether somebody answers at an https URL who is believed as [`post_json`] does.
///
/// # Errors
/// [`Error::Outside`] with what stands in the way.
pub async fn reach(
    url: &str,
    roots: &[&str],
    identity: Option<&SharedIdentity>,
    timeout: Duration,
) -> Result<(), Error> {
    let failed = |reason: String| Error::Outside { url: url.to_owned(), reason };
    let config = identity::outside(roots, identity).map_err(|error| failed(error.to_string()))?;
    let reached =
        tokio::time::timeout(timeout, connect(&parsed(url).map_err(failed)?, config)).await;
    let reached = reached.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
    reached.map(drop).map_err(failed)
}

fn parsed(url: &str) -> Result<Uri, String> {
    let uri: Uri = url.parse().map_err(|_| "this is no URL")?;
    match uri.host() {
        Some(_) => Ok(uri),
        None => Err("this URL names no host".to_owned()),
    }
}

async fn connect(uri: &Uri, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, String> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "this is no name of a host")?;
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await;
    let stream = stream.map_err(|error| chain(&error))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| chain(&error))
}

async fn post(url: &str, config: Arc<ClientConfig>, body: &[u8]) -> Result<Vec<u8>, String> {
    let uri = parsed(url)?;
    let tls = connect(&uri, config).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(tls)).await.map_err(|error| chain(&error))?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .map_err(|_| "this URL cannot be asked for")?;
    let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    connection.abort();
    let answer = answer.map_err(|error| error.to_string())?.to_bytes();
    match status {
        StatusCode::OK => Ok(answer.to_vec()),
        _ => Err(format!("status {status}")),
    }
}
