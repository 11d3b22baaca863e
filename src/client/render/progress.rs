//! What turns on stderr while something is waited for.

use std::{pin::pin, time::Duration};

use indicatif::ProgressBar;

use super::note;
use crate::client::visible::visible;

/// What takes no longer than this needs no spinner.
const AT_ONCE: Duration = Duration::from_millis(300);

/// Turns on stderr while something is waited for, if stderr is a terminal;
/// vanishes when dropped.
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Starts to turn.
    pub fn new(text: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(visible(text).into_owned());
        // Else each of the lines that -v writes would be torn by it.
        if tracing::enabled!(tracing::Level::DEBUG) {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// As [`note`], above the spinner.
    pub fn note(&self, text: &str) {
        self.0.suspend(|| note(text));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        // A last turn may otherwise come behind the end.
        self.0.disable_steady_tick();
        self.0.finish_and_clear();
    }
}

/// Waits for `answer`, under a spinner if it is not there at once.
pub async fn patiently<T>(text: &str, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    if let Ok(answer) = tokio::time::timeout(AT_ONCE, &mut answer).await {
        return answer;
    }
    let _spinner = Spinner::new(text);
    answer.await
}
