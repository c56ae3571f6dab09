//! Sentences about what the planner does, read as a user would see it in `service ps`.

mod world;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use ipnet::IpNet;
use store::Key;
use types::endpoint::{EndpointSpec, PortConfig, ResolutionMode};
use types::limits::ORPHANED_AFTER;
use types::network::{Attachment, Network, NetworkSpec, Subnet};
use types::node::Availability;
use types::service::{
    FailureAction, Mode, Placement, RestartCondition, RestartPolicy, UpdateConfig, UpdateOrder,
    UpdateState,
};
use types::{Meta, NetworkId, ServiceId, ServiceSpec, TaskState};
use world::{World, reserve_memory};

fn shows(world: &World, expected: Expect) {
    expected.assert_eq(&world.show());
}

fn image(world: &mut World, image: &str) {
    world.service(1, |spec| spec.task.container.image = image.into());
}

fn update_state(world: &World) -> Option<UpdateState> {
    let service = world.snapshot.service(ServiceId::from_random(1)).expect("created");
    service.update_status.as_ref().map(|status| status.state)
}

#[test]
fn replicas_are_spread_over_the_nodes_in_one_pass() {
    let mut world = World::with_nodes(2);
    world.replicas(1, 3);
    world.plan();
    shows(
        &world,
        expect![[r#"
            s1.1  on n1: wants running, is assigned
            s1.2  on n2: wants running, is assigned
            s1.3  on n1: wants running, is assigned
        "#]],
    );
}

#[test]
fn a_failed_task_is_replaced_in_its_slot_after_the_restart_delay() {
    let mut world = World::with_nodes(1);
    world.replicas(1, 2);
    world.settle();
    let task = world.running(1)[1].clone();
    world.report(&task, TaskState::Failed);
    world.plan();
    shows(
        &world,
        expect![[r#"
            s1.1  on n1: wants running, is running
            s1.2  on n1: wants shutdown, is failed
            s1.2  on n1: wants ready, is assigned
        "#]],
    );
    assert_eq!(world.wake_at, Some(world.now + Duration::from_secs(5)));
    world.settle();
    assert_eq!(world.running(1).len(), 2);
}

#[test]
fn what_could_not_be_prepared_is_not_tried_again_before_the_delay() {
    let mut world = World::with_nodes(1);
    world.replicas(1, 1);
    world.plan();
    let task = world.tasks(1)[0].clone();
    world.report(&task, TaskState::Rejected);
    world.plan();
    shows(
        &world,
        expect![[r#"
            s1.1  on n1: wants shutdown, is rejected
            s1.1  on -: wants ready, is pending (waiting for the restart delay to pass)
        "#]],
    );
    world.sleep(Duration::from_secs(5));
    world.plan();
    assert!(world.tasks(1).iter().any(|task| task.status.state == TaskState::Assigned));
}

#[test]
fn tasks_of_a_dead_node_are_replaced_elsewhere_at_once() {
    let mut world = World::with_nodes(2);
    world.replicas(1, 2);
    world.settle();
    world.node(2, |node| node.status.state = types::node::NodeState::Down);
    world.plan();
    world.plan();
    shows(
        &world,
        expect![[r#"
            s1.1  on n1: wants running, is running
            s1.2  on n2: wants shutdown, is running
            s1.2  on n1: wants running, is assigned
        "#]],
    );
}

#[test]
fn a_drained_node_empties_and_the_successor_waits_for_the_end() {
    let mut world = World::with_nodes(2);
    world.replicas(1, 2);
    world.settle();
    world.drain(2);
    world.plan();
    shows(
        &world,
        expect![[r#"
            s1.1  on n1: wants running, is running
            s1.2  on n2: wants shutdown, is running
            s1.2  on n1: wants ready, is assigned
        "#]],
    );
    world.settle();
    assert!(world.running(1).iter().all(|task| task.node == Some(world::node_id(1))));
}

#[test]
fn a_pending_task_says_why() {
    let mut world = World::with_nodes(3);
    world.drain(3);
    world.service(1, |spec| {
        spec.task.resources = reserve_memory(2 << 30);
    });
    world.service(2, |spec| {
        spec.task.placement = Some(Placement {
            constraints: vec!["node.labels.zone==east".into()],
            ..Placement::default()
        });
    });
    world.plan();
    shows(
        &world,
        expect![[r#"
            s1.1  on -: wants running, is pending (no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks))
            s2.1  on -: wants running, is pending (no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks))
        "#]],
    );
    world.node(2, |node| {
        node.spec.annotations.labels.insert("zone".into(), "East".into());
    });
    world.settle();
    assert_eq!(world.running(2)[0].node, Some(world::node_id(2)));
}

#[test]
fn scaling_down_takes_from_the_fullest_node_and_the_highest_slot() {
    let mut world = World::with_nodes(2);
    world.replicas(1, 5);
    world.settle();
    world.replicas(1, 2);
    world.settle();
    shows(
        &world,
        expect![[r#"
            s1.1  on n1: wants running, is running
            s1.2  on n2: wants running, is running
        "#]],
    );
}

#[test]
fn a_removed_service_leaves_nothing_behind() {
    let mut world = World::with_nodes(1);
    world.replicas(1, 3);
    world.settle();
    world.remove_service(1);
    world.settle();
    assert_eq!(world.show(), "");
    assert_eq!(world.snapshot.templates().count(), 0);
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut world = World::with_nodes(2);
    world.service(1, |spec| spec.mode = Mode::Global);
    world.settle();
    assert_eq!(world.running(1).len(), 2);
    world.add_node(3);
    world.settle();
    assert_eq!(world.running(1).len(), 3);
    world.drain(1);
    world.settle();
    assert_eq!(world.running(1).len(), 2);
    world.node(1, |node| node.spec.availability = types::node::Availability::Active);
    world.settle();
    assert_eq!(world.running(1).len(), 3);
}

#[test]
fn restart_condition_and_attempts_are_kept() {
    let mut world = World::with_nodes(1);
    world.service(1, |spec| {
        spec.task.restart = Some(RestartPolicy {
            condition: RestartCondition::OnFailure,
            max_attempts: 2,
            ..RestartPolicy::default()
        });
    });
    for _ in 0..3 {
        world.settle();
        let task = world.running(1)[0].clone();
        world.report(&task, TaskState::Failed);
    }
    world.settle();
    assert_eq!(world.running(1).len(), 0, "{}", world.show());
    assert_eq!(world.tasks(1).len(), 3);
}

#[test]
fn history_is_as_long_as_the_limit_says() {
    let mut world = World::with_nodes(1);
    world.replicas(1, 1);
    for _ in 0..9 {
        world.settle();
        let task = world.running(1)[0].clone();
        world.report(&task, TaskState::Failed);
    }
    world.settle();
    assert_eq!(world.tasks(1).len(), 5);
}

#[test]
fn stop_first_prepares_the_new_task_before_it_stops_the_old_one() {
    let mut world = World::with_nodes(1);
    world.replicas(1, 2);
    image(&mut world, "v1");
    world.settle();
    image(&mut world, "v2");
    world.plan();
    shows(
        &world,
        expect![[r#"
            s1.1 v1 on n1: wants running, is running
            s1.1 v2 on n1: wants ready, is assigned
            s1.2 v1 on n1: wants running, is running
        "#]],
    );
    world.agents_obey();
    world.plan();
    shows(
        &world,
        expect![[r#"
            s1.1 v1 on n1: wants shutdown, is running
            s1.1 v2 on n1: wants ready, is ready
            s1.2 v1 on n1: wants running, is running
        "#]],
    );
    world.settle();
    assert_eq!(update_state(&world), Some(UpdateState::Completed));
    let images: Vec<_> = world
        .running(1)
        .iter()
        .map(|task| world.snapshot.template_of(task).expect("kept").task.container.image.clone())
        .collect();
    assert_eq!(images, ["v2", "v2"]);
}

#[test]
fn start_first_stops_the_old_task_only_when_the_new_one_runs() {
    let mut world = World::with_nodes(1);
    world.service(1, |spec| {
        spec.update = Some(UpdateConfig { order: UpdateOrder::StartFirst, ..Default::default() });
    });
    image(&mut world, "v1");
    world.settle();
    image(&mut world, "v2");
    world.plan();
    world.agents_obey();
    shows(
        &world,
        expect![[r#"
            s1.1 v1 on n1: wants running, is running
            s1.1 v2 on n1: wants running, is running
        "#]],
    );
    world.settle();
    assert_eq!(world.running(1).len(), 1);
    assert_eq!(update_state(&world), Some(UpdateState::Completed));
}

#[test]
fn an_update_makes_room_where_both_tasks_do_not_fit() {
    let mut world = World::with_nodes(1);
    world.service(1, |spec| spec.task.resources = reserve_memory(900 << 20));
    image(&mut world, "v1");
    world.settle();
    image(&mut world, "v2");
    world.settle();
    assert_eq!(update_state(&world), Some(UpdateState::Completed), "{}", world.show());
}

fn failing_update(action: FailureAction) -> World {
    let mut world = World::with_nodes(1);
    world.service(1, |spec| {
        spec.mode = Mode::Replicated { replicas: 3 };
        spec.update = Some(UpdateConfig { failure_action: action, ..Default::default() });
        spec.task.container.image = "good".into();
    });
    world.settle();
    image(&mut world, "bad");
    world.plan();
    let bad = world.tasks(1).into_iter().find(|task| task.desired_state == TaskState::Ready);
    world.report(&bad.expect("the update began"), TaskState::Rejected);
    world.plan();
    world
}

#[test]
fn a_failing_update_pauses_and_the_old_tasks_go_on() {
    let world = failing_update(FailureAction::Pause);
    assert_eq!(update_state(&world), Some(UpdateState::Paused));
    assert_eq!(world.running(1).len(), 3, "{}", world.show());
}

/// Two slots whose start-first update to `v2` has just begun in both.
fn starting_both_first() -> World {
    let mut world = World::with_nodes(1);
    world.service(1, |spec| {
        spec.mode = Mode::Replicated { replicas: 2 };
        let order = UpdateOrder::StartFirst;
        spec.update = Some(UpdateConfig { order, parallelism: 0, ..Default::default() });
        spec.task.container.image = "v1".into();
    });
    world.settle();
    image(&mut world, "v2");
    world.plan();
    world
}

/// One of the new tasks cannot be made.
fn pauses_with_one_task_in_each_slot(mut world: World) {
    let began = world.tasks(1).into_iter().rfind(|task| task.status.state < TaskState::Running);
    world.report(&began.expect("the update began"), TaskState::Rejected);
    world.settle();
    assert_eq!(update_state(&world), Some(UpdateState::Paused));
    assert_eq!(world.running(1).len(), 2, "{}", world.show());
}

#[test]
fn an_update_that_pauses_brings_begun_slots_to_an_end() {
    pauses_with_one_task_in_each_slot(starting_both_first());
}

#[test]
fn an_update_that_overtakes_another_leaves_one_task_in_a_slot_it_does_not_reach() {
    let mut world = starting_both_first();
    world.agents_obey();
    assert_eq!(world.running(1).len(), 4, "{}", world.show());
    world.service(1, |spec| {
        spec.update = Some(UpdateConfig::default());
        spec.task.container.image = "v3".into();
    });
    world.plan();
    pauses_with_one_task_in_each_slot(world);
}

#[test]
fn a_global_task_that_failed_on_a_drained_node_comes_back_with_the_node() {
    let mut world = World::with_nodes(1);
    world.service(1, |spec| spec.mode = Mode::Global);
    world.settle();
    world.node(1, |node| node.spec.availability = Availability::Drain);
    world.plan();
    let stopped = world.tasks(1).into_iter().find(|task| !task.status.state.is_terminal());
    world.report(&stopped.expect("it still stops"), TaskState::Failed);
    world.settle();
    world.node(1, |node| node.spec.availability = Availability::Active);
    world.settle();
    assert_eq!(world.running(1).len(), 1, "{}", world.show());
}

#[test]
fn a_failing_update_rolls_back_when_told_so() {
    let mut world = failing_update(FailureAction::Rollback);
    assert_eq!(update_state(&world), Some(UpdateState::RollbackStarted));
    world.settle();
    assert_eq!(update_state(&world), Some(UpdateState::RollbackCompleted), "{}", world.show());
    let running = world.running(1);
    let good = |task: &std::sync::Arc<types::Task>| {
        world.snapshot.template_of(task).expect("kept").task.container.image == "good"
    };
    assert!(running.len() == 3 && running.iter().all(good), "{}", world.show());
}

#[test]
fn parallelism_and_delay_pace_an_update() {
    let mut world = World::with_nodes(1);
    world.service(1, |spec| {
        spec.mode = Mode::Replicated { replicas: 6 };
        spec.update = Some(UpdateConfig {
            parallelism: 2,
            delay: Duration::from_secs(30),
            ..Default::default()
        });
        spec.task.container.image = "v1".into();
    });
    world.settle();
    let start = world.now;
    image(&mut world, "v2");
    world.settle();
    assert_eq!(update_state(&world), Some(UpdateState::Completed));
    // Two delays between three pairs, and 31 s of watching after the last.
    assert_eq!(world.now.since(start), Duration::from_secs(30 + 30 + 31));
}

#[test]
fn a_task_is_orphaned_when_its_node_was_down_for_a_day() {
    let mut world = World::with_nodes(2);
    world.replicas(1, 2);
    world.settle();
    let down = world.now;
    world.node(2, |node| {
        node.status.state = types::node::NodeState::Down;
        node.status.down_since = Some(down);
    });
    world.plan();
    let orphans = |world: &World| {
        let tasks = world.tasks(1);
        tasks.iter().filter(|task| task.status.state == TaskState::Orphaned).count()
    };
    world.now = down + ORPHANED_AFTER - Duration::from_nanos(1);
    world.plan();
    assert_eq!(orphans(&world), 0, "{}", world.show());
    assert_eq!(world.wake_at, Some(down + ORPHANED_AFTER));
    world.now = down + ORPHANED_AFTER;
    world.plan();
    assert_eq!(orphans(&world), 1, "{}", world.show());
    assert_eq!(world.wake_at, None);
}

fn network(world: &mut World, number: u128, subnet: &str) -> String {
    let id = NetworkId::from_random(number);
    let subnet: IpNet = subnet.parse().expect("a subnet");
    let gateway = subnet.hosts().next().expect("it has hosts");
    world.write(|draft| {
        draft.put(Network {
            id,
            meta: Meta::default(),
            spec: NetworkSpec::default(),
            vni: 4_097,
            subnets: vec![Subnet { subnet, range: None, gateway }],
        });
    });
    id.to_string()
}

fn join(spec: &mut ServiceSpec, network: &str) {
    spec.task.networks = vec![Attachment { target: network.into(), ..Attachment::default() }];
}

#[test]
fn tasks_and_services_get_addresses_of_their_own_and_give_them_back() {
    let mut world = World::with_nodes(2);
    let blue = network(&mut world, 1, "10.0.1.0/24");
    for service in [1, 2] {
        world.service(service, |spec| {
            spec.mode = Mode::Replicated { replicas: 20 };
            join(spec, &blue);
        });
    }
    world.settle();
    let held = |world: &World| -> Vec<IpAddr> {
        let tasks = [1, 2].into_iter().flat_map(|service| world.running(service));
        let of_tasks = tasks.flat_map(|task| task.networks[0].addresses.clone());
        let of_services = world.snapshot.services().flat_map(|service| {
            service.endpoint.virtual_ips.iter().map(|given| given.address).collect::<Vec<_>>()
        });
        of_tasks.chain(of_services).map(|address| address.addr()).collect()
    };
    let all = held(&world);
    let distinct: BTreeSet<_> = all.iter().copied().collect();
    assert_eq!((all.len(), distinct.len()), (42, 42), "{all:?}");
    assert!(!distinct.contains(&"10.0.1.1".parse().expect("the gateway")));
    world.service(1, |spec| spec.task.networks.clear());
    world.settle();
    let service = world.snapshot.service(ServiceId::from_random(1)).expect("is there");
    assert_eq!(service.endpoint.virtual_ips, []);
}

#[test]
fn a_task_for_which_no_address_is_left_says_so_and_takes_the_next_that_is_free() {
    let mut world = World::with_nodes(1);
    // One address beside the gateway's, and the service takes it.
    let small = network(&mut world, 1, "10.0.1.0/30");
    let wide = network(&mut world, 2, "10.0.2.0/29");
    world.service(1, |spec| {
        spec.mode = Mode::Replicated { replicas: 2 };
        join(spec, &wide);
    });
    world.settle();
    world.service(2, |spec| join(spec, &small));
    world.settle();
    assert_eq!(world.running(2).len(), 0, "{}", world.show());
    let waiting = world.tasks(2).into_iter().find(|task| task.is_wanted()).expect("it waits");
    assert_eq!(waiting.status.err, "no address is left in network  (10.0.1.0/30)");
    world.service(2, |spec| {
        spec.endpoint =
            Some(EndpointSpec { mode: ResolutionMode::Dnsrr, ..EndpointSpec::default() });
    });
    world.settle();
    assert_eq!(world.running(2).len(), 1, "{}", world.show());
}

fn publish(spec: &mut ServiceSpec) {
    let port = PortConfig { target: 80, published: 8080, ..PortConfig::default() };
    spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
}

fn ingress(world: &World) -> Arc<Network> {
    let found = world.snapshot.networks().find(|network| network.spec.is_ingress);
    found.expect("every swarm begins with one").clone()
}

#[test]
fn tasks_of_a_service_that_publishes_have_addresses_in_the_ingress_network() {
    let mut world = World::with_nodes(2);
    world.replicas(1, 3);
    world.settle();
    let places = |world: &World| -> BTreeSet<IpAddr> {
        let tasks = world.running(1);
        let places = tasks.iter().flat_map(|task| &task.networks);
        places.flat_map(|place| &place.addresses).map(IpNet::addr).collect()
    };
    assert_eq!(places(&world), BTreeSet::new());
    world.service(1, publish);
    world.settle();
    assert_eq!(places(&world).len(), 3);
    let service = world.snapshot.service(ServiceId::from_random(1)).expect("is there").clone();
    let [virtual_ip] = &service.endpoint.virtual_ips[..] else { panic!("one: {service:?}") };
    assert_eq!(virtual_ip.network, ingress(&world).id);
    assert!(!places(&world).contains(&virtual_ip.address.addr()));
    // Tasks that run go on as they are; the service lets go at once.
    world.service(1, |spec| spec.endpoint = None);
    world.settle();
    let service = world.snapshot.service(ServiceId::from_random(1)).expect("is there");
    assert_eq!((service.endpoint.virtual_ips.len(), places(&world).len()), (0, 3));
}

#[test]
fn a_task_of_a_service_that_publishes_says_what_it_waits_for_in_the_ingress_network() {
    let mut world = World::with_nodes(1);
    let known = ingress(&world);
    world.write(|draft| draft.delete(Key::Network(known.id)));
    world.service(1, |spec| {
        spec.mode = Mode::Replicated { replicas: 2 };
        publish(spec);
    });
    world.plan();
    let told = |world: &World| -> BTreeSet<String> {
        let tasks = world.tasks(1).into_iter().filter(|task| task.node.is_none());
        tasks.map(|task| task.status.err.clone()).collect()
    };
    let none = "service needs ingress network, but no ingress network is present".to_owned();
    assert_eq!(told(&world), [none].into());
    // Two addresses beside the gateway's, of which the service takes one.
    let mut small = Network::clone(&known);
    small.subnets[0].subnet = "10.255.0.0/29".parse().expect("a subnet");
    small.subnets[0].range = Some("10.255.0.2/31".parse().expect("a range"));
    world.write(|draft| draft.put(small));
    world.settle();
    assert_eq!(world.running(1).len(), 1, "{}", world.show());
    assert_eq!(told(&world), ["no address is left in network  (10.255.0.0/29)".to_owned()].into());
}

#[test]
fn a_service_gets_the_virtual_address_that_it_lacks_once_one_is_free() {
    let mut world = World::with_nodes(2);
    // Four tasks and a virtual address: as many as the network has.
    world.join_networks(1, 1);
    world.replicas(1, 4);
    world.settle();
    world.join_networks(2, 1);
    world.plan();
    let given = |world: &World| {
        let service = world.snapshot.service(ServiceId::from_random(2)).expect("created");
        service.endpoint.virtual_ips.len()
    };
    assert_eq!(given(&world), 0, "none is left");
    world.replicas(1, 3);
    world.settle();
    assert_eq!(given(&world), 1);
}
