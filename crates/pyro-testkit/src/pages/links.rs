//! The links of Markdown pages, and where they lead.

use std::fs;
use std::path::Path;

/// Returns the links of a page that lead to no file below `root`, or to no heading of one, as `PAGE:LINE: TARGET`.
///
/// # Panics
/// The page cannot be read.
pub fn broken_links(root: impl AsRef<Path>, page: &str) -> Vec<String> {
    let root = root.as_ref();
    let read =
        |page: &str| fs::read_to_string(root.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
    let text = read(page);
    let leads_somewhere = |target: &str| {
        let (path, anchor) = match target.split_once('#') {
            Some((path, anchor)) => (path, Some(anchor)),
            None => (target, None),
        };
        let leads_to = match path {
            "" => page.to_owned(),
            path => Path::new(page).with_file_name(path).to_str().unwrap().to_owned(),
        };
        let exists = root.join(&leads_to).exists();
        exists && anchor.is_none_or(|anchor| anchors(&read(&leads_to)).iter().any(|found| found == anchor))
    };
    links(&text)
        .into_iter()
        .filter(|(_, target)| !target.contains("://") && !leads_somewhere(target))
        .map(|(number, target)| format!("{page}:{number}: {target}"))
        .collect()
}

/// Returns the targets of links and pictures with the numbers of their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // What is between backticks is text.
        let mut is_code = false;
        let mut rest = line;
        while let Some(at) = rest.find(['`', ']']) {
            let (mark, after) = rest[at..].split_at(1);
            rest = after;
            if mark == "`" {
                is_code = !is_code;
            } else if !is_code
                && let Some((target, after)) = after.strip_prefix('(').and_then(|rest| rest.split_once(')'))
            {
                found.push((number, target));
                rest = after;
            }
        }
    }
    found
}

/// Returns the anchors of the headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = heading.trim().chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let earlier = (1..).map(|count| format!("{anchor}-{count}"));
        let unique = std::iter::once(anchor.clone()).chain(earlier).find(|anchor| !found.contains(anchor));
        found.extend(unique);
    }
    found
}

/// Returns the lines outside fenced blocks, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fence && !is_fenced
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sandbox;

    const PAGE: &str = "\
# The `page`, and *more*

See [below](#two-words), [again](#two-words-1), [a page](sub/other.md), [its part](sub/other.md#part),
and [the web](https://example.com/#x). `[code](nowhere.md)` is not a link.
![picture](picture.svg)

```sh
# No heading
echo '[text](nowhere.md)'
```

## Two words
## Two words
[broken](#no-heading) and [broken](sub/other.md#none), [broken](none.md), `x` [`code`](#the-page-and-more)
";

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let sandbox = Sandbox::new("pyro-links-");
        fs::create_dir(sandbox.path("sub")).unwrap();
        fs::write(sandbox.path("page.md"), PAGE).unwrap();
        fs::write(
            sandbox.path("sub/other.md"),
            "# Part\n\n[up](../page.md#two-words), [broken](../page.md#part)\n",
        )
        .unwrap();
        let broken = |page| broken_links(sandbox.root(), page);
        assert_eq!(
            broken("page.md"),
            [
                "page.md:5: picture.svg",
                "page.md:14: #no-heading",
                "page.md:14: sub/other.md#none",
                "page.md:14: none.md"
            ]
        );
        assert_eq!(broken("sub/other.md"), ["sub/other.md:3: ../page.md#part"]);
    }
}
