//! Requests of the control API, one file for each noun.

pub(crate) mod attachment;
pub(crate) mod cluster;
pub mod lookup;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod request;
pub(crate) mod service;
mod validate;

use request::{Request, Response};

use crate::authority;
use crate::error::Error;
use crate::leadership::Duties;

/// Does what a request asks for, on the leader.
///
/// # Errors
/// What the request's own method says, and [`Error::is_not_leader`] on other managers.
pub(crate) async fn handle(duties: &Duties, request: Request) -> Result<Response, Error> {
    let Duties { writer, members, authority, .. } = duties;
    match request {
        Request::CreateService(spec) => {
            return Ok(Response::ServiceCreated(service::create(writer, *spec).await?));
        }
        Request::UpdateService(update) => service::update(writer, *update).await?,
        Request::RemoveService(id) => service::remove(writer, id).await?,
        Request::CreateNetwork(spec) => {
            return Ok(Response::NetworkCreated(network::create(writer, *spec).await?));
        }
        Request::RemoveNetwork(id) => network::remove(writer, id).await?,
        Request::UpdateNode { id, version, spec } => {
            node::update(writer, id, version, spec).await?
        }
        Request::RemoveNode { id, force } => node::remove(writer, id, force).await?,
        Request::UpdateCluster { version, spec, rotation } => {
            authority.check_root(&spec).await?;
            cluster::update(writer, version, *spec, rotation).await?;
        }
        Request::Issue(request) => {
            return Ok(Response::Issued(Box::new(authority.issue(request).await?)));
        }
        Request::Renew { node, request } => {
            let issued = authority.renew(node, &request).await?;
            return Ok(Response::Issued(Box::new(issued)));
        }
        Request::Attach { node, claim } => {
            return Ok(Response::Attached(Box::new(
                attachment::attach(writer, node, claim).await?,
            )));
        }
        Request::Detach { node, network, container } => {
            attachment::detach(writer, node, network, &container).await?;
        }
        Request::Hold { node, claims } => attachment::hold(writer, node, claims).await?,
        Request::Leave(node) => authority::leave(writer, node).await?,
        Request::TakeSeat { node, raft_id, address } => {
            members.seat(node, raft_id, address).await?;
        }
    }
    Ok(Response::Done)
}
