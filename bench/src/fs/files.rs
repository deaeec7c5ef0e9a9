//! Trees of files that the benchmark makes, and calls on them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use mica_tests::Result;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, open, openat, statat};

/// Numbers that look like any, the same in each run (xorshift).
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// From this seed, which must not be zero.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.max(1))
    }

    /// The next.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next, below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// So many bytes.
    pub fn bytes(&mut self, number: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(number + 8);
        while bytes.len() < number {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(number);
        bytes
    }
}

/// The path of the small file of this number: a hundred in each directory, `d003/f017`.
pub fn name_of(number: u32) -> String {
    format!("d{:03}/f{:02}", number / 100, number % 100)
}

/// Makes small files of 200 bytes to 12 KiB, half of them below 2 KiB: what source trees and packages have.
pub fn small_files(folder: &Path, number: u32) -> Result {
    let mut numbers = Numbers::new(42);
    for file in 0..number {
        let path = folder.join(name_of(file));
        if file % 100 == 0 {
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
        }
        let limit = if numbers.below(2) == 0 { 1800 } else { 12_000 };
        let bytes = 200 + numbers.below(limit);
        fs::write(path, numbers.bytes(bytes as usize))?;
    }
    Ok(())
}

/// Makes a file without holes and without blocks that are the same.
pub fn large_file(path: &Path, mebibytes: u32) -> Result {
    let mut file = File::create(path)?;
    let mut block = Numbers::new(7).bytes(1 << 20);
    for number in 0..mebibytes {
        for at in (0..block.len()).step_by(4096) {
            block[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

/// A path for system calls.
pub fn c_path(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes().to_vec())?)
}

/// The paths of the small files below `root`.
pub fn paths(root: &Path, number: u32) -> Result<Vec<CString>> {
    (0..number).map(|file| c_path(&root.join(name_of(file)))).collect()
}

/// stat(2) of each.
pub fn stat_all(paths: &[CString]) -> Result {
    for path in paths {
        statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// open(2), read(2) to the end, close(2) of each.
pub fn read_all(paths: &[CString]) -> Result {
    let mut buffer = vec![0; 64 << 10];
    for path in paths {
        let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        while rustix::io::read(&file, &mut buffer)? == buffer.len() {}
    }
    Ok(())
}

/// Reads directories to the bottom and asks for the attributes of each entry, as `ls -lR` does; how many there were.
pub fn walk(root: &Path) -> Result<u32> {
    let mut todo = vec![open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?];
    let mut found = 0;
    while let Some(folder) = todo.pop() {
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            found += 1;
            let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                todo.push(openat(&folder, name, flags, Mode::empty())?);
            }
        }
    }
    Ok(found)
}
