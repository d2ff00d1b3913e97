//! A client that goes on through failovers, and remembers what was acknowledged to it.

use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How patient a client is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientOptions {
    /// For one attempt to connect.
    pub(crate) connect_timeout: Duration,
    /// For one answer; then it connects anew and asks again.
    pub(crate) answer_timeout: Duration,
    /// Between two attempts.
    pub(crate) retry_pause: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_millis(200),
            answer_timeout: Duration::from_millis(500),
            retry_pause: Duration::from_millis(10),
        }
    }
}

/// A record that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// Of this client, from 1.
    pub(crate) sequence: u64,
    /// Of the log.
    pub(crate) number: u64,
    /// When the answer came.
    pub(crate) at: Instant,
}

/// One client: one append at a time.
#[derive(Debug)]
pub(crate) struct RecordClient {
    address: SocketAddr,
    id: u64,
    options: ClientOptions,
    connection: Option<BufReader<TcpStream>>,
    journal: Vec<Acknowledged>,
}

impl RecordClient {
    /// A client that never appended anything under this `id`. Nothing is connected yet.
    pub(crate) fn new(address: SocketAddr, id: u64, options: ClientOptions) -> Self {
        Self {
            address,
            id,
            options,
            connection: None,
            journal: Vec::new(),
        }
    }

    /// Everything acknowledged so far, in order.
    pub(crate) fn journal(&self) -> &[Acknowledged] {
        &self.journal
    }

    /// Appends the next record, as often as it takes, until `deadline`.
    ///
    /// # Errors
    /// If it is not acknowledged by then, or the server says that an acknowledged record is lost.
    pub(crate) fn append(&mut self, deadline: Instant) -> anyhow::Result<Acknowledged> {
        let sequence = self.journal.len() as u64 + 1;
        let answer = self.ask(&format!("APPEND {} {sequence}", self.id), deadline)?;
        let Some(number) = answer.strip_prefix("OK ").and_then(|n| n.parse().ok()) else {
            bail!(
                "client {}: record {sequence} was refused: {answer}",
                self.id
            );
        };
        let acknowledged = Acknowledged {
            sequence,
            number,
            at: Instant::now(),
        };
        self.journal.push(acknowledged);
        Ok(acknowledged)
    }

    /// The acknowledged records that the server does not have any more, each read from its medium.
    ///
    /// # Errors
    /// If the server does not answer all by `deadline`.
    pub(crate) fn lost(&mut self, deadline: Instant) -> anyhow::Result<Vec<Acknowledged>> {
        let mut lost = Vec::new();
        for acknowledged in self.journal.clone() {
            let answer = self.ask(&format!("GET {}", acknowledged.number), deadline)?;
            if answer != format!("OK {} {}", self.id, acknowledged.sequence) {
                lost.push(acknowledged);
            }
        }
        Ok(lost)
    }

    /// Has the server read and check its whole log: how many records, or what is wrong.
    ///
    /// # Errors
    /// If it does not answer by `deadline`.
    pub(crate) fn check(&mut self, deadline: Instant) -> anyhow::Result<Result<u64, String>> {
        // One attempt, with all the time there is: a repeated one would only start the scan anew.
        let left = deadline.saturating_duration_since(Instant::now());
        let patient = ClientOptions {
            answer_timeout: left.max(self.options.answer_timeout),
            ..self.options
        };
        let usual = std::mem::replace(&mut self.options, patient);
        self.connection = None;
        let answer = self.ask("CHECK", deadline);
        self.options = usual;
        self.connection = None;
        let answer = answer?;
        Ok(answer
            .strip_prefix("OK ")
            .and_then(|n| n.parse().ok())
            .ok_or(answer))
    }

    /// One line there and one back, over as many connections as it takes. Every line of the
    /// protocol may be repeated.
    fn ask(&mut self, line: &str, deadline: Instant) -> anyhow::Result<String> {
        loop {
            let error = match self.try_ask(line) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            self.connection = None;
            if Instant::now() >= deadline {
                return Err(error)
                    .with_context(|| format!("no answer from {} to `{line}`", self.address));
            }
            std::thread::sleep(self.options.retry_pause);
        }
    }

    fn try_ask(&mut self, line: &str) -> std::io::Result<String> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            empty => {
                let stream =
                    TcpStream::connect_timeout(&self.address, self.options.connect_timeout)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(self.options.answer_timeout))?;
                stream.set_write_timeout(Some(self.options.answer_timeout))?;
                empty.insert(BufReader::new(stream))
            }
        };
        connection
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        connection.read_line(&mut answer)?;
        match answer.strip_suffix('\n') {
            Some(answer) => Ok(answer.to_owned()),
            None => Err(std::io::Error::new(
                ErrorKind::UnexpectedEof,
                "the server closed the connection",
            )),
        }
    }
}
