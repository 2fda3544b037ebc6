//! **What**: the threaded face: a background thread drives, handles on any thread use it.
//!
//! **Invariants**: the thread ends with `close` or with the last use of the `Client`; then every waiting call and
//! record has its outcome.
//!
//! **Never**: work on the caller's thread that could wait for the network, but in calls that say so.
//!
//! **See**: `poll_client.rs`, which is what the thread runs.

use crate::calls::{self, Caller};
use crate::config::{ClientConfig, PublisherOptions, SubscribeOptions, Wait};
use crate::error::{ConnectError, RequestError};
use crate::poll_client::PollClient;
use crate::publisher::Publisher;
use crate::shared::{OneShot, Shared, lock};
use crate::subscriber::Subscriber;
use felix_protocol::frame::{Route, Stats, Welcome};
use felix_protocol::metadata::{Command, Reply};
use felix_protocol::names::StreamName;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest sleep of the thread; deadlines and wake-ups end it sooner.
const SLEEP: Duration = Duration::from_secs(1);

/// A connection to a cluster.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    welcome: Welcome,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    /// Connects; waits for the broker's Welcome, at most the request timeout.
    pub fn connect(config: ClientConfig) -> Result<Client, ConnectError> {
        let wait = config.wait;
        let server = config.server.clone();
        let timeout = config.request_timeout;
        let driver = PollClient::connect(config)?;
        let shared = driver.shared().clone();
        let welcome = shared.welcome().ok_or(ConnectError::TimedOut { server, after: timeout })?;
        let thread = std::thread::Builder::new()
            .name("felix-client".into())
            .spawn(move || run(driver, wait))
            .map_err(|error| ConnectError::System { call: "thread", kind: error.kind() })?;
        Ok(Client { shared, welcome, thread: Mutex::new(Some(thread)) })
    }

    /// The broker's latest greeting.
    pub fn welcome(&self) -> Welcome {
        self.shared.welcome().unwrap_or_else(|| self.welcome.clone())
    }

    /// A metadata command. A write carries an idempotency key of its own and is repeated over reconnects until the
    /// request timeout.
    pub fn admin(&self, command: Command) -> Result<Reply, RequestError> {
        calls::admin(self, command)
    }

    /// A page of the broker's counters, of streams after this one.
    pub fn stats(&self, after: Option<StreamName>) -> Result<Stats, RequestError> {
        calls::stats(self, after)
    }

    /// Where the shards of a stream live.
    pub fn route(&self, name: &StreamName) -> Result<Route, RequestError> {
        calls::route(self, name).map(|it| (*it).clone())
    }

    /// A publisher to a stream. It opens its channels with the first record.
    pub fn publisher(&self, name: &StreamName, options: PublisherOptions) -> Result<Publisher, RequestError> {
        calls::publisher(self, name, options)
    }

    /// A subscriber of a stream, live on every shard when this returns.
    pub fn subscribe(&self, name: &StreamName, options: SubscribeOptions) -> Result<Subscriber, RequestError> {
        calls::subscribe(self, name, options)
    }

    /// Closes the connections. Flush publishers before: a record without outcome gets one now.
    pub fn close(self) {
        self.stop();
    }

    fn stop(&self) {
        self.shared.stop();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Caller for &Client {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn complete<T>(&mut self, cell: &OneShot<T>, deadline: Instant) -> Option<T> {
        cell.wait(deadline)
    }
}

fn run(mut driver: PollClient, wait: Wait) {
    let mut idle_since = None;
    let mut result = driver.poll();
    while !driver.shared().is_stopped() {
        if result.progressed || result.more {
            idle_since = None;
            result = match wait {
                Wait::Park if !result.more => driver.wait(SLEEP),
                _ => driver.poll(),
            };
            continue;
        }
        let spin = match wait {
            Wait::Park => Duration::ZERO,
            Wait::Spin(time) => time,
            Wait::Busy => Duration::MAX,
        };
        if idle_since.get_or_insert_with(Instant::now).elapsed() < spin {
            std::hint::spin_loop();
            result = driver.poll();
        } else {
            result = driver.wait(SLEEP);
        }
    }
    driver.shut_down();
}
