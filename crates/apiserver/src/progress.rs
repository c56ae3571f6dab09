//! Progress of the engine's long operations as lines for a client.

use std::pin::Pin;
use std::task::{Context, Poll};

use docker_types::image::{ProgressDetail, ProgressLine, PushResult};
use engine::images::progress::{Aux, Progress};
use futures::Stream;
use tokio::sync::mpsc::Receiver;

use crate::error::ApiError;

/// Blanks or signs of a full bar, as Docker draws it.
const BAR_WIDTH: u64 = 50;

type Work = Pin<Box<dyn Future<Output = Result<(), ApiError>> + Send>>;

/// An operation and the lines it reports. It goes on only while somebody reads, so a client that
/// goes away cancels it.
pub(crate) struct Lines {
    work: Option<Work>,
    lines: Receiver<Progress>,
    error: Option<ApiError>,
}

/// Runs `work` and gives its lines, and its error in the end.
pub(crate) fn lines(
    work: impl Future<Output = Result<(), ApiError>> + Send + 'static,
    lines: Receiver<Progress>,
) -> Lines {
    Lines { work: Some(Box::pin(work)), lines, error: None }
}

impl Stream for Lines {
    type Item = Result<ProgressLine, ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(Some(line)) = self.lines.poll_recv(cx) {
            return Poll::Ready(Some(Ok(to_line(line))));
        }
        if let Some(work) = &mut self.work
            && let Poll::Ready(result) = work.as_mut().poll(cx)
        {
            self.error = result.err();
            self.work = None;
        }
        // The work may have reported, or ended and with it the lines.
        match self.lines.poll_recv(cx) {
            Poll::Ready(Some(line)) => Poll::Ready(Some(Ok(to_line(line)))),
            Poll::Ready(None) if self.work.is_none() => Poll::Ready(self.error.take().map(Err)),
            _ => Poll::Pending,
        }
    }
}

fn to_line(line: Progress) -> ProgressLine {
    let bar = line.detail.and_then(|(current, total)| bar(current, total));
    ProgressLine {
        stream: line.stream,
        status: line.status,
        progress_detail: line.detail.map(|(current, total)| ProgressDetail { current, total }),
        progress: bar,
        id: line.id,
        aux: line.aux.map(|Aux::Push { tag, digest, size }| PushResult { tag, digest, size }),
    }
}

/// `[==>    ]  1.2MB/3MB`, for clients that draw no bar of their own.
fn bar(current: u64, total: u64) -> Option<String> {
    if current == 0 && total == 0 {
        return None;
    }
    let done = human_size(current);
    if total == 0 || current > total {
        return Some(format!("{done:>8}"));
    }
    let signs = usize::try_from(current.saturating_mul(BAR_WIDTH) / total).unwrap_or_default();
    let blanks = usize::try_from(BAR_WIDTH).unwrap_or_default() - signs;
    let (signs, blanks) = ("=".repeat(signs), " ".repeat(blanks));
    Some(format!("[{signs}>{blanks}] {done:>8}/{}", human_size(total)))
}

/// Four digits and a unit of a thousand, as Docker shows sizes: `1.234MB`.
pub(crate) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let mut value = bytes as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v >= 999.95 => 0,
        v if v >= 99.995 => 1,
        v if v >= 9.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use engine::images::progress;
    use futures::StreamExt;

    use super::*;

    #[test]
    fn sizes_and_bars_look_like_dockers() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.234kB"),
            (32_768, "32.77kB"),
            (2_220_094, "2.22MB"),
            (123_456_789, "123.5MB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
        let drawn = bar(32_768, 2_220_094).unwrap();
        assert_eq!(drawn, format!("[>{}]  32.77kB/2.22MB", " ".repeat(50)));
        assert_eq!(bar(5, 5).unwrap(), format!("[{}>]       5B/5B", "=".repeat(50)));
        assert_eq!((bar(0, 0), bar(7, 0)), (None, Some("      7B".to_owned())));
    }

    #[tokio::test]
    async fn lines_come_as_they_are_reported_and_an_error_at_the_end() {
        let (reporter, rx) = progress::channel();
        let work = async move {
            reporter.send(Progress::remark("1", "Pulling from x")).await;
            tokio::task::yield_now().await;
            reporter.send(Progress::of("abc", "Waiting")).await;
            Err(ApiError::not_found("gone"))
        };
        let lines: Vec<String> = lines(work, rx)
            .map(|line| match line {
                Ok(line) => serde_json::to_string(&line).unwrap(),
                Err(error) => error.message,
            })
            .collect()
            .await;
        assert_eq!(
            lines,
            [
                r#"{"status":"Pulling from x","id":"1"}"#,
                r#"{"status":"Waiting","progressDetail":{},"id":"abc"}"#,
                "gone",
            ]
        );
    }
}
