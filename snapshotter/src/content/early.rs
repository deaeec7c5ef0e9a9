//! Layers taken in before they are applied.
//!
//! Engines apply the layers of an image one after the other, and each takes as long as the decompression of one stream.
//! So while one is applied, those that follow it in its image are taken in, one at a time, if they are in the content
//! store already. When the engine comes to them, the store has them.
//!
//! Nothing depends on it: whatever goes wrong here is tried again when the layer is applied, and told then.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_layerdb::{BlobDigest, DiffId, Hold, IngestOptions, Kind, Store};
use parking_lot::{Condvar, Mutex};

use super::image::LayerOfImage;
use super::{Caller, ContentStore, Interest, STALL, Watch};

/// How long a layer that nobody applied is held.
const HELD: Duration = Duration::from_secs(600);

/// Takes layers in early.
#[derive(Debug)]
pub struct Early {
    shared: Arc<Shared>,
    /// Ends the work when this is dropped.
    _interest: Interest,
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    content: ContentStore,
    interest: Watch,
    state: Mutex<State>,
    /// A layer is taken in, or can't be.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The image of the layer that was applied last.
    image: Vec<LayerOfImage>,
    layers: HashMap<BlobDigest, Progress>,
    /// Those of them that are [`Progress::Queued`], in order.
    queue: VecDeque<(Caller, LayerOfImage)>,
    /// Those that are being applied.
    applied: HashSet<BlobDigest>,
    is_working: bool,
}

#[derive(Debug)]
enum Progress {
    Queued,
    Running,
    Done(DiffId, Hold, Instant),
    /// It will never do. Who applies it is told why.
    Bad(Instant),
}

/// A layer that is being applied.
#[derive(Debug)]
pub struct Applying<'a> {
    early: &'a Early,
    blob: BlobDigest,
    /// Its digest, if it is in the store already, held there.
    held: Option<(DiffId, Hold)>,
}

impl Applying<'_> {
    /// The digest of the uncompressed tar, if the layer was taken in early: it is certain then.
    pub fn diff_id(&self) -> Option<DiffId> {
        self.held.as_ref().map(|(diff_id, _)| *diff_id)
    }
}

impl Drop for Applying<'_> {
    fn drop(&mut self) {
        self.early.shared.state.lock().applied.remove(&self.blob);
    }
}

impl Early {
    /// Takes layers from the content store into the store. Needs a tokio runtime.
    pub fn new(store: Arc<Store>, content: ContentStore) -> Early {
        let interest = Interest::new();
        let watch = interest.watch();
        let shared = Shared { store, content, interest: watch, state: Mutex::default(), changed: Condvar::new() };
        Early { shared: Arc::new(shared), _interest: interest }
    }

    /// To be called on a thread that may block, before a layer is applied: waits for it if it is just being taken in,
    /// and has those that follow it taken in.
    pub fn apply(&self, caller: &Caller, blob: BlobDigest) -> Applying<'_> {
        let mut state = self.shared.state.lock();
        state.applied.insert(blob);
        if matches!(state.layers.get(&blob), Some(Progress::Queued)) {
            state.queue.retain(|(_, layer)| layer.blob != blob);
            state.layers.remove(&blob);
        }
        let (shared, caller) = (Arc::clone(&self.shared), caller.clone());
        tokio::runtime::Handle::current().spawn(async move { Shared::plan(&shared, &caller, blob).await });
        while matches!(state.layers.get(&blob), Some(Progress::Running)) {
            self.shared.changed.wait(&mut state);
        }
        let held = match state.layers.remove(&blob) {
            Some(Progress::Done(diff_id, hold, _)) => Some((diff_id, hold)),
            _ => None,
        };
        Applying { early: self, blob, held }
    }
}

impl Shared {
    /// Queues the layers that follow.
    async fn plan(shared: &Arc<Shared>, caller: &Caller, blob: BlobDigest) {
        let known = shared.state.lock().image.clone();
        let image = if known.iter().any(|layer| layer.blob == blob) {
            known
        } else {
            let found = tokio::time::timeout(STALL, shared.content.image_with(caller, blob)).await;
            match found {
                Ok(Ok(image)) => image,
                Ok(Err(status)) => return tracing::debug!(%blob, %status, "the layer's image is not known"),
                Err(_) => return tracing::debug!(%blob, "no answer"),
            }
        };
        let mut state = shared.state.lock();
        state.layers.retain(|_, progress| match progress {
            Progress::Queued | Progress::Running => true,
            Progress::Done(_, _, since) | Progress::Bad(since) => since.elapsed() < HELD,
        });
        for layer in image.iter().skip_while(|layer| layer.blob != blob).skip(1) {
            if !state.applied.contains(&layer.blob) && !state.layers.contains_key(&layer.blob) {
                state.layers.insert(layer.blob, Progress::Queued);
                state.queue.push_back((caller.clone(), layer.clone()));
            }
        }
        state.image = image;
        if !state.is_working && !state.queue.is_empty() {
            state.is_working = true;
            let shared = Arc::clone(shared);
            tokio::task::spawn_blocking(move || shared.work());
        }
    }

    /// Takes in what is queued, until nothing is.
    fn work(&self) {
        let mut state = self.state.lock();
        while let Some((caller, layer)) = state.queue.pop_front().filter(|_| !self.interest.is_over()) {
            state.layers.insert(layer.blob, Progress::Running);
            drop(state);
            // Whoever applies the layer waits for this thread, which therefore has to come back.
            let taken_in = catch_unwind(AssertUnwindSafe(|| self.take_in(caller, &layer)));
            let progress = taken_in.unwrap_or_else(|_| {
                tracing::error!(blob = %layer.blob, "taking a layer in early panicked");
                Some(Progress::Bad(Instant::now()))
            });
            state = self.state.lock();
            match progress {
                Some(progress) => state.layers.insert(layer.blob, progress),
                None => state.layers.remove(&layer.blob),
            };
            self.changed.notify_all();
        }
        state.is_working = false;
    }

    /// Takes in a layer. `None` if that may succeed later, and for one that the store has from another blob: only what
    /// was read tells that this one is the same.
    fn take_in(&self, caller: Caller, layer: &LayerOfImage) -> Option<Progress> {
        let known = self.store.layer(layer.diff_id).ok()?;
        if known.is_some_and(|known| known.blob != Some(layer.blob)) {
            return None;
        }
        let digest = layer.blob.to_string();
        let options = IngestOptions {
            expect_diff_id: Some(layer.diff_id),
            expect_blob: Some(layer.blob),
            name: digest.clone(),
            ..IngestOptions::default()
        };
        let mut reader = self.content.read(caller, self.interest.clone(), digest, layer.bytes);
        match self.store.ingest_held(&mut reader, &options, &()) {
            Ok((_, hold)) => Some(Progress::Done(layer.diff_id, hold, Instant::now())),
            Err(error) => {
                tracing::debug!(blob = %layer.blob, %error, "not taken in early");
                (error.kind() == Kind::Invalid).then(|| Progress::Bad(Instant::now()))
            }
        }
    }
}
