//! The inputs that are kept for a fuzzer, each once through what it does.

use std::path::Path;

/// Runs all inputs of a target; returns how many.
pub fn replay(target: &str, run: fn(&[u8])) -> usize {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut count = 0;
    for kind in ["seeds", "regressions"] {
        let Ok(files) = std::fs::read_dir(fuzz.join(kind).join(target)) else { continue };
        for file in files {
            let path = file.unwrap().path();
            // The name shows if the input fails.
            eprintln!("{}", path.display());
            run(&std::fs::read(path).unwrap());
            count += 1;
        }
    }
    count
}
