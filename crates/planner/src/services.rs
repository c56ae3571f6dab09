//! How a service's spec becomes objects: the service itself, and the template its tasks are made from.

use std::sync::Arc;

use store::Draft;
use types::endpoint::Endpoint;
use types::service::Previous;
use types::{Meta, Service, ServiceId, ServiceSpec, TaskTemplate};

/// Writes a new service and its first template.
pub fn create(draft: &mut Draft, id: ServiceId, spec: ServiceSpec) {
    let template_version = draft.next_version();
    draft.put(TaskTemplate::new(id, template_version, &spec));
    draft.put(Service {
        id,
        meta: Meta::default(),
        spec: Arc::new(spec),
        template_version,
        previous: None,
        endpoint: Endpoint::default(),
        update_status: None,
    });
}

/// Gives a service another spec, and keeps the one before for a rollback. There is a new template only where the tasks
/// have to differ; an update that was under way is forgotten, and the planner begins the next one.
pub fn update(draft: &mut Draft, service: &Arc<Service>, spec: ServiceSpec) {
    let version = draft.next_version();
    let template = draft.template(service.id, service.template_version);
    let is_kept = template.is_some_and(|template| template.satisfies(&spec));
    if !is_kept {
        draft.put(TaskTemplate::new(service.id, version, &spec));
    }
    draft.update_service(service, |service| {
        service.previous = Some(Previous {
            spec: service.spec.clone(),
            template_version: service.template_version,
        });
        service.spec = Arc::new(spec);
        service.update_status = None;
        if !is_kept {
            service.template_version = version;
        }
    });
}
