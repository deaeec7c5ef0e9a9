//! The program is killed at any moment, again and again on the same store: commands while they import, remove, collect
//! garbage and take damage out of use, and the daemon while an engine makes snapshots and a command imports. The store
//! is sound after each time, and has all that was acknowledged.
//!
//! `MICA_CRASH=long` (`make crash`) kills 200 times; `MICA_SEED` chooses other moments.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mica_tests::command::{Output, run, run_for};
use mica_tests::daemon::Daemon;
use mica_tests::oci::{Layer, Layout, Tar, digest_of};
use mica_tests::place::{self, Folders};
use mica_tests::rpc::Rpc;
use mica_tests::wait::LATER;
use mica_tests::{Context as _, Failure, Result, ensure, ensure_eq};

use crate::integrity::flip;

/// How often commands and the daemon are killed.
fn kills() -> (usize, usize) {
    let long = std::env::var_os("MICA_CRASH").is_some_and(|value| value == "long");
    if long { (120, 80) } else { (5, 3) }
}

/// Moments.
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(std::env::var("MICA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn within(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.next() % (limit.as_micros() as u64).max(1))
    }
}

/// An image as a layout.
struct Made {
    name: String,
    layout: PathBuf,
    /// The digest of a content that no other image has.
    own: String,
}

impl Made {
    /// Of small files, objects, and objects that other such images have, too.
    fn new(folder: &Path, number: u64) -> Result<Made> {
        let mut tar = Tar::new().directory("data/");
        let mut own = String::new();
        for file in 1..=40_u64 {
            let of = if file % 4 == 0 { 0 } else { number + 1 };
            let mut random = Random(of << 32 | file);
            let noise: Vec<u8> = (0..300 << (file % 8)).map(|_| random.next() as u8).collect();
            tar = tar.file(&format!("data/{file}"), &noise);
            if file == 7 {
                own = digest_of(&noise);
            }
        }
        let made = Made { name: format!("example.org/made-{number}:1"), layout: folder.join(format!("{number}")), own };
        Layout::create(&made.layout)?.add_image(&made.name, &[Layer::gzip(&tar.finish())?])?;
        Ok(made)
    }
}

/// Names that there must be, and those that may have come or gone since, as nobody was told.
#[derive(Debug, Default)]
struct Ledger {
    must: BTreeSet<String>,
    unsure: BTreeSet<String>,
}

impl Ledger {
    fn begin(&mut self, name: &str) {
        self.unsure.insert(name.to_owned());
    }

    fn came(&mut self, name: &str) {
        self.unsure.remove(name);
        self.must.insert(name.to_owned());
    }

    fn went(&mut self, name: &str) {
        self.unsure.remove(name);
        self.must.remove(name);
    }

    /// Compares with what there is, which is the truth from now on.
    fn check(&mut self, what: &str, found: BTreeSet<String>) -> Result {
        let lost: Vec<_> = self.must.difference(&found).filter(|name| !self.unsure.contains(*name)).collect();
        ensure!(lost.is_empty(), "{what} that were acknowledged are lost: {lost:?}");
        let back: Vec<_> = found.difference(&self.must).filter(|name| !self.unsure.contains(*name)).collect();
        ensure!(back.is_empty(), "{what} are there that can't be: {back:?}");
        *self = Ledger { must: found, unsure: BTreeSet::new() };
        Ok(())
    }
}

/// A store that no daemon serves.
struct Shop {
    root: PathBuf,
}

impl Shop {
    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(place::mica()?);
        command.arg("--root").arg(&self.root).args(words);
        Ok(command)
    }

    fn mica(&self, words: &[&str]) -> Result<Output> {
        run(&mut self.command(words)?, LATER)
    }

    /// Runs a command that is killed after `delay`; the status of one that ended before.
    fn killed(&self, words: &[&str], delay: Duration, expected: i32) -> Result<bool> {
        let Some(output) = run_for(&mut self.command(words)?, delay)? else { return Ok(false) };
        ensure_eq!(output.status.code(), Some(expected), "status of {words:?}, which said {output}");
        Ok(true)
    }

    fn images(&self) -> Result<BTreeSet<String>> {
        let listed: serde_json::Value =
            serde_json::from_str(&self.mica(&["--json", "image", "ls"])?.success()?.text())?;
        let listed = listed.as_array().context("images are a list")?;
        Ok(listed.iter().filter_map(|image| Some(image["name"].as_str()?.to_owned())).collect())
    }

    /// `fsck` finds nothing, and nothing temporary is left.
    fn require_sound(&self, flags: &[&str]) -> Result {
        self.mica(&[&["fsck"], flags].concat())?.success()?;
        let left: Vec<_> = fs::read_dir(self.root.join("tmp"))?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.iter().all(|name| name.as_encoded_bytes().starts_with(b"removed-")), "tmp has {left:?}");
        Ok(())
    }
}

/// The time that each job gets at most: what it takes when it is left alone, and a little more.
struct Limits {
    images: Duration,
    made: Duration,
    gc: Duration,
}

fn commands(shop: &Shop, folder: &Path, rounds: usize) -> Result<usize> {
    let (mut random, mut ledger) = (Random::new(), Ledger::default());
    let real = place::images()?.display().to_string();
    let took = |words: &[&str]| Ok::<_, Failure>(shop.mica(words)?.success()?.took.mul_f64(1.2));
    let first = Made::new(folder, 0)?;
    let limits = Limits {
        images: took(&["image", "import", &real])?,
        made: took(&["image", "import", &first.layout.display().to_string()])?,
        gc: took(&["gc"])?,
    };
    for name in ["base", "station", "ledger", &first.name] {
        ledger.came(name);
    }
    let mut last = first;
    let mut acknowledged = 0;
    for round in 0..rounds {
        match round % 5 {
            // The test images, which the round before the last one removed.
            0 => {
                let names = ["base", "station", "ledger"];
                if round == 0 {
                    forget(shop, &mut ledger, &names)?;
                }
                for name in names {
                    ledger.begin(name);
                }
                if shop.killed(&["image", "import", &real], random.within(limits.images), 0)? {
                    for name in names {
                        ledger.came(name);
                    }
                    acknowledged += 1;
                }
            }
            1 => {
                last = Made::new(folder, round as u64)?;
                ledger.begin(&last.name);
                let layout = last.layout.display().to_string();
                if shop.killed(&["image", "import", &layout], random.within(limits.made), 0)? {
                    ledger.came(&last.name);
                    acknowledged += 1;
                }
            }
            2 => {
                damage(shop, &mut ledger, &last, random.within(limits.gc))?;
            }
            3 => {
                let gone = ["station", "ledger", "base"];
                forget(shop, &mut ledger, &gone[1..])?;
                ledger.begin(gone[0]);
                if ledger.must.contains(gone[0])
                    && shop.killed(&["image", "rm", gone[0]], random.within(limits.gc), 0)?
                {
                    ledger.went(gone[0]);
                    acknowledged += 1;
                }
            }
            _ => {
                forget(shop, &mut ledger, &["station"])?;
                acknowledged += usize::from(shop.killed(&["gc"], random.within(limits.gc), 0)?);
            }
        }
        let flags: &[&str] = if round % 10 == 9 { &["--data", "--deep"] } else { &[] };
        let checked = shop.require_sound(flags).and_then(|()| ledger.check("images", shop.images()?));
        checked.map_err(|failure| Failure::new(format!("round {round}: {failure}")))?;
    }
    shop.mica(&["layer", "verify", "--all"])?.success()?;
    shop.mica(&["gc"])?.success()?;
    let said = shop.mica(&["fsck", "--data", "--deep", "--empty-quarantine"])?.success()?.text();
    ensure!(said.contains("nothing is wrong") && said.contains(" 0 of them unused"), "fsck said {said}");
    Ok(acknowledged)
}

/// Removes those of the images that there are, undisturbed.
fn forget(shop: &Shop, ledger: &mut Ledger, names: &[&str]) -> Result {
    for name in names {
        if ledger.must.contains(*name) {
            shop.mica(&["image", "rm", name])?.success()?;
            ledger.went(name);
        }
    }
    Ok(())
}

/// Damages a content, kills the scrub that takes it out of use, and undoes the damage by an import.
fn damage(shop: &Shop, ledger: &mut Ledger, image: &Made, delay: Duration) -> Result {
    let import = ["image", "import", &image.layout.display().to_string()];
    shop.mica(&import)?.success()?;
    ledger.came(&image.name);
    let (shard, rest) = image.own.strip_prefix("sha256:").unwrap_or(&image.own).split_at(2);
    let object = shop.root.join("objects").join(shard).join(rest);
    flip(&object)?;
    shop.killed(&["scrub", "--restart"], delay, 1)?;
    // Whatever it had come to, the next one takes it out of use, and all that use it are told.
    shop.mica(&["scrub", "--restart"])?;
    ensure!(!object.exists(), "the damaged object is still in use");
    let said = shop.mica(&["fsck"])?.refusal()?;
    ensure!(said.contains("missing-object") && said.contains("1 errors"), "fsck said {said}");
    shop.mica(&import)?.success()?;
    Ok(())
}

#[test]
fn kill_of_a_command_at_any_moment_leaves_a_sound_store_with_all_that_was_acknowledged() -> Result {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped("killed commands", &reason);
        return Ok(());
    }
    let folders = Folders::new()?;
    let shop = Shop { root: folders.disk().join("store") };
    let (rounds, _) = kills();
    let acknowledged = commands(&shop, folders.disk(), rounds)?;
    let _ = writeln!(std::io::stderr(), "commands killed: {rounds}, {acknowledged} of them had come to their end");
    Ok(())
}

/// What an engine has been told, and goes on with.
struct Engine {
    snapshots: Ledger,
    /// What the file in each committed snapshot says.
    contents: Vec<(String, String)>,
    next: u64,
}

impl Engine {
    /// Makes and removes snapshots until a call fails, or it is told to stop.
    fn work(&mut self, socket: &Path, stop: &AtomicBool) -> Result {
        let rpc = Rpc::at(socket)?;
        while !stop.load(Ordering::Relaxed) && self.round(&rpc).is_some() {}
        Ok(())
    }

    /// `None` once a call has failed.
    fn round(&mut self, rpc: &Rpc) -> Option<()> {
        let number = self.next;
        self.next += 1;
        let (key, name, view) = (format!("key-{number}"), format!("name-{number}"), format!("view-{number}"));
        let parent = self.contents.last().map_or(String::new(), |(name, _)| name.clone());
        self.snapshots.begin(&key);
        let mounts = rpc.prepare(&key, &parent).ok()?;
        self.snapshots.came(&key);
        let says = format!("written into {key}");
        let written = fs::write(Path::new(&mounts[0].source).join("file"), &says);
        self.snapshots.begin(&name);
        self.snapshots.begin(&key);
        rpc.commit(&name, &key).ok()?;
        self.snapshots.came(&name);
        self.snapshots.went(&key);
        self.snapshots.begin(&view);
        rpc.view(&view, &name).ok()?;
        self.snapshots.came(&view);
        self.snapshots.begin(&view);
        rpc.remove(&view).ok()?;
        self.snapshots.went(&view);
        if number.is_multiple_of(3) {
            self.snapshots.begin(&name);
            rpc.remove(&name).ok()?;
            self.snapshots.went(&name);
        } else if written.is_ok() {
            self.contents.push((name, says));
        }
        Some(())
    }

    /// What the daemon has, and what is in the last snapshots that it said it has.
    fn check(&mut self, rpc: &Rpc) -> Result {
        let found = rpc.list("").map_err(|status| Failure::new(status.to_string()))?;
        self.snapshots.check("snapshots", found.into_iter().collect())?;
        for (name, says) in self.contents.iter().rev().take(2) {
            let mounts = rpc.view("look", name).context("view what was committed")?;
            let found = fs::read_to_string(Path::new(&mounts[0].source).join("file"));
            rpc.remove("look").context("remove the view")?;
            ensure_eq!(&found?, says, "the file in {name}");
        }
        // Those that were cut off in the middle go, as an engine's collection of garbage would have it.
        for key in self.snapshots.must.clone() {
            if key.starts_with("key-") || key.starts_with("view-") {
                rpc.remove(&key).context("remove what is left over")?;
                self.snapshots.went(&key);
            }
        }
        Ok(())
    }
}

fn daemon(daemon: &mut Daemon, folder: &Path, rounds: usize) -> Result<u64> {
    let (mut random, mut images) = (Random::new(), Ledger::default());
    let mut engine = Engine { snapshots: Ledger::default(), contents: Vec::new(), next: 0 };
    let shop = Shop { root: daemon.root().to_path_buf() };
    for round in 0..rounds {
        let made = Made::new(folder, round as u64)?;
        let delay = random.within(Duration::from_millis(700));
        let (socket, stop) = (daemon.socket(), AtomicBool::new(false));
        let mut import = daemon.command(["image", "import"]);
        import.arg(&made.layout);
        images.begin(&made.name);
        let imported = thread::scope(|scope| -> Result<bool> {
            let working = scope.spawn(|| engine.work(&socket, &stop));
            let importing = scope.spawn(|| run(&mut import, LATER));
            thread::sleep(delay);
            let killed = daemon.kill();
            stop.store(true, Ordering::Relaxed);
            // Which goes on without the daemon, if it had not come to it yet.
            let imported = importing.join().map_err(|_| Failure::new("the import panicked"))??;
            let checked = shop.mica(&["fsck"]).and_then(Output::success);
            // What was to be written into a mount waits for the next daemon.
            let started = killed.and_then(|()| daemon.start_again());
            working.join().map_err(|_| Failure::new("the engine panicked"))??;
            checked?;
            started?;
            Ok(imported.status.success())
        });
        let wrong = |failure| Failure::new(format!("round {round}, killed after {delay:?}: {failure}"));
        if imported.map_err(wrong)? {
            images.came(&made.name);
        }
        engine.check(&Rpc::at(&daemon.socket())?).map_err(wrong)?;
        images.check("images", shop.images()?).map_err(wrong)?;
    }
    daemon.mica(&["fsck"])?;
    daemon.terminate()?;
    shop.require_sound(&["--data", "--deep"])?;
    daemon.start_again()?;
    Ok(engine.next)
}

#[test]
fn kill_of_the_daemon_at_any_moment_keeps_the_snapshots_and_images_that_were_acknowledged() -> Result {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped("killed daemons", &reason);
        return Ok(());
    }
    let folders = Folders::new()?;
    let mut served = Daemon::start(&folders.disk().join("store"), &folders.run().join("mica"), &[])?;
    let (_, rounds) = kills();
    let made = daemon(&mut served, folders.disk(), rounds);
    let made =
        made.map_err(|failure| Failure::new(format!("{failure}\n  mica serve:\n    {}", served.log_tail(25))))?;
    let _ = writeln!(std::io::stderr(), "daemons killed: {rounds}, while {made} snapshots were made");
    served.finish()
}
