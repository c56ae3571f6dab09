//! Sentences about sessions: who is taken for gone, and what nodes are sent.

use std::sync::Arc;
use std::time::Duration;

use dispatcher::Dispatcher;
use ipnet::IpNet;
use store::{Draft, Key, Snapshot, apply};
use types::assignment::{AssignmentSet, SessionMessage};
use types::endpoint::{Endpoint, PortConfig};
use types::network::{Network, NetworkSpec, NodePlace, Subnet, TaskNetwork};
use types::node::{NodeSpec, NodeState, NodeStatus};
use types::task::{RestartHistory, Slot};
use types::{
    Meta, NetworkId, Node, NodeId, Service, ServiceId, ServiceSpec, Task, TaskId, TaskState,
    TaskStatus, TaskTemplate, Timestamp,
};

const PERIOD: Duration = Duration::from_secs(5);
const NODE: NodeId = NodeId::from_random(1);
const START: Timestamp = Timestamp(1_000_000_000);

/// Applies what `change` writes; answers with the state and what a dispatcher sends for it.
fn commit(
    dispatcher: &mut Dispatcher,
    state: &mut Snapshot,
    change: impl FnOnce(&mut Draft),
) -> Vec<AssignmentSet> {
    let mut draft = Draft::new(state.clone(), START);
    change(&mut draft);
    let (next, events) = apply(state, &draft.finish()).expect("made from this state");
    *state = next;
    let sends = dispatcher.changed(state, &events).into_iter();
    let sets = sends.filter_map(|send| match send.message {
        SessionMessage::Assignments(set) => Some(set),
        SessionMessage::News(_) => None,
    });
    sets.collect()
}

fn one_node() -> Snapshot {
    let mut draft = Draft::new(Snapshot::default(), START);
    draft.put(Node {
        id: NODE,
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: types::node::Description::default(),
        status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
        manager: None,
    });
    apply(&Snapshot::default(), &draft.finish()).expect("first").0
}

fn put_task(draft: &mut Draft, number: u128) {
    draft.put(Task {
        id: TaskId::from_random(number),
        meta: Meta::default(),
        service: ServiceId::from_random(1),
        template_version: 1,
        slot: Slot::Replica(1),
        node: Some(NODE),
        desired_state: TaskState::Running,
        status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
        start_after: None,
        place_after: None,
        waits_for: None,
        restarts: RestartHistory::default(),
        is_settled: false,
        networks: vec![],
    });
}

#[test]
fn a_daemon_that_stops_in_good_order_is_given_time_to_come_back() {
    let state = one_node();
    let mut dispatcher = Dispatcher::new(&state, 0, PERIOD, START);
    let (session, _) = dispatcher.register(&state, NODE, PERIOD, START);
    dispatcher.disconnect(NODE, session, PERIOD, START);
    assert_eq!(dispatcher.expire(START + Duration::from_secs(5)), []);
    let (_, messages) = dispatcher.register(&state, NODE, PERIOD, START + Duration::from_secs(5));
    assert!(!messages.is_empty());
    assert_eq!(dispatcher.expire(START + Duration::from_secs(7)), []);
}

#[test]
fn a_daemon_that_stays_away_is_given_up() {
    let state = one_node();
    let mut dispatcher = Dispatcher::new(&state, 0, PERIOD, START);
    let (session, _) = dispatcher.register(&state, NODE, PERIOD, START);
    dispatcher.disconnect(NODE, session, PERIOD, START);
    assert_eq!(dispatcher.expire(START + Duration::from_secs(6)), [NODE]);
    assert_eq!(dispatcher.expire(START + Duration::from_secs(9)), [], "once");
}

#[test]
fn a_node_that_could_not_be_marked_down_is_given_up_again_unless_it_came_back() {
    let state = one_node();
    let mut dispatcher = Dispatcher::new(&state, 0, PERIOD, START);
    let late = START + Duration::from_secs(20);
    assert_eq!(dispatcher.expire(late), [NODE]);
    dispatcher.expire_again(&[NODE], late);
    assert_eq!(dispatcher.expire(late), [NODE]);
    dispatcher.register(&state, NODE, PERIOD, late);
    dispatcher.expire_again(&[NODE], late);
    assert_eq!(dispatcher.expire(late), []);
}

#[test]
fn a_template_is_sent_again_to_a_node_that_forgot_it() {
    let mut state = one_node();
    let mut dispatcher = Dispatcher::new(&state, 0, PERIOD, START);
    dispatcher.register(&state, NODE, PERIOD, START);
    let sets = commit(&mut dispatcher, &mut state, |draft| {
        draft.put(TaskTemplate::new(ServiceId::from_random(1), 1, &ServiceSpec::default()));
        put_task(draft, 1);
    });
    assert_eq!(sets[0].templates.len(), 1);
    let sets = commit(&mut dispatcher, &mut state, |draft| put_task(draft, 2));
    assert_eq!(sets[0].templates.len(), 0, "it has it");
    let forget = |draft: &mut Draft| {
        for number in [1, 2] {
            draft.delete(Key::Task(TaskId::from_random(number)));
        }
    };
    assert_eq!(commit(&mut dispatcher, &mut state, forget)[0].removed.len(), 2);
    let sets = commit(&mut dispatcher, &mut state, |draft| put_task(draft, 3));
    assert_eq!(sets[0].templates.len(), 1, "with its last task the node forgot the template");
}

const BLUE: NetworkId = NetworkId::from_random(9);

fn put_network(draft: &mut Draft) {
    let subnet: IpNet = "10.0.1.0/24".parse().expect("a subnet");
    let gateway = subnet.hosts().next().expect("it has hosts");
    draft.put(Network {
        id: BLUE,
        meta: Meta::default(),
        spec: NetworkSpec::default(),
        vni: 4_097,
        subnets: vec![Subnet { subnet, range: None, gateway }],
    });
    draft.put(TaskTemplate::new(ServiceId::from_random(1), 1, &ServiceSpec::default()));
}

/// Puts a task with an address in the network on a node.
fn put_networked(draft: &mut Draft, number: u128, node: NodeId, state: TaskState) {
    put_task(draft, number);
    let task = draft.task(TaskId::from_random(number)).cloned().expect("just put");
    draft.update_task(&task, |task| {
        task.node = Some(node);
        task.status.state = state;
        let address = format!("10.0.1.{}/24", number + 1).parse().expect("an address");
        task.networks =
            vec![TaskNetwork { network: BLUE, addresses: vec![address], aliases: vec![] }];
    });
}

#[test]
fn a_node_is_told_of_a_network_while_it_has_a_task_in_it() {
    let other = NodeId::from_random(2);
    let mut state = one_node();
    let mut dispatcher = Dispatcher::new(&state, 0, PERIOD, START);
    dispatcher.register(&state, NODE, PERIOD, START);
    let elsewhere = commit(&mut dispatcher, &mut state, |draft| {
        put_network(draft);
        put_networked(draft, 1, other, TaskState::Running);
    });
    assert_eq!(elsewhere, [], "nobody here is in it");
    let sets = commit(&mut dispatcher, &mut state, |draft| {
        put_networked(draft, 2, NODE, TaskState::Assigned);
    });
    let whole = &sets[0].networks[0];
    assert!(whole.is_full && whole.definition.is_some());
    let serving: Vec<_> = whole.peers.iter().map(|peer| peer.is_serving).collect();
    assert_eq!(serving, [true, false], "both are there, one takes connections");
    let sets = commit(&mut dispatcher, &mut state, |draft| {
        put_networked(draft, 1, other, TaskState::Failed);
    });
    let change = &sets[0].networks[0];
    assert!(!change.is_full && change.definition.is_none() && change.peers.is_empty());
    assert_eq!(change.gone, [TaskId::from_random(1)]);
    let sets = commit(&mut dispatcher, &mut state, |draft| {
        put_networked(draft, 2, NODE, TaskState::Shutdown);
    });
    assert_eq!(sets[0].gone_networks, [BLUE]);
    let after = commit(&mut dispatcher, &mut state, |draft| {
        put_networked(draft, 3, other, TaskState::Running);
    });
    assert_eq!(after, [], "what goes on there is no concern of this node any more");
}

fn put_node(draft: &mut Draft, id: NodeId, address: &str) {
    let mut node = Node::clone(draft.node(NODE).expect("is there"));
    (node.id, node.status.address) = (id, address.into());
    draft.put(node);
}

/// Puts a service that publishes on every node; no port withdraws it.
fn put_published(draft: &mut Draft, published: Option<u16>) {
    let port = |published| PortConfig { target: 80, published, ..PortConfig::default() };
    let ports: Vec<_> = published.map(port).into_iter().collect();
    let id = ServiceId::from_random(1);
    if draft.service(id).is_none() {
        put_service(draft, id);
    }
    let service = draft.service(id).cloned().expect("just put");
    draft.update_service(&service, |service| service.endpoint.ports = ports);
}

fn put_service(draft: &mut Draft, id: ServiceId) {
    draft.put(Service {
        id,
        meta: Meta::default(),
        spec: Arc::default(),
        template_version: 1,
        previous: None,
        endpoint: Endpoint::default(),
        update_status: None,
    });
}

#[test]
fn every_node_is_told_of_the_ingress_network() {
    let other = NodeId::from_random(2);
    let mut state = one_node();
    let mut dispatcher = Dispatcher::new(&state, 0, PERIOD, START);
    dispatcher.register(&state, NODE, PERIOD, START);
    let sets = commit(&mut dispatcher, &mut state, |draft| {
        put_network(draft);
        let network = draft.network(BLUE).cloned().expect("just put");
        let mut network = Network::clone(&network);
        network.spec.is_ingress = true;
        draft.put(network);
        put_node(draft, NODE, "10.99.0.1");
    });
    let whole = sets.iter().flat_map(|set| &set.networks).next().expect("it has no task there");
    assert!(whole.definition.as_ref().is_some_and(|network| network.is_ingress));
    assert_eq!(whole.nodes.len(), 1);
    let change = |dispatcher: &mut Dispatcher, state: &mut Snapshot, step: &dyn Fn(&mut Draft)| {
        let sets = commit(dispatcher, state, |draft| step(draft));
        let mut changes: Vec<_> = sets.into_iter().flat_map(|set| set.networks).collect();
        assert_eq!(changes.len(), 1, "{changes:?}");
        let change = changes.remove(0);
        assert!(!change.is_full);
        change
    };
    let heard = change(&mut dispatcher, &mut state, &|draft| put_node(draft, other, "10.99.0.2"));
    let data_address = "10.99.0.2".parse().expect("an address");
    let place = NodePlace { node: other, data_address, tunnel_keys: Vec::new() };
    assert_eq!(heard.nodes, [place]);
    let heard = change(&mut dispatcher, &mut state, &|draft| put_published(draft, Some(8080)));
    let ports: Vec<_> = heard.services.iter().flat_map(|service| &service.ports).collect();
    assert_eq!(ports.iter().map(|port| port.published).collect::<Vec<_>>(), [8080]);
    let heard = change(&mut dispatcher, &mut state, &|draft| {
        put_networked(draft, 1, other, TaskState::Running);
    });
    assert!(heard.peers[0].is_serving);
    let heard = change(&mut dispatcher, &mut state, &|draft| {
        let task = draft.task(TaskId::from_random(1)).cloned().expect("is there");
        draft.update_task(&task, |task| task.desired_state = TaskState::Shutdown);
    });
    assert!(!heard.peers[0].is_serving, "from the moment that is decided");
    let heard = change(&mut dispatcher, &mut state, &|draft| put_published(draft, None));
    assert_eq!(heard.gone_services, [ServiceId::from_random(1)]);
    let heard = change(&mut dispatcher, &mut state, &|draft| draft.delete(Key::Node(other)));
    assert_eq!(heard.gone_nodes, [other]);
    let sets = commit(&mut dispatcher, &mut state, |draft| draft.delete(Key::Network(BLUE)));
    assert_eq!(sets[0].gone_networks, [BLUE]);
}
