//! The keys that the tools' own parsers take, recorded from the tools (data/launch_fields.py): a key that no tool has is told from one
//! that does not concern memory, and what is written is held against the list.

use std::collections::BTreeMap;
use std::sync::OnceLock;

/// What one tool takes.
#[derive(Debug, serde::Deserialize)]
pub struct Tool {
    /// Package and version that was asked.
    pub tool: String,
    /// Each key (`table.key` within tables) and the kinds of its values: bool, int, float, str, list, dict, null, any; `=word` is one of a
    /// fixed set.
    pub fields: BTreeMap<String, Vec<String>>,
}

/// The tools, by the name of the format.
///
/// # Panics
/// Never: the list is a part of the program, and its test reads it.
pub fn tools() -> &'static BTreeMap<String, Tool> {
    static TOOLS: OnceLock<BTreeMap<String, Tool>> = OnceLock::new();
    TOOLS.get_or_init(|| {
        serde_json::from_str(include_str!("../../data/launch-fields.json"))
            .expect("the list of fields is JSON")
    })
}

/// The tool of a name as reports say it, where its list holds every key that a file may have. (A script of transformers adds arguments of
/// its own, a recipe of torchtune its own keys; of DeepSpeed's configuration only a part is recorded.)
pub(super) fn whole(tool: &str) -> Option<&'static Tool> {
    let format = match tool {
        "axolotl" => "axolotl",
        "TRL" => "trl",
        "LLaMA-Factory" => "llamafactory",
        "torchtitan" => "torchtitan",
        "accelerate" => "accelerate",
        _ => return None,
    };
    tools().get(format)
}
