//! The small part of RFC 4180 that the catalogs use: quoted fields, doubled quotes, no line break inside a field.
//! Shared by the crate and its build script.

/// The fields of one line, unquoted. `None` when a quote is left open or text follows a closing quote.
pub fn fields(line: &str) -> Option<Vec<String>> {
    let mut out = Vec::with_capacity(32);
    let mut rest = line;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut tail = quoted;
            loop {
                let end = tail.find('"')?;
                field.push_str(&tail[..end]);
                tail = &tail[end + 1..];
                match tail.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        tail = more;
                    }
                    None => break,
                }
            }
            out.push(field);
            match tail.strip_prefix(',') {
                Some(more) => rest = more,
                None => return tail.is_empty().then_some(out),
            }
        } else {
            match rest.split_once(',') {
                Some((field, more)) => {
                    out.push(field.to_owned());
                    rest = more;
                }
                None => {
                    out.push(rest.to_owned());
                    return Some(out);
                }
            }
        }
    }
}
