//! Who writes during the demonstration, and what it remembers of what it was told.

use super::cluster::{PORT, program};
use super::patience;
use super::postgres;
use super::signals::Cancel;
use super::site::Site;
use crate::args::DemoWorkload;
use crate::record::{ClientOptions, RecordClient};
use anyhow::{Context, ensure};
use holdfast_host::machine::Mode;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clients that write side by side.
const CLIENTS: u64 = 4;
/// How long a single write may go unanswered, over all its attempts, before the demonstration has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);
/// How long reading everything back may take.
const VERIFY_TIME_MAX: Duration = Duration::from_secs(180);

/// The service of the resource.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// Its name.
    pub(super) name: &'static str,
    /// Program and arguments.
    pub(super) command: Vec<String>,
    /// Where a node sees that it is up.
    pub(super) ready: SocketAddr,
    /// What it is, for people.
    pub(super) what: String,
}

/// The service for this workload.
pub(super) fn service(with: DemoWorkload, site: &Site, mount: &Path) -> anyhow::Result<Service> {
    let local = SocketAddr::from(([127, 0, 0, 1], PORT));
    if with == DemoWorkload::Postgres {
        return postgres::service(mount, local);
    }
    let mut command = vec![
        program()?
            .to_str()
            .context("this program's path is not UTF-8")?
            .to_owned(),
        "record-server".into(),
        "--listen".into(),
    ];
    let ready = match site.mode() {
        // The virtual IP is always there: only the one service that has the lease listens.
        Mode::Loopback => (site.vip(), PORT).into(),
        // The virtual IP comes after the service, so it listens everywhere.
        Mode::Root | Mode::Userns => {
            command.push(format!("0.0.0.0:{PORT}"));
            local
        }
    };
    if site.mode() == Mode::Loopback {
        command.push(ready.to_string());
    }
    let what = if site.mode() == Mode::Root {
        let log = mount.join("records");
        let log = log.to_str().context("a path that is not UTF-8")?;
        command.extend(["--file".into(), log.to_owned()]);
        "a record server on ext4, every record made durable by fdatasync".into()
    } else {
        // Each node's daemon says by a variable where its volume is.
        "a record server on the volume's NBD socket, every record written with FUA".into()
    };
    Ok(Service {
        name: "records",
        command,
        ready,
        what,
    })
}

/// The clients of the service; nothing is connected yet.
pub(super) fn clients(with: DemoWorkload, service: SocketAddr) -> Vec<Box<dyn Writer>> {
    // Room for the number of the client in the low byte.
    let base = holdfast_node::clock::random_u64() >> 9 << 8;
    (0..CLIENTS)
        .map(|i| -> Box<dyn Writer> {
            match with {
                DemoWorkload::Records => Box::new(RecordClient::new(
                    service,
                    base + i,
                    ClientOptions::default(),
                )),
                DemoWorkload::Postgres => Box::new(postgres::PgWriter::new(service, base + i)),
            }
        })
        .collect()
}

/// One who writes.
pub(super) trait Writer: Send {
    /// Writes the next thing, as often as it takes, until it is acknowledged or `deadline`.
    fn write(&mut self, deadline: Instant) -> anyhow::Result<()>;
    /// How many it was told are safe.
    fn acknowledged(&self) -> u64;
    /// How many of those the service does not have any more.
    fn lost(&mut self, deadline: Instant) -> anyhow::Result<u64>;
    /// Has the service look at everything it has; what is wrong, if something is.
    fn check(&mut self, deadline: Instant) -> anyhow::Result<Option<String>>;
}

impl Writer for RecordClient {
    fn write(&mut self, deadline: Instant) -> anyhow::Result<()> {
        self.append(deadline).map(|_| ())
    }
    fn acknowledged(&self) -> u64 {
        self.journal().len() as u64
    }
    fn lost(&mut self, deadline: Instant) -> anyhow::Result<u64> {
        Ok(RecordClient::lost(self, deadline)?.len() as u64)
    }
    fn check(&mut self, deadline: Instant) -> anyhow::Result<Option<String>> {
        Ok(RecordClient::check(self, deadline)?.err())
    }
}

/// When something was acknowledged, on CLOCK_BOOTTIME in nanoseconds, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Acknowledgements(Arc<Mutex<Vec<u64>>>);

impl Acknowledgements {
    fn add(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(holdfast_node::clock::now().0);
    }
    /// How many.
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
    /// Longest time between two of them, in milliseconds.
    pub(super) fn longest_pause_ms(&self) -> f64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = all.clone();
        all.sort_unstable();
        let longest = all.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        longest as f64 / 1e6
    }
    /// The first at or after a time.
    pub(super) fn first_since(&self, at_ns: u64) -> Option<u64> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().copied().filter(|t| *t >= at_ns).min()
    }
    /// The last before a time.
    pub(super) fn last_before(&self, at_ns: u64) -> Option<u64> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().copied().filter(|t| *t < at_ns).max()
    }
}

type Writers = Vec<JoinHandle<anyhow::Result<Box<dyn Writer>>>>;

/// Writers at work.
#[derive(Debug)]
pub(super) struct Workload {
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledgements,
    writers: Writers,
}

impl Workload {
    /// Starts them.
    pub(super) fn start(site: &Site, all: Vec<Box<dyn Writer>>) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Acknowledgements::default();
        let writers = site.in_lan(|| {
            all.into_iter()
                .enumerate()
                .map(|(i, mut writer)| {
                    let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
                    // A thread is born in the network of the one that starts it, and so are its sockets.
                    std::thread::Builder::new()
                        .name(format!("writer {i}"))
                        .spawn(move || {
                            while !stop.load(Ordering::Acquire) {
                                writer.write(Instant::now() + PATIENCE)?;
                                acknowledged.add();
                            }
                            Ok(writer)
                        })
                })
                .collect::<std::io::Result<Writers>>()
        })??;
        Ok(Self {
            stop,
            acknowledged,
            writers,
        })
    }

    /// What was acknowledged when.
    pub(super) fn acknowledged(&self) -> &Acknowledgements {
        &self.acknowledged
    }

    /// An error if a writer has given up.
    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        let gone = self.writers.iter().position(JoinHandle::is_finished);
        match gone {
            None => Ok(()),
            Some(at) => Err(join(self.writers.swap_remove(at))
                .err()
                .unwrap_or_else(|| anyhow::anyhow!("a writer ended by itself"))),
        }
    }

    /// Ends the writing; every write begun is acknowledged first.
    pub(super) fn stop(mut self, cancel: &Cancel) -> anyhow::Result<Vec<Box<dyn Writer>>> {
        self.stop.store(true, Ordering::Release);
        patience::until(cancel, "the writers end", PATIENCE * 2, || {
            Ok(if self.writers.iter().all(JoinHandle::is_finished) {
                Ok(())
            } else {
                Err(String::new())
            })
        })?;
        std::mem::take(&mut self.writers)
            .into_iter()
            .map(join)
            .collect()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // They see it at their next write, or end with the process.
        self.stop.store(true, Ordering::Release);
    }
}

fn join(writer: JoinHandle<anyhow::Result<Box<dyn Writer>>>) -> anyhow::Result<Box<dyn Writer>> {
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("a writer's thread failed"))?
}

/// What reading everything back showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Verified {
    /// Writes acknowledged.
    pub(super) acknowledged: u64,
    /// Of these, gone or changed.
    pub(super) lost: u64,
    /// What the service's look at everything found wrong.
    pub(super) wrong: Option<String>,
}

/// Asks the service for everything it acknowledged.
pub(super) fn verify(
    site: &Site,
    writers: Vec<Box<dyn Writer>>,
    cancel: &Cancel,
) -> anyhow::Result<Verified> {
    ensure!(!writers.is_empty(), "nobody wrote anything");
    let deadline = Instant::now() + VERIFY_TIME_MAX;
    let readers = site.in_lan(|| {
        writers
            .into_iter()
            .enumerate()
            .map(|(at, mut writer)| {
                std::thread::Builder::new().spawn(move || {
                    let wrong = match at {
                        0 => writer.check(deadline)?,
                        _ => None,
                    };
                    anyhow::Ok(Verified {
                        acknowledged: writer.acknowledged(),
                        lost: writer.lost(deadline)?,
                        wrong,
                    })
                })
            })
            .collect::<std::io::Result<Vec<_>>>()
    })??;
    patience::until(
        cancel,
        "every acknowledged write is read back",
        VERIFY_TIME_MAX,
        || {
            Ok(if readers.iter().all(JoinHandle::is_finished) {
                Ok(())
            } else {
                Err(String::new())
            })
        },
    )?;
    let mut all = Verified::default();
    for reader in readers {
        let one = reader
            .join()
            .map_err(|_| anyhow::anyhow!("a reader's thread failed"))??;
        all.acknowledged += one.acknowledged;
        all.lost += one.lost;
        all.wrong = all.wrong.or(one.wrong);
    }
    Ok(all)
}
