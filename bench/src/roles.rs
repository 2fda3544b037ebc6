//! **What**: who drives the parties: this process, or processes of their own (one with the publisher, the subscribers
//! spread over the others), which are told by lines of JSON.
//!
//! **Invariants**: all start at one time of the monotonic clock, which all processes share; histograms are added, never
//! their percentiles.
//!
//! **Never**: a window over processes: what the publisher may send would be known too late.
//!
//! **See**: `load.rs`.

use crate::Error;
use crate::load::{Clients, Load, Phase, Tally};
use crate::machine::{cpu_ns, pin, raise_open_files};
use crate::party::Dialler;
use crate::servers::{CLIENT_CPU, Target};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Which parties a process drives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Of whom.
    pub target: Target,
    /// The publisher is among them.
    pub publisher: bool,
    /// Subscribers.
    pub subscribers: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Largest UDP payload.
    pub udp_payload: usize,
}

impl Part {
    /// Connects its parties from here.
    pub fn connect(&self) -> Result<Clients, Error> {
        let mut dialler = Dialler::new(&self.target, self.value_bytes, self.udp_payload)?;
        Clients::connect(&mut dialler, self.publisher, self.subscribers)
    }
}

/// What a process is told.
#[derive(Serialize, Deserialize)]
enum Order {
    Settle(Duration),
    Run(Phase),
}

/// What it answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    Ready { path_mtu: usize },
    Ran(Box<Told>),
    Failed(String),
}

/// A tally on its way between processes: histograms as pairs of value and count.
#[derive(Serialize, Deserialize)]
struct Told {
    latency: Vec<(u64, u64)>,
    slices: Vec<Vec<(u64, u64)>>,
    sent: u64,
    flushes: u64,
    deliveries: u64,
    wall_ns: u64,
    busy_ns: u64,
}

fn pairs(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value())).collect()
}

impl Told {
    fn of(tally: &Tally) -> Told {
        Told {
            latency: pairs(&tally.latency),
            slices: tally.slices.iter().map(pairs).collect(),
            sent: tally.sent,
            flushes: tally.flushes,
            deliveries: tally.deliveries,
            wall_ns: tally.wall_ns,
            busy_ns: tally.busy_ns,
        }
    }

    fn add_to(&self, tally: &mut Tally) {
        let add = |pairs: &[(u64, u64)], histogram: &mut Histogram<u64>| {
            pairs.iter().for_each(|(value, count)| histogram.saturating_record_n(*value, *count));
        };
        add(&self.latency, &mut tally.latency);
        self.slices.iter().zip(&mut tally.slices).for_each(|(from, to)| add(from, to));
        tally.sent += self.sent;
        tally.flushes += self.flushes;
        tally.deliveries += self.deliveries;
        tally.wall_ns = tally.wall_ns.max(self.wall_ns);
        tally.busy_ns += self.busy_ns;
    }
}

/// Drives one part, told by standard input, until that ends.
pub fn serve(part: &str) -> Result<(), Error> {
    pin(CLIENT_CPU)?;
    raise_open_files();
    let part: Part = serde_json::from_str(part)?;
    let mut out = std::io::stdout().lock();
    let mut say = |answer: &Answer| -> Result<(), Error> {
        serde_json::to_writer(&mut out, answer)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    };
    let mut clients = match part.connect() {
        Ok(clients) => clients,
        Err(error) => return say(&Answer::Failed(error.to_string())),
    };
    say(&Answer::Ready { path_mtu: clients.path_mtu() })?;
    for line in std::io::stdin().lock().lines() {
        let done = match serde_json::from_str(&line?)? {
            Order::Settle(span) => clients.settle(span).map(|()| Answer::Ready { path_mtu: clients.path_mtu() }),
            Order::Run(phase) => clients.run(&phase).map(|tally| Answer::Ran(Box::new(Told::of(&tally)))),
        };
        match done {
            Ok(answer) => say(&answer)?,
            Err(error) => return say(&Answer::Failed(error.to_string())),
        }
    }
    Ok(())
}

/// A process with a part.
pub struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    path_mtu: usize,
}

impl Worker {
    fn start(part: &Part) -> Result<Worker, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["role", &serde_json::to_string(part)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take().ok_or("no pipe")?);
        Ok(Worker { child, orders, answers: BufReader::new(answers), path_mtu: 0 })
    }

    fn order(&mut self, order: &Order) -> Result<(), Error> {
        let orders = self.orders.as_mut().ok_or("no pipe")?;
        orders.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes())?;
        Ok(orders.flush()?)
    }

    fn answer(&mut self) -> Result<Option<Box<Told>>, Error> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("a client process ended".into());
        }
        match serde_json::from_str(&line)? {
            Answer::Ready { path_mtu } => {
                self.path_mtu = path_mtu;
                Ok(None)
            }
            Answer::Ran(told) => Ok(Some(told)),
            Answer::Failed(reason) => Err(reason.into()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its input ends it; one that hangs is killed.
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All parties of a run.
pub enum Crew {
    /// In this process.
    Here(Box<Clients>),
    /// In processes of their own, the publisher's first.
    Apart(Vec<Worker>),
}

impl Crew {
    /// Connects `part`, here (`processes` 0) or with the subscribers spread over so many processes.
    pub fn connect(part: &Part, processes: usize) -> Result<Crew, Error> {
        if processes == 0 {
            return Ok(Crew::Here(Box::new(part.connect()?)));
        }
        let share = |index: usize| part.subscribers / processes + usize::from(index < part.subscribers % processes);
        let mut workers = Vec::new();
        for index in 0..=processes {
            let subscribers = if index == 0 { 0 } else { share(index - 1) };
            let mut worker = Worker::start(&Part { publisher: index == 0, subscribers, ..part.clone() })?;
            // The publisher makes the stream before anybody subscribes.
            worker.answer()?;
            workers.push(worker);
        }
        Ok(Crew::Apart(workers))
    }

    /// Serves all connections without load.
    pub fn settle(&mut self, span: Duration) -> Result<(), Error> {
        match self {
            Crew::Here(clients) => clients.settle(span),
            Crew::Apart(workers) => {
                workers.iter_mut().try_for_each(|it| it.order(&Order::Settle(span)))?;
                workers.iter_mut().try_for_each(|it| it.answer().map(drop))
            }
        }
    }

    /// Drives one stretch of load.
    pub fn run(&mut self, phase: &Phase) -> Result<Tally, Error> {
        match self {
            Crew::Here(clients) => clients.run(phase),
            Crew::Apart(_) if matches!(phase.load, Load::InFlight(_)) => {
                Err("several client processes need a fixed rate".into())
            }
            Crew::Apart(workers) => {
                workers.iter_mut().try_for_each(|it| it.order(&Order::Run(*phase)))?;
                let mut tally = Tally::new()?;
                for worker in workers {
                    worker.answer()?.ok_or("a client process did not run")?.add_to(&mut tally);
                }
                Ok(tally)
            }
        }
    }

    /// CPU time of all client processes.
    pub fn cpu_ns(&self) -> Result<u64, Error> {
        match self {
            Crew::Here(_) => cpu_ns(std::process::id()),
            Crew::Apart(workers) => workers.iter().map(|it| cpu_ns(it.child.id())).sum(),
        }
    }

    /// Largest packet payload of a delivery path.
    pub fn path_mtu(&self) -> usize {
        match self {
            Crew::Here(clients) => clients.path_mtu(),
            Crew::Apart(workers) => workers.last().map_or(0, |it| it.path_mtu),
        }
    }

    /// Lets the last subscriber read only so much.
    pub fn throttle_last(&mut self, bytes_per_second: u64) -> Result<(), Error> {
        match self {
            Crew::Here(clients) => {
                clients.throttle_last(bytes_per_second);
                Ok(())
            }
            Crew::Apart(_) => Err("a throttled subscriber needs all clients in one process".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_the_same_after_the_way_between_processes() {
        let mut one = Tally::new().unwrap();
        for value in [17, 1_000, 1_000, 5_000_000] {
            one.latency.saturating_record(value);
            one.slices[3].saturating_record(value);
        }
        (one.sent, one.deliveries, one.wall_ns) = (4, 8, 99);
        let text = serde_json::to_string(&Told::of(&one)).unwrap();
        let mut sum = Tally::new().unwrap();
        for _ in 0..2 {
            serde_json::from_str::<Told>(&text).unwrap().add_to(&mut sum);
        }
        assert_eq!((sum.sent, sum.deliveries, sum.wall_ns), (8, 16, 99));
        assert_eq!(sum.latency.len(), 8);
        assert_eq!(sum.latency.value_at_quantile(0.5), one.latency.value_at_quantile(0.5));
        assert_eq!(sum.slices[3].max(), one.slices[3].max());
    }
}
