//! The incremental pass is the full pass, whatever happens.

mod world;

use proptest::prelude::*;
use std::time::Duration;
use types::TaskState;
use types::endpoint::{EndpointSpec, PortConfig, PublishMode, ResolutionMode};
use types::node::{Availability, NodeState};
use types::service::{FailureAction, Mode, Placement, UpdateConfig, UpdateOrder};
use world::{World, reserve_memory};

#[derive(Clone, Debug)]
enum Step {
    Replicas { service: u128, replicas: u64 },
    Global { service: u128 },
    Image { service: u128, image: u8 },
    Reserve { service: u128, mebibytes: i64 },
    Constrain { service: u128, zone: Option<u8> },
    Policy { service: u128, parallelism: u64, start_first: bool, rollback: bool },
    Publish { service: u128, host: bool },
    Remove { service: u128 },
    Join { service: u128, networks: u8 },
    Resolve { service: u128, by_virtual_ip: bool },
    Network { number: u128 },
    RemoveNetwork { number: u128 },
    Attach { container: u128, network: u128 },
    Detach { container: u128 },
    Node { node: u128, state: u8 },
    Zone { node: u128, zone: u8 },
    RemoveNode { node: u128 },
    Obey,
    Fail { nth: usize },
    Sleep { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let service = 1u128..4;
    let node = 1u128..5;
    prop_oneof![
        3 => (service.clone(), 0u64..6).prop_map(|(service, replicas)| Step::Replicas { service, replicas }),
        1 => Just(Step::Global { service: 4 }),
        3 => (service.clone(), 0u8..3).prop_map(|(service, image)| Step::Image { service, image }),
        1 => (service.clone(), 0i64..900).prop_map(|(service, mebibytes)| Step::Reserve { service, mebibytes }),
        1 => (service.clone(), proptest::option::of(0u8..3)).prop_map(|(service, zone)| Step::Constrain { service, zone }),
        1 => (service.clone(), 0u64..3, any::<bool>(), any::<bool>()).prop_map(
            |(service, parallelism, start_first, rollback)| Step::Policy { service, parallelism, start_first, rollback }),
        1 => (service.clone(), any::<bool>()).prop_map(|(service, host)| Step::Publish { service, host }),
        1 => (1u128..5).prop_map(|service| Step::Remove { service }),
        3 => (service.clone(), 0u8..8).prop_map(|(service, networks)| Step::Join { service, networks }),
        1 => (service.clone(), any::<bool>()).prop_map(|(service, by_virtual_ip)| Step::Resolve { service, by_virtual_ip }),
        1 => (1u128..4).prop_map(|number| Step::Network { number }),
        1 => (1u128..4).prop_map(|number| Step::RemoveNetwork { number }),
        1 => (0u128..4, 1u128..4).prop_map(|(container, network)| Step::Attach { container, network }),
        1 => (0u128..4).prop_map(|container| Step::Detach { container }),
        2 => (node.clone(), 0u8..5).prop_map(|(node, state)| Step::Node { node, state }),
        1 => (node.clone(), 0u8..3).prop_map(|(node, zone)| Step::Zone { node, zone }),
        1 => node.prop_map(|node| Step::RemoveNode { node }),
        6 => Just(Step::Obey),
        3 => (0usize..20).prop_map(|nth| Step::Fail { nth }),
        2 => (0u64..12).prop_map(|seconds| Step::Sleep { seconds }),
    ]
}

fn take(world: &mut World, step: Step) {
    match step {
        Step::Replicas { service, replicas } => world.replicas(service, replicas),
        Step::Global { service } => world.service(service, |spec| spec.mode = Mode::Global),
        Step::Image { service, image } => {
            world.service(service, |spec| spec.task.container.image = format!("v{image}"));
        }
        Step::Reserve { service, mebibytes } => {
            world.service(service, |spec| spec.task.resources = reserve_memory(mebibytes << 20));
        }
        Step::Constrain { service, zone } => world.service(service, |spec| {
            let constraints = zone.map(|zone| format!("node.labels.zone==z{zone}"));
            spec.task.placement = Some(Placement {
                constraints: constraints.into_iter().collect(),
                ..Default::default()
            });
        }),
        Step::Policy { service, parallelism, start_first, rollback } => {
            world.service(service, |spec| {
                let order =
                    if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
                let failure_action =
                    if rollback { FailureAction::Rollback } else { FailureAction::Pause };
                spec.update =
                    Some(UpdateConfig { parallelism, order, failure_action, ..Default::default() });
            });
        }
        Step::Publish { service, host } => world.service(service, |spec| {
            let mode = if host { PublishMode::Host } else { PublishMode::Ingress };
            let published = if host { 8080 } else { 0 };
            let port = PortConfig { target: 80, published, mode, ..Default::default() };
            let is_by_name = |endpoint: &EndpointSpec| endpoint.mode != ResolutionMode::Vip;
            if spec.endpoint.as_ref().is_some_and(is_by_name) {
                return;
            }
            spec.endpoint.get_or_insert_default().ports = vec![port];
        }),
        Step::Join { service, networks } => world.join_networks(service, networks),
        Step::Resolve { service, by_virtual_ip } => world.service(service, |spec| {
            let mode = if by_virtual_ip { ResolutionMode::Vip } else { ResolutionMode::Dnsrr };
            let endpoint = spec.endpoint.get_or_insert_default();
            // Only virtual addresses are published.
            if by_virtual_ip || endpoint.ports.is_empty() {
                endpoint.mode = mode;
            }
        }),
        Step::Network { number } => world.add_network(number),
        Step::RemoveNetwork { number } => world.remove_network(number),
        Step::Attach { container, network } => world.attach(container, network),
        Step::Detach { container } => world.detach(container),
        Step::Remove { service } => world.remove_service(service),
        Step::Node { node, state } => change_node(world, node, state),
        Step::Zone { node, zone } => world.node(node, |node| {
            node.spec.annotations.labels.insert("zone".into(), format!("z{zone}"));
        }),
        Step::RemoveNode { node } => {
            world.remove_node(node);
        }
        Step::Obey => world.agents_obey(),
        Step::Fail { nth } => {
            let tasks: Vec<_> = world
                .snapshot
                .tasks()
                .filter(|task| task.status.state >= TaskState::Assigned)
                .cloned()
                .collect();
            if let Some(task) = tasks.get(nth) {
                world.report(task, TaskState::Failed);
            }
        }
        Step::Sleep { seconds } => world.sleep(Duration::from_secs(seconds)),
    }
}

fn change_node(world: &mut World, node: u128, state: u8) {
    if world.snapshot.node(world::node_id(node)).is_none() {
        world.add_node(node);
    }
    world.node(node, |node| match state {
        0 => node.status.state = NodeState::Down,
        1 => node.spec.availability = Availability::Drain,
        2 => node.spec.availability = Availability::Pause,
        3 => node.spec.availability = Availability::Active,
        _ => node.status.state = NodeState::Ready,
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// `World::plan` compares both passes and runs the linter after each step.
    #[test]
    fn the_incremental_pass_equals_the_full_pass(steps in proptest::collection::vec(step(), 1..40)) {
        let mut world = World::with_nodes(2);
        for step in steps {
            take(&mut world, step);
            world.plan();
        }
    }

    /// With every node back, nothing unplaceable left and agents that obey, services converge.
    #[test]
    fn once_faults_end_the_desired_state_is_reached(steps in proptest::collection::vec(step(), 1..25)) {
        let mut world = World::with_nodes(2);
        for step in steps {
            take(&mut world, step);
            world.plan();
        }
        for node in 1..5 {
            change_node(&mut world, node, 3);
            change_node(&mut world, node, 4);
        }
        for service in 1..4 {
            world.service(service, |spec| {
                spec.mode = Mode::Replicated { replicas: 3 };
                spec.task.resources = None;
                spec.task.placement = None;
                spec.endpoint = None;
                spec.task.networks.clear();
            });
        }
        world.settle();
        for service in 1..4 {
            let running = world.running(service);
            prop_assert_eq!(running.len(), 3, "{}", world.show());
            let version = world.snapshot.service(types::ServiceId::from_random(service)).expect("created").template_version;
            prop_assert!(running.iter().all(|task| task.template_version == version), "{}", world.show());
        }
    }
}
