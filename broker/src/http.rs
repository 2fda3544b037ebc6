//! **What**: the small HTTP door for probes and scrapers: `/metrics`, `/healthz`, `/readyz`. Runs on the control thread.
//!
//! **Invariants**: one request per connection; at most [`CONNECTIONS_MAX`] connections, further ones wait in the kernel; a
//! connection lives at most [`CONNECTION_TIME`]; a request head is at most [`HEAD_BYTES`]; only GET and HEAD.
//!
//! **Never**: a change of state through this door; secrets or tenant names in an answer; the data path waiting for it.
//!
//! **See**: `metrics.rs` for the text.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Most connections served at a time.
pub const CONNECTIONS_MAX: usize = 64;

/// Longest life of a connection: a scrape takes milliseconds.
pub const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Longest wait for a complete request head.
pub const HEAD_TIME: Duration = Duration::from_secs(3);

/// Most bytes of a request head; hyper's smallest buffer.
pub const HEAD_BYTES: usize = 8 << 10;

/// Pause after a failed accept: out of descriptors, most likely, and trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Appends the text of `/metrics`.
pub type Render = Box<dyn Fn(&mut String) + Send + Sync>;

/// Says whether the broker takes traffic, or why not yet, in a sentence.
pub type Ready = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the door needs to know.
pub struct HttpState {
    /// For `/metrics`.
    pub render: Render,
    /// For `/readyz`.
    pub ready: Ready,
}

/// Serves until dropped. Must run inside a tokio runtime with I/O and time.
pub async fn serve(listener: TcpListener, state: Arc<HttpState>) {
    // Dropping the set with this future ends all connections.
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(tokio::time::timeout(CONNECTION_TIME, connection(stream, state.clone())));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connection(stream: TcpStream, state: Arc<HttpState>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&state, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    // The caller's mistakes (a bad head, a hang-up) are answered or dropped by hyper and concern nobody else.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(state: &HttpState, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
        return text(StatusCode::NOT_FOUND, "not found: this door has /metrics, /healthz and /readyz\n".into());
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response =
            text(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed here: use GET or HEAD\n"));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => {
            let mut body = String::new();
            (state.render)(&mut body);
            let mut response = text(StatusCode::OK, body);
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        "/readyz" => match (state.ready)() {
            Ok(()) => text(StatusCode::OK, "ready\n".into()),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
        },
        // The control thread answers, so it is alive.
        _ => text(StatusCode::OK, "ok\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Serves on a thread of its own until the returned sender is dropped.
    fn door() -> (SocketAddr, Arc<AtomicBool>, std::sync::mpsc::Sender<()>) {
        let ready = Arc::new(AtomicBool::new(false));
        let seen = ready.clone();
        let state = Arc::new(HttpState {
            render: Box::new(|out| out.push_str("felix_test 1\n")),
            ready: Box::new(move || match seen.load(Ordering::SeqCst) {
                true => Ok(()),
                false => Err("cores are starting".into()),
            }),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let server = serve(TcpListener::from_std(listener).unwrap(), state);
                let end = async {
                    while !matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! { () = server => {}, () = end => {} }
            });
        });
        (addr, ready, stop)
    }

    fn ask(addr: SocketAddr, request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[track_caller]
    fn check(addr: SocketAddr, line: &str, status: &str, body: &str) {
        let answer = ask(addr, &format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n"));
        let (head, found) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {line}: {answer:?}"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {head}");
        assert_eq!(found, body, "{line}");
    }

    #[test]
    fn answers_probes_and_scrapes() {
        let (addr, ready, _stop) = door();
        check(addr, "GET /healthz", "200", "ok\n");
        check(addr, "GET /metrics", "200", "felix_test 1\n");
        check(addr, "HEAD /metrics", "200", "");
        check(addr, "GET /readyz", "503", "not ready: cores are starting\n");
        ready.store(true, Ordering::SeqCst);
        check(addr, "GET /readyz?verbose", "200", "ready\n");
        check(addr, "GET /", "404", "not found: this door has /metrics, /healthz and /readyz\n");
        check(addr, "POST /metrics", "405", "POST is not allowed here: use GET or HEAD\n");
        assert!(ask(addr, "DELETE /readyz HTTP/1.1\r\nhost: x\r\n\r\n").contains("allow: GET, HEAD"));
    }

    #[test]
    fn refuses_large_and_broken_heads() {
        let (addr, _, _stop) = door();
        let large = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(2 * HEAD_BYTES));
        let answer = ask(addr, &large);
        assert!(!answer.contains("200 OK"), "{answer}");
        assert!(ask(addr, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
        check(addr, "GET /healthz", "200", "ok\n");
    }

    #[test]
    fn idle_connections_cannot_fill_the_door_for_ever() {
        let (addr, _, _stop) = door();
        let idle: Vec<_> = (0..CONNECTIONS_MAX + 8).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
        // Served once the idle ones run into the time for a request head.
        check(addr, "GET /healthz", "200", "ok\n");
        drop(idle);
    }
}
