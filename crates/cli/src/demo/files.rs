//! The folder of a run: configuration, secret, backing files, state directories and logs.

use super::cluster::{Plan, RAW, RAW_BYTES, RESOURCE, VOLUME, VOLUME_BYTES};
use super::site::{DATA, NODES, PREFIX, Site, WITNESS};
use super::workload::Service;
use anyhow::{Context, ensure};
use holdfast_host::machine::Mode;
use std::fmt::Write as _;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Longest path of a unix socket, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Lines of a log in a message about a failure.
const TAIL_LINES: usize = 15;

/// The folder; removed when dropped.
#[derive(Debug)]
pub(super) struct Files(TempDir);

impl Files {
    /// Makes it, with the directories in it.
    pub(super) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("holdfast-demo-")
            .tempdir()
            .context("making a temporary directory (TMPDIR says where)")?;
        // A service may run as another user, who must be able to go through to its mount.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
        let files = Self(folder);
        let socket = files.nbd_socket(WITNESS);
        ensure!(
            socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX,
            "{} is too long a path for a socket: set TMPDIR to a shorter one, such as /tmp",
            socket.display()
        );
        for node in 0..NODES.len() {
            std::fs::create_dir(files.state_dir(node))?;
        }
        std::fs::create_dir(files.mount())?;
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    /// The folder itself.
    pub(super) fn folder(&self) -> &Path {
        self.0.path()
    }
    /// The configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.path("cluster.toml")
    }
    /// State directory of a node.
    pub(super) fn state_dir(&self, node: usize) -> PathBuf {
        self.path(NODES[node])
    }
    /// Backing file of a volume on a data node.
    pub(super) fn backing(&self, node: usize, volume: &str) -> PathBuf {
        self.path(&format!("{}-{volume}.img", NODES[node]))
    }
    /// NBD socket of the volume on a node.
    pub(super) fn nbd_socket(&self, node: usize) -> PathBuf {
        self.state_dir(node)
            .join(format!("{RESOURCE}-{VOLUME}.nbd"))
    }
    /// Where the filesystem is mounted.
    pub(super) fn mount(&self) -> PathBuf {
        self.path("mount")
    }
    /// What a node's daemon says.
    pub(super) fn log(&self, node: usize) -> PathBuf {
        self.path(&format!("{}.log", NODES[node]))
    }

    /// Writes the configuration and its secret.
    pub(super) fn write(&self, site: &Site, plan: &Plan, service: &Service) -> anyhow::Result<()> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
        let secret: String = secret.iter().map(|b| format!("{b:02x}")).collect();
        write_private(&self.path("secret"), &secret)?;
        write_private(&self.config(), &self.text(site, plan, service)?)
    }

    fn text(&self, site: &Site, plan: &Plan, service: &Service) -> anyhow::Result<String> {
        let path = |path: PathBuf| {
            path.to_str()
                .map(toml_string)
                .context("a path that is not UTF-8")
        };
        let mut text = format!(
            "[cluster]\nname = \"demo\"\nsecret_file = {}\nprofile = {}\n",
            path(self.path("secret"))?,
            serde_json::to_string(&plan.profile)?,
        );
        for (node, name) in NODES.into_iter().enumerate() {
            let (id, address) = (node + 1, site.address(node));
            write!(
                text,
                "\n[[node]]\nname = \"{name}\"\nid = {id}\naddress = \"{address}\"\nstate_dir = {}\n",
                path(self.state_dir(node))?,
            )?;
            if node == WITNESS {
                text += "witness = true\n";
            }
        }
        let block = site.mode() == Mode::Root;
        write!(
            text,
            "\n[[resource]]\nname = \"{RESOURCE}\"\nnodes = [\"{a}\", \"{b}\"]\npreferred = \"{a}\"\n",
            a = NODES[DATA[0]],
            b = NODES[DATA[1]],
        )?;
        let raw = plan.raw.then_some((RAW, RAW_BYTES));
        for (volume, bytes) in [(VOLUME, VOLUME_BYTES)].into_iter().chain(raw) {
            write!(
                text,
                "\n[[resource.volume]]\nname = \"{volume}\"\nsize = \"{} MiB\"\nfrontend = \"{}\"\n\
                 backing = {{ {a} = {}, {b} = {} }}\n",
                bytes >> 20,
                if block { "fuse" } else { "none" },
                path(self.backing(DATA[0], volume))?,
                path(self.backing(DATA[1], volume))?,
                a = NODES[DATA[0]],
                b = NODES[DATA[1]],
            )?;
        }
        if block {
            write!(
                text,
                "\n[[resource.mount]]\nvolume = \"{VOLUME}\"\npath = {}\nfstype = \"ext4\"\nformat_blank = true\n",
                path(self.mount())?
            )?;
        }
        let command: Vec<String> = service.command.iter().map(|w| toml_string(w)).collect();
        write!(
            text,
            "\n[[resource.service]]\nname = {}\ncommand = [{}]\nready = \"tcp:{}\"\nstop_timeout = \"10s\"\n\
             \n[[resource.vip]]\naddress = \"{}/{PREFIX}\"\n",
            toml_string(service.name),
            command.join(", "),
            service.ready,
            site.vip()
        )?;
        Ok(text)
    }

    /// Every log there is: a name for it, and where it is.
    fn all_logs(&self) -> Vec<(String, PathBuf)> {
        let mut all = Vec::new();
        for (node, name) in NODES.into_iter().enumerate() {
            all.push((name.to_owned(), self.log(node)));
            let services = std::fs::read_dir(self.state_dir(node).join("log"));
            for log in services.into_iter().flatten().flatten() {
                let service = log.file_name().to_string_lossy().into_owned();
                all.push((format!("{name}-{service}"), log.path()));
            }
        }
        all
    }

    /// The last lines of all logs.
    pub(super) fn log_tails(&self) -> String {
        let mut text = String::new();
        for (name, path) in self.all_logs() {
            // A node that was never started has none.
            let log = std::fs::read(path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            text += &format!("--- {name}: last lines of its log\n{}\n", last.join("\n"));
        }
        text
    }

    /// Copies the logs somewhere they outlive the folder.
    pub(super) fn keep_logs(&self, to: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(to)?;
        for (name, path) in self.all_logs() {
            let name = format!("{}.log", name.trim_end_matches(".log"));
            if path.exists() {
                std::fs::copy(path, to.join(name))?;
            }
        }
        Ok(())
    }
}

/// A string as TOML wants it: JSON's escapes are TOML's.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_config::{Config, Profile};

    #[test]
    fn the_configuration_is_sound() {
        let files = Files::new().expect("a folder");
        let site = Site::new(Mode::Loopback).expect("a site");
        let plan = Plan {
            profile: Profile::Fast,
            lost_cache: false,
            raw: true,
        };
        let service = Service {
            name: "records",
            command: vec!["/bin/sh".into(), "-c".into(), "echo \"$1\"\n\\exit".into()],
            ready: (site.vip(), 7100).into(),
            what: String::new(),
        };
        files.write(&site, &plan, &service).expect("written");
        let config = Config::load(&files.config()).expect("sound");
        let resource = &config.resources[0];
        assert_eq!(resource.services[0].command, service.command);
        assert_eq!(resource.vips[0].address, site.vip());
        assert_eq!(
            resource.volumes[0].nbd_socket(RESOURCE, &config.nodes[1]),
            files.nbd_socket(1)
        );
        assert_eq!(resource.volumes.len(), 2);
        assert!(config.nodes[WITNESS].witness && resource.mounts.is_empty());
    }
}
