use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};

use super::backup_args::{BackupArgs, BackupCommandArgs, RestoreArgs};
use super::db_args::DbArgs;
use super::history_args::{BranchArgs, HistoryArgs};
use super::node_args::NodeArgs;
use super::result_format::Format;
use super::run_args::{LeaseArgs, RunArgs};
use super::section_args::{ExecArgs, HistorySectionArgs, LimitArgs, TraceArgs};
use super::sql_args::SqlArgs;
use crate::config::{
    FileMode, HostPort, LogFormat, OneOrMany, Owner, Partial, ProxyPartial, StaleMountMode, Time, TokenTexts,
    parse_duration,
};
use crate::node;
use crate::types::{DbName, NodeName, Txid};

/// A replicated filesystem for SQLite.
#[derive(Parser, Debug)]
#[command(name = "skein", version, about)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Run a node: mount its databases, replicate them, run a command on them
    Mount(Box<MountArgs>),
    /// Show it: three voters on this machine with three mounts, and the primary killed
    Demo(DemoArgs),
    /// Look for what keeps a node from running here, and say the remedy; takes the options of mount
    Doctor(Box<DoctorArgs>),
    /// Show the cluster: primary, members, databases with position and lag
    Status(StatusArgs),
    /// List, export, import and drop databases
    Db(DbArgs),
    /// Show the transactions of a database: what one can go back to
    History(HistoryArgs),
    /// Make, list and drop branches: databases that begin as another one is, or was
    Branch(BranchArgs),
    /// Execute SQL on a node, or start a shell
    Sql(SqlShellArgs),
    /// Make a database of a backup, as of now or of an earlier point
    Restore(Box<RestoreArgs>),
    /// Look at backups: how far they are, what is in them, whether they can be restored
    Backup(BackupCommandArgs),
    /// Wait until a node is ready, or has a transaction: read your writes from a script
    Wait(WaitArgs),
    /// Run a command where it may write: a migration, a console
    Run(RunArgs),
    /// Run a command that holds the write lease of a database: this node is primary meanwhile
    Lease(LeaseArgs),
    /// Show and change the nodes of the cluster
    Members(MembersArgs),
    /// Move the primary as planned: writers wait, none fails
    Handoff(HandoffArgs),
    /// Make a cluster of one voter from a node that is left, where a majority is lost for ever
    Recover(RecoverArgs),
    /// Make certificates for the nodes of a cluster
    Certs(CertsArgs),
    /// Check or print the configuration that mount would use; takes the options of mount
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version
    Version(VersionArgs),
    /// Print what makes a shell complete the words of this command line
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// Directory they are written to; made where it is not there
        dir: PathBuf,
    },
    /// Watch over a node's mount; `mount` starts it by itself
    #[command(name = node::GUARD_COMMAND, hide = true)]
    GuardMount(GuardArgs),
    /// Execute SQL for a node; `mount` starts it by itself
    #[command(name = crate::sql::engine::ENGINE_COMMAND, hide = true)]
    SqlEngine(SqlEngineArgs),
    /// Look into change-set files
    #[command(subcommand)]
    Ltx(LtxCommand),
}

#[derive(Args, Debug)]
pub(super) struct GuardArgs {
    /// Process whose death is waited for
    pub(super) parent: i32,
    /// Number of its FUSE connection
    pub(super) connection: u64,
    /// Where it has mounted
    pub(super) mount_point: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct SqlEngineArgs {
    /// What it is told, as JSON
    pub(super) options: String,
}

const MOUNT_EXAMPLES: &str = "\
Examples:
  One node, to try it:
    skein mount --bootstrap --mount /srv/app --data /var/lib/skein -- my-server --db /srv/app/app.db
  Three voters, the same on each machine but for its own address:
    skein mount --bootstrap-expect 3 --join a:20203,b:20203,c:20203 --listen 0.0.0.0:20203 --config /etc/skein/skein.toml
  One more read-only copy:
    skein mount --role replica --join a:20203,b:20203 --mount /srv/app --data /var/lib/skein
Every option is also a key of the file and an environment variable: --some-option, some_option, SKEIN_SOME_OPTION.";

/// Options override the environment, the environment overrides the configuration file.
#[derive(Args, Debug)]
#[command(after_help = MOUNT_EXAMPLES)]
pub(super) struct MountArgs {
    /// Configuration file (TOML)
    #[arg(long, env = "SKEIN_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Directory the databases appear in; made where it is missing
    #[arg(long, help_heading = "Mount", env = "SKEIN_MOUNT", value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Directory the node keeps everything in
    #[arg(long, env = "SKEIN_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// The node's name [default: the hostname]
    #[arg(long, help_heading = "Cluster", env = "SKEIN_NAME", value_name = "NODE")]
    name: Option<String>,
    /// voter: may become primary; replica: a read-only copy [default: voter]
    #[arg(long, help_heading = "Cluster", env = "SKEIN_ROLE", value_name = "voter|replica")]
    role: Option<String>,
    /// Where gRPC between nodes listens [default: 127.0.0.1:20203]
    #[arg(long, help_heading = "Addresses", env = "SKEIN_LISTEN", value_name = "HOST:PORT")]
    listen: Option<HostPort>,
    /// Where the API and the metrics listen [default: 127.0.0.1:20202]
    #[arg(long, help_heading = "Addresses", env = "SKEIN_HTTP", value_name = "HOST:PORT")]
    http: Option<HostPort>,
    /// The gRPC address other nodes dial [default: that of --listen]
    #[arg(long, help_heading = "Addresses", env = "SKEIN_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<HostPort>,
    /// The URL of the API that others are told [default: that of --http]
    #[arg(long, help_heading = "Addresses", env = "SKEIN_ADVERTISE_HTTP", value_name = "URL")]
    advertise_http: Option<String>,
    /// Found a new cluster of one voter, where the data directory has none yet
    #[arg(long, help_heading = "Cluster", env = "SKEIN_BOOTSTRAP", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    bootstrap: Option<bool>,
    /// Found a new cluster together with other new nodes: of this many voters, whose addresses --join has on all of them
    #[arg(long, help_heading = "Cluster", env = "SKEIN_BOOTSTRAP_EXPECT", value_name = "N")]
    bootstrap_expect: Option<u32>,
    /// With --bootstrap: restore the databases of this backup before the node is ready
    #[arg(long, env = "SKEIN_RESTORE_FROM", value_name = "URL")]
    restore_from: Option<String>,
    /// Join an existing cluster through any of these nodes; this node's own address may be among them
    #[arg(
        long,
        help_heading = "Cluster",
        env = "SKEIN_JOIN",
        value_name = "HOST:PORT,...",
        value_delimiter = ','
    )]
    join: Option<Vec<HostPort>>,
    /// Do without kernel passthrough
    #[arg(long, help_heading = "Mount", env = "SKEIN_NO_PASSTHROUGH", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    no_passthrough: Option<bool>,
    /// Let other users into the mount
    #[arg(long, help_heading = "Mount", env = "SKEIN_ALLOW_OTHER", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    allow_other: Option<bool>,
    /// Owner that everything on the mount has on this node, a number or a name [default: as in the log]
    #[arg(long, help_heading = "Mount", env = "SKEIN_MOUNT_UID", value_name = "USER")]
    mount_uid: Option<Owner>,
    /// Group that everything on the mount has on this node, a number or a name [default: as in the log]
    #[arg(long, help_heading = "Mount", env = "SKEIN_MOUNT_GID", value_name = "GROUP")]
    mount_gid: Option<Owner>,
    /// Permissions that all files on the mount have on this node, such as 640 [default: as in the log]
    #[arg(long, help_heading = "Mount", env = "SKEIN_MOUNT_FILE_MODE", value_name = "MODE")]
    mount_file_mode: Option<FileMode>,
    /// Permissions that all directories on the mount have on this node, such as 750 [default: as in the log]
    #[arg(long, help_heading = "Mount", env = "SKEIN_MOUNT_DIR_MODE", value_name = "MODE")]
    mount_dir_mode: Option<FileMode>,
    /// How often a primary says that it is there; at most half of --election-timeout [default: 100ms]
    #[arg(long, help_heading = "Cluster", env = "SKEIN_HEARTBEAT", value_name = "TIME")]
    heartbeat: Option<Time>,
    /// Silence of the primary after which another may be elected, once to twice as long [default: 220ms]
    #[arg(long, help_heading = "Cluster", env = "SKEIN_ELECTION_TIMEOUT", value_name = "TIME")]
    election_timeout: Option<Time>,
    /// How long a commit may wait for a quorum before its outcome counts as unknown [default: 5s]
    #[arg(long, help_heading = "Cluster", env = "SKEIN_COMMIT_TIMEOUT", value_name = "TIME")]
    commit_timeout: Option<Time>,
    /// How long a call of this program may take before the node counts as stuck and gives the primary up [default: 10s]
    #[arg(long, env = "SKEIN_STUCK_TIMEOUT", value_name = "TIME")]
    stuck_timeout: Option<Time>,
    /// What a start does about applications that use the mount of an earlier run: see docs own_mount [default: serve]
    #[arg(long, help_heading = "Mount", env = "SKEIN_STALE_MOUNT", value_name = "wait|serve|kill")]
    stale_mount: Option<StaleMountMode>,
    /// Databases that are read-only while another voter is primary, instead of letting their writers wait
    #[arg(
        long,
        help_heading = "Mount",
        env = "SKEIN_READONLY_ON_FOLLOWER",
        value_name = "GLOB,...",
        value_delimiter = ','
    )]
    readonly_on_follower: Option<Vec<String>>,
    /// Listen where others than this machine's programs reach it, with neither TLS nor tokens
    #[arg(long, help_heading = "Security", env = "SKEIN_INSECURE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    insecure: Option<bool>,
    /// Authority that the nodes' certificates are of
    #[arg(long, help_heading = "Security", env = "SKEIN_TLS_CA", value_name = "FILE")]
    tls_ca: Option<String>,
    /// This node's certificate; skein certs issue makes one
    #[arg(long, help_heading = "Security", env = "SKEIN_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<String>,
    /// Its private key
    #[arg(
        long,
        help_heading = "Security",
        env = "SKEIN_TLS_KEY",
        value_name = "FILE",
        hide_env_values = true
    )]
    tls_key: Option<String>,
    /// Serve the API over TLS too
    #[arg(long, help_heading = "Security", env = "SKEIN_TLS_HTTP", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    tls_http: Option<bool>,
    /// File with the token that nodes show each other where there is no TLS [default: the one in SKEIN_JOIN_TOKEN]
    #[arg(long, help_heading = "Security", env = "SKEIN_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// File with the token that lets clients of the API read [default: the one in SKEIN_READ_TOKEN]
    #[arg(long, help_heading = "Security", env = "SKEIN_READ_TOKEN_FILE", value_name = "FILE")]
    read_token_file: Option<PathBuf>,
    /// File with the token that lets clients of the API do everything [default: the one in SKEIN_ADMIN_TOKEN]
    #[arg(long, help_heading = "Security", env = "SKEIN_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Form of the log on stderr [default: text]
    #[arg(long, env = "SKEIN_LOG_FORMAT", value_name = "text|json")]
    log_format: Option<LogFormat>,
    #[command(flatten, next_help_heading = "Proxy")]
    proxy: ProxyArgs,
    #[command(flatten, next_help_heading = "Command")]
    exec: ExecArgs,
    #[command(flatten, next_help_heading = "Limits")]
    limits: LimitArgs,
    #[command(flatten, next_help_heading = "Traces")]
    traces: TraceArgs,
    #[command(flatten, next_help_heading = "SQL over HTTP")]
    sql: SqlArgs,
    #[command(flatten)]
    backup: BackupArgs,
    #[command(flatten, next_help_heading = "History")]
    history: HistorySectionArgs,
    /// Program to run once applications may start; its exit code is the node's
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl MountArgs {
    /// What the command line and the environment say.
    pub(super) fn into_partial(self) -> Partial {
        Partial {
            mount: self.mount,
            data: self.data,
            name: self.name,
            role: self.role,
            listen: self.listen,
            http: self.http,
            advertise: self.advertise,
            advertise_http: self.advertise_http,
            bootstrap: self.bootstrap,
            bootstrap_expect: self.bootstrap_expect,
            restore_from: self.restore_from,
            join: self.join,
            no_passthrough: self.no_passthrough,
            allow_other: self.allow_other,
            mount_uid: self.mount_uid,
            mount_gid: self.mount_gid,
            mount_file_mode: self.mount_file_mode,
            mount_dir_mode: self.mount_dir_mode,
            heartbeat: self.heartbeat,
            election_timeout: self.election_timeout,
            commit_timeout: self.commit_timeout,
            stuck_timeout: self.stuck_timeout,
            stale_mount: self.stale_mount,
            readonly_on_follower: self.readonly_on_follower,
            insecure: self.insecure,
            tls_ca: self.tls_ca,
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            tls_http: self.tls_http,
            join_token_file: self.join_token_file,
            read_token_file: self.read_token_file,
            admin_token_file: self.admin_token_file,
            tokens: TokenTexts::of_environment(),
            log_format: self.log_format,
            command: (!self.command.is_empty()).then_some(self.command),
            proxy: self.proxy.into_partial(),
            exec: self.exec.into_partial(),
            limits: self.limits.into_partial(),
            traces: self.traces.into_partial(),
            sql: self.sql.into_partial(),
            backup: self.backup.into_partial(),
            history: self.history.into_partial(),
        }
    }
}

/// The proxy in front of the application; the rest of its settings are in the section `[proxy]` of the file.
#[derive(Args, Debug)]
struct ProxyArgs {
    /// Where an HTTP proxy in front of the application listens [default: there is none]
    #[arg(long, env = "SKEIN_PROXY_ADDR", value_name = "HOST:PORT")]
    proxy_addr: Option<String>,
    /// Where the application behind the proxy listens
    #[arg(long, env = "SKEIN_PROXY_TARGET", value_name = "HOST:PORT")]
    proxy_target: Option<String>,
    /// The databases of that application: readers see what they wrote
    #[arg(long, env = "SKEIN_PROXY_DB", value_name = "DB,...", value_delimiter = ',')]
    proxy_db: Option<Vec<String>>,
    /// The URL under which the proxies of other nodes reach this one [default: that of --proxy-addr]
    #[arg(long, env = "SKEIN_PROXY_ADVERTISE", value_name = "URL")]
    proxy_advertise: Option<String>,
}

impl ProxyArgs {
    fn into_partial(self) -> ProxyPartial {
        ProxyPartial {
            addr: self.proxy_addr,
            target: self.proxy_target,
            db: self.proxy_db.map(OneOrMany::Many),
            advertise: self.proxy_advertise,
            ..ProxyPartial::default()
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) mount: MountArgs,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Where the nodes live; a temporary directory unless given
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// End after the demonstration instead of staying up until Ctrl-C
    #[arg(long)]
    pub(super) exit: bool,
}

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// Again every second, until it is interrupted
    #[arg(long)]
    pub(super) watch: bool,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct SqlShellArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// Name of the database, its path below the mount
    pub(super) db: DbName,
    /// Statements [default: those on standard input; a shell on a terminal]
    pub(super) sql: Option<String>,
    /// How results are written
    #[arg(long, value_enum, default_value = "table")]
    pub(super) format: Format,
}

#[derive(Args, Debug)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// Name of the database, its path below the mount
    #[arg(required_unless_present = "ready")]
    pub(super) db: Option<DbName>,
    /// Until the node runs and applications may use its mount; then for the database, where one is named
    #[arg(long)]
    pub(super) ready: bool,
    /// The transaction, 16 hex digits [default: the primary's last one]
    #[arg(long, value_name = "TXID", value_parser = parse_pos, requires = "db")]
    pub(super) pos: Option<Txid>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    /// How long to wait, such as 500ms, 30s or 2m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(super) timeout: Duration,
}

/// A TXID, or a position `txid/checksum` as `<db>-pos` has it.
fn parse_pos(text: &str) -> Result<Txid, String> {
    let txid = text.split_once('/').map_or(text, |(txid, _)| txid);
    txid.parse().map_err(|error: crate::types::InvalidTxid| error.to_string())
}

#[derive(Args, Debug)]
pub(super) struct MembersArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// As JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: MembersCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum MembersCommand {
    /// List the nodes
    List,
    /// Let in again a running voter that was removed
    Add {
        /// HOST:PORT of its gRPC
        addr: HostPort,
    },
    /// Remove a voter or standby for good
    Remove {
        /// Its name
        node: NodeName,
    },
    /// Let a standby vote
    Promote {
        /// Its name
        node: NodeName,
    },
    /// Let a voter only receive the log
    Demote {
        /// Its name
        node: NodeName,
    },
}

#[derive(Args, Debug)]
pub(super) struct HandoffArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Who shall be primary [default: the voter that is the least behind]
    pub(super) to: Option<NodeName>,
}

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Say whether it can be used: exit code 0, or what is wrong
    Check(Box<MountArgs>),
    /// Print what options, environment and file come to, as a configuration file
    Print(Box<MountArgs>),
}

#[derive(Args, Debug)]
pub(super) struct VersionArgs {
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct RecoverArgs {
    /// Data directory of the node, which must not run
    #[arg(long, env = "SKEIN_DATA", value_name = "DIR")]
    pub(super) data: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    /// Do not copy the data directory first
    #[arg(long)]
    pub(super) no_copy: bool,
}

#[derive(Args, Debug)]
pub(super) struct CertsArgs {
    /// Directory of the authority and of what it issues
    #[arg(long, value_name = "DIR", default_value = "certs", global = true)]
    pub(super) dir: PathBuf,
    #[command(subcommand)]
    pub(super) command: CertsCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum CertsCommand {
    /// Make a cluster's own authority: ca.pem and ca-key.pem
    Init {
        /// How many days it is valid
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Issue a node another certificate in the place of the one that ends: the same names, the same key
    Renew {
        /// The node's name
        node: NodeName,
        /// How many days it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Issue a node's certificate: NODE.pem and NODE-key.pem
    Issue {
        /// The node's name
        node: NodeName,
        /// Host names and addresses at which others dial it, besides its name
        #[arg(long, value_name = "HOST,...", value_delimiter = ',')]
        address: Vec<String>,
        /// How many days it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum LtxCommand {
    /// Show what is in a file
    Dump {
        /// The file
        file: PathBuf,
    },
    /// Check files: format, order of the pages, all checksums
    Verify {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}
