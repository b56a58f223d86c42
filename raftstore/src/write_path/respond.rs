//! Station 6. In: proposals whose outcome is known. Out: each callback run, once.
//!
//! Last in the round, when everything else has left: callbacks are the user's code, and often propose
//! the next write.

use crate::clock::Clock;
use crate::metrics::LocalMetrics;
use crate::write_path::Stage;
use region::{Answer, Callback, ReadAnswer, ReadCallback};
use std::sync::Arc;

pub(crate) struct RespondStation {
    clock: Arc<dyn Clock>,
    answers: Vec<(Callback, Answer)>,
    reads: Vec<(ReadCallback, ReadAnswer)>,
}

impl RespondStation {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, answers: Vec::new(), reads: Vec::new() }
    }

    pub(crate) fn add(&mut self, callback: Callback, answer: Answer) {
        self.answers.push((callback, answer));
    }

    pub(crate) fn add_all(&mut self, answers: &mut Vec<(Callback, Answer)>) {
        self.answers.append(answers);
    }

    /// Readers who may look. They do so after everybody knows how their region stands.
    pub(crate) fn add_reads(&mut self, reads: &mut Vec<(ReadCallback, ReadAnswer)>) {
        self.reads.append(reads);
    }

    /// Runs all callbacks. A panic in one ends there.
    pub(crate) fn flush(&mut self, metrics: &mut LocalMetrics) {
        if self.answers.is_empty() && self.reads.is_empty() {
            return;
        }
        let start = self.clock.now();
        for (callback, answer) in self.answers.drain(..) {
            metrics.count_answer(&answer);
            callback.call(answer);
        }
        self.reads.drain(..).for_each(|(callback, answer)| callback.call(answer));
        metrics.observe(Stage::Respond, self.clock.now().saturating_sub(start));
    }
}
