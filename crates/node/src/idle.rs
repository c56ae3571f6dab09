//! Keeps an idle daemon small: what it ran while it worked need not stay mapped.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Processor time between two looks of a daemon that only keeps time with its swarm: one hundredth.
const IDLE: Duration = Duration::from_millis(20);

/// Lets the program's pages go each time the daemon comes to rest.
pub(crate) async fn keep_small() {
    let mut before = processor_time();
    let mut has_worked = true;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = processor_time();
        if now.saturating_sub(before) > IDLE {
            has_worked = true;
        } else if std::mem::take(&mut has_worked) {
            shim::pages::let_go_of_program();
        }
        before = now;
    }
}

/// What all threads have used since the start.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
