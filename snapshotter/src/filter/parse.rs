//! The parser. It takes white space before operators, values and fields, as containerd's does, but not behind values.

use regex::RegexBuilder;

use super::quote::unquote;
use super::{Field, FilterError, Selector, Test};

/// What a regular expression may take in memory once compiled.
const REGEX_BYTES: usize = 1 << 20;

/// Reads one filter: selectors that must all hold.
pub(super) fn parse(filter: &str) -> Result<Vec<Selector>, FilterError> {
    let mut parser = Parser { filter, position: 0 };
    let mut selectors = vec![parser.selector()?];
    while let Some(next) = parser.peek() {
        if next != ',' {
            return Err(parser.error(parser.position, format!("unexpected {next:?}")));
        }
        parser.position += 1;
        selectors.push(parser.selector()?);
    }
    Ok(selectors)
}

struct Parser<'a> {
    filter: &'a str,
    /// In bytes.
    position: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, position: usize, reason: impl Into<String>) -> FilterError {
        FilterError { filter: self.filter.into(), position, reason: reason.into() }
    }

    fn rest(&self) -> &'a str {
        &self.filter[self.position..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_space(&mut self) {
        self.take(char::is_whitespace);
    }

    fn take(&mut self, accepted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|next| !accepted(next)).unwrap_or(rest.len())];
        self.position += taken.len();
        taken
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.position += 1;
            path.push(self.field()?);
        }
        let field = Field::of_path(&path);
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { field, test: Test::Present });
        }
        Ok(Selector { field, test: self.test()? })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.skip_space();
        let start = self.position;
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let field = self.take(|next| next == '_' || next.is_ascii_alphanumeric());
        if field.is_empty() { Err(self.error(start, "expected a field")) } else { Ok(field.into()) }
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        self.skip_space();
        let start = self.position;
        let operator = self.take(|next| matches!(next, '=' | '!' | '~'));
        match operator {
            "==" => Ok(Test::Equal(self.value(false)?)),
            "!=" => Ok(Test::NotEqual(self.value(false)?)),
            "~=" => self.regex(),
            "" => Err(self.error(start, "expected an operator, one of == != ~=")),
            other => Err(self.error(start, format!("unknown operator {other:?}"))),
        }
    }

    fn regex(&mut self) -> Result<Test, FilterError> {
        self.skip_space();
        let start = self.position;
        let expression = self.value(true)?;
        match RegexBuilder::new(&expression).size_limit(REGEX_BYTES).build() {
            Ok(regex) => Ok(Test::Matches(regex)),
            Err(error) => {
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                Err(self.error(start, format!("invalid regular expression: {reason}")))
            }
        }
    }

    fn value(&mut self, other_quotes: bool) -> Result<String, FilterError> {
        self.skip_space();
        let start = self.position;
        match self.peek() {
            Some('"') => self.quoted(),
            Some('|' | '/') if other_quotes => self.quoted(),
            Some('|' | '/') => Err(self.error(start, "quotes other than \" stand behind ~= only")),
            // A field's or an operator's beginning is none of a value, though it may hold them later.
            Some('.' | '=' | '!' | '~') => Err(self.error(start, "expected a value")),
            _ => {
                let value = self.take(|next| next != ',' && !next.is_whitespace() && !next.is_control());
                if value.is_empty() { Err(self.error(start, "expected a value")) } else { Ok(value.into()) }
            }
        }
    }

    /// The cursor is on the opening quote.
    fn quoted(&mut self) -> Result<String, FilterError> {
        let start = self.position;
        let Some(quote) = self.peek() else { return Err(self.error(start, "expected a quoted text")) };
        let mut escaped = false;
        let inside = self.rest().char_indices().skip(1);
        let end = inside.into_iter().find(|(_, next)| {
            let closes = *next == quote && !escaped;
            escaped = *next == '\\' && !escaped;
            closes
        });
        let Some((end, _)) = end else { return Err(self.error(start, "quote is not closed")) };
        let quoted = &self.rest()[..=end];
        let text = unquote(quoted).map_err(|(at, reason)| self.error(start + at, reason))?;
        self.position += quoted.len();
        Ok(text)
    }
}
