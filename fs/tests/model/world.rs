//! Takes a filesystem and the model through the same steps and compares them after each.

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;

use super::reference::{Action, Body, Model, Path, Shown};
use super::steps::{Abilities, Step, action, pattern};

/// A filesystem under test.
pub trait Subject {
    /// What it can do.
    fn abilities(&self) -> Abilities;
    /// Whether a kernel answers what any filesystem would be answered.
    fn below_a_kernel(&self) -> bool {
        false
    }
    /// Whether it may say of a name that it can't be moved or linked (EXDEV), and does nothing then.
    fn refuses_moves(&self) -> bool {
        false
    }
    /// Makes a change.
    fn apply(&mut self, action: &Action) -> Result<(), Errno>;
    /// Everything in it.
    fn shown(&mut self) -> BTreeMap<Path, Shown>;
    /// Opens a file and keeps the handle.
    fn hold(&mut self, at: &Path, write: bool) -> Result<(), Errno>;
    /// Writes through the kept handle of that number.
    fn held_write(&mut self, held: usize, offset: u64, data: &[u8]) -> Result<(), Errno>;
    /// Reads all through the kept handle of that number.
    fn held_read(&mut self, held: usize) -> Vec<u8>;
    /// Gives up all kept handles.
    fn release(&mut self);
    /// Gives back what was looked up.
    fn forget(&mut self);
    /// Ends and begins anew over the same directories.
    fn remount(&mut self);
    /// Begins anew with what a kernel knows and has open; nothing was given back.
    fn take_over(&mut self) {}
    /// Makes what was changed one more layer. Numbers may be others then.
    fn commit(&mut self);
}

struct Held {
    id: u64,
    write: bool,
}

pub struct World<S> {
    pub subject: S,
    model: Model,
    held: Vec<Held>,
    numbers: HashMap<u64, u64>,
    lasting_numbers: bool,
    marks_on_all: bool,
}

impl<S: Subject> World<S> {
    /// `subject` must look like `model`.
    pub fn new(subject: S, model: Model) -> World<S> {
        World { subject, model, held: Vec::new(), numbers: HashMap::new(), lasting_numbers: true, marks_on_all: true }
    }

    /// Lets numbers change.
    #[allow(dead_code, reason = "only for filesystems whose numbers do")]
    pub fn without_numbers(self) -> World<S> {
        World { lasting_numbers: false, ..self }
    }

    /// Lets numbers of symbolic links and devices change by a remount: they can't carry `user.` attributes.
    #[allow(dead_code, reason = "only for those who write such")]
    pub fn with_marks_on_files_alone(self) -> World<S> {
        World { marks_on_all: false, ..self }
    }

    /// What is left.
    #[allow(dead_code, reason = "only for those who go on")]
    pub fn end(self) -> (S, Model) {
        (self.subject, self.model)
    }

    pub fn run(&mut self, steps: &[Step]) {
        self.compare("at the start");
        for (at, step) in steps.iter().enumerate() {
            let told = self.step(step);
            self.compare(&format!("after step {at}, {told}"));
        }
        self.release();
    }

    fn step(&mut self, step: &Step) -> String {
        match *step {
            Step::Forget => self.subject.forget(),
            Step::Remount => {
                self.release();
                self.subject.remount();
                self.lose_numbers();
            }
            Step::TakeOver => {
                self.subject.take_over();
                self.lose_numbers();
            }
            Step::Commit => {
                self.release();
                self.subject.commit();
                self.numbers.clear();
            }
            Step::Hold(file, write) => self.hold(file, write),
            Step::HeldWrite(at, offset, length) => self.held_write(at, offset, length),
            _ => {
                let Some(action) = action(step, &self.model, self.subject.abilities()) else { return "nothing".into() };
                if self.subject.below_a_kernel() || !self.model.kernel_answers(&action) {
                    let got = self.subject.apply(&action);
                    if got == Err(Errno::XDEV) && self.subject.refuses_moves() {
                        return format!("{action:?}, refused");
                    }
                    let expected = self.model.apply(&action);
                    assert_eq!(got, expected, "{action:?}");
                }
                return format!("{action:?}");
            }
        }
        format!("{step:?}")
    }

    fn hold(&mut self, file: usize, write: bool) {
        let is_file = |id| matches!(self.model.node(id).map(|node| &node.body), Some(Body::File(_)));
        let files: Vec<_> = self.model.paths().into_iter().filter(|(_, id)| is_file(*id)).collect();
        if !files.is_empty() && self.held.len() < 8 {
            let (path, id) = &files[file % files.len()];
            assert_eq!(self.subject.hold(path, write), Ok(()), "{path:?}");
            self.held.push(Held { id: *id, write });
        }
    }

    fn held_write(&mut self, at: usize, offset: u16, length: u16) {
        let writable: Vec<_> = (0..self.held.len()).filter(|held| self.held[*held].write).collect();
        if !writable.is_empty() {
            let held = writable[at % writable.len()];
            let data = pattern(offset, length);
            let expected = self.model.change_file(self.held[held].id, |bytes| {
                super::reference::write(bytes, offset.into(), &data);
            });
            assert_eq!(self.subject.held_write(held, offset.into(), &data), expected);
        }
    }

    fn lose_numbers(&mut self) {
        let marked = |id: &u64| {
            let body = self.model.node(*id).map(|node| &node.body);
            matches!(body, Some(Body::Dir(_) | Body::File(_)))
        };
        self.numbers.retain(|id, _| self.marks_on_all || marked(id));
    }

    fn release(&mut self) {
        self.held.clear();
        self.subject.release();
    }

    fn compare(&mut self, when: &str) {
        let (mut shown, expected) = (self.subject.shown(), self.model.shown());
        let paths = |shown: &BTreeMap<Path, Shown>| -> Vec<String> {
            shown.keys().map(|path| path.join(&b'/').escape_ascii().to_string()).collect()
        };
        assert_eq!(paths(&shown), paths(&expected), "{when}");
        if !self.lasting_numbers {
            self.numbers.clear();
        }
        self.numbers.retain(|id, _| self.model.node(*id).is_some_and(|node| node.links > 0 || *id == 1));
        for (path, expected) in &expected {
            let shown = shown.get_mut(path).expect("the paths are the same");
            let number = *self.numbers.entry(expected.id).or_insert(shown.id);
            assert_eq!(shown.id, number, "the number of {path:?} changed {when}");
            shown.id = expected.id;
            if expected.mtime.is_none() {
                shown.mtime = None;
            }
            assert_eq!(shown, expected, "{path:?} {when}");
        }
        let mut numbers: Vec<_> = self.numbers.values().collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), self.numbers.len(), "two files have one number {when}");
        for (at, held) in self.held.iter().enumerate() {
            let Some(Body::File(bytes)) = self.model.node(held.id).map(|node| &node.body) else { continue };
            assert_eq!(&self.subject.held_read(at), bytes, "handle {at} {when}");
        }
    }
}
