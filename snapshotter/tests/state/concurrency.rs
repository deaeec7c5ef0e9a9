//! Many threads at once, and one that hangs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_snapshotter::Kind;
use mica_snapshotter::error::Kind as ErrorKind;

use super::world::{World, labels};

/// A sequence of numbers that looks random and is the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn threads_that_prepare_commit_and_remove_leave_a_consistent_state() {
    const EXPECTED: [ErrorKind; 4] =
        [ErrorKind::NotFound, ErrorKind::AlreadyExists, ErrorKind::InvalidArgument, ErrorKind::FailedPrecondition];
    let world = World::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let world = &world;
            scope.spawn(move || {
                let mut dice = Dice(0x9e37_79b9 + thread);
                for _ in 0..40 {
                    let name = |dice: &mut Dice| format!("s{}", dice.roll(6));
                    let (one, mut other) = (name(&mut dice), name(&mut dice));
                    let done = match dice.roll(6) {
                        0 => {
                            other.clear();
                            world.prepare(&one, &other, labels(&[("l", &one)])).map(drop)
                        }
                        1 => world.prepare(&one, &other, labels(&[("l", &one)])).map(drop),
                        2 => world.view(&one, &other, labels(&[])).map(drop),
                        3 => world.commit(&one, &other, labels(&[("l", &one)]), None),
                        4 => world.mounts(&one).map(drop),
                        _ => world.remove(&one),
                    };
                    if let Err(error) = done {
                        assert!(EXPECTED.contains(&error.kind()), "{error}");
                    }
                }
            });
        }
    });
    let all = world.list(&[]).unwrap();
    for info in &all {
        let by_parent = world.list(&[format!("parent=={:?}", info.name)]).unwrap();
        let expected: Vec<_> = all.iter().filter(|child| child.parent == info.name).cloned().collect();
        assert_eq!(by_parent, expected);
        if !info.parent.is_empty() {
            assert_eq!(world.stat(&info.parent).unwrap().kind, Kind::Committed);
        }
        if info.kind != Kind::View {
            let by_label = world.list(&[format!("labels.l=={:?}", info.name), "name==\"\"".into()]).unwrap();
            assert_eq!(by_label, std::slice::from_ref(info));
        }
    }
    world.remove_all();
}

#[test]
fn prepares_of_one_key_at_once_make_one_snapshot() {
    let world = World::new();
    let made: usize = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| usize::from(world.prepare("a", "", labels(&[])).is_ok()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(made, 1);
    assert_eq!(world.machine.served().len(), 1);
    world.remove_all();
}

#[test]
fn snapshot_that_hangs_stalls_no_other_and_its_parent_is_refused_at_once() {
    let world = Arc::new(World::new());
    world.layer("base", "", "f");
    world.active("other", "base");
    world.machine.hang(true);
    let hanging = {
        let world = Arc::clone(&world);
        std::thread::spawn(move || world.prepare("hangs", "base", labels(&[])).map(drop))
    };
    world.machine.until_waiting();
    let begun = Instant::now();
    world.mounts("other").unwrap();
    world.usage("other").unwrap();
    world.list(&[]).unwrap();
    world.update(&world.stat("base").unwrap(), &[]).unwrap();
    assert_eq!(super::world::kind(world.remove("base"), "remove"), ErrorKind::FailedPrecondition);
    world.committed("c", "other");
    assert!(begun.elapsed() < Duration::from_secs(5));
    world.machine.hang(false);
    hanging.join().unwrap().unwrap();
    world.remove("c").unwrap();
    world.remove("hangs").unwrap();
    world.remove("base").unwrap();
    world.assert_empty();
}

#[test]
fn settling_many_at_once_ends_with_every_stack_complete() {
    let world = World::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let world = &world;
            scope.spawn(move || {
                let mut parent = String::new();
                for depth in 0..5 {
                    let key = format!("{thread}-{depth}-active");
                    let number = world.active(&key, &parent);
                    world.write(number, &format!("f{depth}"), &format!("{thread}"));
                    parent = format!("{thread}-{depth}");
                    world.committed(&parent, &key);
                }
            });
        }
    });
    for thread in 0..4 {
        let key = format!("look-{thread}");
        world.view(&key, &format!("{thread}-4"), labels(&[])).unwrap();
        assert_eq!(world.names_below(&key), ["f0", "f1", "f2", "f3", "f4"]);
    }
    world.remove_all();
}
