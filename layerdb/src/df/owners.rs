//! Who has what: sets of images that share layers, chain trees and objects.

use std::collections::{HashMap, HashSet};

use super::ImageDf;
use crate::chain::Chain;
use crate::digest::{ChainId, DiffId};
use crate::error::Result;
use crate::image::Image;
use crate::layer::Layer;
use crate::sorter::{short, short_object};
use crate::store::{Family, Store};
use crate::tally::Tally;

/// An image, by its place in the list of images; or what is no image and has things all the same.
pub(super) type Owner = u32;

/// A set of owners, by its place in the list of sets.
pub(super) type Set = u32;

/// Snapshots, and mounts of images.
const PINS: Owner = u32::MAX - 1;

/// Work that is under way.
const WORK: Owner = u32::MAX;

/// Members of sets made of other sets. Beyond that, what several sets have is handed out one by one.
const MEMBERS_MAX: usize = 1 << 20;

/// Manifests and configurations, with who has them.
pub(super) type Documents = Vec<(u64, Set)>;

/// Who has which layers and chain trees.
#[derive(Debug)]
pub(super) struct Index {
    layers: HashMap<u64, Set>,
    chains: HashMap<u64, Set>,
    /// What work under way has.
    pub(super) work: Set,
}

/// The images, and what they have. Takes some ten bytes for each layer of each image, whatever the number of objects.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) images: Vec<ImageDf>,
    sets: Vec<Box<[Owner]>>,
    numbers: HashMap<Box<[Owner]>, Set>,
    /// What is had by exactly the owners of each set.
    had: Vec<Tally>,
    members: usize,
    /// What sharing between images saves: the sum of what they have, less each thing once.
    pub(super) saved: Tally,
}

/// Reads images and pins; returns also the images' manifests and configurations, with who has them.
pub(super) fn read(store: &Store) -> Result<(Index, Ledger, Documents)> {
    let mut built = HashSet::new();
    store.db().each_json(Family::Chains, |_, chain: Chain| {
        built.extend(ChainId::of(&chain.layers).map(|id| short(id.0)));
        Ok(())
    })?;
    let mut contents = HashMap::new();
    store.db().each_json(Family::Layers, |_, layer: Layer| {
        contents.insert(short(layer.diff_id.0), layer.content_bytes);
        Ok(())
    })?;
    let mut ledger = Ledger::default();
    let (mut layers, mut chains, mut documents) = (HashMap::new(), HashMap::new(), Vec::new());
    let mut add = |owner: Owner, stack: &[DiffId]| {
        for layer in stack {
            note(&mut layers, short(layer.0), owner);
        }
        for chain in ChainId::prefixes(stack).map(|id| short(id.0)).filter(|id| built.contains(id)) {
            note(&mut chains, chain, owner);
        }
    };
    store.db().each_json(Family::Images, |_, image: Image| {
        let owner = ledger.images.len() as Owner;
        add(owner, &image.layers);
        let set = ledger.number(vec![owner]);
        documents.extend(image.objects().map(|id| (short_object(id), set)));
        let logical_bytes = image.layers.iter().filter_map(|layer| contents.get(&short(layer.0))).sum();
        ledger.images.push(ImageDf { name: image.name, logical_bytes, ..ImageDf::default() });
        Ok(())
    })?;
    store.db().each_json(Family::Pins, |_, layers: Vec<DiffId>| {
        add(PINS, &layers);
        Ok(())
    })?;
    let mut number = |(key, set): (u64, Vec<Owner>)| (key, ledger.number(set));
    let layers = layers.into_iter().map(&mut number).collect();
    let chains = chains.into_iter().map(&mut number).collect();
    let work = ledger.number(vec![WORK]);
    Ok((Index { layers, chains, work }, ledger, documents))
}

impl Index {
    pub(super) fn of_layer(&self, diff_id: DiffId) -> Option<Set> {
        self.layers.get(&short(diff_id.0)).copied()
    }

    pub(super) fn of_chain(&self, id: ChainId) -> Option<Set> {
        self.chains.get(&short(id.0)).copied()
    }
}

impl Ledger {
    fn number(&mut self, set: Vec<Owner>) -> Set {
        if let Some(number) = self.numbers.get(&*set) {
            return *number;
        }
        let number = self.sets.len() as Set;
        let set: Box<[Owner]> = set.into();
        self.members += set.len();
        self.sets.push(set.clone());
        self.numbers.insert(set, number);
        self.had.push(Tally::default());
        number
    }

    /// Something is had by the owners of all these sets.
    pub(super) fn give(&mut self, sets: impl Iterator<Item = Set> + Clone, what: Tally) {
        let mut rest = sets.clone();
        let Some(first) = rest.next() else { return };
        if rest.next().is_none() {
            self.had[first as usize] += what;
            return;
        }
        let mut union: Vec<Owner> = sets.flat_map(|set| self.sets[set as usize].iter().copied()).collect();
        union.sort_unstable();
        union.dedup();
        if let Some(number) = self.numbers.get(&*union) {
            self.had[*number as usize] += what;
        } else if self.members + union.len() <= MEMBERS_MAX {
            let number = self.number(union);
            self.had[number as usize] += what;
        } else {
            self.hand_out(&union, what);
        }
    }

    /// Tells the images what they have. `give` comes before.
    pub(super) fn settle(&mut self) {
        let sets = std::mem::take(&mut self.sets);
        for (set, what) in sets.iter().zip(std::mem::take(&mut self.had)) {
            self.hand_out(set, what);
        }
    }

    fn hand_out(&mut self, owners: &[Owner], what: Tally) {
        for (before, owner) in owners.iter().filter(|owner| **owner < PINS).enumerate() {
            let image = &mut self.images[*owner as usize];
            image.stored += what;
            *(if owners.len() > 1 { &mut image.shared } else { &mut image.exclusive }) += what;
            if before > 0 {
                self.saved += what;
            }
        }
    }
}

/// Owners come in ascending order, but for pins, which may come again.
fn note(sets: &mut HashMap<u64, Vec<Owner>>, key: u64, owner: Owner) {
    let set = sets.entry(key).or_default();
    if set.last() != Some(&owner) {
        set.push(owner);
    }
}
