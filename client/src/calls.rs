//! **What**: the calls that both faces of the client offer, over a way to queue a command and wait for its result.
//!
//! **Invariants**: every call ends within the request timeout and a little.
//!
//! **Never**: a difference between the threaded and the polled client beyond who drives.
//!
//! **See**: `client.rs`, `poll_client.rs`.

use crate::config::{PublisherOptions, ShardTarget, Shards, SubscribeOptions};
use crate::engine::Ask;
use crate::error::{RequestError, SubscribeError};
use crate::inbox::Inbox;
use crate::intake::Intake;
use crate::publisher::{Outbox, Publisher};
use crate::session::Answer;
use crate::shared::{Command, OneShot, Shared};
use crate::subscriber::Subscriber;
use felix_protocol::error_code::ErrorCode;
use felix_protocol::frame::{Route, Start, Stats};
use felix_protocol::metadata::{Command as AdminCommand, Reply};
use felix_protocol::names::StreamName;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The driver answers at the deadline; a caller waits this much longer before it gives the driver up.
const GRACE: Duration = Duration::from_secs(1);

/// Somebody who can have a command done.
pub(crate) trait Caller {
    fn shared(&self) -> &Arc<Shared>;

    /// Waits for a cell.
    fn complete<T>(&mut self, cell: &OneShot<T>, deadline: Instant) -> Option<T>;
}

fn ask(mut caller: impl Caller, what: Ask) -> Result<Answer, RequestError> {
    let timeout = caller.shared().request_timeout;
    let deadline = Instant::now() + timeout;
    let is_write = matches!(&what, Ask::Admin(command) if command.is_write());
    let reply = OneShot::new();
    let time = caller.shared().time(deadline);
    let queued = caller.shared().command(Command::Request { ask: what, deadline: time, reply: reply.clone() });
    if !queued {
        return Err(RequestError::Disconnected { outcome_unknown: false });
    }
    caller
        .complete(&reply, deadline + GRACE)
        .unwrap_or(Err(RequestError::TimedOut { outcome_unknown: is_write, after: timeout }))
}

/// The engine matches answers to requests; another kind cannot come.
fn wrong() -> RequestError {
    RequestError::Refused { code: ErrorCode::Internal, detail: "an answer of another kind".into(), retry_after_ms: 0 }
}

pub(crate) fn admin(caller: impl Caller, command: AdminCommand) -> Result<Reply, RequestError> {
    match ask(caller, Ask::Admin(command))? {
        Answer::Admin(reply) => Ok(reply),
        _ => Err(wrong()),
    }
}

pub(crate) fn stats(caller: impl Caller, after: Option<StreamName>) -> Result<Stats, RequestError> {
    match ask(caller, Ask::Stats(after))? {
        Answer::Stats(stats) => Ok(stats),
        _ => Err(wrong()),
    }
}

pub(crate) fn route(caller: impl Caller, name: &StreamName) -> Result<Arc<Route>, RequestError> {
    match ask(caller, Ask::Route(name.clone()))? {
        Answer::Route(route) => Ok(Arc::new(route)),
        _ => Err(wrong()),
    }
}

/// First key hash of each shard.
pub(crate) fn starts(route: &Route) -> Vec<u64> {
    route.shards.iter().map(|it| it.range_start).collect()
}

fn check_shard(route: &Route, index: u32) -> Result<(), RequestError> {
    if (index as usize) < route.shards.len() {
        return Ok(());
    }
    Err(RequestError::Refused {
        code: ErrorCode::NotFound,
        detail: format!("shard {index} does not exist, the stream has {}", route.shards.len()),
        retry_after_ms: 0,
    })
}

/// One driver for two borrows in a row.
struct Borrowed<'a, C>(&'a mut C);

impl<C: Caller> Caller for Borrowed<'_, C> {
    fn shared(&self) -> &Arc<Shared> {
        self.0.shared()
    }

    fn complete<T>(&mut self, cell: &OneShot<T>, deadline: Instant) -> Option<T> {
        self.0.complete(cell, deadline)
    }
}

pub(crate) fn publisher(
    mut caller: impl Caller,
    name: &StreamName,
    options: PublisherOptions,
) -> Result<Publisher, RequestError> {
    let route = route(Borrowed(&mut caller), name)?;
    let fixed = match options.target {
        ShardTarget::ByKey => None,
        ShardTarget::Shard(index) => {
            check_shard(&route, index)?;
            Some(index)
        }
    };
    let batch_bytes_max = route.batch_bytes_max as usize;
    let outbox = Outbox::new(Intake::new(starts(&route), fixed, options.in_flight_bytes_max, batch_bytes_max));
    let shared = caller.shared().clone();
    let command = Command::AddPublisher { name: name.clone(), route: route.clone(), options, outbox: outbox.clone() };
    if !shared.command(command) {
        return Err(RequestError::Disconnected { outcome_unknown: false });
    }
    Ok(Publisher::new(outbox, shared, options, route))
}

pub(crate) fn subscribe(
    mut caller: impl Caller,
    name: &StreamName,
    options: SubscribeOptions,
) -> Result<Subscriber, RequestError> {
    let started = Instant::now();
    let route = route(Borrowed(&mut caller), name)?;
    match options.shards {
        Shards::One(index) => check_shard(&route, index)?,
        Shards::All if route.shards.len() > 1 && matches!(options.start, Start::Position(_)) => {
            return Err(RequestError::Refused {
                code: ErrorCode::InvalidArgument,
                detail: "a position is of one shard: subscribe to each shard with Shards::One".into(),
                retry_after_ms: 0,
            });
        }
        Shards::All => {}
    }
    let (inbox, live) = (Inbox::new(), OneShot::new());
    let shared = caller.shared().clone();
    let subscriber = Subscriber::new(inbox.clone(), shared.clone());
    let command = Command::AddSubscriber { name: name.clone(), route, options, inbox, live: live.clone() };
    if !shared.command(command) {
        return Err(RequestError::Disconnected { outcome_unknown: false });
    }
    let deadline = started + shared.request_timeout;
    match caller.complete(&live, deadline) {
        Some(Ok(())) => Ok(subscriber),
        Some(Err(SubscribeError::Refused { code, detail, .. })) => {
            Err(RequestError::Refused { code, detail, retry_after_ms: 0 })
        }
        Some(Err(SubscribeError::Reset { old, .. })) => Err(RequestError::Refused {
            code: ErrorCode::LineageReset,
            detail: format!("lineage {} is gone", old.lineage.0),
            retry_after_ms: 0,
        }),
        Some(Err(SubscribeError::Protocol(violation))) => Err(RequestError::Protocol { violation }),
        Some(Err(SubscribeError::Closed)) => Err(RequestError::Disconnected { outcome_unknown: false }),
        None => Err(RequestError::TimedOut { outcome_unknown: false, after: started.elapsed() }),
    }
}
