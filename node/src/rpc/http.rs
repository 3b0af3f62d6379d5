//! The node's page for monitoring: `/metrics`, `/healthz`, `/readyz`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Requests answered at a time; more are told to come back.
const REQUESTS_MAX: usize = 32;
/// A page that takes longer is not worth waiting for.
const REQUEST_MAX: Duration = Duration::from_secs(5);
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the page shows.
pub trait HttpPage: Send + Sync + 'static {
    /// Figures in the OpenMetrics text format.
    fn metrics(&self) -> BoxFuture<'static, String>;

    /// Whether the process can go on; if not, why.
    ///
    /// # Errors
    /// One line for a person.
    fn alive(&self) -> Result<(), String>;

    /// Whether requests should be sent here; if not, why.
    ///
    /// # Errors
    /// One line for a person.
    fn ready(&self) -> Result<(), String>;
}

#[derive(Clone)]
struct Served {
    page: Arc<dyn HttpPage>,
    room: Arc<Semaphore>,
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    page: Arc<dyn HttpPage>,
    stop: CancellationToken,
) -> io::Result<()> {
    let served = Served {
        page,
        room: Arc::new(Semaphore::new(REQUESTS_MAX)),
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route(
            "/healthz",
            get(|State(served): State<Served>| async move { state(served.page.alive()) }),
        )
        .route(
            "/readyz",
            get(|State(served): State<Served>| async move { state(served.page.ready()) }),
        )
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "there are /metrics, /healthz and /readyz\n",
            )
        })
        .with_state(served);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn metrics(State(served): State<Served>) -> Response {
    let Ok(_room) = served.room.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time\n").into_response();
    };
    match tokio::time::timeout(REQUEST_MAX, served.page.metrics()).await {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the figures took too long\n").into_response(),
    }
}

fn state(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Fake;

    impl HttpPage for Fake {
        fn metrics(&self) -> BoxFuture<'static, String> {
            async { "reelkv_up 1\n# EOF\n".to_owned() }.boxed()
        }
        fn alive(&self) -> Result<(), String> {
            Ok(())
        }
        fn ready(&self) -> Result<(), String> {
            Err("this node belongs to no cluster yet".to_owned())
        }
    }

    async fn fetch(addr: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn each_path_answers_and_others_name_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, Arc::new(Fake), stop.clone()));
        let metrics = fetch(addr, "/metrics").await;
        assert!(
            metrics.starts_with("HTTP/1.1 200") && metrics.contains(METRICS_TYPE),
            "{metrics}"
        );
        assert!(metrics.ends_with("reelkv_up 1\n# EOF\n"), "{metrics}");
        assert!(fetch(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
        let ready = fetch(addr, "/readyz").await;
        assert!(
            ready.starts_with("HTTP/1.1 503") && ready.contains("no cluster yet"),
            "{ready}"
        );
        let other = fetch(addr, "/").await;
        assert!(
            other.starts_with("HTTP/1.1 404") && other.contains("/readyz"),
            "{other}"
        );
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}
