//! A machine that is played: it mounts nothing, remembers what would be mounted over restarts of the daemon, and fails on
//! request.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use mica_layerdb::tree::Tree;
use mica_snapshotter::mounts::{Mounted, Plan};
use mica_snapshotter::{Error, Mounter, Result};

#[derive(Debug, Default)]
pub struct Machine {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    folder: PathBuf,
    /// Mounted numbers, with what is below those that are served.
    mounted: BTreeMap<u64, Option<Plan>>,
    failing: BTreeSet<Failing>,
    /// Reads of changes wait while it is closed.
    gate_closed: bool,
    /// Mounting waits while it is set.
    hanging: bool,
    waiting: usize,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failing {
    Mount,
    Resume,
    /// At the beginning.
    Changes,
    /// After half of them.
    HalfOfChanges,
    Unmount,
}

impl Machine {
    pub fn new(folder: &Path) -> Arc<Machine> {
        fs::create_dir_all(folder.join("mnt")).unwrap();
        let state = State { folder: folder.to_path_buf(), ..State::default() };
        Arc::new(Machine { state: Mutex::new(state), changed: Condvar::new() })
    }

    pub fn set(&self, failing: Failing, on: bool) {
        let mut state = self.state.lock().unwrap();
        if on {
            state.failing.insert(failing)
        } else {
            state.failing.remove(&failing)
        };
    }

    pub fn close_gate(&self) {
        self.state.lock().unwrap().gate_closed = true;
    }

    pub fn open_gate(&self) {
        self.state.lock().unwrap().gate_closed = false;
        self.changed.notify_all();
    }

    pub fn hang(&self, on: bool) {
        self.state.lock().unwrap().hanging = on;
        self.changed.notify_all();
    }

    /// Until somebody waits at the gate or hangs.
    pub fn until_waiting(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.waiting == 0).unwrap());
    }

    pub fn reboot(&self) {
        let mut state = self.state.lock().unwrap();
        state.mounted.clear();
        fs::remove_dir_all(state.folder.join("mnt")).unwrap();
        fs::create_dir(state.folder.join("mnt")).unwrap();
    }

    /// What is mounted.
    pub fn mounted(&self) -> Vec<u64> {
        self.state.lock().unwrap().mounted.keys().copied().collect()
    }

    /// What is mounted and served.
    pub fn served(&self) -> Vec<u64> {
        let state = self.state.lock().unwrap();
        state.mounted.iter().filter(|(_, plan)| plan.is_some()).map(|(number, _)| *number).collect()
    }

    /// Somebody unmounts it by hand.
    pub fn unmount_by_hand(&self, number: u64) {
        self.state.lock().unwrap().mounted.remove(&number);
    }

    /// Something is left mounted by a daemon that crashed.
    pub fn leave_behind(&self, number: u64) {
        let mut state = self.state.lock().unwrap();
        fs::create_dir_all(state.folder.join("mnt").join(number.to_string())).unwrap();
        state.mounted.insert(number, None);
    }

    /// The lower of a mount, as if a program looked into it.
    pub fn look(&self, number: u64) -> Result<Arc<Tree>> {
        let lower = {
            let state = self.state.lock().unwrap();
            Arc::clone(&state.mounted[&number].as_ref().unwrap().lower)
        };
        Ok(lower()?.tree)
    }

    fn fails(&self, failing: Failing) -> Result<()> {
        if self.state.lock().unwrap().failing.contains(&failing) {
            return Err(Error::Unavailable { reason: format!("{failing:?} fails") });
        }
        Ok(())
    }

    fn wait_while(&self, condition: impl Fn(&State) -> bool) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| condition(state)).unwrap();
        state.waiting -= 1;
    }
}

/// The mounter of one daemon on the machine.
#[derive(Debug)]
pub struct FakeMounter(pub Arc<Machine>);

#[derive(Debug)]
struct FakeMount {
    number: u64,
    machine: Arc<Machine>,
}

impl FakeMounter {
    fn serve(&self, plan: Plan) -> Box<dyn Mounted> {
        let number = plan.number;
        self.0.state.lock().unwrap().mounted.insert(number, Some(plan));
        Box::new(FakeMount { number, machine: Arc::clone(&self.0) })
    }
}

impl Mounted for FakeMount {
    fn is_live(&self) -> bool {
        self.machine.state.lock().unwrap().mounted.contains_key(&self.number)
    }

    fn unmount(self: Box<Self>) -> Result<()> {
        self.machine.fails(Failing::Unmount)?;
        FakeMounter(Arc::clone(&self.machine)).discard(self.number)
    }

    fn leave(self: Box<Self>) {
        if let Some(plan) = self.machine.state.lock().unwrap().mounted.get_mut(&self.number) {
            *plan = None;
        }
    }
}

impl Mounter for FakeMounter {
    fn mountpoint(&self, number: u64) -> PathBuf {
        self.0.state.lock().unwrap().folder.join("mnt").join(number.to_string())
    }

    fn mount(&self, plan: Plan) -> Result<Box<dyn Mounted>> {
        self.0.wait_while(|state| state.hanging);
        self.0.fails(Failing::Mount)?;
        fs::create_dir(self.mountpoint(plan.number)).map_err(Error::io("create a mountpoint"))?;
        if let Some(folder) = &plan.writable {
            assert!(folder.join("upper").is_dir() && folder.join("work").is_dir());
        }
        Ok(self.serve(plan))
    }

    fn resume(&self, plan: Plan) -> Result<Box<dyn Mounted>> {
        self.0.fails(Failing::Resume)?;
        assert!(self.0.mounted().contains(&plan.number));
        Ok(self.serve(plan))
    }

    fn left(&self) -> Result<Vec<u64>> {
        Ok(self.0.mounted())
    }

    fn mountpoints(&self) -> Result<Vec<u64>> {
        let folder = self.0.state.lock().unwrap().folder.join("mnt");
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        Ok(names.map(|name| name.into_string().unwrap().parse().unwrap()).collect())
    }

    fn discard(&self, number: u64) -> Result<()> {
        self.0.state.lock().unwrap().mounted.remove(&number);
        let _ = fs::remove_dir(self.mountpoint(number));
        Ok(())
    }

    /// All that is in the upper.
    fn write_changes(&self, _lower: Arc<Tree>, folder: &Path, out: &mut dyn Write) -> Result<u64> {
        self.0.wait_while(|state| state.gate_closed);
        self.0.fails(Failing::Changes)?;
        let mut tar = tar::Builder::new(out);
        tar.follow_symlinks(false);
        let mut entries = 0;
        let names = fs::read_dir(folder.join("upper")).map_err(Error::io("read the upper"))?;
        let mut names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            entries += 1;
            let path = folder.join("upper").join(&name);
            let added =
                if path.is_dir() { tar.append_dir_all(&name, path) } else { tar.append_path_with_name(path, &name) };
            added.map_err(Error::io("write a tar"))?;
            self.0.fails(Failing::HalfOfChanges)?;
        }
        tar.finish().map_err(Error::io("write a tar"))?;
        Ok(entries)
    }

    fn stop(&self) -> Result<()> {
        Ok(())
    }
}
