//! A mounter that mounts nothing.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mica_layerdb::tree::Tree;
use mica_snapshotter::mounts::{Mounted, Plan};
use mica_snapshotter::{Error, Mounter, Result};

/// Remembers what would be mounted.
#[derive(Debug)]
pub struct FakeKernel {
    state: PathBuf,
    mounted: Arc<Mutex<BTreeSet<u64>>>,
}

impl FakeKernel {
    pub fn new(state: &Path) -> FakeKernel {
        FakeKernel { state: state.to_path_buf(), mounted: Arc::default() }
    }
}

#[derive(Debug)]
struct FakeMount {
    number: u64,
    mounted: Arc<Mutex<BTreeSet<u64>>>,
}

impl Mounted for FakeMount {
    fn is_live(&self) -> bool {
        self.mounted.lock().unwrap().contains(&self.number)
    }

    fn unmount(self: Box<Self>) -> Result<()> {
        self.mounted.lock().unwrap().remove(&self.number);
        Ok(())
    }

    fn leave(self: Box<Self>) {}
}

impl Mounter for FakeKernel {
    fn mountpoint(&self, number: u64) -> PathBuf {
        self.state.join("mnt").join(number.to_string())
    }

    fn mount(&self, plan: Plan) -> Result<Box<dyn Mounted>> {
        self.mounted.lock().unwrap().insert(plan.number);
        Ok(Box::new(FakeMount { number: plan.number, mounted: Arc::clone(&self.mounted) }))
    }

    fn resume(&self, plan: Plan) -> Result<Box<dyn Mounted>> {
        Err(Error::Unavailable { reason: format!("{} was never mounted", plan.number) })
    }

    fn left(&self) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }

    fn mountpoints(&self) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }

    fn discard(&self, number: u64) -> Result<()> {
        self.mounted.lock().unwrap().remove(&number);
        Ok(())
    }

    fn write_changes(&self, _: Arc<Tree>, dir: &Path, out: &mut dyn Write) -> Result<u64> {
        let text = std::fs::read(dir.join("upper/changed")).unwrap_or_default();
        out.write_all(&super::content::tar(&[("changed", &text)])).map_err(Error::io("write the changes"))?;
        Ok(1)
    }

    fn stop(&self) -> Result<()> {
        Ok(())
    }
}
