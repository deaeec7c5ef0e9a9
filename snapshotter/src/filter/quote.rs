//! Quoted texts: Go's string syntax, with more kinds of quotes.

/// Takes the quotes and escapes away. The error is where in `quoted` it goes wrong, in bytes, and what.
pub(super) fn unquote(quoted: &str) -> Result<String, (usize, &'static str)> {
    let Some(quote) = quoted.chars().next() else { return Err((0, "expected a quoted text")) };
    let end = quoted.len() - quote.len_utf8();
    if end == 0 || !quoted.ends_with(quote) {
        return Err((0, "quote is not closed"));
    }
    let mut bytes = Vec::with_capacity(end);
    let mut rest = &quoted[1..end];
    while let Some(next) = rest.chars().next() {
        let position = end - rest.len();
        rest = match next {
            '\n' => return Err((position, "line break in a quoted text")),
            '\\' => escape(&rest[1..], quote, &mut bytes).ok_or((position, "invalid escape"))?,
            _ => {
                bytes.extend_from_slice(&rest.as_bytes()[..next.len_utf8()]);
                &rest[next.len_utf8()..]
            }
        };
    }
    String::from_utf8(bytes).map_err(|_| (0, "quoted text is not UTF-8"))
}

/// Reads an escape behind its backslash and returns what follows. `None` if there is no such escape.
fn escape<'a>(text: &'a str, quote: char, out: &mut Vec<u8>) -> Option<&'a str> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let simple = match kind {
        'a' => 7,
        'b' => 8,
        't' => b'\t',
        'n' => b'\n',
        'v' => 11,
        'f' => 12,
        'r' => b'\r',
        '\\' => b'\\',
        'x' => return byte(rest, 2, 16, out),
        'u' => return scalar(rest, 4, out),
        'U' => return scalar(rest, 8, out),
        '0'..='7' => return byte(text, 3, 8, out),
        _ if kind == quote => quote as u8,
        _ => return None,
    };
    out.push(simple);
    Some(rest)
}

fn digits(text: &str, count: usize, radix: u32) -> Option<(u32, &str)> {
    let digits = text.get(..count)?;
    // No sign, which the parser of numbers would take.
    digits.chars().all(|digit| digit.is_digit(radix)).then_some(())?;
    Some((u32::from_str_radix(digits, radix).ok()?, &text[count..]))
}

fn byte<'a>(text: &'a str, count: usize, radix: u32, out: &mut Vec<u8>) -> Option<&'a str> {
    let (value, rest) = digits(text, count, radix)?;
    out.push(u8::try_from(value).ok()?);
    Some(rest)
}

fn scalar<'a>(text: &'a str, count: usize, out: &mut Vec<u8>) -> Option<&'a str> {
    let (value, rest) = digits(text, count, 16)?;
    let scalar = char::from_u32(value)?;
    out.extend_from_slice(scalar.encode_utf8(&mut [0; 4]).as_bytes());
    Some(rest)
}
