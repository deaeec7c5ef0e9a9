//! Bytes that are lines.

use std::io::{self, Write};

/// Hands on what is written to it, line by line.
pub struct Lines<F> {
    rest: Vec<u8>,
    each: F,
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Lines<F> {
    /// Hands lines to `each`, without their ends.
    pub fn new(each: F) -> Lines<F> {
        Lines { rest: Vec::new(), each }
    }
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Write for Lines<F> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut left = buffer;
        while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
            if self.rest.is_empty() {
                (self.each)(&left[..end])?;
            } else {
                self.rest.extend_from_slice(&left[..end]);
                (self.each)(&self.rest)?;
                self.rest.clear();
            }
            left = &left[end + 1..];
        }
        self.rest.extend_from_slice(left);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_are_whole_however_they_are_written() {
        for pieces in 1..8 {
            let mut seen = Vec::new();
            let mut lines = Lines::new(|line: &[u8]| {
                seen.push(line.to_vec());
                Ok(())
            });
            for piece in b"one\n\nthree\nrest".chunks(pieces) {
                lines.write_all(piece).unwrap();
            }
            assert_eq!(seen, [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
        }
    }
}
