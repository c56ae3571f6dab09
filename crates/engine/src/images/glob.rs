//! Patterns over names as Go's `path.Match` reads them: `*` and `?` stop at slashes, `[a-z]` is a
//! class, a backslash takes a meaning away.

/// Most pieces of `pattern` times characters of a name that are compared; beyond it nothing matches.
const STEPS_MAX: usize = 1 << 20;

/// Whether the whole `name` fits `pattern`. A malformed pattern fits nothing.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let mut steps = 0;
    fits(&pattern, &name, &mut steps)
}

fn fits(mut pattern: &[char], mut name: &[char], steps: &mut usize) -> bool {
    loop {
        *steps += 1;
        if *steps > STEPS_MAX {
            return false;
        }
        let Some(first) = pattern.first() else { return name.is_empty() };
        if *first == '*' {
            let rest = &pattern[1..];
            let end = name.iter().position(|c| *c == '/').unwrap_or(name.len());
            return (0..=end).any(|skip| fits(rest, &name[skip..], steps));
        }
        let Some((c, after)) = name.split_first() else { return false };
        let Some(used) = fit_one(pattern, *c) else { return false };
        (pattern, name) = (&pattern[used..], after);
    }
}

/// How many characters of `pattern` the character `c` fits, if it does.
fn fit_one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => (c != '/').then_some(1),
        ['\\', literal, ..] => (*literal == c).then_some(2),
        ['[', class @ ..] => {
            let end = class.iter().skip(1).position(|c| *c == ']')? + 1;
            let (negated, members) = match class.first() {
                Some('^') => (true, &class[1..end]),
                _ => (false, &class[..end]),
            };
            (is_member(members, c) != negated).then_some(end + 2)
        }
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

fn is_member(members: &[char], c: char) -> bool {
    match members {
        [low, '-', high, rest @ ..] => (*low..=*high).contains(&c) || is_member(rest, c),
        [one, rest @ ..] => *one == c || is_member(rest, c),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_fit_as_in_go() {
        for (pattern, name, expected) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox:latest", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[abc", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("", "", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert!(!matches(&"*a".repeat(60), &"a".repeat(200).replace("aaaa", "aaab")));
    }
}
