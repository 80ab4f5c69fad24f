//! As much of Rust's syntax as the rules ask about: the paths that a file names and where it says `unsafe`.
//!
//! Comments, literals and items under `#[cfg(test)]` are left out.

/// What a file says, without its tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// Every path of two or more segments, and every imported one: its line and its segments joined by `::`.
    pub(crate) paths: Vec<(usize, String)>,
    /// Lines with an `unsafe` block, function, impl or trait.
    pub(crate) unsafe_lines: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Separator,
    Mark(char),
}

type Line = usize;

impl Source {
    /// Reads a source file. Text that is not Rust gives something, and never a panic.
    pub(crate) fn read(text: &str) -> Self {
        let tokens = without_tests(tokens(text));
        let mut source = Self::default();
        let mut position = 0;
        while let Some((line, token)) = tokens.get(position) {
            position += 1;
            match token {
                Token::Word(word) if word == "use" => {
                    position = read_use(&tokens, position, "", &mut source.paths);
                }
                Token::Word(word) if word == "unsafe" => {
                    // `#[unsafe(no_mangle)]` is an attribute.
                    if !is_mark(&tokens, position, '(') {
                        source.unsafe_lines.push(*line);
                    }
                }
                Token::Word(word) => {
                    let mut path = word.clone();
                    while let (Some((_, Token::Separator)), Some((_, Token::Word(next)))) =
                        (tokens.get(position), tokens.get(position + 1))
                    {
                        path = format!("{path}::{next}");
                        position += 2;
                    }
                    if path.len() > word.len() {
                        source.paths.push((*line, path));
                    }
                }
                Token::Separator | Token::Mark(_) => {}
            }
        }
        source
    }
}

/// Reads one tree of a `use` declaration and returns the position behind it.
fn read_use(
    tokens: &[(Line, Token)],
    mut position: usize,
    prefix: &str,
    paths: &mut Vec<(Line, String)>,
) -> usize {
    let mut path = prefix.to_owned();
    let mut line = tokens.get(position).map_or(0, |(line, _)| *line);
    let mut is_group = false;
    while let Some((at, token)) = tokens.get(position) {
        match token {
            Token::Word(word) if word == "as" => position += 1,
            Token::Word(word) => {
                line = *at;
                if !path.is_empty() {
                    path.push_str("::");
                }
                path.push_str(word);
            }
            Token::Separator => {}
            Token::Mark('*') => path.push_str("::*"),
            Token::Mark('{') => {
                is_group = true;
                position += 1;
                while !is_mark(tokens, position, '}') && position < tokens.len() {
                    position = read_use(tokens, position, &path, paths);
                    if is_mark(tokens, position, ',') {
                        position += 1;
                    }
                }
            }
            // `use<'a>` of a bound, or the end.
            Token::Mark(_) => break,
        }
        position += 1;
    }
    if !is_group && path.len() > prefix.len() {
        paths.push((line, path));
    }
    // A mark that no `use` has would never be passed in a group.
    match tokens.get(position) {
        Some((_, Token::Mark(',' | '}' | ';'))) | None => position,
        Some(_) => position + 1,
    }
}

fn is_mark(tokens: &[(Line, Token)], position: usize, mark: char) -> bool {
    matches!(tokens.get(position), Some((_, Token::Mark(found))) if *found == mark)
}

/// Leaves out `#[cfg(test)]` and the item behind it.
fn without_tests(tokens: Vec<(Line, Token)>) -> Vec<(Line, Token)> {
    let attribute: Vec<Token> = [
        Token::Mark('#'),
        Token::Mark('['),
        Token::Word("cfg".to_owned()),
        Token::Mark('('),
        Token::Word("test".to_owned()),
        Token::Mark(')'),
        Token::Mark(']'),
    ]
    .into();
    let mut kept = Vec::with_capacity(tokens.len());
    let mut position = 0;
    while position < tokens.len() {
        let ahead = tokens[position..].iter().map(|(_, token)| token);
        if ahead.take(attribute.len()).eq(&attribute) {
            position = end_of_item(&tokens, position + attribute.len());
        } else {
            kept.push(tokens[position].clone());
            position += 1;
        }
    }
    kept
}

/// Returns the position behind an item: behind its `;`, or the `}` of its body.
fn end_of_item(tokens: &[(Line, Token)], mut position: usize) -> usize {
    let mut depth = 0_usize;
    while let Some((_, token)) = tokens.get(position) {
        position += 1;
        match token {
            Token::Mark('{' | '(' | '[') => depth += 1,
            Token::Mark(')' | ']') => depth = depth.saturating_sub(1),
            Token::Mark('}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            Token::Mark(';') if depth == 0 => break,
            Token::Word(_) | Token::Separator | Token::Mark(_) => {}
        }
    }
    position
}

fn tokens(text: &str) -> Vec<(Line, Token)> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = literal(rest) {
            length
        } else if first == '_' || first.is_alphanumeric() {
            let is_end = |c: char| c != '_' && !c.is_alphanumeric();
            let length = rest.find(is_end).unwrap_or(rest.len());
            tokens.push((line, Token::Word(rest[..length].to_owned())));
            length
        } else if rest.starts_with("::") {
            tokens.push((line, Token::Separator));
            2
        } else {
            if !first.is_whitespace() {
                tokens.push((line, Token::Mark(first)));
            }
            first.len_utf8()
        };
        let (passed, remaining) = rest.split_at(length);
        line += passed.matches('\n').count();
        rest = remaining;
    }
    tokens
}

/// Returns the length of a block comment, with those inside it.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut position = 0;
    while position < text.len() {
        let rest = &text.as_bytes()[position..];
        if rest.starts_with(b"/*") {
            depth += 1;
            position += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            position += 2;
            if depth == 0 {
                return position;
            }
        } else {
            position += 1;
        }
    }
    text.len()
}

/// Returns the length of the string, byte string or character that the text begins with.
fn literal(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        let behind = text.strip_prefix(*prefix).unwrap_or_default().trim_start_matches('#');
        text.starts_with(prefix) && (behind.starts_with('"') || (*prefix == "b" && behind.starts_with('\'')))
    });
    if let Some(prefix) = prefix {
        let body = &text[prefix.len()..];
        if prefix.ends_with('r') {
            let hashes = body.len() - body.trim_start_matches('#').len();
            let end = format!("\"{}", "#".repeat(hashes));
            let content = body.get(hashes + 1..)?;
            let length = content.find(&end).map_or(content.len(), |at| at + end.len());
            return Some(prefix.len() + hashes + 1 + length);
        }
        if body.starts_with(['"', '\'']) {
            return Some(prefix.len() + quoted(body));
        }
    }
    // 'a' and '\n' are characters, 'a without a second quote is a lifetime.
    let mut behind = text.strip_prefix('\'')?.chars();
    let is_character = match behind.next()? {
        '\\' => true,
        _ => behind.next() == Some('\''),
    };
    Some(if is_character { quoted(text) } else { 1 })
}

/// Returns the length of a literal between its first character and the same, unescaped, again.
fn quoted(text: &str) -> usize {
    let quote = text.chars().next();
    let mut escaped = false;
    for (position, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if Some(c) == quote {
            return position + c.len_utf8();
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        Source::read(text).paths.into_iter().map(|(line, path)| format!("{line} {path}")).collect()
    }

    #[test]
    fn paths_are_found_wherever_they_are_written() {
        for (name, text, expected) in [
            ("an import", "use aya::Ebpf;", &["1 aya::Ebpf"][..]),
            ("of a whole crate", "use aya;", &["1 aya"]),
            ("absolute", "use ::lab::Netns;", &["1 lab::Netns"]),
            (
                "a group",
                "use std::{\n    fs,\n    net::{IpAddr, TcpStream as S},\n};\nfn f() {}",
                &["2 std::fs", "3 std::net::IpAddr", "3 std::net::TcpStream"],
            ),
            (
                "self and everything",
                "pub use crate::a::{self, b::*};",
                &["1 crate::a::self", "1 crate::a::b::*"],
            ),
            ("two imports", "use a::b;\nuse c::d;", &["1 a::b", "2 c::d"]),
            ("inline", "let x = tokio::time::sleep(d);", &["1 tokio::time::sleep"]),
            ("a call of a type's function", "\nInstant::now()", &["2 Instant::now"]),
            ("in a type", "fn f(x: Vec<aya::maps::MapData>) {}", &["1 aya::maps::MapData"]),
            ("a bound's use", "fn f<'a>() -> impl Sized + use<'a> { tokio::spawn(x) }", &["1 tokio::spawn"]),
            ("words alone", "let aya = 1;", &[]),
        ] {
            assert_eq!(paths(text), expected, "{name}");
        }
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        for (name, text) in [
            ("line comment", "// use aya::Ebpf; unsafe"),
            ("doc comment", "/// [`aya::Ebpf`] is unsafe"),
            ("block comment", "/* aya::a /* unsafe */ aya::b */"),
            ("comment without an end", "/* aya::a"),
            ("string", r#"let x = "aya::a \" unsafe";"#),
            ("byte string", r#"let x = b"aya::a unsafe";"#),
            ("raw string", r##"let x = r#"aya::a " unsafe"#;"##),
            ("raw byte string", r#"let x = br"aya::a unsafe\";"#),
            ("string without an end", r#"let x = "aya::a"#),
            ("attribute", "#[unsafe(no_mangle)]"),
        ] {
            assert_eq!(Source::read(text), Source::default(), "{name}");
        }
    }

    #[test]
    fn characters_and_lifetimes_do_not_swallow_code() {
        for text in [
            "let q = '\"'; a::b",
            "let q = '\\''; a::b",
            "fn f<'a>(x: &'a T) { a::b }",
            "let q = b'\\''; a::b",
        ] {
            assert_eq!(paths(text), ["1 a::b"], "{text}");
        }
    }

    #[test]
    fn tests_are_left_out() {
        let text = "\
#[cfg(test)]
pub mod fake;
#[cfg(test)]
#[allow(x)]
mod tests {
    use tokio::time;
    fn f() { unsafe { g() } }
}
#[cfg(test)]
use aya::Ebpf;
use kept::this;
";
        assert_eq!(paths(text), ["11 kept::this"]);
        assert_eq!(Source::read(text).unsafe_lines, [0_usize; 0]);
    }

    #[test]
    fn unsafe_is_found_in_blocks_functions_and_macros() {
        let text = "unsafe { a() }\nunsafe fn b() {}\nmacro_rules! c { () => { unsafe impl D for E {} } }";
        assert_eq!(Source::read(text).unsafe_lines, [1, 2, 3]);
    }

    #[test]
    fn no_cut_of_a_file_panics() {
        let text = include_str!("source.rs");
        for start in (0..text.len()).step_by(7) {
            Source::read(&text[start..(start + 300).min(text.len())]);
        }
    }
}
