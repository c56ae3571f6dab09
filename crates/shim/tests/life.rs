//! A container's life under the shim: start, streams, log, exec, end, and daemons that come and go.

mod common;

use std::fs;

use common::{Bundle, Reader, Under, exec, pipe, read_all, shell};
use shim::client::{Attachment, Client, End, ExecStdio, exit_record, is_gone, state_record};
use shim::config::LogDriver;
use shim::protocol::Status;

async fn both(test: impl AsyncFn(Under)) {
    for under in [Under::Native, Under::Runc] {
        test(under).await;
    }
}

#[tokio::test]
async fn output_and_exit_code_arrive_and_are_recorded() {
    both(async |under| {
        let bundle = Bundle::new("echo out; echo err >&2; exit 7").under(under);
        let output = bundle.run().await;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(output.exit.exit_code, 7, "{output:?}");
        assert_eq!(exit_record(bundle.path()).unwrap().unwrap(), output.exit);
    })
    .await;
}

#[tokio::test]
async fn an_exec_runs_beside_the_container_and_its_end_is_told() {
    both(async |under| {
        let bundle = Bundle::new("read line; echo got $line").under(under);
        let mut bundle = bundle;
        bundle.config.open_stdin = true;
        let client = bundle.launch().await;
        client.start().await.unwrap();
        let (output, code) = exec(&client, &shell("hostname; cat /proc/1/comm; exit 3")).await;
        assert_eq!((output.as_str(), code), ("skephost\nsh\n", 3), "{under:?}");
        client.close_stdin().await.unwrap();
        assert!(matches!(client.wait().await, End::Exited(_)));
    })
    .await;
}
