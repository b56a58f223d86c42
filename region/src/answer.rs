//! What a proposer gets, and the certainty that it gets it.

use std::panic::{catch_unwind, AssertUnwindSafe};

use bytes::Bytes;

use crate::error::ProposeError;
use crate::ids::{Index, RegionId, Term};

/// A command was carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The region.
    pub region_id: RegionId,
    /// Term of the command's entry.
    pub term: Term,
    /// Index of the command's entry.
    pub index: Index,
    /// What the state machine returned.
    pub value: Bytes,
}

/// The outcome of a proposal. At most 64 bytes, since one travels with every write.
pub type Answer = Result<Response, ProposeError>;

type Run = Box<dyn FnOnce(Answer) + Send>;

/// How a proposer is told the outcome.
///
/// Invariant: runs exactly once, and a panic in it ends there. A callback that is dropped unanswered runs with
/// [`ProposeError::Unknown`], so no path, not even a panic, can leave a proposer waiting.
pub struct Callback {
    run: Option<Run>,
    region_id: RegionId,
}

impl Callback {
    /// Wraps a function. It is run on the thread that answers, and should be short.
    pub fn new(run: impl FnOnce(Answer) + Send + 'static) -> Self {
        Self { run: Some(Box::new(run)), region_id: RegionId::new(0) }
    }

    /// Answers.
    pub fn call(mut self, answer: Answer) {
        self.run_with(answer);
    }

    fn run_with(&mut self, answer: Answer) {
        let Some(run) = self.run.take() else { return };
        // The user's code must not take down whoever answers, nor the process while another panic
        // unwinds and drops callbacks.
        if catch_unwind(AssertUnwindSafe(|| run(answer))).is_err() {
            tracing::error!(region = %self.region_id, "a proposal's callback panicked");
        }
    }

    /// Notes the region, for the answer given if the callback is dropped.
    pub(crate) fn bind(&mut self, region_id: RegionId) {
        self.region_id = region_id;
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        if self.run.is_some() {
            let reason = "dropped unanswered";
            self.run_with(Err(ProposeError::Unknown { region_id: self.region_id, reason }));
        }
    }
}

impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Callback(region {})", self.region_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn recorder() -> (Arc<Mutex<Vec<Answer>>>, Callback) {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let sink = answers.clone();
        (answers, Callback::new(move |answer| sink.lock().unwrap().push(answer)))
    }

    #[test]
    fn an_answer_stays_small() {
        assert!(size_of::<Answer>() <= 64, "{}", size_of::<Answer>());
        assert!(size_of::<Callback>() <= 24, "{}", size_of::<Callback>());
    }

    #[test]
    fn a_called_callback_runs_once() {
        let (answers, callback) = recorder();
        callback.call(Err(ProposeError::Stale { region_id: RegionId::new(1) }));
        assert_eq!(answers.lock().unwrap().len(), 1);
    }

    #[test]
    fn panics_in_callbacks_end_there_even_while_another_unwinds() {
        let bad = || Callback::new(|_| panic!("the user's"));
        bad().call(Err(ProposeError::Stale { region_id: RegionId::new(1) }));
        let unwound = catch_unwind(|| {
            let _dropped_while_unwinding = [bad(), bad()];
            panic!("ours");
        });
        assert!(unwound.is_err());
    }

    #[test]
    fn a_dropped_callback_answers_unknown() {
        let (answers, mut callback) = recorder();
        callback.bind(RegionId::new(3));
        drop(callback);
        let answers = answers.lock().unwrap();
        assert!(matches!(
            answers.as_slice(),
            [Err(ProposeError::Unknown { region_id, .. })] if region_id.get() == 3
        ));
    }
}
