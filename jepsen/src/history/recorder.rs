//! Writes down what clients do while they do it.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use reelkv::clock::{Instant, now};
use reelkv_client::{Error, ErrorKind};

use super::{Action, Answer, Event, Outcome};

/// The history of a run in the making.
pub struct Recorder {
    started: Instant,
    events: Mutex<Vec<Event>>,
    next_value: AtomicU64,
}

impl Recorder {
    /// An empty history that begins now.
    pub fn new() -> Self {
        Self {
            started: now(),
            events: Mutex::default(),
            next_value: AtomicU64::new(1),
        }
    }

    /// A value no one had before.
    pub fn fresh_value(&self) -> u64 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    /// Microseconds since the history began.
    pub fn elapsed_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Performs a call and writes down what the client was told. Gives the answer back.
    pub async fn perform(
        &self,
        client: u64,
        action: Action,
        call: impl Future<Output = Result<Answer, Error>>,
    ) -> Option<Answer> {
        let invoked_us = self.elapsed_us();
        let outcome = match call.await {
            Ok(answer) => Outcome::Ok(answer),
            Err(error) => outcome_of(&error),
        };
        let answer = match &outcome {
            Outcome::Ok(answer) => Some(answer.clone()),
            _ => None,
        };
        self.events.lock().push(Event {
            client,
            action,
            outcome,
            invoked_us,
            completed_us: self.elapsed_us(),
        });
        answer
    }

    /// The history so far, in the order of completion.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock())
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

/// What an error of the client library promises about the operation.
fn outcome_of(error: &Error) -> Outcome {
    match error.kind() {
        ErrorKind::OutcomeUnknown => Outcome::Info(error.to_string()),
        ErrorKind::ConditionFailed { current_version } => Outcome::Ok(Answer::Refused {
            version: *current_version,
        }),
        _ => Outcome::Fail(error.to_string()),
    }
}
