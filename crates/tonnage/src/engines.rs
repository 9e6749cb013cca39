//! A model file of llama.cpp is a job as it is: `tonnage estimate FILE.gguf FLAGS` is `tonnage estimate -- llama-server -m FILE.gguf FLAGS`, so that
//! the engine's flags are read by the engine's table.

use std::ffi::OsString;

/// Verbs that take an engine's command line.
const VERBS: [&str; 2] = ["estimate", "fit"];
/// Flags of these verbs that take a value, and that do not.
const OWN: [&str; 8] = [
    "--catalog",
    "--gpu",
    "--gpu-count",
    "--format",
    "--units",
    "--width",
    "--explain",
    "--method",
];
const OWN_ALONE: [&str; 5] = ["--ascii", "--help", "-h", "--advice", "--expected-only"];

/// Flags that name a model file on a hub.
const HUB: [&str; 4] = ["--hf", "-hf", "-hfr", "--hf-repo"];

/// A model file by its name.
pub fn is_model_file(word: &str) -> bool {
    word.ends_with(".gguf") || word.ends_with(".gguf-header")
}

/// The arguments, with a model file's flags behind `--`.
pub fn arguments(all: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let all: Vec<OsString> = all.collect();
    let words: Option<Vec<&str>> = all.iter().map(|w| w.to_str()).collect();
    words
        .and_then(|w| rewritten(&w))
        .map_or(all, |w| w.into_iter().map(OsString::from).collect())
}

fn rewritten(words: &[&str]) -> Option<Vec<String>> {
    let mut verb = 1;
    // global flags may stand before the verb
    while words.get(verb).is_some_and(|w| w.starts_with('-')) {
        verb += if OWN.contains(&words[verb]) { 2 } else { 1 };
    }
    if !words.get(verb).is_some_and(|w| VERBS.contains(w)) {
        return None;
    }
    let rest = &words[verb + 1..];
    if rest.contains(&"--") {
        return None;
    }
    let (mut own, mut engine) = (Vec::new(), Vec::new());
    let mut file = None;
    let mut i = 0;
    while i < rest.len() {
        let w = rest[i];
        let name = w.split_once('=').map_or(w, |(n, _)| n);
        i += 1;
        if OWN_ALONE.contains(&w) || (OWN.contains(&name) && w.contains('=')) {
            own.push(w);
        } else if OWN.contains(&w) {
            own.push(w);
            if let Some(v) = rest.get(i) {
                own.push(v);
                i += 1;
            }
        } else if file.is_none()
            && !w.starts_with('-')
            && (is_model_file(w) || w.starts_with("ollama:") || crate::headers::known(w))
            && !engine
                .last()
                .is_some_and(|l: &&str| *l == "-m" || *l == "--model")
        {
            file = Some(w);
        } else {
            engine.push(w);
        }
    }
    let mut out: Vec<String> = words[..=verb].iter().map(|w| w.to_string()).collect();
    out.extend(own.iter().map(|w| w.to_string()));
    let hub = |w: &&str| HUB.contains(w) || w.starts_with("--hf=");
    match file {
        Some(f) => match f.strip_prefix("ollama:") {
            Some(name) => out.extend(["--", "ollama", "run", name].map(String::from)),
            None => out.extend(["--", "llama-server", "-m", f].map(String::from)),
        },
        None if engine.iter().any(hub) => {
            out.extend(["--", "llama-server"].map(String::from));
            for w in &engine {
                match w.strip_prefix("--hf=") {
                    Some(repo) => out.extend(["--hf-repo".into(), repo.to_string()]),
                    None if *w == "--hf" => out.push("--hf-repo".into()),
                    None => out.push(w.to_string()),
                }
            }
            return Some(out);
        }
        None => return None,
    }
    out.extend(engine.iter().map(|w| w.to_string()));
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(t: &str) -> String {
        let w: Vec<&str> = t.split(' ').collect();
        rewritten(&w).map_or("as it is".into(), |w| w.join(" "))
    }

    #[test]
    fn a_model_file_is_llama_servers() {
        assert_eq!(
            given("tonnage estimate m.gguf --context-len 8192 --gpu rtx-4090 -ngl 20"),
            "tonnage estimate --gpu rtx-4090 -- llama-server -m m.gguf --context-len 8192 -ngl 20"
        );
        assert_eq!(
            given("tonnage --ascii estimate --gpu=a -c 4096 m.gguf --format json"),
            "tonnage --ascii estimate --gpu=a --format json -- llama-server -m m.gguf -c 4096"
        );
        assert_eq!(
            given("tonnage estimate ollama:llama3.2:3b --gpu a"),
            "tonnage estimate --gpu a -- ollama run llama3.2:3b"
        );
        assert_eq!(
            given("tonnage estimate --hf org/m-GGUF:Q4_K_M --gpu a -c 4096"),
            "tonnage estimate --gpu a -- llama-server --hf-repo org/m-GGUF:Q4_K_M -c 4096"
        );
        assert_eq!(
            given("tonnage --width 80 fit m.gguf"),
            "tonnage --width 80 fit -- llama-server -m m.gguf"
        );
        assert_eq!(given("tonnage estimate job.toml --gpu a"), "as it is");
        assert_eq!(given("tonnage models m.gguf"), "as it is");
        assert_eq!(
            given("tonnage estimate -- llama-server -m m.gguf"),
            "as it is"
        );
    }
}
