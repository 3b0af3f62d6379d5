use super::Verdict;
use crate::history::Event;
#[allow(missing_docs)]
pub fn check(_: &[Event], _: u64, _: i64) -> Verdict {
    Verdict::Pass
}
