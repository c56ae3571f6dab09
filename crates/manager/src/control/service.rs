//! Services: create, update, roll back, remove.

use std::sync::Arc;

use planner::services;
use serde::{Deserialize, Serialize};
use store::{Draft, Key};
use types::endpoint::PublishMode;
use types::service::{Previous, UpdateState, UpdateStatus};
use types::{Service, ServiceId, ServiceSpec};

use super::request::{Request, Response};
use super::{network, validate};
use crate::Manager;
use crate::error::{Code, Error};
use crate::writer::Writer;

/// A service that was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    pub id: ServiceId,
}

/// Whose registry credentials an update keeps when it brings none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryAuthFrom {
    #[default]
    Spec,
    PreviousSpec,
}

/// What an update asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    pub id: ServiceId,
    /// The version the caller has read.
    pub version: u64,
    pub spec: ServiceSpec,
    /// Go back to the spec before the last update; `spec` is not looked at then.
    pub is_rollback: bool,
    pub registry_auth_from: RegistryAuthFrom,
}

impl Manager {
    /// Creates a service; its tasks are planned in the same log entry.
    ///
    /// # Errors
    /// What is wrong with the spec, or with what it collides; nothing is created then.
    pub async fn create_service(&self, spec: ServiceSpec) -> Result<Created, Error> {
        validate::service_spec(&spec)?;
        match self.ask(Request::CreateService(Box::new(spec))).await? {
            Response::ServiceCreated(created) => Ok(created),
            _ => Err(Error::unexpected_answer()),
        }
    }

    /// Replaces a service's spec; tasks are replaced as its update configuration says.
    pub async fn update_service(&self, update: Update) -> Result<(), Error> {
        if !update.is_rollback {
            validate::service_spec(&update.spec)?;
        }
        self.tell(Request::UpdateService(Box::new(update))).await
    }

    /// Removes a service; its tasks are stopped and forgotten.
    pub async fn remove_service(&self, id: ServiceId) -> Result<(), Error> {
        self.tell(Request::RemoveService(id)).await
    }
}

pub(super) async fn create(writer: &Writer, spec: ServiceSpec) -> Result<Created, Error> {
    validate::service_spec(&spec)?;
    let id = ServiceId::from_random(rand::random());
    let change = |draft: &mut Draft| {
        let mut spec = spec;
        check_collisions(draft, &spec, None)?;
        network::resolve(draft, &mut spec)?;
        services::create(draft, id, spec);
        Ok(Created { id })
    };
    writer.write(change).await
}

pub(super) async fn update(writer: &Writer, update: Update) -> Result<(), Error> {
    if !update.is_rollback {
        validate::service_spec(&update.spec)?;
    }
    writer.write(|draft| write_update(draft, update)).await
}

pub(super) async fn remove(writer: &Writer, id: ServiceId) -> Result<(), Error> {
    let change = |draft: &mut Draft| {
        draft.service(id).ok_or_else(|| not_found(id))?;
        draft.delete(Key::Service(id));
        Ok(())
    };
    writer.write(change).await
}

fn not_found(id: ServiceId) -> Error {
    Error::plain(Code::NotFound, format!("service {id} not found"))
}

fn write_update(draft: &mut Draft, update: Update) -> Result<(), Error> {
    let service = draft.service(update.id).cloned().ok_or_else(|| not_found(update.id))?;
    if service.meta.version != update.version {
        return Err(Error::out_of_sequence());
    }
    if update.is_rollback {
        return roll_back(draft, &service);
    }
    let mut spec = update.spec;
    let refuse = |desc: &str| Err(Error::new(Code::Unimplemented, desc));
    if spec.annotations.name != service.spec.annotations.name {
        return refuse("renaming services is not supported");
    }
    if std::mem::discriminant(&spec.mode) != std::mem::discriminant(&service.spec.mode) {
        return refuse("service mode change is not allowed");
    }
    check_collisions(draft, &spec, Some(update.id))?;
    network::resolve(draft, &mut spec)?;
    keep_credentials(&mut spec, &service, update.registry_auth_from);
    services::update(draft, &service, spec);
    Ok(())
}

/// Goes back to the spec before. Its template is still stored, so tasks that never left it stay.
fn roll_back(draft: &mut Draft, service: &Arc<Service>) -> Result<(), Error> {
    let missing = || {
        let desc = format!("service {} does not have a previous spec", service.id);
        Error::new(Code::FailedPrecondition, desc)
    };
    let previous = service.previous.clone().ok_or_else(missing)?;
    let now = draft.now();
    let changes_tasks = previous.template_version != service.template_version;
    let total = draft.tasks_of(service.id).filter(|task| task.is_wanted()).count();
    draft.update_service(service, |service| {
        // What is left becomes what can be gone back to: a second rollback undoes the first, as in Docker.
        let left = Previous {
            spec: std::mem::replace(&mut service.spec, previous.spec),
            template_version: service.template_version,
        };
        service.template_version = previous.template_version;
        service.previous = Some(left);
        service.update_status = changes_tasks.then(|| UpdateStatus {
            state: UpdateState::RollbackStarted,
            started_at: now,
            completed_at: None,
            message: "manually requested rollback".into(),
            total: u64::try_from(total).unwrap_or(u64::MAX),
            failures: 0,
        });
    });
    Ok(())
}

/// An update without credentials keeps those that the service has.
fn keep_credentials(spec: &mut ServiceSpec, service: &Service, from: RegistryAuthFrom) {
    if !spec.task.container.registry_auth.is_empty() {
        return;
    }
    let kept = match (from, &service.previous) {
        (RegistryAuthFrom::PreviousSpec, Some(previous)) => &previous.spec,
        _ => &service.spec,
    };
    spec.task.container.registry_auth.clone_from(&kept.task.container.registry_auth);
}

/// What only the whole state can tell: names and ports that others have.
fn check_collisions(
    draft: &Draft,
    spec: &ServiceSpec,
    own: Option<ServiceId>,
) -> Result<(), Error> {
    let name = &spec.annotations.name;
    if draft.service_by_name(name).is_some_and(|other| Some(other.id) != own) {
        let desc = format!("name conflicts with an existing object: service {name} already exists");
        return Err(Error::new(Code::AlreadyExists, desc));
    }
    let has_ingress = || draft.networks().any(|network| network.spec.is_ingress);
    if network::publishes(spec) && !has_ingress() {
        let desc = "service needs ingress network, but no ingress network is present";
        return Err(Error::new(Code::FailedPrecondition, desc));
    }
    let ports = spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
    let wanted: Vec<_> = ports.filter(|port| port.published != 0).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    for other in draft.services().filter(|other| Some(other.id) != own) {
        let specified = other.spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        let taken = specified.chain(&other.endpoint.ports).filter(|port| port.published != 0);
        for port in taken {
            let collides = wanted.iter().any(|wanted| {
                let both_host = wanted.mode == PublishMode::Host && port.mode == PublishMode::Host;
                wanted.protocol == port.protocol && wanted.published == port.published && !both_host
            });
            if collides {
                return Err(port_taken(other, port));
            }
        }
    }
    Ok(())
}

fn port_taken(owner: &Service, port: &types::endpoint::PortConfig) -> Error {
    let how = match port.mode {
        PublishMode::Ingress => "as an ingress port",
        PublishMode::Host => "as a host-published port",
    };
    let (number, name, id) = (port.published, owner.name(), owner.id);
    Error::invalid(format!("port '{number}' is already in use by service '{name}' ({id}) {how}"))
}
