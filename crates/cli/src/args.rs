//! The command line.

mod address;

pub(crate) use address::Address;

use crate::failure::EXIT_STATUS_HELP;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Environment variable that names the NBD socket of a record server's volume.
pub(crate) const NBD_VARIABLE: &str = "HOLDFAST_NBD_UNIX";
/// Where the configuration is unless said otherwise.
const CONFIG: &str = "/etc/holdfast/cluster.toml";

/// Holdfast keeps one block device alive on several machines.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = EXIT_STATUS_HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// Answer in JSON: one object on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node: the daemon
    #[command(
        after_help = "Example:\n  holdfast node --config /etc/holdfast/cluster.toml --name alpha"
    )]
    Node(NodeArgs),
    /// Show nodes, resources, volumes, and why things are as they are
    #[command(after_help = "\
Example:
  holdfast status
  holdfast status data --verbose

A volume's line begins with `volume:NAME` when its resource has several. States of a disk: UpToDate
(in the in-sync set), Syncing (being made equal), Outdated (the set went on without it), Failed (it
returned an error), Diskless (none).")]
    Status(StatusArgs),
    /// Print this node's role for each resource, or for one: Primary or Secondary
    #[command(after_help = "Example:\n  [ \"$(holdfast role data)\" = Primary ] && run-a-backup")]
    Role(RoleArgs),
    /// Make this node primary of a resource
    #[command(after_help = "\
Example:
  holdfast promote data                             planned switch-over; I/O pauses, nothing fails
  holdfast promote data --force \"lose newer data\"   give up what only other nodes have; recorded")]
    Promote(PromoteArgs),
    /// Stop a resource everywhere until it is promoted again
    #[command(after_help = "Example:\n  holdfast demote data")]
    Demote(ResourceArgs),
    /// Keep one of two lines of history; what the other has is saved to a file first
    #[command(after_help = "\
Example:
  holdfast resolve data --keep alpha             alpha, the primary; the only other copy gives up its line
  holdfast resolve data:beta/db --keep alpha     of volume db, and only beta's")]
    Resolve(ResolveArgs),
    /// Look at and read back what `resolve` saved
    #[command(
        subcommand,
        after_help = "\
Example:
  holdfast saved list /var/lib/holdfast/saved
  holdfast saved extract FILE --onto copy-of-the-volume.img"
    )]
    Saved(SavedCommand),
    /// Initialise the replicas of a resource on its nodes and record it
    #[command(after_help = "\
Example:
  holdfast create data

All nodes must be up. A backing that holds anything else is refused, and nothing is changed.")]
    Create(ResourceArgs),
    /// Compare copies with the primary's by hash, online; exit status 1 if they differ
    #[command(after_help = "\
Example:
  holdfast verify data                                       all members of the in-sync set
  holdfast verify data:beta/recordings                       only beta's copy
  holdfast verify data --repair                              what most copies have is right
  holdfast verify data --repair --source beta                what beta has is right

Without --repair nothing is changed. Every repaired range is told in the log of the primary.")]
    Verify(VerifyArgs),
    /// Pause, resume or bound resync; or distrust a copy: compare and resync all of it
    #[command(after_help = "\
Example:
  holdfast resync data --pause              no block moves; new writes still reach all copies
  holdfast resync data --resume
  holdfast resync data/db --max 100M        bytes per second; 0 for what the configuration says
  holdfast resync data/db --min 20M         go on so fast even if the application suffers
  holdfast resync data:beta                 beta's copy is not trusted: all of it is compared

Bounds are recorded by the cluster: they hold for whoever is primary, also after a failover, until they are
changed. Beside a busy application resync goes as fast as leaves its latency alone, at least --min.")]
    Resync(ResyncArgs),
    /// Give a volume another size while it is used
    #[command(after_help = "\
Example:
  holdfast resize data/records 2TiB        grow; the mounted filesystem grows with it
  holdfast resize data                     as large as the smallest backing allows
  holdfast resize data 1TiB --force-shrink \"lose the end\"

A backing that is a file is made larger as needed; a block device must have been made larger before. A volume
shrinks only while the resource is stopped, and what lies past its new end is gone.")]
    Resize(ResizeArgs),
    /// Add, remove and move replicas while the resource runs
    #[command(
        subcommand,
        after_help = "\
Example:
  holdfast replica add data/records gamma --backing /dev/vg0/records
  holdfast replica remove data beta
  holdfast replica move data beta gamma

What is recorded counts from then on, whatever cluster.toml says; `status` tells when the two differ."
    )]
    Replica(ReplicaCommand),
    /// Wait until a resource is as wanted
    #[command(after_help = "\
Example:
  holdfast wait data --for primary --timeout 30     some node serves it, everything up
  holdfast wait data --for synced                   every copy is UpToDate")]
    Wait(WaitArgs),
    /// Show who was primary when, and why that changed
    #[command(after_help = "Example:\n  holdfast history data")]
    History(RoleArgs),
    /// Hand over what this node serves if another can take it, then stop the daemon
    #[command(after_help = "Example:\n  holdfast stop")]
    Stop(DaemonArgs),
    /// Simulate clusters in virtual time under faults, and check every rule
    #[command(after_help = "\
Example:
  holdfast sim --seeds 2000 --swarm
  holdfast sim --seed 1234          replay one, with its story
  holdfast sim --replay seed-1234.trace")]
    Sim(SimArgs),
    /// Start a cluster here, break it while a service writes, and check that nothing was lost
    #[command(after_help = "\
Example:
  holdfast demo
  holdfast demo --fault partition --json
  holdfast demo --with postgres --seconds 30
  holdfast demo --with postgres --storm 600     kill a random node every few seconds for ten minutes

As root every node has a machine made of namespaces, and the volume is a block device with a filesystem;
without root there is less, and the command says what and why. Nothing is left behind.")]
    Demo(DemoArgs),
    /// For tests: cut a node off from the others, or end that
    #[command(hide = true)]
    Isolate(IsolateArgs),
    /// The node's second process: takes side effects away when the lease ends
    #[command(hide = true)]
    Fencer,
    /// A service for tests: appends checksummed, numbered records and answers over TCP
    #[command(hide = true)]
    RecordServer(RecordServerArgs),
    /// For tests: drives a record server, then asks it for every record it acknowledged
    #[command(hide = true)]
    RecordClient(RecordClientArgs),
}

/// How to find a daemon on this machine.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct DaemonArgs {
    /// The cluster's configuration
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG", default_value = CONFIG)]
    pub(crate) config: PathBuf,
    /// The node to ask, if several run on this machine
    #[arg(long, value_name = "NODE", env = "HOLDFAST_NAME")]
    pub(crate) name: Option<String>,
    /// The daemon's socket; neither configuration nor name are needed then
    #[arg(long, value_name = "PATH", env = "HOLDFAST_SOCKET")]
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NodeArgs {
    /// The cluster's configuration, the same on every node
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG", default_value = CONFIG)]
    pub(crate) config: PathBuf,
    /// Which of its nodes this one is
    #[arg(long, value_name = "NODE", env = "HOLDFAST_NAME")]
    pub(crate) name: String,
    /// Instead of the state directory in the configuration
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// For tests: faults of the local store
    #[arg(long, value_name = "PLAN", hide = true)]
    pub(crate) fault_plan: Option<String>,
    /// For tests: takes the place of the machine's boot id
    #[arg(long, value_name = "NUMBER", hide = true)]
    pub(crate) boot_id: Option<u128>,
    /// For tests: faults may be asked for at the API socket
    #[arg(long, hide = true)]
    pub(crate) allow_faults: bool,
    /// For tests: die with this process, the parent
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) parent: Option<i32>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Only this resource
    pub(crate) resource: Option<String>,
    /// Sizes, counters and what is normal too
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RoleArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Only this resource
    pub(crate) resource: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ResourceArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Which resource
    pub(crate) resource: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ResolveArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// `RESOURCE[:NODE][/VOLUME]`: whose line is given up; node and volume may be left out where there is only one other
    pub(crate) address: Address,
    /// The node whose data is kept: the primary
    #[arg(long, value_name = "NODE")]
    pub(crate) keep: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SavedCommand {
    /// List the files in a directory (STATE_DIR/saved of a node)
    List {
        /// Where
        dir: PathBuf,
    },
    /// Say what a file holds, and check all of it
    Show {
        /// Which
        file: PathBuf,
    },
    /// Lay the saved blocks over a raw copy of the volume: it reads as the lost line then
    Extract {
        /// Which
        file: PathBuf,
        /// The copy
        #[arg(long, value_name = "IMAGE")]
        onto: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Which resource
    pub(crate) resource: String,
    /// Promote a copy that lacks newer data; the consent must be typed out
    #[arg(long, value_name = "CONSENT")]
    pub(crate) force: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AddressArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// `RESOURCE[:NODE][/VOLUME]`; node and volume may be left out where there is only one other
    pub(crate) address: Address,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ResizeArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// `RESOURCE[/VOLUME]`
    pub(crate) volume: Address,
    /// Its new size, for example 2TiB
    pub(crate) size: Option<String>,
    /// Make it smaller, and lose what lies past its new end; the consent must be typed out
    #[arg(long, value_name = "CONSENT", requires = "size")]
    pub(crate) force_shrink: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReplicaCommand {
    /// Give a node that has none a replica; it is filled by resync
    Add {
        #[command(flatten)]
        daemon: DaemonArgs,
        /// `RESOURCE[/VOLUME]`
        volume: Address,
        /// Which node
        node: String,
        /// File or block device, as that node sees it; else what its cluster.toml says
        #[arg(long, value_name = "PATH")]
        backing: Option<PathBuf>,
    },
    /// Give a node's replica up; its backing is left as it is
    Remove {
        #[command(flatten)]
        daemon: DaemonArgs,
        /// `RESOURCE[/VOLUME]`
        volume: Address,
        /// Which node
        node: String,
    },
    /// Add a replica, wait until it is in sync, hand over if need be, remove the old one. May be repeated
    Move {
        #[command(flatten)]
        daemon: DaemonArgs,
        /// `RESOURCE[/VOLUME]`
        volume: Address,
        /// Whose replica goes
        from: String,
        /// Who gets one
        to: String,
        /// File or block device, as the new node sees it; else what its cluster.toml says
        #[arg(long, value_name = "PATH")]
        backing: Option<PathBuf>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// `RESOURCE[:NODE][/VOLUME]`; without a node all members of the in-sync set are compared
    pub(crate) address: Address,
    /// Make equal what differs; exit status 0 if everything is equal in the end
    #[arg(long)]
    pub(crate) repair: bool,
    /// Whose copy is right: a node, or `majority` for what more than half of the in-sync set has
    #[arg(
        long,
        value_name = "NODE",
        requires = "repair",
        default_value = "majority"
    )]
    pub(crate) source: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ResyncArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// `RESOURCE[:NODE][/VOLUME]`; node and volume may be left out where there is only one other
    pub(crate) address: Address,
    /// Stop resyncing until it is resumed
    #[arg(long, conflicts_with = "resume")]
    pub(crate) pause: bool,
    /// Go on after a pause
    #[arg(long)]
    pub(crate) resume: bool,
    /// Never faster than this, in bytes per second, for example 100M; 0: as configured
    #[arg(long, value_name = "RATE", value_parser = holdfast_config::parse_rate)]
    pub(crate) max: Option<u64>,
    /// At least this fast beside the application; 0: as configured
    #[arg(long, value_name = "RATE", value_parser = holdfast_config::parse_rate)]
    pub(crate) min: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Which resource
    pub(crate) resource: String,
    /// For what
    #[arg(long = "for", value_enum, default_value = "primary")]
    pub(crate) condition: WaitFor,
    /// Seconds to wait at the most
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    pub(crate) timeout: u64,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitFor {
    /// This node hears a majority of voters, and the control plane acts
    Quorum,
    /// Some node serves it, with mounts, services and addresses up
    Primary,
    /// This node serves it, with everything up
    Here,
    /// This node is Secondary
    Secondary,
    /// This node's copy is connected with all others
    Connected,
    /// Every copy of every volume is UpToDate
    Synced,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct IsolateArgs {
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// on or off
    #[arg(value_parser = ["on", "off"])]
    pub(crate) state: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SimArgs {
    /// How many seeds
    #[arg(long, value_name = "N", default_value = "500", conflicts_with = "seed")]
    pub(crate) seeds: u64,
    /// The first of them
    #[arg(
        long,
        value_name = "SEED",
        default_value = "0",
        conflicts_with = "seed"
    )]
    pub(crate) from: u64,
    /// Just this one, with its whole story
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,
    /// Each seed draws which classes of faults there are at all, and every size and rate (the default)
    #[arg(long, overrides_with = "no_swarm")]
    pub(crate) swarm: bool,
    /// All classes of faults in every seed; else each is absent from half of them
    #[arg(long, overrides_with = "swarm")]
    pub(crate) no_swarm: bool,
    /// Plays a trace: the decisions of a run that failed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds", "from"])]
    pub(crate) replay: Option<PathBuf>,
    /// Where failures, made small, are written as traces
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) traces: PathBuf,
    /// Run each seed twice and compare all that happened
    #[arg(long)]
    pub(crate) twice: bool,
    /// Go on after a failure
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// Print a line per event
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// The fault of the demonstration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoFault {
    /// SIGKILL for the primary's daemon, which is started again
    Kill,
    /// SIGSTOP, later SIGCONT
    Stop,
    /// The primary's link is cut, later healed
    Partition,
    /// The primary's machine loses power, and what its store had not flushed is gone
    Power,
}

/// The workload of the demonstration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoWorkload {
    /// The built-in record server
    Records,
    /// PostgreSQL, with committed inserts (root only)
    Postgres,
}

/// Where the nodes of the demonstration live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoMode {
    /// Machines with block devices
    Root,
    /// Machines in a user namespace
    Userns,
    /// Addresses of the loopback interface
    Loopback,
}

/// Timings of the demonstration's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoProfile {
    /// As without a setting
    Lan,
    /// The shortest failover
    Fast,
    /// Machines that pause now and then
    Cloud,
}

impl From<DemoProfile> for holdfast_config::Profile {
    fn from(profile: DemoProfile) -> Self {
        match profile {
            DemoProfile::Lan => Self::Lan,
            DemoProfile::Fast => Self::Fast,
            DemoProfile::Cloud => Self::Cloud,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DemoArgs {
    /// What happens to the primary
    #[arg(long, value_enum, default_value = "kill")]
    pub(crate) fault: DemoFault,
    /// What runs on the volume
    #[arg(long, value_enum, default_value = "records")]
    pub(crate) with: DemoWorkload,
    /// How long the workload runs, in seconds, without the failover; the fault comes in the middle
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// Instead of one fault: for so many seconds, kill the daemon of a node chosen at random every few seconds
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["fault", "keep", "seconds"], value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) storm: Option<u64>,
    /// Leave the cluster running until Ctrl-C, and say how to reach it
    #[arg(long)]
    pub(crate) keep: bool,
    /// Not the best kind of machines there is, but this
    #[arg(long, value_enum, hide = true)]
    pub(crate) mode: Option<DemoMode>,
    /// Timings of the cluster
    #[arg(long, value_enum, default_value = "lan", hide = true)]
    pub(crate) profile: DemoProfile,
    /// Keep the nodes' logs in this directory
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) logs: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
#[group(id = "log", required = true, multiple = false)]
pub(crate) struct LogArgs {
    /// Keep the records in this file
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Keep the records on the volume behind this NBD unix socket
    #[arg(long, value_name = "SOCKET", env = NBD_VARIABLE, hide_env = true)]
    pub(crate) nbd_unix: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RecordServerArgs {
    /// Where clients connect
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RecordClientArgs {
    /// Where the server listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) connect: SocketAddr,
    /// How many clients at a time
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) clients: u8,
    /// How long they append, in seconds
    #[arg(long, value_name = "N", default_value = "10")]
    pub(crate) seconds: u64,
    /// How long a single answer may take before it is a failure, in seconds
    #[arg(long, value_name = "N", default_value = "60")]
    pub(crate) patience: u64,
}

#[cfg(test)]
mod tests;
