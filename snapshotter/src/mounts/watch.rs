//! What becomes of objects that mounts could not serve.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use mica_layerdb::verify::Defective;
use mica_layerdb::{ObjectId, Store};
use parking_lot::Mutex;

/// Objects that wait to be looked after; of more, those that are asked for again are told again.
const WAITING: usize = 1024;

/// Takes damaged objects out of use, on a thread of its own: that takes a walk over all trees, and programs wait for
/// their error.
#[derive(Debug)]
pub(super) struct Watch {
    store: Weak<Store>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: Vec<(ObjectId, Defective)>,
    ids: HashSet<ObjectId>,
    /// A thread is at it.
    working: bool,
}

impl Watch {
    pub(super) fn new(store: &Arc<Store>) -> Watch {
        Watch { store: Arc::downgrade(store), waiting: Arc::default() }
    }
}

impl mica_fs::Watch for Watch {
    fn found(&self, id: ObjectId, defect: Defective) {
        let mut waiting = self.waiting.lock();
        if waiting.jobs.len() >= WAITING || !waiting.ids.insert(id) {
            return;
        }
        waiting.jobs.push((id, defect));
        if waiting.working {
            return;
        }
        let (store, shared) = (Weak::clone(&self.store), Arc::clone(&self.waiting));
        let spawned = std::thread::Builder::new().name("mica-damage".into()).spawn(move || work(&store, &shared));
        match spawned {
            Ok(_) => waiting.working = true,
            Err(error) => {
                tracing::error!(object = %id, %error, "an object can't be served, and can't be looked after");
                *waiting = Waiting::default();
            }
        }
    }
}

fn work(store: &Weak<Store>, waiting: &Mutex<Waiting>) {
    loop {
        let Some((id, defect)) = ({
            let mut waiting = waiting.lock();
            let job = waiting.jobs.pop();
            waiting.working = job.is_some();
            job
        }) else {
            return;
        };
        if let Some(store) = store.upgrade()
            && let Err(error) = store.report_defective(id, &defect)
        {
            tracing::error!(object = %id, ?defect, %error, "an object can't be served, and can't be taken out of use");
        }
        waiting.lock().ids.remove(&id);
    }
}
