//! Keys and values over unary calls, a stream of pages, and sessions.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use reelkv_proto::v1::kv_server::Kv;
use reelkv_proto::v1::{self, request, response};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::handler::KvHandler;
use super::session;
use super::status::to_status;
use crate::error;

/// The Kv service of a node.
#[derive(Clone)]
pub(super) struct KvService {
    pub(super) handler: Arc<dyn KvHandler>,
    /// Cancelled when the node stops: sessions end once they have answered what they took.
    pub(super) stop: CancellationToken,
}

/// What a unary call may take, from the caller's `grpc-timeout` (a number of at most 8 digits and a
/// unit, as gRPC's HTTP/2 protocol says); 0, the node's default, without one.
fn timeout_ms(metadata: &MetadataMap) -> u32 {
    let parse = || {
        let text = metadata.get("grpc-timeout")?.to_str().ok()?;
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: u64 = number.parse().ok()?;
        let wait = match unit {
            "H" => Duration::from_secs(number * 3_600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        };
        Some(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1))
    };
    parse().unwrap_or(0)
}

impl KvService {
    async fn answer(&self, timeout_ms: u32, op: request::Op) -> Result<response::Result, Status> {
        let request = v1::Request {
            id: 0,
            timeout_ms,
            op: Some(op),
        };
        match self.handler.request(request).await.result {
            Some(response::Result::Error(error)) => Err(to_status(error)),
            Some(result) => Ok(result),
            None => Err(other_kind()),
        }
    }
}

fn other_kind() -> Status {
    to_status(error::internal("an answer of another kind"))
}

/// One unary call: wraps the request, unwraps the answer.
macro_rules! unary {
    ($service:expr, $request:expr, $op:ident, $result:ident) => {{
        let timeout_ms = timeout_ms($request.metadata());
        match $service
            .answer(timeout_ms, request::Op::$op($request.into_inner()))
            .await?
        {
            response::Result::$result(answer) => Ok(Response::new(answer)),
            _ => Err(other_kind()),
        }
    }};
}

#[tonic::async_trait]
impl Kv for KvService {
    type ScanStream = BoxStream<'static, Result<v1::ScanResponse, Status>>;
    type SessionStream = BoxStream<'static, Result<v1::SessionResponse, Status>>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        unary!(self, request, Get, Get)
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        unary!(self, request, Put, Write)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        unary!(self, request, Delete, Write)
    }

    async fn add(&self, request: Request<v1::AddRequest>) -> Result<Response<v1::AddResponse>, Status> {
        unary!(self, request, Add, Add)
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        unary!(self, request, Batch, Write)
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let service = self.clone();
        let timeout_ms = timeout_ms(request.metadata());
        let pages = stream::try_unfold(Some(request.into_inner()), move |rest| {
            let service = service.clone();
            async move {
                let Some(asked) = rest else { return Ok(None) };
                let response::Result::Scan(page) = service
                    .answer(timeout_ms, request::Op::Scan(asked.clone()))
                    .await?
                else {
                    return Err(other_kind());
                };
                let rest = rest_of(asked, &page);
                Ok(Some((page, rest)))
            }
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let answers = session::run(self.handler.clone(), request.into_inner(), self.stop.clone());
        Ok(Response::new(answers.boxed()))
    }
}

/// What is still to be scanned after a page; `None` when nothing is.
fn rest_of(asked: v1::ScanRequest, page: &v1::ScanResponse) -> Option<v1::ScanRequest> {
    let read = page.records.len() as u64;
    if page.resume_key.is_empty() || (asked.limit != 0 && read >= asked.limit) {
        return None;
    }
    let limit = if asked.limit == 0 { 0 } else { asked.limit - read };
    // The next page may lie in another shard: the node routes it.
    Some(v1::ScanRequest {
        start_key: page.resume_key.clone(),
        limit,
        route: None,
        ..asked
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit() {
        for (text, ms) in [
            ("2S", 2_000),
            ("150m", 150),
            ("1M", 60_000),
            ("1H", 3_600_000),
            ("5u", 1),
            ("", 0),
            ("x", 0),
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(timeout_ms(&metadata), ms, "{text:?}");
        }
        assert_eq!(timeout_ms(&MetadataMap::new()), 0);
    }

    #[test]
    fn a_scan_goes_on_until_its_limit_or_its_end() {
        let page = |records, resume: &'static [u8]| v1::ScanResponse {
            records: vec![v1::Record::default(); records],
            resume_key: resume.into(),
        };
        let asked = v1::ScanRequest {
            limit: 3,
            ..Default::default()
        };
        assert_eq!(rest_of(asked.clone(), &page(2, b"k")).unwrap().limit, 1);
        assert!(rest_of(asked.clone(), &page(3, b"k")).is_none());
        assert!(rest_of(asked, &page(2, b"")).is_none());
        let endless = v1::ScanRequest::default();
        assert_eq!(rest_of(endless, &page(2, b"k")).unwrap().start_key, &b"k"[..]);
    }
}
