//! The node's page for monitoring: `/metrics`, `/healthz`, `/readyz`.
//!
//! Whoever asks may be slow, hostile or many, and none of it may cost the node anything: at most
//! [`CONNECTIONS_MAX`] connections are open, each answers one request and then ends, and none
//! lives longer than [`CONNECTION_MAX`], whether it is its request or its answer that stalls.
//! Connections beyond that wait in the kernel's queue.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

/// Connections open at a time.
const CONNECTIONS_MAX: usize = 64;
/// How long an answer may take to be made.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// How long a connection may live: more than a request, so that a late one is told so.
const CONNECTION_MAX: Duration = Duration::from_secs(7);
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the page shows.
pub trait HttpPage: Send + Sync + 'static {
    /// Figures in the OpenMetrics text format.
    fn metrics(&self) -> BoxFuture<'static, String>;

    /// Whether the process can go on.
    ///
    /// # Errors
    /// Why not: one line for a person.
    fn alive(&self) -> Result<(), String>;

    /// Whether requests should be sent here.
    ///
    /// # Errors
    /// Why not: one line for a person.
    fn ready(&self) -> Result<(), String>;
}

type Page = State<Arc<dyn HttpPage>>;

/// Serves until `stop` is cancelled and the requests being answered then are, at most
/// [`CONNECTION_MAX`] later.
///
/// # Errors
/// The listener failed for good.
pub async fn serve(
    listener: TcpListener,
    page: Arc<dyn HttpPage>,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route(
            "/healthz",
            get(|State(page): Page| async move { verdict(page.alive()) }),
        )
        .route(
            "/readyz",
            get(|State(page): Page| async move { verdict(page.ready()) }),
        )
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "there are /metrics, /healthz and /readyz\n",
            )
        })
        .layer(middleware::from_fn(bounded))
        .with_state(page);
    let listener = Bounded {
        listener,
        room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
    };
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn metrics(State(page): Page) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], page.metrics().await).into_response()
}

fn verdict(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// One answer, in time, and the connection is done.
async fn bounded(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(REQUEST_MAX, next.run(request)).await;
    let mut answer = answer.unwrap_or_else(|_| {
        let why = format!("no answer within {} s\n", REQUEST_MAX.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
    });
    answer
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Accepts while there is room.
struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self
            .room
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        // axum's own accept waits and tries again when the process is out of descriptors.
        let (stream, addr) = Listener::accept(&mut self.listener).await;
        let end = Box::pin(tokio::time::sleep(CONNECTION_MAX));
        (
            Connection {
                stream,
                end,
                _place: place,
            },
            addr,
        )
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails once its time is over.
struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// The stream, or why it may not be used any more. Whoever waits on the stream is woken at
    /// the end as well.
    fn within_time(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.within_time(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.within_time(cx)?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within_time(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;
    use crate::clock::now;

    const FIGURES: &str = "# TYPE reelkv_leaders gauge\nreelkv_leaders 3\n# EOF\n";

    struct Fake {
        alive: Mutex<Result<(), String>>,
        ready: Mutex<Result<(), String>>,
        /// When set, figures are asked for but never come.
        stuck: Option<Arc<Notify>>,
    }

    impl Default for Fake {
        fn default() -> Self {
            Self {
                alive: Mutex::new(Ok(())),
                ready: Mutex::new(Ok(())),
                stuck: None,
            }
        }
    }

    impl HttpPage for Fake {
        fn metrics(&self) -> BoxFuture<'static, String> {
            let stuck = self.stuck.clone();
            async move {
                if let Some(asked) = stuck {
                    asked.notify_one();
                    std::future::pending::<()>().await;
                }
                FIGURES.to_owned()
            }
            .boxed()
        }
        fn alive(&self) -> Result<(), String> {
            self.alive.lock().clone()
        }
        fn ready(&self) -> Result<(), String> {
            self.ready.lock().clone()
        }
    }

    struct Server {
        addr: SocketAddr,
        stop: CancellationToken,
        serving: tokio::task::JoinHandle<io::Result<()>>,
    }

    async fn start(page: Arc<Fake>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, page, stop.clone()));
        Server { addr, stop, serving }
    }

    impl Server {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.addr).await.unwrap()
        }

        /// The answer's status and the whole of it. It ends because the server ends it: the
        /// request asks for no close.
        async fn get(&self, path: &str) -> (u16, String) {
            let mut stream = self.connect().await;
            let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            answer(stream).await
        }
    }

    async fn answer(mut stream: TcpStream) -> (u16, String) {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.get(9..12).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status in {text:?}")), text)
    }

    #[tokio::test]
    async fn metrics_come_as_they_are_in_the_format_they_have() {
        let server = start(Arc::default()).await;
        let (status, text) = server.get("/metrics").await;
        assert_eq!(status, 200, "{text}");
        assert!(
            text.contains(&format!("content-type: {METRICS_TYPE}\r\n")),
            "{text}"
        );
        assert!(text.ends_with(&format!("\r\n\r\n{FIGURES}")), "{text}");
    }

    #[tokio::test]
    async fn health_and_readiness_are_told_apart_and_say_why_not() {
        let page = Arc::new(Fake::default());
        let server = start(page.clone()).await;
        for path in ["/healthz", "/readyz"] {
            let (status, text) = server.get(path).await;
            assert!(status == 200 && text.ends_with("\r\n\r\nok\n"), "{path}: {text}");
        }
        *page.ready.lock() = Err("not a member".to_owned());
        let (status, text) = server.get("/readyz").await;
        assert!(
            status == 503 && text.ends_with("\r\n\r\nnot a member\n"),
            "{text}"
        );
        assert_eq!(server.get("/healthz").await.0, 200);
        *page.alive.lock() = Err("poisoned".to_owned());
        let (status, text) = server.get("/healthz").await;
        assert!(status == 503 && text.ends_with("\r\n\r\npoisoned\n"), "{text}");
    }

    #[tokio::test]
    async fn any_other_path_names_the_three() {
        let server = start(Arc::default()).await;
        for path in ["/", "/metrics/", "/healthz/x"] {
            let (status, text) = server.get(path).await;
            assert_eq!(status, 404, "{path}: {text}");
            for named in ["/metrics", "/healthz", "/readyz"] {
                assert!(text.contains(named), "{path}: {text}");
            }
        }
    }

    #[tokio::test]
    async fn figures_that_do_not_come_are_given_up_in_time() {
        let asked = Arc::new(Notify::new());
        let server = start(Arc::new(Fake {
            stuck: Some(asked.clone()),
            ..Default::default()
        }))
        .await;
        let begun = now();
        let ((status, text), ()) = tokio::join!(server.get("/metrics"), async {
            asked.notified().await;
            // From here on time is virtual, and passes because nothing else happens.
            tokio::time::pause();
        });
        assert!(status == 503 && text.contains("no answer within 5 s"), "{text}");
        assert!(
            (REQUEST_MAX..CONNECTION_MAX).contains(&begun.elapsed()),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test]
    async fn silent_connections_hold_up_neither_others_for_long_nor_the_end() {
        let server = start(Arc::default()).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = server.connect().await;
            stream.write_all(b"GET /heal").await.unwrap();
            silent.push(stream);
        }
        let waiting = async {
            let begun = now();
            let answer = server.get("/healthz").await;
            (answer, begun.elapsed())
        };
        let ((status, text), waited) = waiting.await;
        assert_eq!(status, 200, "{text}");
        // There was no room before the first silent ones were ended.
        assert!(
            waited > CONNECTION_MAX / 2,
            "the bound on connections does not hold: {waited:?}"
        );
        assert!(waited < CONNECTION_MAX * 2, "{waited:?}");
        for mut stream in silent {
            let mut rest = Vec::new();
            // Ended or reset, but not left open.
            let ended = tokio::time::timeout(CONNECTION_MAX, stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "a silent connection is still open");
        }
        server.stop.cancel();
        tokio::time::timeout(CONNECTION_MAX, server.serving)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
