//! What turns on stderr while something is waited for.

use std::{
    cell::Cell,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{is_attended, note};
use crate::{api::Group, client::visible::visible};

/// What takes no longer than this needs no spinner.
const AT_ONCE: Duration = Duration::from_millis(300);

/// The one that is on the screen now.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn set_shown(bar: Option<ProgressBar>) {
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// Writes a line to stderr, above what turns there.
pub(super) fn above(write: impl FnOnce()) {
    let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match shown {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

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
        set_shown(Some(bar.clone()));
        Self(bar)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        set_shown(None);
        // A last turn may otherwise come behind the end.
        self.0.disable_steady_tick();
        self.0.finish_and_clear();
    }
}

/// How far a group of jobs has come: a bar on stderr if that is a terminal, which
/// vanishes when dropped; else a line for each tenth.
pub struct GroupBar {
    bar: ProgressBar,
    began: Instant,
    /// Of what had ended before, nothing says how fast it went.
    ended_before: u32,
    tenths: Cell<u32>,
}

impl GroupBar {
    /// Shows how it stands now.
    pub fn new(group: &Group) -> Self {
        let bar = ProgressBar::new(group.count.into());
        let style = ProgressStyle::with_template("{prefix} [{bar:16}] {pos}/{len} {msg}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        if tracing::enabled!(tracing::Level::DEBUG) {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        bar.set_prefix(group.id.short());
        set_shown(Some(bar.clone()));
        let bar = Self {
            bar,
            began: Instant::now(),
            ended_before: group.states.ended(),
            tenths: Cell::new(tenths(group)),
        };
        bar.show(group);
        bar
    }

    /// Shows how it stands now.
    pub fn show(&self, group: &Group) {
        let states = group.states;
        let text = self.text(group);
        self.bar.set_position(states.ended().into());
        self.bar.set_message(text.clone());
        let tenths = tenths(group);
        // The end is told by whoever waited for it.
        let is_step = tenths > self.tenths.replace(tenths) && group.ended_at.is_none();
        if !is_attended() && is_step {
            let (id, ended, count) = (group.id.short(), states.ended(), group.count);
            note(&format!("group {id}: {ended}/{count} {text}"));
        }
    }

    fn text(&self, group: &Group) -> String {
        let states = group.states;
        let bad = states.unsuccessful();
        let failed = match bad {
            0 => String::new(),
            bad => format!(", {bad} failed"),
        };
        let seconds = self.began.elapsed().as_secs_f64();
        let new = f64::from(states.ended().saturating_sub(self.ended_before));
        let rate = match seconds > 0.5 && new > 0.0 {
            true => format!(", {:.1}/s", new / seconds),
            false => String::new(),
        };
        let running = states.running + states.unknown;
        format!("done, {running} running{failed}{rate}")
    }
}

impl Drop for GroupBar {
    fn drop(&mut self) {
        set_shown(None);
        self.bar.finish_and_clear();
    }
}

fn tenths(group: &Group) -> u32 {
    group.states.ended() * 10 / group.count.max(1)
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
