//! A small HTTP endpoint that serves `/metrics` in the Prometheus text format.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use prometheus::{Encoder, Registry, TextEncoder};
use tiny_http::{Header, Method, Request, Response, Server};

use super::error::StressError;

/// A listening endpoint; stops when dropped.
pub struct MetricsServer {
    server: Arc<Server>,
    registry: Arc<Mutex<Registry>>,
    thread: Option<JoinHandle<()>>,
    addr: SocketAddr,
}

impl MetricsServer {
    /// Binds `addr` (port 0 takes a free one) and serves from a thread of its own what
    /// [`MetricsServer::serve`] names; nothing until then.
    ///
    /// Errors with [`StressError::BadInput`] when the address cannot be bound.
    pub fn start(addr: SocketAddr) -> Result<Self, StressError> {
        let refused = |reason: String| {
            StressError::bad_input(
                "--metrics-addr",
                addr,
                &format!("cannot listen there: {reason}; give a free port, or 0 for any"),
            )
        };
        let server = Server::http(addr).map_err(|error| refused(error.to_string()))?;
        let bound =
            server.server_addr().to_ip().ok_or_else(|| refused("not an IP address".to_owned()))?;
        let server = Arc::new(server);
        let listening = Arc::clone(&server);
        let registry = Arc::new(Mutex::new(Registry::new()));
        let served = Arc::clone(&registry);
        let thread = thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                for request in listening.incoming_requests() {
                    let registry = served.lock().clone();
                    answer(request, &registry);
                }
            })
            .map_err(|error| StressError::Store(format!("cannot start a thread: {error}")))?;
        Ok(Self { server, registry, thread: Some(thread), addr: bound })
    }

    /// Serves this registry from now on, in place of the one before.
    pub fn serve(&self, registry: Registry) {
        *self.registry.lock() = registry;
    }

    /// The address it listens on, with the port it got.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            // A panic over there has printed itself; the run does not depend on it.
            drop(thread.join());
        }
    }
}

fn answer(request: Request, registry: &Registry) {
    let path = request.url().split('?').next().unwrap_or_default();
    let response = match (request.method(), path) {
        (Method::Get, "/metrics") => metrics(registry),
        (Method::Get, "/") => text(200, "see /metrics\n"),
        (Method::Get, _) => text(404, "only /metrics is here\n"),
        _ => text(405, "only GET is answered\n"),
    };
    // A client that went away is no concern of ours.
    drop(request.respond(response));
}

type Body = Response<std::io::Cursor<Vec<u8>>>;

fn metrics(registry: &Registry) -> Body {
    let encoder = TextEncoder::new();
    let mut body = Vec::new();
    match encoder.encode(&registry.gather(), &mut body) {
        Ok(()) => Response::from_data(body).with_header(content_type(encoder.format_type())),
        Err(error) => text(500, &format!("cannot encode the metrics: {error}\n")),
    }
}

fn text(status: u16, body: &str) -> Body {
    Response::from_string(body).with_status_code(status)
}

fn content_type(value: &str) -> Header {
    Header::from_bytes("Content-Type", value).expect("the content type is plain ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn get(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }

    #[test]
    fn metrics_are_served_and_other_paths_are_not() {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("stress_test_total", "counts").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc_by(3);
        let server = MetricsServer::start("127.0.0.1:0".parse().unwrap()).unwrap();
        server.serve(registry);
        let response = get(server.addr(), "GET /metrics");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains("stress_test_total 3"), "{response}");
        assert!(response.contains("text/plain"), "{response}");
        assert!(get(server.addr(), "GET /nothing").starts_with("HTTP/1.1 404"));
        assert!(get(server.addr(), "POST /metrics").starts_with("HTTP/1.1 405"));
    }

    #[test]
    fn busy_port_is_bad_input_that_names_the_address() {
        let first = MetricsServer::start("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = MetricsServer::start(first.addr()).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(&first.addr().to_string()), "{error}");
    }
}
