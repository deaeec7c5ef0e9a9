//! Mounts for tests: a folder, a keeper, and a server in a process of its own, all gone at the end.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use mica_fs::keeper::Keeper;
use std::sync::mpsc::channel;
use std::thread::scope;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const FIXTURE: &str = env!("CARGO_BIN_EXE_mica-fs-fixture");

/// Whether mounts can be made here; says why not.
pub fn can_mount() -> bool {
    let missing = if !rustix::process::getuid().is_root() {
        "not root"
    } else if rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err() {
        "no /dev/fuse"
    } else {
        return true;
    };
    eprintln!("mounts are not tested: {missing}");
    false
}

/// A folder with lower directories, an upper, a mountpoint and a keeper's socket.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        for name in ["lower", "upper", "work", "mnt"] {
            fs::create_dir(place.path(name)).unwrap();
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn mnt(&self, name: &str) -> PathBuf {
        self.path("mnt").join(name)
    }

    pub fn keeper(&self) -> Keeper {
        Keeper::connect_or_start(&self.path("keeper"), Path::new(FIXTURE)).unwrap()
    }

    /// Options that unite the folder's directories, and more.
    pub fn options(&self, more: &str) -> String {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.path(name).display().to_string());
        format!("lowerdir={lower},upperdir={upper},workdir={work},{more}")
    }

    pub fn mount(&self, more: &str) -> Server {
        self.dirs("keeper", &self.options(more)).unwrap()
    }

    /// The next server. It is started while there is one: a process that is started closes the files it inherits,
    /// and for some of them asks the server.
    pub fn next(&self, more: &str) -> Next {
        self.next_dirs(&self.options(more))
    }

    pub fn next_dirs(&self, options: &str) -> Next {
        Next::started(self.start("keeper", "resume", &["dirs".as_ref(), options.as_ref()]))
    }

    pub fn next_image(&self) -> Next {
        let [store, tar, changes] = ["store", "tar", "changes"].map(|name| self.path(name));
        Next::started(self.start(
            "keeper",
            "resume",
            &["image".as_ref(), store.as_ref(), tar.as_ref(), changes.as_ref(), "".as_ref()],
        ))
    }

    /// Serves directories; with "-" for the keeper, without one.
    pub fn dirs(&self, keeper: &str, options: &str) -> Result<Server, String> {
        self.start(keeper, "mount", &["dirs".as_ref(), options.as_ref()]).answered()
    }

    /// Serves the image in `tar`.
    pub fn image(&self, options: &str) -> Result<Server, String> {
        let [store, tar, changes] = ["store", "tar", "changes"].map(|name| self.path(name));
        let what = ["image".as_ref(), store.as_ref(), tar.as_ref(), changes.as_ref(), options.as_ref()];
        self.start("keeper", "mount", &what).answered()
    }

    /// Serves directories without `CAP_SYS_ADMIN`; the keeper, which mounts, has it.
    pub fn unprivileged(&self, options: &str) -> Result<Server, String> {
        self.keeper();
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", FIXTURE]);
        self.run(command, "keeper", "mount", &["dirs".as_ref(), options.as_ref()]).answered()
    }

    fn start(&self, keeper: &str, how: &str, what: &[&OsStr]) -> Server {
        self.run(Command::new(FIXTURE), keeper, how, what)
    }

    fn run(&self, mut command: Command, keeper: &str, how: &str, what: &[&OsStr]) -> Server {
        let keeper = if keeper == "-" { keeper.into() } else { self.path(keeper) };
        let mut child = command
            .arg("serve")
            .args([keeper.as_os_str(), "one".as_ref(), self.path("mnt").as_os_str(), how.as_ref()])
            .args(what)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Server { child, input, output }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path("mnt"), rustix::mount::UnmountFlags::DETACH);
        if let Ok(keeper) = Keeper::connect(&self.path("keeper")) {
            let _ = keeper.forget("one");
            keeper.stop().unwrap();
        }
    }
}

/// A process that waits to take the mount over.
pub struct Next(Server);

impl Next {
    /// Waits until the process has closed what it inherited.
    fn started(mut server: Server) -> Next {
        assert_eq!(server.line(), "started");
        Next(server)
    }

    pub fn resume(mut self) -> Server {
        writeln!(self.0.input, "go").unwrap();
        self.0.answered().unwrap()
    }

    /// Does something while nobody serves, then resumes. What needs a server after all is a failure, and not a hang.
    pub fn resume_after<T: Send>(self, access: impl FnOnce() -> T + Send) -> (Server, T) {
        let (server, result, without) = self.try_resume_after(access);
        assert!(without, "this waited for a server");
        (server, result)
    }

    /// The same; false if it waited for a server.
    pub fn try_resume_after<T: Send>(self, access: impl FnOnce() -> T + Send) -> (Server, T, bool) {
        let (done, ended) = channel();
        scope(|scope| {
            let access = scope.spawn(move || {
                let result = access();
                let _ = done.send(());
                result
            });
            let without = ended.recv_timeout(Duration::from_secs(20)).is_ok();
            let server = self.resume();
            (server, access.join().unwrap(), without)
        })
    }
}

/// Tries to show that the kernel remembers something. It may forget anything at any time, and does when somebody else
/// has it drop its caches, but not each time.
pub fn remembered(attempt: impl Fn() -> bool) {
    assert!((0..5).any(|_| attempt()), "this waited for a server, each time");
}

/// A process that serves the mount.
pub struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// Gives an order and returns the answer.
    pub fn answer(&mut self, order: &str) -> String {
        writeln!(self.input, "{order}").unwrap();
        self.line()
    }

    /// Gives an order that nothing stands in the way of, and returns the answer.
    pub fn order(&mut self, order: &str) -> String {
        // A process that another test starts at this moment has all files of this one open until it runs its own
        // program, so that a mount may be in use for a moment without anybody's doing.
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.answer(order);
            let busy = order == "unmount" && answer.contains("busy");
            if !busy || Instant::now() > patience {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Handles, and inodes passed through from the upper and from the lower.
    pub fn counts(&mut self) -> [usize; 3] {
        let line = self.order("counts");
        let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
        std::array::from_fn(|_| numbers.next().unwrap())
    }

    fn answered(mut self) -> Result<Server, String> {
        match self.line().as_str() {
            "ready" => Ok(self),
            other => Err(other.to_owned()),
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
