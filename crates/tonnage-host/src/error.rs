//! Why a model's files are not to be had.

use std::path::PathBuf;
use tonnage_model::readers::ReadError;

/// One sentence each; [`HostError::help`] says what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HostError {
    #[error("`{0}` is not the id of a model")]
    BadId(String),
    #[error("`{0}` is not a revision")]
    BadRevision(String),
    #[error("{}: {problem}", path.display())]
    Unreadable { path: PathBuf, problem: String },
    /// A file that is there and is not what its name says.
    #[error("{name}: {error}")]
    Damaged { name: String, error: ReadError },
    #[error("{path}: no config.json and no adapter_config.json in this folder", path = .0.display())]
    NotAModel(PathBuf),
    #[error("{id} is neither built in nor in the cache{}, and {variable} forbids to ask the hub", cache.as_ref().map_or_else(String::new, |c| format!(" ({})", c.display())))]
    Offline {
        id: String,
        cache: Option<PathBuf>,
        variable: &'static str,
    },
    #[error("`{0}` (HF_ENDPOINT) is not an http or https address")]
    BadEndpoint(String),
    #[error("{endpoint} has no public model {id}")]
    NotFound { endpoint: String, id: String },
    #[error("{id} has no revision `{revision}`")]
    NoRevision { id: String, revision: String },
    #[error("{id} has no config.json: not a model that transformers loads")]
    NoConfig { id: String },
    #[error("{id} has no model file{}", tag.as_ref().map_or_else(String::new, |t| format!(" of the quantisation {t}")))]
    NoGguf { id: String, tag: Option<String> },
    #[error("`{0}` is not the name of an Ollama model")]
    BadOllamaName(String),
    #[error("Ollama's store has no model {name} ({})", stores.iter().map(|s| s.display().to_string()).collect::<Vec<_>>().join(", "))]
    NotInOllama { name: String, stores: Vec<PathBuf> },
    #[error("{id} is gated, and {}", if *token { "this token has no access to it" } else { "no token is given" })]
    Gated {
        endpoint: String,
        id: String,
        token: bool,
    },
    #[error("{host} refuses {id} (HTTP {status}{}): {}", said(message), if *token { "the token is not valid, or has no access" } else { "it does not exist, or is private" })]
    Refused {
        host: String,
        id: String,
        status: u16,
        message: String,
        token: bool,
    },
    #[error("{host} cannot be reached: {problem}")]
    Unreachable { host: String, problem: String },
    #[error("{url}: HTTP {status}")]
    Status { url: String, status: u16 },
    #[error("{url}: more than {most} bytes")]
    TooLarge { url: String, most: u64 },
    #[error("{url}: {problem}")]
    BadAnswer { url: String, problem: String },
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(", \"{message}\"")
    }
}

impl HostError {
    /// Not the input's fault: the network, the hub, or missing rights.
    pub fn is_unavailable(&self) -> bool {
        !matches!(
            self,
            HostError::BadId(_)
                | HostError::BadRevision(_)
                | HostError::Unreadable { .. }
                | HostError::Damaged { .. }
                | HostError::NotAModel(_)
                | HostError::NotFound { .. }
                | HostError::NoRevision { .. }
                | HostError::NoConfig { .. }
                | HostError::NoGguf { .. }
                | HostError::BadOllamaName(_)
        )
    }

    /// What to do.
    pub fn help(&self) -> Option<String> {
        let token = "set HF_TOKEN (or log in: `hf auth login`)";
        Some(match self {
            HostError::BadId(_) => {
                "an id is `organisation/name`, as in the model page's address".into()
            }
            HostError::BadRevision(_) => "a branch, a tag or a commit".into(),
            HostError::NotAModel(_) => {
                "give the folder that `save_pretrained` wrote, or a config.json".into()
            }
            HostError::Offline { variable, .. } => {
                format!(
                    "unset {variable}, download the model's config.json and give its path, or name a model of `tonnage models`"
                )
            }
            HostError::BadEndpoint(_) => "e.g. HF_ENDPOINT=https://huggingface.co".into(),
            HostError::NotFound { .. } => "see `tonnage models NAME` for the built-in ones".into(),
            HostError::NoRevision { .. } => "a branch, a tag or a commit of that repository".into(),
            HostError::NoConfig { .. } => {
                "give the configuration by `[model] type` and `[model.config]`".into()
            }
            HostError::NoGguf { .. } => {
                "REPO:QUANTISATION, for example ...-GGUF:Q4_K_M, or --hf-file NAME".into()
            }
            HostError::BadOllamaName(_) => "for example llama3.2:3b".into(),
            HostError::NotInOllama { name, .. } => format!(
                "`ollama pull {name}` fetches it (OLLAMA_MODELS says where the store is); or give a .gguf file"
            ),
            HostError::Gated {
                endpoint,
                id,
                token: given,
            } => {
                let accept = format!("accept its conditions at {endpoint}/{id}");
                if *given {
                    format!("{accept} with the account of this token")
                } else {
                    format!("{accept}, then {token}")
                }
            }
            HostError::Refused { token: given, .. } => {
                if *given {
                    "check the id and the token (HF_TOKEN, or the file of `hf auth login`)".into()
                } else {
                    format!("check the id; for a private model {token}")
                }
            }
            HostError::Unreachable { .. } => {
                "check the network (HTTPS_PROXY, HF_ENDPOINT), or give a folder or a config.json"
                    .into()
            }
            HostError::Status { status: 429, .. } => format!("too many requests: wait, or {token}"),
            HostError::Status { status: 500.., .. } => {
                "the hub has a problem: try again later".into()
            }
            _ => return None,
        })
    }
}
