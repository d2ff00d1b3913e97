//! PostgreSQL as the service: Debian's server on the mount, and a client that knows just enough of its
//! protocol (version 3, simple queries) to commit one row at a time and to notice what happened to it.

use super::workload::{Service, Writer};
use anyhow::{Context, bail, ensure};
use std::collections::BTreeSet;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The user it runs as.
const USER: &str = "postgres";
/// Where Debian puts the versions.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Version 3.0 of the protocol.
const PROTOCOL: u32 = 3 << 16;
/// Longest message from the server that makes sense here, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How long one attempt to connect may take.
const CONNECT_TIME_MAX: Duration = Duration::from_millis(200);
/// How long one answer may take, before the client connects anew and asks again.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1500);
/// The same for questions about all rows.
const SCAN_TIME_MAX: Duration = Duration::from_secs(60);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// First version that can make a whole filesystem durable at once before it recovers.
const SYNCFS_VERSION: u32 = 14;

/// Started with the data directory, the directory of the programs, the port and more settings. The marker file comes last, so
/// that a first start that was cut short is begun anew. A lock file of a server that was killed elsewhere names a
/// process number that may be anybody's here; that no other server runs is what the lease is for.
const SCRIPT: &str = r#"
set -e
data=$1 bin=$2 port=$3
shift 3
if [ ! -e "$data/complete" ]; then
    rm -rf "$data"
    mkdir "$data"
    chown postgres: "$data"
    setpriv --reuid=postgres --regid=postgres --init-groups "$bin/initdb" \
        --pgdata="$data" --auth=trust --encoding=UTF8 --locale=C --username=postgres
    echo 'host all all all trust' >> "$data/pg_hba.conf"
    sync -f "$data"
    touch "$data/complete"
    sync -f "$data"
fi
rm -f "$data/postmaster.pid"
exec setpriv --reuid=postgres --regid=postgres --init-groups "$bin/postgres" -D "$data" -p "$port" \
    -c listen_addresses='*' -c unix_socket_directories='' -c fsync=on -c synchronous_commit=on "$@"
"#;

/// PostgreSQL as a service on this mount; a clear error where it is not installed.
pub(super) fn service(mount: &Path, ready: SocketAddr) -> anyhow::Result<Service> {
    let advice = "install it with `apt-get install postgresql`, or leave out --with postgres";
    let (version, programs) = programs().with_context(|| {
        format!("PostgreSQL is not installed ({DEBIAN}/VERSION/bin has no initdb and postgres): {advice}")
    })?;
    ensure!(
        nix::unistd::User::from_name(USER)?.is_some(),
        "there is no user {USER}: {advice}"
    );
    let text = |path: &Path| {
        path.to_str()
            .map(ToOwned::to_owned)
            .context("a path that is not UTF-8")
    };
    let mut command: Vec<String> = vec![
        "/bin/sh".into(),
        "-c".into(),
        SCRIPT.into(),
        "postgres".into(),
        text(&mount.join("postgres"))?,
        text(&programs)?,
        ready.port().to_string(),
    ];
    if version >= SYNCFS_VERSION {
        // File by file it takes longer than the recovery itself.
        command.extend(["-c".into(), "recovery_init_sync_method=syncfs".into()]);
    }
    Ok(Service {
        name: "postgres",
        command,
        ready,
        what: format!(
            "PostgreSQL on ext4 ({}), one committed insert at a time per client",
            programs.display()
        ),
    })
}

/// The newest server's version and the directory of its programs.
fn programs() -> Option<(u32, PathBuf)> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(DEBIAN)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            (bin.join("initdb").exists() && bin.join("postgres").exists()).then_some((version, bin))
        })
        .collect();
    found.sort();
    found.pop()
}

/// A connection.
#[derive(Debug)]
struct Connection(BufReader<TcpStream>);

/// The rows of an answer, first column only.
type Rows = Vec<String>;

impl Connection {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIME_MAX)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
        let mut connection = Self(BufReader::new(stream));
        let mut body = PROTOCOL.to_be_bytes().to_vec();
        body.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        let mut message = (body.len() as u32 + 4).to_be_bytes().to_vec();
        message.extend_from_slice(&body);
        connection.0.get_mut().write_all(&message)?;
        connection.until_ready()?;
        Ok(connection)
    }

    fn query(&mut self, sql: &str) -> anyhow::Result<Rows> {
        let mut message = vec![b'Q'];
        message.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        self.0.get_mut().write_all(&message)?;
        self.until_ready()
    }

    /// Reads until the server is ready for the next query; an error of its is one here.
    fn until_ready(&mut self) -> anyhow::Result<Rows> {
        let mut rows = Rows::new();
        let mut error = None;
        loop {
            let (kind, body) = self.message()?;
            match kind {
                b'R' => {
                    ensure!(body == [0; 4], "the server asks for a password");
                }
                b'D' => rows.push(first_column(&body).context("a row that is none")?),
                b'E' => {
                    let said = complaint(&body);
                    // A fatal one is the last message: nothing becomes ready any more.
                    if said.starts_with("FATAL") || said.starts_with("PANIC") {
                        bail!("{said}");
                    }
                    error = Some(said);
                }
                b'Z' => {
                    return match error {
                        None => Ok(rows),
                        Some(said) => bail!("{said}"),
                    };
                }
                _ => {}
            }
        }
    }

    fn message(&mut self) -> anyhow::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head)?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        ensure!(
            (4..=MESSAGE_BYTES_MAX).contains(&len),
            "a message of {len} bytes"
        );
        let mut body = vec![0; len - 4];
        self.0.read_exact(&mut body)?;
        Ok((head[0], body))
    }
}

/// The first column of a `DataRow`.
fn first_column(body: &[u8]) -> Option<String> {
    let columns = u16::from_be_bytes(body.get(..2)?.try_into().ok()?);
    let len = i32::from_be_bytes(body.get(2..6)?.try_into().ok()?);
    let value = body.get(6..6 + usize::try_from(len).ok()?)?;
    (columns > 0).then(|| String::from_utf8_lossy(value).into_owned())
}

/// Severity and message of an `ErrorResponse`.
fn complaint(body: &[u8]) -> String {
    let field = |kind: u8| {
        body.split(|b| *b == 0)
            .find(|f| f.first() == Some(&kind))
            .map(|f| String::from_utf8_lossy(&f[1..]).into_owned())
            .unwrap_or_default()
    };
    format!("{}: {}", field(b'S'), field(b'M'))
}

/// A client that commits numbered rows.
#[derive(Debug)]
pub(super) struct PgWriter {
    address: SocketAddr,
    id: u64,
    connection: Option<Connection>,
    acknowledged: u64,
}

impl PgWriter {
    /// A client that never wrote anything under this `id`. Nothing is connected yet.
    pub(super) fn new(address: SocketAddr, id: u64) -> Self {
        Self {
            address,
            id,
            connection: None,
            acknowledged: 0,
        }
    }

    /// Every statement here may be repeated.
    fn query(&mut self, sql: &str, timeout: Duration, deadline: Instant) -> anyhow::Result<Rows> {
        loop {
            let error = match self.try_query(sql, timeout) {
                Ok(rows) => return Ok(rows),
                Err(error) => error,
            };
            self.connection = None;
            if Instant::now() >= deadline {
                return Err(error).with_context(|| format!("no answer from {}", self.address));
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    fn try_query(&mut self, sql: &str, timeout: Duration) -> anyhow::Result<Rows> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            empty => {
                let mut connection = Connection::open(self.address)?;
                // Two clients at once may both find it missing; the one that is too late tries again.
                connection.query(
                    "CREATE TABLE IF NOT EXISTS demo (client bigint, sequence bigint, note text, \
                     PRIMARY KEY (client, sequence))",
                )?;
                empty.insert(connection)
            }
        };
        connection.0.get_ref().set_read_timeout(Some(timeout))?;
        connection.query(sql)
    }
}

impl Writer for PgWriter {
    fn write(&mut self, deadline: Instant) -> anyhow::Result<()> {
        let (id, sequence) = (self.id, self.acknowledged + 1);
        // What is in the way of a repeated insert is visible, thus committed and durable.
        let sql = format!(
            "INSERT INTO demo VALUES ({id}, {sequence}, md5('{id}-{sequence}')) ON CONFLICT DO NOTHING"
        );
        self.query(&sql, ANSWER_TIME_MAX, deadline)?;
        self.acknowledged = sequence;
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    fn lost(&mut self, deadline: Instant) -> anyhow::Result<u64> {
        let sql = format!(
            "SELECT sequence FROM demo WHERE client = {} AND note = md5(client || '-' || sequence)",
            self.id
        );
        let rows = self.query(&sql, SCAN_TIME_MAX, deadline)?;
        let there: BTreeSet<u64> = rows
            .iter()
            .map(|row| row.parse())
            .collect::<Result<_, _>>()?;
        Ok((1..=self.acknowledged)
            .filter(|s| !there.contains(s))
            .count() as u64)
    }

    fn check(&mut self, deadline: Instant) -> anyhow::Result<Option<String>> {
        // Every row through the table, and every row through its index.
        let count = |this: &mut Self, how: &str| {
            let off = if how == "index" {
                "seqscan"
            } else {
                "indexscan"
            };
            let sql = format!(
                "SET enable_{off} = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off; \
                 SELECT count(note) FROM demo WHERE client >= 0"
            );
            this.query(&sql, SCAN_TIME_MAX, deadline)
        };
        let (table, index) = (count(self, "table")?, count(self, "index")?);
        self.connection = None;
        Ok((table != index).then(|| {
            format!(
                "the table has {} rows, its index {}",
                table.join(" "),
                index.join(" ")
            )
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_complaints_are_read() {
        let row = [0, 2, 0, 0, 0, 2, b'4', b'2', 0xff, 0xff, 0xff, 0xff];
        assert_eq!(first_column(&row), Some("42".into()));
        for cut in 0..8 {
            assert_eq!(first_column(&row[..cut]), None, "{cut}");
        }
        let error = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0";
        assert_eq!(
            complaint(error),
            "FATAL: the database system is starting up"
        );
    }
}
