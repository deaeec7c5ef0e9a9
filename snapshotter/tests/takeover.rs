//! Daemons that end, are killed and take over each other's mounts. This program plays the daemon and the keeper too. Needs
//! root and `/dev/fuse`; says so without.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use mica_layerdb::Store;
use mica_snapshotter::{FuseMounter, Snapshots};

/// Told whether the daemon is to be killed.
type Test = fn(bool);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["keeper", "--socket", socket] => mica_fs::keeper::serve(Path::new(socket)).unwrap(),
        ["daemon", folder] => daemon(Path::new(folder)),
        _ if !rustix::process::geteuid().is_root() || File::open("/dev/fuse").is_err() => {
            println!("skipped: mounting needs root and /dev/fuse");
        }
        _ => {
            let tests: [(&str, Test); 3] = [
                ("mounts, open files and changes outlive the daemon", outlive),
                ("a commit whose daemon ended is settled by the next one", settle_later),
                ("a keeper that died is replaced by the daemon or the next one", replace_keeper),
            ];
            for (name, test) in tests {
                for killed in [false, true] {
                    test(killed);
                    println!("test {name}, which {} ... ok", if killed { "was killed" } else { "was stopped" });
                }
            }
        }
    }
}

/// Does what its lines of input say and answers each with a line. The first one only starts it.
fn daemon(folder: &Path) {
    if std::io::stdin().read_line(&mut String::new()).unwrap() == 0 {
        return;
    }
    let store = Store::open(&folder.join("root")).unwrap();
    let program = std::env::current_exe().unwrap();
    let mounter = FuseMounter::new(&folder.join("state"), &store, &program).unwrap();
    let snapshots = Snapshots::open(store, Arc::new(mounter)).unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let (none, labels) = (|()| Vec::new(), BTreeMap::new());
        let answer = match words[..] {
            ["prepare", key, parent] => snapshots.prepare(key, parent, labels),
            ["view", key, parent] => snapshots.view(key, parent, labels),
            ["mounts", key] => snapshots.mounts(key),
            ["commit", name, key] => snapshots.commit(name, key, labels, None).map(none),
            ["settle", name] => snapshots.settle(name).map(none),
            ["remove", key] => snapshots.remove(key).map(none),
            ["stop"] => snapshots.close().map(none),
            ["unmount"] => snapshots.unmount_all().map(none),
            _ => panic!("{line}"),
        };
        match answer {
            Ok(mounts) => println!("{}", mounts.first().map_or("", |mount| &mount.source)),
            Err(error) => println!("error: {error}"),
        }
        if line == "stop" {
            // Nobody serves what was left in this process: it has to end.
            std::process::exit(0);
        }
    }
}

/// A daemon in a process of its own.
struct Daemon {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Daemons that wait for their turn. They have to be there before this process opens files in mounts: a new process begins
/// with closing what it has not inherited, for which the kernel asks the daemon.
fn waiting(folder: &Path, count: usize) -> Vec<Daemon> {
    (0..count).map(|_| Daemon::new(folder)).collect()
}

impl Daemon {
    fn new(folder: &Path) -> Daemon {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("daemon")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Daemon { child, input, output }
    }

    fn ask(&mut self, request: &str) -> PathBuf {
        writeln!(self.input, "{request}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert!(answer.ends_with('\n') && !answer.starts_with("error"), "{request}: {answer}");
        PathBuf::from(answer.trim_end())
    }

    fn end(&mut self, killed: bool) {
        if killed {
            self.child.kill().unwrap();
        } else {
            self.ask("stop");
        }
        self.child.wait().unwrap();
    }

    fn start(mut self) -> Daemon {
        writeln!(self.input, "start").unwrap();
        self
    }

    fn replace(&mut self, killed: bool, waiting: &mut Vec<Daemon>) {
        self.end(killed);
        *self = waiting.pop().unwrap().start();
    }
}

fn text(file: &mut File) -> String {
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

fn outlive(killed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut waiting = waiting(folder.path(), 4);
    let mut daemon = waiting.pop().unwrap().start();
    let base = daemon.ask("prepare x ");
    fs::write(base.join("file"), "content").unwrap();
    daemon.ask("commit base x");
    let root = daemon.ask("prepare a base");
    let view = daemon.ask("view v base");
    let mut writing = File::options().append(true).read(true).open(root.join("file")).unwrap();
    writing.write_all(b" and more").unwrap();
    let mut looking = File::open(view.join("file")).unwrap();
    let mut unlinked = File::options().create_new(true).write(true).read(true).open(root.join("unlinked")).unwrap();
    unlinked.write_all(b"without a name").unwrap();
    fs::remove_file(root.join("unlinked")).unwrap();

    for round in 0..3 {
        daemon.replace(killed, &mut waiting);
        writing.write_all(format!(", {round}").as_bytes()).unwrap();
        fs::write(root.join(round.to_string()), "new").unwrap();
        assert_eq!(text(&mut looking), "content");
        assert_eq!(fs::read_to_string(view.join("file")).unwrap(), "content");
        assert_eq!(text(&mut unlinked), "without a name");
        assert_eq!(daemon.ask("mounts a"), root);
        assert_eq!(daemon.ask("mounts v"), view);
    }
    let expected = "content and more, 0, 1, 2";
    assert_eq!(text(&mut writing), expected);
    drop((writing, looking, unlinked));
    daemon.ask("commit c a");
    let child = daemon.ask("view w c");
    assert_eq!(fs::read_to_string(child.join("file")).unwrap(), expected);
    assert_eq!(fs::read_dir(&child).unwrap().count(), 4);
    daemon.ask("unmount");
    assert_eq!(fs::read_dir(folder.path().join("state/mnt")).unwrap().count(), 0);
    daemon.end(true);
}

fn settle_later(killed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut waiting = waiting(folder.path(), 2);
    let mut daemon = waiting.pop().unwrap().start();
    let mut parent = String::new();
    // Large enough that some of them are under way when the daemon ends.
    for name in ["1", "2", "3", "4"] {
        let root = daemon.ask(&format!("prepare x {parent}"));
        fs::write(root.join(name), name.repeat(8 << 20)).unwrap();
        daemon.ask(&format!("commit {name} x"));
        name.clone_into(&mut parent);
    }
    let root = daemon.ask("view v 4");
    daemon.replace(killed, &mut waiting);
    daemon.ask("settle 4");
    for name in ["1", "2", "3", "4"] {
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), name.repeat(8 << 20));
    }
    daemon.ask("remove v");
    for name in ["4", "3", "2", "1"] {
        daemon.ask(&format!("remove {name}"));
    }
    daemon.ask("unmount");
    assert_eq!(fs::read_dir(folder.path().join("root/snapshots")).unwrap().count(), 0);
    daemon.end(true);
}

fn replace_keeper(daemon_too: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut waiting = waiting(folder.path(), 2);
    let mut daemon = waiting.pop().unwrap().start();
    let root = daemon.ask("prepare a ");
    fs::write(root.join("file"), "content").unwrap();
    let keeper = keeper_of(folder.path());
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    if daemon_too {
        // Then nobody has the connection: it is made anew.
        daemon.replace(true, &mut waiting);
    }
    let other = daemon.ask("prepare b ");
    fs::write(other.join("file"), "other").unwrap();
    assert_eq!(daemon.ask("mounts a"), root);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "content");
    daemon.ask("unmount");
    daemon.end(true);
}

/// The process that listens in this folder.
fn keeper_of(folder: &Path) -> rustix::process::Pid {
    let socket = folder.join("state/keeper.sock");
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let mut numbers = processes.filter_map(|name| name.parse::<i32>().ok());
    let is_keeper = |number: &i32| {
        let arguments = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == socket.as_os_str().as_encoded_bytes())
    };
    rustix::process::Pid::from_raw(numbers.find(is_keeper).unwrap()).unwrap()
}
