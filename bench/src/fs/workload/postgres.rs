//! PostgreSQL with its data on the mount: pgbench.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use mica_tests::command::{run as try_run, succeed};
use mica_tests::wait::{LATER, SOON};
use mica_tests::{Context as _, Result};

use super::Workload;
use crate::fs::lower::Lower;
use crate::fs::place::Upper;
use crate::fs::row::{Kind, Row, overlayfs};
use crate::fs::stage::{Stage, settle};

/// The row.
pub const POSTGRES: Workload = Workload {
    name: "postgres",
    rows: &[Row::time(
        "pgbench",
        "PostgreSQL: a transaction of pgbench, 2 clients, ext4",
        Kind::Work,
        &[overlayfs(0.8)],
    )],
    run,
};

/// Of each of the two clients.
const TRANSACTIONS: u32 = 500;

fn run(stage: &Stage<'_>) -> Result {
    let programs = programs()?;
    let lower = stage.lower("database", |folder| {
        // The data are made once, where their user gets; each subject has a copy of its own in its upper.
        let place = tempfile::Builder::new()
            .prefix("mica-bench-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in("/run")?;
        let data = place.path().join("data");
        fs::create_dir(&data)?;
        succeed(Command::new("chown").arg("postgres").arg(&data), SOON)?;
        succeed(as_user(&programs.join("initdb")).args(["--no-sync", "-A", "trust", "-D"]).arg(&data), LATER)?;
        let server = Server::start(&programs, &data)?;
        succeed(server.client("pgbench").args(["--initialize", "--quiet", "--scale=2", "postgres"]), LATER)?;
        server.stop()?;
        succeed(Command::new("cp").arg("-a").arg(&data).arg(folder), LATER)?;
        let empty = folder.join("lower");
        fs::create_dir(&empty)?;
        Ok(Lower::folder(&empty, "database"))
    })?;
    let data = lower.dirs[0].parent().context("the lower is in a folder")?.join("data");
    let place = stage.place(&lower, Upper::Disk)?;
    let mount = place.mount()?;
    let own = mount.path("data");
    succeed(Command::new("cp").arg("-a").arg(&data).arg(&own), LATER)?;
    settle();
    let server = Server::start(&programs, &own)?;
    let transactions = stage.of(TRANSACTIONS);
    let number = transactions.to_string();
    let start = Instant::now();
    let done = succeed(server.client("pgbench").args(["--client=2", "--jobs=1", "-t", &number, "postgres"]), LATER);
    let took = start.elapsed().as_secs_f64() / f64::from(2 * transactions);
    server.stop()?;
    stage.sample("pgbench", done.map(|_| took));
    mount.end()?;
    place.delete()
}

/// The folder of PostgreSQL's programs.
fn programs() -> Result<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .context("no PostgreSQL: run scripts/setup")?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    versions.sort();
    versions.pop().map(|version| version.join("bin")).context("no PostgreSQL: run scripts/setup")
}

/// A program as a user without privilege, whom PostgreSQL insists on.
fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program).current_dir("/");
    command
}

/// A server without a port: it listens on a socket in `/run` alone.
struct Server<'a> {
    programs: &'a Path,
    data: PathBuf,
    sockets: PathBuf,
}

impl<'a> Server<'a> {
    fn start(programs: &'a Path, data: &Path) -> Result<Server<'a>> {
        let sockets = PathBuf::from("/run").join(mica_tests::place::unique_name());
        fs::create_dir(&sockets)?;
        succeed(Command::new("chown").arg("postgres").arg(&sockets), SOON)?;
        let server = Server { programs, data: data.to_path_buf(), sockets };
        let options = format!("-c listen_addresses='' -c unix_socket_directories='{}'", server.sockets.display());
        succeed(server.control().args(["start", "--silent", "--wait", "-o", &options]), LATER)?;
        Ok(server)
    }

    fn control(&self) -> Command {
        let mut command = as_user(&self.programs.join("pg_ctl"));
        command.arg("--pgdata").arg(&self.data).arg("--log").arg(self.sockets.join("log"));
        command
    }

    fn client(&self, program: &str) -> Command {
        let mut command = as_user(&self.programs.join(program));
        command.arg("--host").arg(&self.sockets);
        command
    }

    fn stop(self) -> Result {
        succeed(self.control().args(["stop", "--mode=fast", "--wait"]), LATER).map(drop)
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // Nothing to stop is the usual case.
        let _ = try_run(self.control().args(["stop", "--mode=immediate"]), SOON);
        let _ = fs::remove_dir_all(&self.sockets);
    }
}
