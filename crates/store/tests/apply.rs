//! Sentences about `apply` and `Draft`.

use std::sync::Arc;

use proptest::prelude::*;
use store::{ChangeSet, Draft, Key, Rejected, Snapshot, apply};
use types::task::Slot;
use types::{Meta, NodeId, Service, ServiceId, ServiceSpec, Task, TaskId, TaskState, Timestamp};

fn service(id: u128, name: &str) -> Service {
    let mut spec = ServiceSpec::default();
    spec.annotations.name = name.into();
    Service {
        id: ServiceId::from_random(id),
        meta: Meta::default(),
        spec: Arc::new(spec),
        template_version: 1,
        previous: None,
        endpoint: types::endpoint::Endpoint::default(),
        update_status: None,
    }
}

fn task(id: u128, service: u128, node: Option<u128>) -> Task {
    Task {
        id: TaskId::from_random(id),
        meta: Meta::default(),
        service: ServiceId::from_random(service),
        template_version: 1,
        slot: Slot::Replica(1),
        node: node.map(NodeId::from_random),
        desired_state: TaskState::Running,
        status: types::TaskStatus::default(),
        start_after: None,
        place_after: None,
        waits_for: None,
        restarts: types::task::RestartHistory::default(),
        is_settled: false,
        networks: vec![],
    }
}

fn commit(snapshot: &Snapshot, at: i64, change: impl FnOnce(&mut Draft)) -> Snapshot {
    let mut draft = Draft::new(snapshot.clone(), Timestamp(at));
    change(&mut draft);
    apply(snapshot, &draft.finish()).expect("made from this snapshot").0
}

#[test]
fn a_change_made_from_an_older_version_is_rejected_whole() {
    let first = commit(&Snapshot::default(), 1, |draft| draft.put(service(1, "web")));
    let mut stale = Draft::new(first.clone(), Timestamp(2));
    stale.put(service(2, "other"));
    let web = stale.service(ServiceId::from_random(1)).cloned().expect("created");
    stale.update_service(&web, |web| web.template_version = 7);
    let second = commit(&first, 3, |draft| {
        let web = draft.service(ServiceId::from_random(1)).cloned().expect("created");
        draft.update_service(&web, |web| web.template_version = 9);
    });
    let rejected = apply(&second, &stale.finish()).expect_err("stale");
    assert_eq!(
        rejected,
        Rejected::Object {
            key: Key::Service(ServiceId::from_random(1)),
            from: Some(1),
            found: Some(2)
        }
    );
    assert!(second.service_by_name("other").is_none());
}

#[test]
fn creation_time_is_kept_and_version_grows() {
    let first = commit(&Snapshot::default(), 10, |draft| draft.put(service(1, "web")));
    let second = commit(&first, 20, |draft| {
        let web = draft.service_by_name("web").cloned().expect("created");
        draft.update_service(&web, |web| web.template_version = 2);
    });
    let meta = second.service_by_name("web").expect("still there").meta;
    assert_eq!((meta.version, meta.created_at, meta.updated_at), (2, Timestamp(10), Timestamp(20)));
}

#[test]
fn a_draft_that_ends_where_it_began_changes_nothing() {
    let first = commit(&Snapshot::default(), 1, |draft| draft.put(task(1, 1, None)));
    let mut draft = Draft::new(first, Timestamp(2));
    let original = draft.task(TaskId::from_random(1)).cloned().expect("created");
    draft.update_task(&original, |task| task.desired_state = TaskState::Shutdown);
    draft.put(Task::clone(&original));
    draft.put(task(2, 1, None));
    draft.delete(Key::Task(TaskId::from_random(2)));
    assert_eq!(draft.finish(), ChangeSet { at: Timestamp(2), ..ChangeSet::default() });
}

#[derive(Clone, Debug)]
enum Step {
    Put { id: u128, service: u128, node: Option<u128> },
    Delete { id: u128 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let put = (0u128..12, proptest::option::of(0u128..3)).prop_map(|(id, node)| Step::Put {
        id,
        service: id % 3,
        node,
    });
    let delete = (0u128..12).prop_map(|id| Step::Delete { id });
    proptest::collection::vec(prop_oneof![3 => put, 1 => delete], 0..60)
}

proptest! {
    #[test]
    fn indexes_hold_exactly_what_the_tasks_say(steps in steps()) {
        let mut snapshot = Snapshot::default();
        for (at, step) in steps.into_iter().enumerate() {
            snapshot = commit(&snapshot, i64::try_from(at).expect("few steps"), |draft| match step {
                Step::Put { id, service, node } => {
                    let known = draft.task(TaskId::from_random(id)).and_then(|task| task.node);
                    let mut next = task(id, service, node);
                    next.node = known.or(next.node);
                    draft.put(next);
                }
                Step::Delete { id } => draft.delete(Key::Task(TaskId::from_random(id))),
            });
        }
        for number in 0..3 {
            let (by, on) = (ServiceId::from_random(number), NodeId::from_random(number));
            prop_assert!(snapshot.tasks_of(by).eq(snapshot.tasks().filter(|task| task.service == by)));
            prop_assert!(snapshot.tasks_on(on).eq(snapshot.tasks().filter(|task| task.node == Some(on))));
        }
        let bytes = rmp_serde::to_vec_named(&snapshot).expect("encodes");
        prop_assert_eq!(&rmp_serde::from_slice::<Snapshot>(&bytes).expect("decodes"), &snapshot);
    }
}

fn play(draft: &mut Draft, steps: &[Step]) {
    for step in steps {
        match *step {
            Step::Put { id, service: of, node } => {
                let known = draft.task(TaskId::from_random(id)).and_then(|task| task.node);
                draft.put(Task {
                    node: known.or(node.map(NodeId::from_random)),
                    ..task(id, of, None)
                });
                draft.put(service(id, &format!("name{}", of * 10 + id)));
            }
            Step::Delete { id } => {
                draft.delete(Key::Task(TaskId::from_random(id)));
                draft.delete(Key::Service(ServiceId::from_random(id)));
            }
        }
    }
}

/// The same objects found in the same ways.
fn assert_same(one: &Snapshot, other: &Snapshot) {
    assert_eq!(one, other);
    for number in 0..3 {
        let (by, on) = (ServiceId::from_random(number), NodeId::from_random(number));
        assert!(one.tasks_of(by).eq(other.tasks_of(by)));
        assert!(one.tasks_on(on).eq(other.tasks_on(on)));
    }
    for number in 0..32 {
        let name = format!("name{number}");
        assert_eq!(one.service_by_name(&name), other.service_by_name(&name), "{name}");
    }
}

proptest! {
    #[test]
    fn a_draft_is_committed_as_its_changes_are_applied_and_undone_to_what_it_began_with(
        (before, after) in (steps(), steps()),
    ) {
        let base = commit(&Snapshot::default(), 1, |draft| play(draft, &before));
        let drafted = || {
            let mut draft = Draft::new(base.clone(), Timestamp(2));
            play(&mut draft, &after);
            draft
        };
        assert_same(&drafted().undo(), &base);
        let set = drafted().finish();
        let applied = match set.is_empty() {
            true => base.clone(),
            false => apply(&base, &set).expect("made from it").0,
        };
        let (committed, state) = drafted().commit();
        assert_same(&state, &applied);
        // Elsewhere it is applied with the versions and times that are in it already.
        if !committed.is_empty() {
            let (again, events) = apply(&base, &committed).expect("made from it");
            assert_same(&again, &applied);
            prop_assert_eq!(events, apply(&base, &set).expect("made from it").1);
        }
    }
}

#[test]
fn a_name_goes_from_one_service_to_another_within_a_change() {
    for (old, new) in [(1, 2), (2, 1)] {
        let base = commit(&Snapshot::default(), 1, |draft| draft.put(service(old, "web")));
        let mut draft = Draft::new(base.clone(), Timestamp(2));
        draft.delete(Key::Service(ServiceId::from_random(old)));
        draft.put(service(new, "web"));
        let after = apply(&base, &draft.finish()).expect("made from it").0;
        let found = after.service_by_name("web").expect("is there");
        assert_eq!(found.id, ServiceId::from_random(new));
    }
}

#[test]
fn a_set_that_relies_on_others_is_refused_where_they_were_not_applied() {
    let agreed = Snapshot::default();
    let proposed = commit(&agreed, 1, |draft| draft.put(service(1, "web")));
    let nothing = ChangeSet::nothing_after(&proposed, Timestamp(2));
    assert!(apply(&proposed, &nothing).is_ok());
    let rejected = apply(&agreed, &nothing).expect_err("the service is missing");
    assert_eq!(rejected, Rejected::State { from: 1, found: 0 });
}
