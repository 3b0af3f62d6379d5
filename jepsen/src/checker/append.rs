use super::Verdict;
use crate::history::Event;
#[allow(missing_docs)]
pub fn check(_: &[Event]) -> Verdict {
    Verdict::Pass
}
