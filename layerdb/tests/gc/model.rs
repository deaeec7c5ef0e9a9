//! What must stay and what must go, against a model.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use mica_layerdb::{ChainId, DiffId, Digest, GcOptions, Hold, ObjectId, Tally};
use proptest::prelude::*;

use super::shop::{Shop, object, tar};

/// Contents of the layers there can be.
const LAYERS: [&[usize]; 7] = [&[0, 1, 2], &[2, 3], &[3], &[0, 4, 5, 6], &[7], &[], &[1, 7, 8]];

#[derive(Clone, Debug)]
enum Step {
    /// Take a layer in; keep it from collection until a later step, or not.
    Ingest {
        layer: usize,
        hold: bool,
    },
    Image {
        name: usize,
        layers: Vec<usize>,
        documents: [usize; 2],
    },
    RemoveImage {
        name: usize,
    },
    Pin {
        owner: usize,
        layers: Vec<usize>,
    },
    Unpin {
        owner: usize,
    },
    /// Give up what is held.
    Release {
        at: usize,
    },
    Chain {
        layers: Vec<usize>,
    },
    Snapshot {
        number: u64,
    },
    RemoveSnapshot {
        number: u64,
    },
    Collect,
    /// A collection that is told to end at its n-th step.
    Interrupt {
        at: u64,
    },
    /// A collection whose disk fails at the n-th change and after.
    Fail {
        at: u64,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let layer = 0..LAYERS.len();
    let layers = || prop::collection::vec(0..LAYERS.len(), 1..4);
    prop_oneof![
        6 => (layer, any::<bool>()).prop_map(|(layer, hold)| Step::Ingest { layer, hold }),
        4 => (0..3_usize, layers(), [0..9_usize, 0..9_usize])
            .prop_map(|(name, layers, documents)| Step::Image { name, layers, documents }),
        2 => (0..3_usize).prop_map(|name| Step::RemoveImage { name }),
        2 => (0..3_usize, layers()).prop_map(|(owner, layers)| Step::Pin { owner, layers }),
        1 => (0..3_usize).prop_map(|owner| Step::Unpin { owner }),
        2 => (0..4_usize).prop_map(|at| Step::Release { at }),
        2 => layers().prop_map(|layers| Step::Chain { layers }),
        1 => (1..4_u64).prop_map(|number| Step::Snapshot { number }),
        1 => (1..4_u64).prop_map(|number| Step::RemoveSnapshot { number }),
        3 => Just(Step::Collect),
        2 => (0..40_u64).prop_map(|at| Step::Interrupt { at }),
        2 => (0..30_u64).prop_map(|at| Step::Fail { at }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    layers: BTreeSet<usize>,
    images: BTreeMap<usize, (Vec<usize>, [usize; 2])>,
    pins: BTreeMap<usize, Vec<usize>>,
    chains: BTreeSet<Vec<usize>>,
    held: Vec<usize>,
    snapshots: BTreeSet<u64>,
}

impl Model {
    fn stacks(&self) -> impl Iterator<Item = &Vec<usize>> {
        self.images.values().map(|(layers, _)| layers).chain(self.pins.values())
    }

    fn needed_layers(&self) -> BTreeSet<usize> {
        self.stacks().flatten().chain(&self.held).copied().filter(|layer| self.layers.contains(layer)).collect()
    }

    fn needed_objects(&self) -> BTreeSet<ObjectId> {
        let contents = self.needed_layers().into_iter().flat_map(|layer| LAYERS[layer].iter().copied());
        let documents = self.images.values().flat_map(|(_, documents)| *documents);
        contents.chain(documents).map(object).collect()
    }

    fn collect(&mut self) {
        self.layers = self.needed_layers();
        let stacks: Vec<_> = self.stacks().cloned().collect();
        self.chains.retain(|chain| stacks.iter().any(|stack| stack.starts_with(chain)));
    }
}

struct World {
    shop: Option<Shop>,
    model: Model,
    holds: Vec<Hold>,
}

fn name(layer: usize) -> String {
    format!("layer-{layer}")
}

fn diff_id(layer: usize) -> DiffId {
    DiffId(Digest::of(&tar(&name(layer), LAYERS[layer])))
}

fn diff_ids(layers: &[usize]) -> Vec<DiffId> {
    layers.iter().map(|layer| diff_id(*layer)).collect()
}

impl World {
    fn new() -> World {
        World { shop: Some(Shop::new()), model: Model::default(), holds: Vec::new() }
    }

    fn shop(&self) -> &Shop {
        self.shop.as_ref().unwrap()
    }

    fn take(&mut self, step: &Step) {
        let store = self.shop().store.clone();
        match step {
            Step::Ingest { layer, hold } => {
                let (ingested, held) = self.shop().ingest_held(&name(*layer), LAYERS[*layer]);
                assert_eq!(ingested, diff_id(*layer));
                self.model.layers.insert(*layer);
                if *hold {
                    self.model.held.push(*layer);
                    self.holds.push(held);
                }
            }
            Step::Image { name, layers, documents } => {
                if let Some(_hold) = self.hold(layers) {
                    self.shop().put_image(&format!("image-{name}"), &diff_ids(layers), *documents);
                    self.model.images.insert(*name, (layers.clone(), *documents));
                }
            }
            Step::RemoveImage { name } => {
                let removed = store.remove_image(&format!("image-{name}"));
                assert_eq!(removed.is_ok(), self.model.images.remove(name).is_some());
            }
            Step::Pin { owner, layers } => {
                if let Some(_hold) = self.hold(layers) {
                    self.shop().pin(&format!("pin-{owner}"), &diff_ids(layers));
                    self.model.pins.insert(*owner, layers.clone());
                }
            }
            Step::Unpin { owner } => {
                self.shop().unpin(&format!("pin-{owner}"));
                self.model.pins.remove(owner);
            }
            Step::Release { at } => {
                if !self.holds.is_empty() {
                    let at = at % self.holds.len();
                    self.holds.remove(at);
                    self.model.held.remove(at);
                }
            }
            Step::Chain { layers } => {
                if let Some(_hold) = self.hold(layers) {
                    store.chain(&diff_ids(layers)).unwrap();
                    self.model.chains.insert(layers.clone());
                }
            }
            Step::Snapshot { number } => {
                if self.model.snapshots.insert(*number) {
                    let made = store.new_snapshot_dir(*number).unwrap();
                    std::fs::create_dir_all(made.join("upper/a/b")).unwrap();
                    std::fs::write(made.join("upper/a/file"), vec![1; 10_000]).unwrap();
                    std::fs::hard_link(made.join("upper/a/file"), made.join("upper/a/b/link")).unwrap();
                }
            }
            Step::RemoveSnapshot { number } => {
                store.remove_snapshot_dir(*number).unwrap();
                self.model.snapshots.remove(number);
            }
            Step::Collect => self.collect(),
            Step::Interrupt { at } => {
                let left = Mutex::new(Cell::new(*at));
                let stopped = || {
                    let left = left.lock().unwrap();
                    left.replace(left.get().saturating_sub(1)) == 0
                };
                let report = store.gc(GcOptions { stopped: Some(&stopped), ..GcOptions::default() }).unwrap();
                self.look_for_what_is_needed();
                let again = store.gc(GcOptions::default()).unwrap();
                assert!(report.stopped || again.total().count == 0, "{again:?}");
                self.settle();
            }
            Step::Fail { at } => {
                self.shop().disk.fail_at(*at, u64::MAX, rustix::io::Errno::IO);
                let failed = store.gc(GcOptions::default());
                let fault = self.shop().disk.heal();
                assert_eq!(failed.is_err(), fault.is_some(), "{failed:?}");
                self.look_for_what_is_needed();
                self.collect();
            }
            Step::Reopen => {
                self.holds.clear();
                self.model.held.clear();
                drop(store);
                self.shop = Some(self.shop.take().unwrap().reopen());
            }
        }
        self.look_for_what_is_needed();
    }

    /// `None` if one is not in the store.
    fn hold(&self, layers: &[usize]) -> Option<Hold> {
        let hold = self.shop().store.hold(&diff_ids(layers));
        assert_eq!(hold.is_ok(), layers.iter().all(|layer| self.model.layers.contains(layer)));
        hold.ok()
    }

    fn collect(&mut self) {
        let expected = self.shop().dry_run();
        assert_eq!(self.shop().dry_run(), expected, "a dry run changes nothing");
        let report = self.shop().gc();
        let same_but_for_where = mica_layerdb::GcReport { resumed_at: None, ..report };
        assert_eq!(same_but_for_where, expected);
        assert_eq!(self.shop().dry_run().total(), Tally::default(), "everything is collected at once");
        self.settle();
    }

    /// A whole collection has been: exactly what is needed is there.
    fn settle(&mut self) {
        self.model.collect();
        let shop = self.shop();
        let layers: BTreeSet<DiffId> = shop.store.layers().unwrap().iter().map(|layer| layer.diff_id).collect();
        assert_eq!(layers, self.model.layers.iter().map(|layer| diff_id(*layer)).collect());
        let trees: BTreeSet<String> =
            shop.names("layers/sha256").into_iter().filter(|name| !name.ends_with(".recipe")).collect();
        assert_eq!(trees, layers.iter().map(DiffId::hex).collect());
        assert!(shop.names("layers/sha256").iter().all(|name| trees.contains(name.trim_end_matches(".recipe"))));
        let needed = self.model.needed_objects();
        let objects = shop.objects();
        assert!(objects.is_subset(&needed), "{:?} is garbage", objects.difference(&needed));
        let chains: BTreeSet<String> =
            self.model.chains.iter().map(|layers| ChainId::of(&diff_ids(layers)).unwrap().hex()).collect();
        assert_eq!(shop.names("chains/sha256"), chains);
        assert_eq!(shop.names("tmp"), BTreeSet::new());
        let snapshots: BTreeSet<u64> = shop.store.snapshot_dirs().unwrap().into_iter().collect();
        assert_eq!(snapshots, self.model.snapshots);
    }

    fn look_for_what_is_needed(&self) {
        let shop = self.shop();
        let objects = shop.objects();
        for layer in self.model.needed_layers() {
            let found = shop.store.layer(diff_id(layer)).unwrap().unwrap_or_else(|| panic!("layer {layer} is gone"));
            shop.store.each_layer_object(&found, |id, _| assert!(objects.contains(&id), "{id} is gone")).unwrap();
            assert!(LAYERS[layer].iter().all(|content| objects.contains(&object(*content))), "{layer} lacks objects");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn collections_take_what_nothing_needs_and_nothing_else(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.collect();
    }
}

/// A store with garbage of every kind.
fn littered() -> Shop {
    let shop = Shop::new();
    let kept = shop.ingest("kept", &[0, 1]);
    let gone = shop.ingest("gone", &[1, 2, 3, 4, 5, 6]);
    shop.ingest("gone too", &[7, 8]);
    shop.put_image("app", &[kept], [0, 1]);
    shop.pin("pin", &[kept, gone]);
    shop.store.chain(&[kept]).unwrap();
    shop.store.chain(&[kept, gone]).unwrap();
    shop.unpin("pin");
    let made = shop.store.new_snapshot_dir(1).unwrap();
    std::fs::write(made.join("upper/file"), vec![1; 10_000]).unwrap();
    shop.store.remove_snapshot_dir(1).unwrap();
    let stray = Digest::of(b"stray").hex();
    for path in
        [format!("layers/sha256/{stray}"), format!("layers/sha256/{stray}.recipe"), format!("chains/sha256/{stray}")]
    {
        std::fs::write(shop.directory.path().join(path), "left by a crash").unwrap();
    }
    shop.reopen()
}

fn assert_tidy(shop: &Shop) {
    assert_eq!(shop.objects(), [object(0), object(1)].into());
    assert_eq!(shop.names("layers/sha256").iter().filter(|name| !name.ends_with(".recipe")).count(), 1);
    assert_eq!(shop.names("chains/sha256").len(), 1);
    assert_eq!(shop.names("tmp").len(), 0);
    assert_eq!(shop.store.layers().unwrap().len(), 1);
    assert_eq!(shop.dry_run().total(), Tally::default());
}

#[test]
fn gc_that_is_told_to_end_at_any_step_goes_on_next_time_and_takes_the_same_in_all() {
    let whole = littered().gc();
    assert_eq!((whole.layer_trees.count, whole.chain_trees.count, whole.snapshots.count), (3, 2, 1));
    assert_eq!(whole.objects.count, 7);
    let mut resumed = 0;
    // Every step until objects are swept; then all shards look the same, and every eleventh will do.
    for at in (0..60).chain((60..).step_by(11)) {
        let shop = littered();
        let left = std::sync::atomic::AtomicU64::new(at);
        let stopped = || {
            use std::sync::atomic::Ordering::Relaxed;
            left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(1))).unwrap() == 0
        };
        let first = shop.store.gc(GcOptions { stopped: Some(&stopped), ..GcOptions::default() }).unwrap();
        // The process may end too.
        let shop = if at % 2 == 0 { shop.reopen() } else { shop };
        let second = shop.gc();
        resumed += u64::from(second.resumed_at.is_some());
        assert!(!second.stopped);
        let both: Tally = [first.total(), second.total()].into_iter().sum();
        // An interrupted removal of a snapshot counts its files, and the snapshot when it is gone.
        assert_eq!(both, whole.total(), "ended at step {at}");
        assert_tidy(&shop);
        assert_eq!(shop.gc().resumed_at, None, "a collection that came to its end is not gone on with");
        if !first.stopped {
            assert_eq!(second.total(), Tally::default());
            break;
        }
    }
    assert!(resumed > 20, "the sweep stopped in {resumed} places");
}

#[test]
fn gc_whose_disk_fails_at_any_change_loses_nothing_and_is_made_good_by_the_next() {
    for at in 0.. {
        let shop = littered();
        shop.disk.fail_at(at, u64::MAX, rustix::io::Errno::IO);
        let failed = shop.store.gc(GcOptions::default());
        let Some(operation) = shop.disk.heal() else {
            failed.unwrap();
            assert!(at > 15, "{at} changes");
            break;
        };
        assert!(failed.is_err(), "{operation:?} number {at}");
        let shop = if at % 2 == 0 { shop.reopen() } else { shop };
        shop.gc();
        assert_tidy(&shop);
    }
}

#[test]
fn gc_goes_on_in_the_shard_where_the_last_one_ended() {
    let shop = Shop::new();
    let all: Vec<usize> = (0..40).collect();
    shop.ingest("many", &all);
    let mut shards: Vec<u8> = all.iter().map(|number| object(*number).as_bytes()[0]).collect();
    shards.sort_unstable();
    // Nothing more is removed once half of the objects are.
    let half = shop.objects().len() / 2;
    let stopped = || shop.objects().len() <= half;
    let first = shop.store.gc(GcOptions { stopped: Some(&stopped), ..GcOptions::default() }).unwrap();
    assert!(first.stopped);
    // What becomes garbage behind that place is found in the same circle.
    let mut low = (100..).filter(|number| object(*number).as_bytes()[0] < shards[0].max(4));
    shop.ingest("low", &[low.next().unwrap()]);
    let shop = shop.reopen();
    let second = shop.gc();
    let at = second.resumed_at.unwrap();
    assert!(at > shards[0] && at <= shards[39], "went on at {at}, objects are in {shards:?}");
    assert_eq!(shop.objects().len(), 0);
    assert_eq!(shop.gc().resumed_at, None);
}

#[test]
fn gc_of_a_removed_snapshot_deeper_than_any_path_frees_it() {
    let shop = Shop::new();
    let made = shop.store.new_snapshot_dir(1).unwrap();
    let script = "cd \"$1\" && d=$(printf 'd%.0s' $(seq 200)) && for i in $(seq 60); do mkdir $d && cd -P $d || exit 1; done; echo x > file";
    let status = std::process::Command::new("bash").args(["-c", script, "bash"]).arg(made.join("upper")).status();
    assert!(status.unwrap().success());
    shop.store.remove_snapshot_dir(1).unwrap();
    let expected = shop.dry_run();
    assert_eq!(shop.gc(), expected);
    assert_eq!((expected.snapshots.count, expected.snapshots.bytes), (1, 2));
    assert_eq!(shop.names("tmp").len(), 0);
}
