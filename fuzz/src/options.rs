//! The text of `-o`, one on a line.

use mica_fs::options::Options;

pub fn run(data: &[u8]) {
    let mut options = Options::default();
    for line in data.split(|byte| *byte == b'\n') {
        if let Err(error) = options.parse(line) {
            assert!(!error.to_string().is_empty());
            return;
        }
    }
    let twice = options.clone();
    drop(options.check());
    assert_eq!(options, twice);
    assert!((1..=256).contains(&options.mount.threads) || options.mount == mica_fs::MountOptions::default());
}
