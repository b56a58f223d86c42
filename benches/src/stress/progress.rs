//! The progress bar: on standard error, and only when that is a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far the current phase of a row is. Silent when nobody watches.
/// Clones move the same bar.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A bar when standard error is a terminal, silence otherwise.
    pub fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::silent();
        }
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg:<44} [{bar:32}] {percent:>3}%")
            .expect("the template is a constant")
            .progress_chars("=> ");
        bar.set_style(style);
        Self { bar: Some(bar) }
    }

    /// No bar at all.
    pub fn silent() -> Self {
        Self { bar: None }
    }

    /// Starts a phase of `total` steps, for instance `1,000 regions: elect`.
    pub fn begin(&self, phase: &str, total: u64) {
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_length(total.max(1));
            bar.set_message(phase.to_owned());
        }
    }

    /// Says how many steps of the phase are done.
    pub fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// Takes the bar off the screen while `print` writes to the terminal.
    pub fn suspend<R>(&self, print: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the bar off the screen for good.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_progress_still_runs_what_it_suspends_for() {
        let progress = Progress::silent();
        progress.begin("elect", 0);
        progress.set(7);
        assert_eq!(progress.suspend(|| 42), 42);
        progress.finish();
    }
}
