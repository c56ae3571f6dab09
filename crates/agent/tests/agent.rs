//! Sentences about what a node does with its tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent::{Action, Agent, Backend, Event, Exit, Found, FoundState, Refusal, Started};
use proptest::prelude::*;
use types::assignment::{AssignmentSet, StatusReport};
use types::task::Slot;
use types::{
    NodeId, ServiceId, ServiceSpec, Task, TaskId, TaskState, TaskStatus, TaskTemplate, Timestamp,
};

const NOW: Timestamp = Timestamp(1_000);

fn task(number: u128, desired_state: TaskState) -> Arc<Task> {
    Arc::new(Task {
        id: TaskId::from_random(number),
        meta: Default::default(),
        service: ServiceId::from_random(1),
        template_version: 1,
        slot: Slot::Replica(1),
        node: Some(NodeId::from_random(1)),
        desired_state,
        status: TaskStatus { state: TaskState::Assigned, ..Default::default() },
        start_after: None,
        place_after: None,
        waits_for: None,
        restarts: Default::default(),
        is_settled: false,
        networks: vec![],
    })
}

fn full(tasks: Vec<Arc<Task>>) -> Event {
    let template = TaskTemplate::new(ServiceId::from_random(1), 1, &ServiceSpec::default());
    Event::Assigned(AssignmentSet {
        is_full: true,
        templates: vec![Arc::new(template)],
        tasks,
        ..Default::default()
    })
}

fn changed(task: Arc<Task>) -> Event {
    Event::Assigned(AssignmentSet { tasks: vec![task], ..Default::default() })
}

fn id(number: u128) -> TaskId {
    TaskId::from_random(number)
}

/// An agent that is connected, and what it does for `event`.
fn connected() -> Agent {
    let mut agent = Agent::default();
    assert_eq!(agent.handle(Event::Connected, NOW), vec![]);
    agent
}

fn reports(actions: &[Action]) -> Vec<(TaskState, String)> {
    let reports = actions.iter().filter_map(|action| match action {
        Action::Report(reports) => Some(reports),
        _ => None,
    });
    reports.flatten().map(|report| (report.status.state, report.status.err.clone())).collect()
}

fn acknowledge(agent: &mut Agent, actions: &[Action]) -> Vec<Action> {
    let sent = actions.iter().find_map(|action| match action {
        Action::Report(reports) => Some(reports.clone()),
        _ => None,
    });
    sent.map(|reports| agent.handle(Event::Reported(reports), NOW)).unwrap_or_default()
}

/// Brings task 1 to RUNNING and acknowledges every report.
fn running() -> Agent {
    let mut agent = connected();
    let events = [
        full(vec![task(1, TaskState::Running)]),
        Event::Prepared { task: id(1), result: Ok("c1".into()) },
        Event::Started {
            task: id(1),
            result: Ok(Started { pid: 7, address: "172.17.0.2".into(), ..Default::default() }),
        },
    ];
    for event in events {
        let actions = agent.handle(event, NOW);
        acknowledge(&mut agent, &actions);
    }
    agent
}

#[test]
fn a_task_is_prepared_started_and_reported_running() {
    let mut agent = connected();
    let actions = agent.handle(full(vec![task(1, TaskState::Running)]), NOW);
    assert!(matches!(actions[0], Action::Prepare { .. }), "{actions:?}");
    assert_eq!(reports(&actions), [(TaskState::Preparing, String::new())]);
    let actions = agent.handle(Event::Prepared { task: id(1), result: Ok("c1".into()) }, NOW);
    assert_eq!(actions, [Action::Start { task: id(1), container: "c1".into() }]);
    let actions = agent.handle(Event::Started { task: id(1), result: Ok(Started::default()) }, NOW);
    assert_eq!(actions, [], "one report is under way");
    let preparing = TaskStatus { state: TaskState::Preparing, ..Default::default() };
    let reported = vec![StatusReport { task: id(1), status: preparing }];
    let actions = agent.handle(Event::Reported(reported), NOW);
    assert_eq!(reports(&actions), [(TaskState::Running, String::new())], "only the newest is told");
}

#[test]
fn a_task_that_is_only_to_be_ready_is_not_started() {
    let mut agent = connected();
    agent.handle(full(vec![task(1, TaskState::Ready)]), NOW);
    let actions = agent.handle(Event::Prepared { task: id(1), result: Ok("c1".into()) }, NOW);
    assert!(!actions.iter().any(|action| matches!(action, Action::Start { .. })));
    let actions = agent.handle(changed(task(1, TaskState::Running)), NOW);
    assert!(actions.iter().any(|action| matches!(action, Action::Start { .. })));
}

#[test]
fn a_refused_image_rejects_the_task_with_the_engines_words() {
    let mut agent = connected();
    let actions = agent.handle(full(vec![task(1, TaskState::Running)]), NOW);
    acknowledge(&mut agent, &actions);
    let refusal = Refusal { message: "No such image: nope:latest".into() };
    let actions = agent.handle(Event::Prepared { task: id(1), result: Err(refusal) }, NOW);
    assert_eq!(reports(&actions), [(TaskState::Rejected, "No such image: nope:latest".to_owned())]);
}

#[test]
fn exits_are_told_with_their_code() {
    for (code, state, err) in
        [(0, TaskState::Complete, ""), (137, TaskState::Failed, "task: non-zero exit (137)")]
    {
        let mut agent = running();
        let exit = Exit { code, message: String::new() };
        let actions = agent.handle(Event::Exited { task: id(1), exit }, NOW);
        assert_eq!(reports(&actions), [(state, err.to_owned())]);
    }
}

#[test]
fn an_unhealthy_container_is_stopped_once_and_failed() {
    let mut agent = running();
    let actions = agent.handle(Event::Unhealthy { task: id(1) }, NOW);
    assert!(matches!(actions[..], [Action::Serve { .. }, Action::Stop { .. }]), "{actions:?}");
    assert_eq!(agent.handle(Event::Unhealthy { task: id(1) }, NOW), []);
    let actions = agent.handle(Event::Stopped { task: id(1), exit: Exit::default() }, NOW);
    let err = "dockerexec: unhealthy container".to_owned();
    assert_eq!(reports(&actions), [(TaskState::Failed, err)]);
}

#[test]
fn a_container_that_outlived_the_daemon_goes_on_untouched() {
    let mut agent = Agent::default();
    let started = Started { pid: 7, ..Default::default() };
    let state = FoundState::Running { started, since: Timestamp(5) };
    let found = Found { container: "c1".into(), state };
    agent.handle(Event::Found { task: id(1), container: found }, NOW);
    agent.handle(Event::Connected, NOW);
    let mut known = Task::clone(&task(1, TaskState::Running));
    known.status.state = TaskState::Running;
    assert_eq!(agent.handle(full(vec![Arc::new(known)]), NOW), []);
}

#[test]
fn an_exit_during_the_daemons_absence_is_told() {
    let mut agent = Agent::default();
    let exit = Exit { code: 3, message: String::new() };
    let found = Found { container: "c1".into(), state: FoundState::Exited { exit } };
    agent.handle(Event::Found { task: id(1), container: found }, NOW);
    agent.handle(Event::Connected, NOW);
    let actions = agent.handle(full(vec![task(1, TaskState::Running)]), NOW);
    assert_eq!(reports(&actions), [(TaskState::Failed, "task: non-zero exit (3)".to_owned())]);
}

#[test]
fn a_container_of_a_forgotten_task_is_removed() {
    let mut agent = Agent::default();
    let found = Found { container: "c9".into(), state: FoundState::Created };
    agent.handle(Event::Found { task: id(9), container: found }, NOW);
    let actions = agent.handle(full(vec![]), NOW);
    assert_eq!(actions, [Action::Remove { task: id(9), container: "c9".into() }]);
}

#[test]
fn a_container_made_too_late_is_removed() {
    let mut agent = connected();
    agent.handle(full(vec![task(1, TaskState::Running)]), NOW);
    agent.handle(full(vec![]), NOW);
    assert_eq!(agent.task_count(), 0);
    let actions = agent.handle(Event::Prepared { task: id(1), result: Ok("c1".into()) }, NOW);
    assert_eq!(actions, [Action::Remove { task: id(1), container: "c1".into() }]);
}

#[test]
fn a_task_takes_connections_while_it_runs_and_none_before_it_is_told_to_stop() {
    let mut agent = connected();
    agent.handle(full(vec![task(1, TaskState::Running)]), NOW);
    agent.handle(Event::Prepared { task: id(1), result: Ok("c1".into()) }, NOW);
    let started = Started { address: "172.17.0.2".into(), ..Started::default() };
    let actions = agent.handle(Event::Started { task: id(1), result: Ok(started) }, NOW);
    let serve = |is_serving| {
        let address = "172.17.0.2".to_owned();
        let backends = vec![Backend { task: id(1), address, is_serving }];
        Action::Serve { service: ServiceId::from_random(1), backends }
    };
    assert_eq!(actions[0], serve(true), "before anybody is told that it runs");
    let actions = agent.handle(changed(task(1, TaskState::Shutdown)), NOW);
    assert_eq!(actions[0], serve(false), "what is under way goes on");
    assert!(matches!(actions[1], Action::Stop { .. }), "{actions:?}");
    let actions = agent.handle(Event::Stopped { task: id(1), exit: Exit::default() }, NOW);
    let nobody = Action::Serve { service: ServiceId::from_random(1), backends: vec![] };
    assert_eq!(actions[0], nobody);
}

#[derive(Clone, Debug)]
enum Step {
    Assign {
        number: u128,
        desired: TaskState,
    },
    Full {
        numbers: BTreeSet<u128>,
    },
    /// Answers the nth outstanding action, well or badly.
    Answer {
        nth: usize,
        well: bool,
    },
    Exit {
        number: u128,
    },
    Unhealthy {
        number: u128,
    },
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let number = 1u128..5;
    let desired = prop_oneof![
        Just(TaskState::Ready),
        Just(TaskState::Running),
        Just(TaskState::Shutdown),
        Just(TaskState::Remove)
    ];
    prop_oneof![
        3 => (number.clone(), desired).prop_map(|(number, desired)| Step::Assign { number, desired }),
        1 => proptest::collection::btree_set(number.clone(), 0..5).prop_map(|numbers| Step::Full { numbers }),
        8 => (0usize..6, proptest::bool::weighted(0.8)).prop_map(|(nth, well)| Step::Answer { nth, well }),
        1 => number.clone().prop_map(|number| Step::Exit { number }),
        1 => number.prop_map(|number| Step::Unhealthy { number }),
        1 => Just(Step::Reconnect),
    ]
}

/// The engine under the agent: what was ordered and not yet done, and which containers there are.
#[derive(Default)]
struct Engine {
    outstanding: Vec<Action>,
    containers: BTreeMap<String, bool>,
    made: usize,
    told: BTreeMap<TaskId, TaskState>,
    /// Tasks the cluster has forgotten: their identifiers never come back.
    forgotten: BTreeSet<u128>,
}

impl Engine {
    fn take(&mut self, actions: Vec<Action>) {
        for action in &actions {
            match action {
                Action::Start { container, .. } => {
                    assert_eq!(self.containers.get(container), Some(&false), "started once");
                }
                Action::Stop { container, .. } => {
                    assert_eq!(
                        self.containers.get(container),
                        Some(&true),
                        "only what was started"
                    );
                }
                Action::Report(reports) => {
                    for report in reports {
                        let known = self.told.insert(report.task, report.status.state);
                        let forward = known.is_none_or(|known| known <= report.status.state);
                        assert!(forward, "states only move forward");
                    }
                }
                _ => {}
            }
        }
        let publishes = |action: &Action| matches!(action, Action::Serve { .. });
        self.outstanding.extend(actions.into_iter().filter(|action| !publishes(action)));
    }

    fn answer(&mut self, action: Action, well: bool) -> Event {
        let refusal = || Refusal { message: "refused".into() };
        match action {
            Action::Prepare { task, .. } => {
                self.made += 1;
                let name = format!("c{}", self.made);
                if well {
                    self.containers.insert(name.clone(), false);
                }
                Event::Prepared {
                    task: task.id,
                    result: if well { Ok(name) } else { Err(refusal()) },
                }
            }
            Action::Start { task, container } => {
                // A container that was removed meanwhile cannot be started.
                let well = well && self.containers.contains_key(&container);
                self.containers.entry(container).and_modify(|runs| *runs = well);
                let result = if well { Ok(Started::default()) } else { Err(refusal()) };
                Event::Started { task, result }
            }
            Action::Stop { task, .. } => Event::Stopped { task, exit: Exit::default() },
            Action::Remove { task, container } => {
                self.containers.remove(&container);
                Event::Removed { task }
            }
            Action::Report(reports) => Event::Reported(reports),
            Action::Serve { .. } | Action::Connect(_) | Action::Leave(_) => {
                unreachable!("not kept")
            }
        }
    }
}

fn take(agent: &mut Agent, engine: &mut Engine, step: Step) {
    let events = match step {
        Step::Assign { number, .. } if engine.forgotten.contains(&number) => vec![],
        Step::Assign { number, desired } => vec![changed(task(number, desired))],
        Step::Full { mut numbers } => {
            numbers.retain(|number| !engine.forgotten.contains(number));
            engine.forgotten.extend((1..5).filter(|number| !numbers.contains(number)));
            vec![full(numbers.into_iter().map(|number| task(number, TaskState::Running)).collect())]
        }
        Step::Answer { nth, well } if nth < engine.outstanding.len() => {
            let action = engine.outstanding.remove(nth);
            vec![engine.answer(action, well)]
        }
        Step::Answer { .. } => vec![],
        Step::Exit { number } => {
            vec![Event::Exited { task: id(number), exit: Exit { code: 1, message: String::new() } }]
        }
        Step::Unhealthy { number } => vec![Event::Unhealthy { task: id(number) }],
        Step::Reconnect => {
            engine.outstanding.retain(|action| !matches!(action, Action::Report(_)));
            vec![Event::Disconnected, Event::Connected]
        }
    };
    for event in events {
        let actions = agent.handle(event, NOW);
        engine.take(actions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_an_emptied_node_ends_empty(steps in proptest::collection::vec(step(), 0..80)) {
        let mut agent = connected();
        let mut engine = Engine::default();
        engine.take(agent.handle(full(vec![]), NOW));
        for step in steps {
            take(&mut agent, &mut engine, step);
        }
        take(&mut agent, &mut engine, Step::Full { numbers: BTreeSet::new() });
        for _ in 0..200 {
            take(&mut agent, &mut engine, Step::Answer { nth: 0, well: true });
        }
        prop_assert_eq!(engine.containers, BTreeMap::new());
        prop_assert_eq!(agent.task_count(), 0);
    }
}

#[test]
fn a_container_that_ends_before_its_task_is_assigned_again_is_reported_as_ended() {
    let mut agent = Agent::default();
    let started = Started::default();
    let state = FoundState::Running { started, since: NOW };
    let container = Found { container: "c1".into(), state };
    agent.handle(Event::Found { task: id(1), container }, NOW);
    let exit = Exit { code: 7, message: String::new() };
    agent.handle(Event::Exited { task: id(1), exit }, NOW);
    agent.handle(Event::Connected, NOW);
    let actions = agent.handle(full(vec![task(1, TaskState::Running)]), NOW);
    let reported = reports(&actions);
    assert_eq!(reported.last().map(|(state, _)| *state), Some(TaskState::Failed), "{reported:?}");
}

#[test]
fn a_template_that_arrives_as_the_last_task_of_its_service_goes_serves_the_new_task() {
    let mut agent = connected();
    let actions = agent.handle(full(vec![task(1, TaskState::Shutdown)]), NOW);
    acknowledge(&mut agent, &actions);
    let actions = agent.handle(full(vec![task(2, TaskState::Running)]), NOW);
    let prepared = actions.iter().any(|action| match action {
        Action::Prepare { task, .. } => task.id == id(2),
        _ => false,
    });
    assert!(prepared, "{actions:?}");
}

#[test]
fn without_a_manager_a_recalled_task_is_watched_over_and_its_end_is_told_later() {
    let held = running().holding();
    let mut agent = Agent::default();
    let state = FoundState::Running { started: Started::default(), since: NOW };
    let container = Found { container: "c1".into(), state };
    agent.handle(Event::Found { task: id(1), container }, NOW);
    assert_eq!(agent.handle(Event::Recalled(held), NOW), vec![]);
    let exit = Exit { code: 7, message: String::new() };
    assert_eq!(agent.handle(Event::Exited { task: id(1), exit }, NOW), vec![]);
    let actions = agent.handle(Event::Connected, NOW);
    assert_eq!(reports(&actions), [(TaskState::Failed, "task: non-zero exit (7)".into())]);
}

#[test]
fn a_recalled_task_that_never_ran_waits_for_a_managers_word() {
    let mut agent = connected();
    agent.handle(full(vec![task(1, TaskState::Running)]), NOW);
    agent.handle(Event::Prepared { task: id(1), result: Ok("c1".into()) }, NOW);
    for found in [None, Some(Found { container: "c1".into(), state: FoundState::Created })] {
        let mut next = Agent::default();
        if let Some(container) = found {
            next.handle(Event::Found { task: id(1), container }, NOW);
        }
        assert_eq!(next.handle(Event::Recalled(agent.holding()), NOW), vec![]);
        assert_eq!(next.task_count(), 0);
    }
}

#[test]
fn a_container_whose_task_was_given_up_meanwhile_is_stopped() {
    let mut agent = connected();
    let state = FoundState::Running { started: Started::default(), since: NOW };
    let container = Found { container: "c1".into(), state };
    agent.handle(Event::Found { task: id(1), container }, NOW);
    let mut orphan = Task::clone(&task(1, TaskState::Shutdown));
    orphan.status.state = TaskState::Orphaned;
    let actions = agent.handle(full(vec![Arc::new(orphan)]), NOW);
    assert!(matches!(&actions[..], [Action::Stop { .. }]), "{actions:?}");
    let actions = agent.handle(Event::Stopped { task: id(1), exit: Exit::default() }, NOW);
    assert_eq!(actions, vec![]);
}
