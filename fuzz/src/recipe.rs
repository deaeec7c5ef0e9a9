//! A recipe is read: the bytes as they are, or parts from which one is put together, so that what is compressed is
//! reached too:
//!
//! ```text
//! 'p' objects (1 byte) literals (2) tar (4) rows of objects (40 each) literals steps
//! ```

use mica_layerdb::recipe::{Reader, Step, VERSION};
use mica_layerdb::{DiffId, Digest, Error};

const ROW: usize = 40;

pub fn run(data: &[u8]) {
    read(data);
    if let [b'p', rest @ ..] = data
        && let Some(recipe) = put_together(rest)
    {
        read(&recipe);
    }
}

fn read(recipe: &[u8]) {
    let diff_id = DiffId(Digest::of(b"hostile"));
    let mut reader = match Reader::new(recipe, diff_id) {
        Ok(reader) => reader,
        Err(error) => return refused(&error),
    };
    let size = recipe.len() as u64;
    assert!(reader.objects() <= size / ROW as u64, "more objects than there is room for");
    let mut listed = Vec::new();
    if let Err(error) = reader.each_object(|id, bytes| listed.push((id, bytes))) {
        return refused(&error);
    }
    assert_eq!(listed.len() as u64, reader.objects());
    let tar_bytes = reader.tar_bytes();
    let mut told = 0_u64;
    loop {
        let bytes = match reader.step() {
            Ok(Some(Step::Bytes(bytes))) => bytes.len() as u64,
            Ok(Some(Step::Zeros(bytes))) => bytes,
            Ok(Some(Step::File(_))) => 1,
            Ok(Some(Step::FilePart { offset, bytes, .. })) => {
                assert!(offset.checked_add(bytes).is_some());
                bytes
            }
            Ok(Some(Step::Object { id, bytes })) => {
                assert!(listed.contains(&(id, bytes)));
                bytes
            }
            Ok(Some(Step::ObjectPart { id, size, offset, bytes })) => {
                assert!(listed.contains(&(id, size)));
                assert!(offset.checked_add(bytes).is_some_and(|end| end <= size));
                bytes
            }
            Ok(None) => break,
            Err(error) => return refused(&error),
        };
        assert!(bytes > 0, "an empty step");
        told += bytes;
        assert!(told <= tar_bytes, "steps of more bytes than the tar has");
    }
    assert!(matches!(reader.step(), Ok(None)), "steps behind the end");
}

fn refused(error: &Error) {
    assert!(matches!(error, Error::CorruptRecipe { .. }), "{error:?}");
    assert!(error.to_string().len() < 4096);
}

fn put_together(parts: &[u8]) -> Option<Vec<u8>> {
    let (numbers, rest) = parts.split_at_checked(7)?;
    let objects = usize::from(numbers[0] % 8);
    let literals = usize::from(u16::from_le_bytes([numbers[1], numbers[2]]));
    let tar_bytes = u32::from_le_bytes([numbers[3], numbers[4], numbers[5], numbers[6]]);
    let (rows, rest) = rest.split_at_checked(objects * ROW)?;
    let (literals, steps) = rest.split_at(literals.min(rest.len()));
    let pack = |bytes| zstd::stream::encode_all(bytes, 1).expect("memory");
    let (literals, steps) = (pack(literals), pack(steps));
    let mut recipe = b"micarecp".to_vec();
    recipe.extend_from_slice(&VERSION.to_le_bytes());
    recipe.extend_from_slice(&[0; 36]);
    // Its two lowest bits tell by how many bytes the others are shifted: long runs are reached that way.
    let tar_bytes = u64::from(tar_bytes >> 2) << (8 * (tar_bytes & 3));
    recipe.extend_from_slice(&tar_bytes.to_le_bytes());
    recipe.extend_from_slice(&(objects as u64).to_le_bytes());
    recipe.extend_from_slice(&(literals.len() as u64).to_le_bytes());
    recipe.extend_from_slice(rows);
    recipe.extend_from_slice(&literals);
    recipe.extend_from_slice(&steps);
    Some(recipe)
}
