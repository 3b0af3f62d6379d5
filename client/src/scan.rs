//! Scans: page after page, shard after shard.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use reelkv_proto::v1;
use reelkv_proto::v1::request::Op;
use reelkv_proto::v1::response::Result as Answer;
use tokio::time::Instant;

use crate::call::{Ask, end_in_shard, unexpected};
use crate::error::{Error, Result};
use crate::keyspace::Keyspace;
use crate::limits;
use crate::record::{Record, ScanPage, ScanRange};

/// Where a stream of records stands.
struct Cursor {
    keyspace: Keyspace,
    page: VecDeque<Record>,
    rest: Option<ScanRange>,
}

pub(crate) fn stream(keyspace: Keyspace, range: ScanRange) -> BoxStream<'static, Result<Record>> {
    let cursor = Cursor {
        keyspace,
        page: VecDeque::new(),
        rest: Some(range),
    };
    stream::unfold(cursor, |mut cursor| async move {
        loop {
            if let Some(record) = cursor.page.pop_front() {
                return Some((Ok(record), cursor));
            }
            match self::page(&cursor.keyspace, cursor.rest.take()?).await {
                Ok(fetched) => (cursor.page, cursor.rest) = (fetched.records.into(), fetched.rest),
                // Nothing is left to fetch, so the error is the stream's last item.
                Err(error) => return Some((Err(error), cursor)),
            }
        }
    })
    .boxed()
}

/// Fetches one page. It may be empty although the scan is not complete: a shard without records.
pub(crate) async fn page(keyspace: &Keyspace, range: ScanRange) -> Result<ScanPage> {
    check(&range)?;
    if !range.end.is_empty() && range.start >= range.end {
        return Ok(ScanPage {
            records: Vec::new(),
            rest: None,
        });
    }
    let op = Op::Scan(v1::ScanRequest {
        keyspace_id: keyspace.id,
        start_key: range.start.clone(),
        end_key: range.end.clone(),
        limit: range.limit,
        page_bytes: range.page_bytes,
        ..Default::default()
    });
    let deadline = Instant::now() + keyspace.timeout;
    let ask = Ask {
        keyspace: keyspace.id,
        key: &range.start,
        op: &op,
        deadline,
    };
    let answered = keyspace.shared.perform(ask).await?;
    let Answer::Scan(page) = answered.answer else {
        return Err(unexpected());
    };
    let shard_end = end_in_shard(keyspace.id, &range.end, &answered.range);
    let last = page.records.last().map(|record| record.key.clone());
    let resume = resume_at(&range, page.resume_key, shard_end, last.as_ref())?;
    let records: Vec<_> = page.records.into_iter().map(Record::from_verified).collect();
    let rest = left_of(range, records.len() as u64, resume)?;
    Ok(ScanPage { records, rest })
}

fn check(range: &ScanRange) -> Result<()> {
    limits::check_key(&range.start)?;
    limits::check_key(&range.end)?;
    if range.page_bytes > limits::PAGE_BYTES_MAX {
        let message = format!(
            "page_bytes is {}, at most {} is allowed",
            range.page_bytes,
            limits::PAGE_BYTES_MAX
        );
        return Err(Error::invalid("page_bytes", message));
    }
    Ok(())
}

/// Where to go on: where the node says, or at the next shard, or nowhere.
fn resume_at(
    range: &ScanRange,
    resume_key: Bytes,
    shard_end: Bytes,
    last: Option<&Bytes>,
) -> Result<Option<Bytes>> {
    if resume_key.is_empty() {
        let is_last_shard = shard_end.is_empty() || shard_end == range.end;
        return Ok((!is_last_shard).then_some(shard_end));
    }
    if resume_key <= range.start || last.is_some_and(|last| resume_key <= *last) {
        return Err(Error::internal("a scan does not advance"));
    }
    let is_done = !range.end.is_empty() && resume_key >= range.end;
    Ok((!is_done).then_some(resume_key))
}

fn left_of(range: ScanRange, returned: u64, resume: Option<Bytes>) -> Result<Option<ScanRange>> {
    let Some(start) = resume else { return Ok(None) };
    if range.limit == 0 {
        return Ok(Some(ScanRange { start, ..range }));
    }
    match range.limit.checked_sub(returned) {
        Some(0) => Ok(None),
        Some(limit) => Ok(Some(ScanRange {
            start,
            limit,
            ..range
        })),
        None => Err(Error::internal(
            "a node returned more records than were asked for",
        )),
    }
}
