//! When a container that has no health check counts as ready: once it listens. And when one that is to stop is left alone.
//!
//! A process runs some time before it listens, and whoever is led to it meanwhile is refused. A task is told of as running
//! only after that, so that an update does not go on, and connections do not come, too early.

use std::path::Path;
use std::time::Duration;

use network::Network;
use tokio::time::Instant;
use tracing::debug;

/// How long a container may take that never listens on the port, before it counts as running all the same.
const LISTENS_WITHIN_MAX: Duration = Duration::from_secs(5);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);

/// How long nobody has to come to a container that is to stop, at the least.
const ALONE_FOR: Duration = Duration::from_millis(250);
/// And so many times as long as somebody still came: where nodes hear late, their clients come seldom too.
const ALONE_FACTOR: u32 = 3;
/// How long nobody who is connected to it has to ask or be told anything.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// How long somebody may go on coming, before it is told to stop all the same.
const ALONE_WITHIN_MAX: Duration = Duration::from_secs(4);

/// `TCP_LISTEN` of net/tcp_states.h, as procfs writes it.
const LISTENS: &str = "0A";

/// Waits until something listens on each of these TCP ports in the process's network, but not for long.
pub(crate) async fn listens(pid: i32, ports: &[u16]) {
    let end = Instant::now() + LISTENS_WITHIN_MAX;
    let process = Path::new("/proc").join(pid.to_string());
    while !listens_now(&process, ports) && Instant::now() < end && process.exists() {
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until nobody opens connections to the container any more, or begins to send it datagrams, and connections that
/// are open fall silent or end, and `least` in any case. Other nodes hear of a task's end in their own time: as long as one of
/// them leads clients there, they come. Who keeps a connection for many requests has all of `grace` to part with it. What
/// the container opens to itself, as checks of its health do, is nobody's coming.
pub(crate) async fn left_alone(
    network: &Network,
    container: &str,
    least: Duration,
    grace: Duration,
) {
    let begin = Instant::now();
    let watched = (network.arrivals(container).await, network.conversations(container));
    let (mut arrivals, conversations) = match watched {
        (Ok(arrivals), Ok(conversations)) => (arrivals, conversations),
        (Err(error), _) | (_, Err(error)) => {
            debug!(container.id = container, %error, "it is not seen who comes to a container");
            return tokio::time::sleep(least).await;
        }
    };
    // What cannot be counted any more has ended.
    let mut come = || arrivals.count().unwrap_or_default();
    let is_in_use = || conversations.in_use(SILENT_FOR).unwrap_or(0) > 0;
    let (mut seen, mut since) = (come(), begin);
    let is_visited = |since: Instant| {
        since.elapsed() < alone_for(since - begin) && begin.elapsed() < ALONE_WITHIN_MAX
            || begin.elapsed() < grace && is_in_use()
    };
    while begin.elapsed() < least || is_visited(since) {
        tokio::time::sleep(POLL).await;
        let now = come();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// How long nobody has to come where somebody came until then.
fn alone_for(came_for: Duration) -> Duration {
    ALONE_FOR.max(came_for * ALONE_FACTOR)
}

fn listens_now(process: &Path, ports: &[u16]) -> bool {
    let table = |name| std::fs::read_to_string(process.join("net").join(name)).unwrap_or_default();
    let known = table("tcp") + &table("tcp6");
    let listening: Vec<_> = known.lines().filter_map(listening_port).collect();
    ports.iter().all(|port| listening.contains(port))
}

/// The port of a line of `/proc/net/tcp`, if somebody listens there.
fn listening_port(line: &str) -> Option<u16> {
    let mut words = line.split_whitespace();
    let (local, state) = (words.nth(1)?, words.nth(1)?);
    let (_, port) = local.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok().filter(|_| state == LISTENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_somebody_still_came_the_longer_nobody_has_to() {
        for (came_for, alone) in [(0, 250), (60, 250), (200, 600), (1_000, 3_000)] {
            let alone = Duration::from_millis(alone);
            assert_eq!(alone_for(Duration::from_millis(came_for)), alone, "{came_for} ms");
        }
    }

    #[test]
    fn only_listening_sockets_count() {
        for (line, port) in [
            ("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt", None),
            (
                "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000",
                Some(80),
            ),
            ("   1: 020011AC:0050 01006363:A3B2 01 00000000:00000000 00:00000000 00000000", None),
            (
                "   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0",
                Some(8080),
            ),
        ] {
            assert_eq!(listening_port(line), port, "{line}");
        }
    }
}
