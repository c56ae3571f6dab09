//! Networks of the swarm that each node has for itself: made and removed by its engine, as managers say.

use std::collections::BTreeSet;

use docker_types::convert::network::request_of;
use engine::Engine;
use tracing::warn;
use types::NetworkId;

use crate::board::Board;
use crate::connector::View;

/// The driver of networks of which nothing has to be made.
const HOST: &str = "host";

/// Makes the network if it is of that kind. What is in the way is told to the tasks that want it.
pub(crate) async fn make(engine: &Engine, board: &Board, id: NetworkId) {
    if board.look(id, View::is_of_each_node) != Some(true) {
        return;
    }
    let spec = board.look(id, |view| view.told.definition.as_ref().map(|it| it.spec.clone()));
    let Some(spec) = spec.flatten() else { return };
    let made = match spec.driver() {
        HOST => Ok(()),
        _ => engine.networks.create_of_swarm(&id.to_string(), request_of(&spec)).await,
    };
    if let Err(error) = &made {
        warn!(network.id = %id, %error, "network is not made on this node");
    }
    let trouble = made.err().map(|error| format!("{:#}", anyhow::Error::from(error)));
    board.made(id, trouble);
}

/// Makes all of them, and removes those that this node has no part in any more.
pub(crate) async fn settle(engine: &Engine, board: &Board) {
    let definitions = board.definitions().into_iter();
    let own: Vec<_> = definitions.filter(|it| it.spec.is_of_each_node()).map(|it| it.id).collect();
    for id in &own {
        make(engine, board, *id).await;
    }
    keep(engine, &own.iter().map(NetworkId::to_string).collect()).await;
}

/// Removes all but these.
pub(crate) async fn keep(engine: &Engine, wanted: &BTreeSet<String>) {
    engine.networks.keep_of_swarm(wanted).await;
}
